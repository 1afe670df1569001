"""A symbolic job: rewrite the flagged examples and the system prompt, and leave the weights as they are.

What it makes: runs/<job>/remade.jsonl, all rows with the accepted rewrites in place, ready for `enqueue`; and, where
the system prompt was improved, a version with it and the parent's adapter, which the gate judges as any other.
"""

from __future__ import annotations

import shutil
from collections import Counter
from functools import cached_property
from pathlib import Path

from agent.contract.atomic_io import write_file, write_json
from agent.contract.errors import DataError
from agent.contract.lines import json_line
from agent.contract.settings import Offload
from agent.data.formats import Example
from agent.runner import rewriting
from agent.runner.attempt import Attempt
from agent.runner.parking import park_if_deferred
from agent.runner.rewriting import Flag, Outcome
from agent.runner.rewritten_data import REMADE, Remade, lineage, write_remade
from agent.runner.stages import Stages
from agent.system.config import read_config

REWRITES = "rewrites.jsonl"


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
            found = [(example, rewriting.flag(example, self.offload)) for example in self.examples[0]]
        except ValueError as fault:
            raise DataError(f"{fault}; mend the row and enqueue the file again") from fault
        return [(example, flag) for example, flag in found if flag is not None]

    def _rewrite(self) -> tuple[list[Outcome], Outcome]:
        """Offer every flagged example for a rewrite, then the system prompt. Raises Parked if some have to wait."""
        self.attempt.phase("rewrite")
        outcomes: list[Outcome] = []
        for example, flag in self.flagged:
            self.attempt.beat(done=len(outcomes), flagged=len(self.flagged))
            request = rewriting.first_request(self.job.id, example, flag, self.offload.rewrite)
            outcomes.append(rewriting.rewrite(example, flag, request, self.attempt.ask_remote))
            self.attempt.events.add("rewrite", **outcomes[-1].to_json())
        self._write(outcomes)
        park_if_deferred(outcomes)
        prompt = self._improve_prompt()
        park_if_deferred([*outcomes, prompt])
        self.attempt.end_workers()
        return outcomes, prompt

    def _improve_prompt(self) -> Outcome:
        cases = rewriting.failing_cases(self.flagged)
        if not cases:
            return Outcome("system prompt", "satisfied", "", (), ())
        prompt = rewriting.improve_prompt(self.job.id, self.parent_prompt, cases, self.attempt.ask_remote)
        self.attempt.events.add("rewrite", **prompt.to_json())
        return prompt

    def _write(self, outcomes: list[Outcome]) -> None:
        """The outcomes, and all rows with the accepted rewrites in place."""
        part, model = self.offload.rewrite, self.offload.model
        remade = {
            outcome.id: Remade(outcome.text, part, lineage(self.job, model, outcome))
            for outcome in outcomes
            if outcome.state == "remade"
        }
        write_remade(self.run, *self.examples, remade)
        write_file(self.run / REWRITES, b"".join(json_line(outcome.to_json()) for outcome in outcomes))

    @property
    def _has_adapter(self) -> bool:
        return self.registry.adapter(self.parent) is not None

    def _make(self, said: str, outcomes: list[Outcome], prompt: str) -> int:
        self.plan()
        before = self.before()
        self.attempt.phase("load")
        self.load(self.parent)
        after = self.measure("after", prompt)
        verdict = self.judge(before, after)
        about = self.about(verdict, before, after, {"rewrites": said, "adapter": self._has_adapter, **self.spent})

        def fill(folder: Path) -> None:
            adapter = self.registry.adapter(self.parent)
            for path in adapter.glob("adapter_*") if adapter else ():
                shutil.copyfile(path, folder / path.name)
            (folder / "system_prompt.txt").write_text(prompt)
            shutil.copyfile(self.run / REMADE, folder / REMADE)
            write_json(folder / "rewrites.json", [outcome.to_json() for outcome in outcomes])

        return self.publish(about, {"before": before, "after": after}, fill)


def _in_words(outcomes: list[Outcome]) -> str:
    """How the rewrites ended, for people."""
    if not outcomes:
        return "No example lacks style or constraint."
    counts = Counter(outcome.state for outcome in outcomes)
    told = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    return f"{len(outcomes)} examples flagged: {told}."
