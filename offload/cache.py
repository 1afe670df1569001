"""Recorded answers: what was asked once is never paid for again, and can be replayed on a machine without a network."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlite_utils

from agent.errors import DataError
from offload.database import transaction

Messages = list[dict[str, str]]
EXPORTED = ("endpoint", "model", "parameters", "messages", "answer", "text", "prompt_tokens", "completion_tokens")
"""Fields of an exported row; the keys are computed again at import, so that no file can plant an answer elsewhere."""

FOUND = "key, answer, text, prompt_tokens, completion_tokens"


@dataclass(frozen=True)
class Question:
    """Everything an answer depends on."""

    endpoint: str
    model: str
    parameters: dict[str, Any]
    messages: Messages

    @property
    def replay(self) -> str:
        """The key without the endpoint, by which recorded answers are found on any machine."""
        return _digest([self.model, self.parameters, self.messages])

    @property
    def key(self) -> str:
        """The key in the cache."""
        return _digest([self.endpoint, self.replay])


@dataclass(frozen=True)
class Recorded:
    """A recorded answer; `text` is what TextGrad's step made of it, None if it has not (yet) made anything."""

    key: str
    answer: str
    text: str | None
    prompt_tokens: int
    completion_tokens: int


class Cache:
    """The recorded answers in `database`, at most `limit` bytes of them; times are those of `clock`."""

    def __init__(
        self, database: sqlite_utils.Database, limit: int, *, any_endpoint: bool, clock: Callable[[], float] = time.time
    ) -> None:
        self._database, self._limit, self._clock = database, limit, clock
        self._column = "replay" if any_endpoint else "key"

    def get(self, question: Question) -> Recorded | None:
        """The answer, now the most recently used, or None."""
        key = question.replay if self._column == "replay" else question.key
        # `key` breaks ties among endpoints, so that a replay is the same everywhere.
        chosen = f"SELECT key FROM answers WHERE {self._column} = ? ORDER BY key LIMIT 1"  # noqa: S608
        sql = f"UPDATE answers SET used = ?, hits = hits + 1 WHERE key = ({chosen}) RETURNING {FOUND}"  # noqa: S608
        with transaction(self._database):
            rows = self._database.execute(sql, (self._clock(), key)).fetchall()
        return Recorded(*rows[0]) if rows else None

    def known(self, question: Question) -> bool:
        """Whether the answer is there; does not count as a use."""
        key = question.replay if self._column == "replay" else question.key
        return bool(self._database["answers"].count_where(f"{self._column} = ?", [key]))

    def put(self, question: Question, answer: str, prompt_tokens: int, completion_tokens: int) -> Recorded:
        """Record an answer, making room where the cache is full."""
        row = {
            "endpoint": question.endpoint,
            "model": question.model,
            "parameters": question.parameters,
            "messages": question.messages,
            "answer": answer,
            "text": None,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
        }
        with transaction(self._database):
            self._insert(question, row)
            self._evict(keep=question.key)
        return Recorded(question.key, answer, None, prompt_tokens, completion_tokens)

    def note_text(self, key: str, text: str) -> None:
        """Record what TextGrad's step made of an answer."""
        with transaction(self._database):
            self._database.execute(
                "UPDATE answers SET text = ?1, bytes = bytes + length(CAST(?1 AS BLOB)) WHERE key = ?2", (text, key)
            )

    def _insert(self, question: Question, row: dict[str, Any]) -> None:
        size = len(json.dumps(row))
        now = self._clock()
        stored = {**row, "parameters": json.dumps(row["parameters"]), "messages": json.dumps(row["messages"])}
        keys = {"key": question.key, "replay": question.replay}
        self._database["answers"].insert({**keys, **stored, "created": now, "used": now, "bytes": size}, replace=True)

    def _evict(self, keep: str = "") -> None:
        """Drop the least recently used answers until the rest fits."""
        self._database.execute(
            "DELETE FROM answers WHERE key != ? AND key IN (SELECT key FROM (SELECT key,"
            " sum(bytes) OVER (ORDER BY used DESC, key) AS together FROM answers) WHERE together > ?)",
            (keep, self._limit),
        )

    # ---- one request at a time for one answer ----

    def lease(self, key: str, owner: str, seconds: float) -> bool:
        """Take or renew the right to ask for an answer; False while somebody else holds it."""
        now = self._clock()
        with transaction(self._database):
            taken = self._database.execute(
                "INSERT INTO leases VALUES (?1, ?2, ?3) ON CONFLICT (key) DO UPDATE SET owner = ?2, expires = ?3"
                " WHERE owner = ?2 OR expires <= ?4 OR expires > ?3 RETURNING key",
                (key, owner, now + seconds, now),
            ).fetchall()
        return bool(taken)

    def release(self, key: str, owner: str) -> None:
        """Give the right back."""
        with transaction(self._database):
            self._database.execute("DELETE FROM leases WHERE key = ? AND owner = ?", (key, owner))

    # ---- for people ----

    def figures(self) -> dict[str, Any]:
        """Number of answers, their bytes and hits, answers by model, and the oldest use in unix time."""
        (row,) = self._database.query(
            "SELECT count(*) AS answers, coalesce(sum(bytes), 0) AS bytes, coalesce(sum(hits), 0) AS hits,"
            " min(used) AS oldest FROM answers"
        )
        models = self._database.query("SELECT model, count(*) AS answers FROM answers GROUP BY 1 ORDER BY 1")
        return {**row, "models": {entry["model"]: entry["answers"] for entry in models}}

    def prune(self, older_than: float) -> tuple[int, int]:
        """Forget answers unused for that many seconds; returns how many, and their bytes."""
        with transaction(self._database):
            gone = self._database.execute(
                "DELETE FROM answers WHERE used < ? RETURNING bytes", (self._clock() - older_than,)
            ).fetchall()
        return len(gone), sum(size for (size,) in gone)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every answer as it is exported, in an order that depends on the contents alone."""
        for row in self._database.query(f"SELECT {', '.join(EXPORTED)} FROM answers ORDER BY replay, key"):  # noqa: S608
            yield {**row, "parameters": json.loads(row["parameters"]), "messages": json.loads(row["messages"])}

    def take_over(self, lines: Iterable[bytes], path: Path, checked: Callable[[str, str | None], bool]) -> list[int]:
        """Import exported lines, all or none; returns how many, and how many were known before.

        `checked(answer, text)` says whether a text is what TextGrad's step makes of the answer. Raises DataError,
        naming the line, for anything that is not an exported row.
        """
        known = count = 0
        with transaction(self._database):
            for count, line in enumerate(lines, start=1):
                question, row = _parsed(line, f"{path} line {count}", checked)
                there = self._database["answers"].count_where("key = ?", [question.key]) > 0
                known += there
                if not there:
                    self._insert(question, row)
            self._evict()
        return [count, known]


def _parsed(line: bytes, where: str, checked: Callable[[str, str | None], bool]) -> tuple[Question, dict[str, Any]]:
    try:
        row = json.loads(line)
        row = {name: row[name] for name in EXPORTED}
        question = Question(row["endpoint"], row["model"], dict(row["parameters"]), _messages(row["messages"]))
        sound = all(isinstance(row[name], str) for name in ("endpoint", "model", "answer"))
        sound &= all(isinstance(row[name], int) for name in ("prompt_tokens", "completion_tokens"))
    except (ValueError, KeyError, TypeError, RecursionError) as fault:
        raise DataError(f"{where} is no exported answer ({type(fault).__name__}: {fault})") from fault
    if not sound or not checked(row["answer"], row["text"]):
        raise DataError(f"{where} is no exported answer, or its text is not what the answer holds")
    return question, row


def _messages(value: Any) -> Messages:
    if not all(isinstance(m[name], str) for m in value for name in ("role", "content")):
        raise TypeError("a message without a role and a content")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
