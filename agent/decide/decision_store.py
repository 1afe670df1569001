"""SQL on the tables of jobs.db that hold decisions: rounds, choices and outcomes.

Writes need a running attempt's token. A round is one transaction, written again by an attempt that repeats it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from agent.decide.classifier import Classifier, Vector
from agent.queue.jobs import to_json
from agent.queue.store import Rows, Store

REMEMBERED = 5000
"""Outcomes of earlier jobs, the newest, that a job's classifier learns from before it starts."""


@dataclass(frozen=True)
class Outcome:
    """The result of an action on an example: the expected gain in reward and the real one.

    `action` is weights or rewrite; `features` and `kinds` are what the choice saw; `told` says it in a few words.
    """

    example: str
    action: str
    features: Vector
    kinds: tuple[str, ...]
    expected: float
    gain: float
    told: str

    def teach(self, classifier: Classifier) -> Classifier:
        """The classifier after this outcome."""
        if self.action == "weights":
            return classifier.learn_from_tuning(self.features, self.gain)
        return classifier.learn_from_rewrite(self.features, self.kinds, self.gain)


@dataclass(frozen=True)
class Chosen:
    """The choice for one example as it is stored; `standing` and `gains` are JSON objects for `explain`."""

    example: str
    line: int
    state: str
    reason: str
    standing: dict[str, Any]
    gains: dict[str, Any]


@dataclass(frozen=True)
class Round:
    """One round of a job: what it did and why, why it ended, and its figures.

    The last one has the phase "stop", which says why the job went no further, and no figures.
    """

    number: int
    phase: str
    why: str
    ended: str
    figures: dict[str, Any]


class DecisionStore:
    """Decisions of one job; `store` is an open one."""

    def __init__(self, store: Store, job: int) -> None:
        self._store, self._job = store, job

    # ---- writes of a running attempt ----

    def choose(self, token: str, number: int, choices: Iterable[Chosen]) -> None:
        """Keep the choices of a round that differ from the example's last one. Raises StaleAttempt."""
        rows = [  # made before the transaction: `choices` may be computed as they are read
            (
                *(self._job, each.example, number, each.line, each.state, each.reason),
                *(to_json(each.standing), to_json(each.gains)),
            )
            for each in choices
        ]
        with self._store.attempt(self._job, token):
            self._forget_from(number)
            last = {row["example"]: row["state"] for row in self._last_choices()}
            for row in rows:
                example, state = row[1], row[4]
                if last.get(example) != state:
                    self._store.execute("INSERT INTO choices VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def forget(self) -> None:
        """Delete everything that was decided in a job that has ended."""
        with self._store.transaction():
            self._forget_from(0)

    def _forget_from(self, number: int) -> None:
        """Remove what an attempt that died left of this round and later ones."""
        for table in ("rounds", "choices", "outcomes"):
            self._store.execute(f"DELETE FROM {table} WHERE job = ? AND round >= ?", (self._job, number))  # noqa: S608  ours

    def finish(self, token: str, done: Round, outcomes: Iterable[Outcome]) -> None:
        """Keep a round that is over, and what came of its actions. Raises StaleAttempt."""
        of = {"job": self._job, "round": done.number}
        rows = [
            {**asdict(each), "features": to_json(each.features), "kinds": to_json(each.kinds), **of}
            for each in outcomes
        ]
        fields = (self._job, done.number, done.phase, done.why, done.ended, to_json(done.figures))
        with self._store.attempt(self._job, token):
            self._store.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?, ?, ?)", fields)
            for row in rows:
                self._store.execute(
                    "INSERT OR REPLACE INTO outcomes"
                    " (job, round, example, action, features, kinds, expected, gain, told)"
                    " VALUES (:job, :round, :example, :action, :features, :kinds, :expected, :gain, :told)",
                    row,
                )

    # ---- reads ----

    def rounds(self) -> list[Round]:
        """The rounds that are over, in order."""
        sql = "SELECT round AS number, phase, why, ended, figures FROM rounds WHERE job = ? ORDER BY round"
        rows = self._store.execute(sql, (self._job,))
        return [Round(**{**row, "figures": json.loads(row["figures"])}) for row in rows]

    def _last_choices(self) -> Rows:
        return self._store.execute(
            "SELECT example, line, state, reason, standing, gains, max(round) AS round FROM choices WHERE job = ?"
            " GROUP BY example ORDER BY line",
            (self._job,),
        )

    def last_choices(self) -> Rows:
        """The newest choice for each example, in the order of the file."""
        return [_with_objects(row) for row in self._last_choices()]

    def choices(self, example: str) -> Rows:
        """All choices for one example that differed from the one before, in order."""
        sql = "SELECT * FROM choices WHERE job = ? AND example = ? ORDER BY round"
        return [_with_objects(row) for row in self._store.execute(sql, (self._job, example))]

    def outcomes(self, example: str | None = None) -> Rows:
        """The results of the actions on one example, or on all, in order."""
        where, more = ("", ()) if example is None else (" AND example = ?", (example,))
        sql = f"SELECT * FROM outcomes WHERE job = ?{where} ORDER BY id"  # noqa: S608  only a question mark goes in
        rows = self._store.execute(sql, (self._job, *more))
        return [{**row, **{key: json.loads(row[key]) for key in ("features", "kinds")}} for row in rows]

    def earlier_outcomes(self) -> list[Outcome]:
        """The newest outcomes of the jobs before this one, oldest first: what the box has taught so far."""
        sql = (
            "SELECT example, action, features, kinds, expected, gain, told FROM outcomes WHERE job < ?"
            " ORDER BY id DESC LIMIT ?"
        )
        rows = reversed(self._store.execute(sql, (self._job, REMEMBERED)))
        lists = ("features", "kinds")
        return [Outcome(**{**row, **{key: tuple(json.loads(row[key])) for key in lists}}) for row in rows]


def _with_objects(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, **{key: json.loads(row[key]) for key in ("standing", "gains")}}
