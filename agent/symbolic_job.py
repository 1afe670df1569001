"""A symbolic job: rewrite the flagged examples and the system prompt, and leave the weights as they are.

What it makes: runs/<job>/remade.jsonl, all rows with the accepted rewrites in place, ready for `enqueue`; and, where
the system prompt was improved, a version with it and the parent's adapter, which the gate judges as any other.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

from agent import symbolic
from agent.attempt import Attempt
from agent.config import read_config
from agent.durable import write_file, write_json
from agent.errors import DataError
from agent.settings import Offload
from agent.shapes import Example
from agent.stages import Stages
from agent.symbolic import Flag, Outcome

TRY_AGAIN = 300.0
"""Seconds after which a parked job is tried again where the remote did not say when."""
REMADE, REWRITES = "remade.jsonl", "rewrites.jsonl"


class Parked(Exception):
    """Everything that is left needs the remote LLM; `wake` is when to try again, in unix seconds."""

    def __init__(self, reason: str, wake: float) -> None:
        super().__init__(reason)
        self.wake = wake


class SymbolicJob(Stages):
    """Rewrites text on the remote LLM's advice."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self.offload: Offload = read_config(self.home.config).offload

    def work(self) -> tuple[str, int | None]:
        """Do what is left of the job; returns how it ended, and the version that was made, if any. Raises Parked."""
        made = self.registry.find_by_job(self.job.id)
        if made is not None:
            return f"{self.registry.get(made).about['figures']['rewrites']} {self.promote(made)}", made
        self.start()
        outcomes, prompt = self._rewrite()
        said = _in_words(outcomes)
        if prompt.state != "remade":
            why = prompt.reasons[0] if prompt.reasons else "no case to learn from"
            return f"{said} The system prompt stays as it was: {why}.", None
        made = self._make(said, outcomes, prompt.text)
        return f"{said} {self.promote(made)}", made

    @cached_property
    def flagged(self) -> list[tuple[Example, Flag]]:
        """The examples that lack style or constraint. Raises DataError for a constraint that cannot be checked."""
        try:
            found = [(example, symbolic.flag(example, self.offload)) for example in self.examples[0]]
        except ValueError as fault:
            raise DataError(f"{fault}; mend the row and enqueue the file again") from fault
        return [(example, flag) for example, flag in found if flag is not None]

    def _rewrite(self) -> tuple[list[Outcome], Outcome]:
        """Offer every flagged example for a rewrite, then the system prompt. Raises Parked if some have to wait."""
        self.attempt.phase("rewrite")
        outcomes: list[Outcome] = []
        for example, flag in self.flagged:
            self.attempt.beat(done=len(outcomes), flagged=len(self.flagged))
            request = symbolic.first_request(self.job.id, example, flag, self.offload.rewrite)
            outcomes.append(symbolic.rewrite(example, flag, request, self.attempt.ask_remote))
            self.attempt.events.add("rewrite", **outcomes[-1].to_json())
        self._write(outcomes)
        self._park_if_deferred(outcomes)
        prompt = self._improve_prompt()
        self._park_if_deferred([*outcomes, prompt])
        self.attempt.end_workers()
        return outcomes, prompt

    def _improve_prompt(self) -> Outcome:
        cases = symbolic.failing_cases(self.flagged)
        if not cases:
            return Outcome("system prompt", "satisfied", "", (), ())
        prompt = symbolic.improve_prompt(self.job.id, self.parent_prompt, cases, self.attempt.ask_remote)
        self.attempt.events.add("rewrite", **prompt.to_json())
        return prompt

    def _write(self, outcomes: list[Outcome]) -> None:
        """The outcomes, and all rows with the accepted rewrites in place."""
        new = {outcome.id: outcome for outcome in outcomes if outcome.state == "remade"}
        train, held_out = self.examples
        rows = [self._row(example, new.get(example.id), "train") for example in train]
        rows += [self._row(example, None, "held_out") for example in held_out]
        write_file(self.run / REMADE, _lines(rows))
        write_file(self.run / REWRITES, _lines([outcome.to_json() for outcome in outcomes]))

    def _row(self, example: Example, outcome: Outcome | None, split: str) -> dict[str, Any]:
        part = self.offload.rewrite
        now = symbolic.remade(example, part, outcome.text) if outcome else example
        lineage = {"remade": {"job": self.job.id, "part": part, "model": self.offload.model}} if outcome else {}
        return {**json.loads(now.to_json()), "split": split, **lineage}

    def _park_if_deferred(self, outcomes: list[Outcome]) -> None:
        deferred = [outcome for outcome in outcomes if outcome.state == "deferred"]
        if deferred:
            wake = max((outcome.retry_at or 0.0 for outcome in deferred), default=0.0)
            done = len(outcomes) - len(deferred)
            waiting = f"{len(deferred)} of {len(outcomes)} rewrites wait for the remote, {done} are done"
            raise Parked(
                f"{waiting}: {deferred[-1].reasons[0]}", wake if wake > time.time() else time.time() + TRY_AGAIN
            )

    @property
    def _has_adapter(self) -> bool:
        return self.registry.adapter(self.parent) is not None

    @property
    def _spent(self) -> dict[str, Any]:
        """What all attempts at this job asked of the remote LLM."""
        remote = self.attempt.remote
        names = ("requests", "tokens", "money")
        return {f"rewrite_{name}": getattr(remote, f"{name}_job") if remote else 0 for name in names}

    def _make(self, said: str, outcomes: list[Outcome], prompt: str) -> int:
        before = self.before()
        self.attempt.phase("load")
        self.load(self.parent)
        after = self.measure("after", prompt)
        verdict = self.judge(before, after)
        about = self.about(verdict, before, after, {"rewrites": said, "adapter": self._has_adapter, **self._spent})

        def fill(folder: Path) -> None:
            adapter = self.registry.adapter(self.parent)
            for path in adapter.glob("adapter_*") if adapter else ():
                shutil.copyfile(path, folder / path.name)
            (folder / "system_prompt.txt").write_text(prompt)
            shutil.copyfile(self.run / REMADE, folder / REMADE)
            write_json(folder / "rewrites.json", [outcome.to_json() for outcome in outcomes])

        return self.publish(about, {"before": before, "after": after}, fill)


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _in_words(outcomes: list[Outcome]) -> str:
    """How the rewrites ended, for people."""
    if not outcomes:
        return "No example lacks style or constraint."
    counts = Counter(outcome.state for outcome in outcomes)
    told = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    return f"{len(outcomes)} examples flagged: {told}."
