"""Arms of `benchmarks.decision` that train nothing: the base model, a system prompt, the fact in the question."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

from agent.contract.settings import Offload
from agent.data.formats import Example, Message
from agent.runner import rewriting
from agent.runner.job_context import Ended, JobContext


def measure(job: JobContext, system_prompt: str = "") -> Ended:
    """Measure the base model on the held-out rows, and leave the figures in the run's folder."""
    job.start()
    job.attempt.phase("load")
    job.model.load(0, None)
    evaluation = job.publisher.measure("before", system_prompt)
    (job.attempt.run / "before.json").write_text(json.dumps(dataclasses.asdict(evaluation)))
    return "measured", None


def measure_with_prompt(job: JobContext) -> Ended:
    """With a system prompt by the remote LLM, from what the training rows' references lack.

    It is what TextGrad makes of the default prompt; what our checks refuse too, or there would be no arm.
    """
    proposed = rewriting.DEFAULT_PROMPT

    def ask(request: Any) -> Any:
        nonlocal proposed
        told = job.attempt.ask_remote(request)
        proposed = told.text or proposed
        return told

    flags = ((example, rewriting.flag(example, Offload())) for example in job.data.train)
    cases = rewriting.failing_cases((example, flag) for example, flag in flags if flag is not None)
    told = rewriting.improve_prompt(job.attempt.job.id, "", cases, ask)
    print(f"system prompt: {told.state} {told.reasons}: {proposed!r}")
    return measure(job, proposed)


def measure_with_fact(job: JobContext) -> Ended:
    """With the fact told before the question."""
    facts = {str(example.answer): example.reference for example in job.data.train if not example.constraints}

    def told(example: Example) -> Example:
        question = Message("user", f"{facts[str(example.answer)]} {example.prompt[-1].content}")
        return replace(example, messages=(*example.messages[:-2], question, example.messages[-1]))

    job.data.held_out[:] = map(told, job.data.held_out)
    return measure(job)


UNTRAINED = {"base": measure, "system prompt": measure_with_prompt, "fact in the prompt": measure_with_fact}


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
