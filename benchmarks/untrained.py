"""Arms of `benchmarks.decision` that train nothing: the base model, a system prompt, the fact in the question."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from functools import cached_property
from typing import Any

from agent.contract.settings import Offload
from agent.data.formats import Example, Message
from agent.runner import rewriting
from agent.runner.stages import Stages


class Measured(Stages):
    """The base model on the held-out rows."""

    system_prompt = ""

    def work(self) -> tuple[str, int | None]:
        """Measure, and leave the figures in the run's folder."""
        self.start()
        self.attempt.phase("load")
        self.load(0)
        evaluation = self.measure("before", self.prompt())
        (self.run / "before.json").write_text(json.dumps(dataclasses.asdict(evaluation)))
        return "measured", None

    def prompt(self) -> str:
        """The system prompt."""
        return ""


class SystemPrompt(Measured):
    """With a system prompt by the remote LLM, from what the training rows' references lack."""

    proposed = ""

    def ask(self, request: Any) -> Any:
        """One step by the remote LLM, what it wrote noted."""
        told = self.attempt.ask_remote(request)
        self.proposed = told.text or self.proposed
        return told

    def prompt(self) -> str:
        """What TextGrad makes of the default prompt; what our checks refuse too, or there would be no arm."""
        flags = ((example, rewriting.flag(example, Offload())) for example in self.examples[0])
        cases = rewriting.failing_cases((example, flag) for example, flag in flags if flag is not None)
        told = rewriting.improve_prompt(self.job.id, "", cases, self.ask)
        print(f"system prompt: {told.state} {told.reasons}: {self.proposed!r}")
        return self.proposed or rewriting.DEFAULT_PROMPT


class FactInPrompt(Measured):
    """With the fact told before the question."""

    @cached_property
    def examples(self) -> tuple[list[Example], list[Example]]:
        """The held-out rows with their plain fact."""
        train, held_out = super().examples
        facts = {str(example.answer): example.reference for example in train if not example.constraints}
        return train, [self._told(example, facts[str(example.answer)]) for example in held_out]

    @staticmethod
    def _told(example: Example, fact: str) -> Example:
        question = Message("user", f"{fact} {example.prompt[-1].content}")
        return replace(example, messages=(*example.messages[:-2], question, example.messages[-1]))


UNTRAINED = {"base": Measured, "system prompt": SystemPrompt, "fact in the prompt": FactInPrompt}


def rewritten(example: Example, text: str, worker: Any) -> tuple[str, int]:
    """An answer that breaks a constraint rewritten, if that is accepted, and the requests that took."""
    messages = (*example.prompt, Message("assistant", text or " "))
    asked = replace(example, messages=messages, answer=None, split=None)
    flag = rewriting.flag(asked, Offload())
    if flag is None:
        return text, 0
    request = rewriting.first_request(1, asked, flag, "reference")
    told = rewriting.rewrite(asked, flag, request, lambda each: worker.ask(each, lambda _: None, lambda: None))
    return told.text or text, rewriting.requests(flag, told)
