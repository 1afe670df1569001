"""The symbolic side of a job: which examples are flagged, and what becomes of each rewrite that is offered.

The checks that accept or refuse a rewrite are local and pure (`agent.constraints`, `agent.scoring.acceptance`);
the remote LLM only proposes. What is asked for depends on the data alone, so that recorded answers replay on any
machine.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from agent.constraints import verify
from agent.contract.offload_messages import LONGEST, ImprovePrompt, RewriteExample, Rewritten
from agent.contract.settings import Offload
from agent.data.formats import TRAIN, Example, Message
from agent.scoring.acceptance import injections, objections

MAX_CALLS = 3
"""Calls to the remote LLM for one example, the critique included."""
MAX_CASES = 8
"""Failing examples shown when the system prompt is to be improved: one for each kind of constraint."""
LONGEST_PROMPT = 1500
"""Characters of a system prompt: it is paid for in every answer."""
DEFAULT_PROMPT = "You are a helpful assistant."
"""Where an improvement starts when there is no system prompt."""
ENDS = {"deferred": "deferred", "spent": "spent", "refused": "rejected"}
"""Outcomes of a request after which the same example is not asked for again, and the example's state then."""
ARGUMENT = re.compile(r'\d+|"[^"\n]+"')
"""What belongs to one case alone: numbers and quoted words."""
STYLE = "style"
"""What stands in the audit where a style description is the reason."""

Ask = Callable[[RewriteExample | ImprovePrompt], Rewritten]


@dataclass(frozen=True)
class Flag:
    """Why an example is to be rewritten: `wanted` in words, `faults` that local checks named, `why` in ids."""

    wanted: tuple[str, ...]
    faults: tuple[str, ...]
    why: tuple[str, ...]


@dataclass(frozen=True)
class RewriteOutcome:
    """The end of one flagged example; sums over all its calls, money in the currency of the price settings.

    `state` is remade, satisfied (a critique found nothing), rejected, deferred (the remote may answer later) or spent
    (a cap of the job is reached); `reasons` say why it is not remade, `text` is the new text.
    """

    id: str
    state: str
    text: str
    reasons: tuple[str, ...]
    why: tuple[str, ...]
    steps: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    retry_at: float | None = None
    critique: str = ""
    """What the last step was told to mend."""

    @property
    def word(self) -> str:
        """The state as people are told it: files and events have kept the word of version 0.1."""
        return "rewritten" if self.state == "remade" else self.state

    def plus(self, answer: Rewritten) -> RewriteOutcome:
        """This outcome after one more step."""
        return replace(
            self,
            steps=self.steps + 1,
            calls=self.calls + answer.calls,
            prompt_tokens=self.prompt_tokens + answer.prompt_tokens,
            completion_tokens=self.completion_tokens + answer.completion_tokens,
            cost=self.cost + answer.cost,
            seconds=round(self.seconds + answer.seconds, 3),
            retry_at=answer.remote.retry_at,
            critique=answer.critique or self.critique,
        )

    def to_json(self) -> dict[str, Any]:
        """The line of rewrites.jsonl."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> RewriteOutcome:
        """The outcome that `to_json` wrote."""
        return cls(**{**record, "reasons": tuple(record["reasons"]), "why": tuple(record["why"])})


def flag(example: Example, settings: Offload) -> Flag | None:
    """Say what style or constraint an example lacks, judged by its data alone; None if it needs no rewrite.

    A reference that breaks one of its constraints is flagged with the faults. Where a style is described, and where
    prompts are to be rewritten, no local check can name the fault: the remote's critique has to.
    """
    if example.split not in (TRAIN, None) or not example.prompt or example.prompt[-1].role != "user":
        return None
    ids = tuple(str(constraint["id"]) for constraint in example.constraints)
    wanted = tuple(map(verify.describe, example.constraints))
    style = (settings.style,) if settings.style else ()
    if settings.rewrite == "prompt":
        asked = tuple(f"It asks for this: {rule}" for rule in wanted)
        return Flag((*asked, *style), (), ids or (STYLE,)) if asked or style else None
    faults = verify.faults(example.constraints, example.reference, example.prompt[-1].content)
    if faults or style:
        return Flag((*wanted, *style), faults, ids if faults else (STYLE,))
    return None


def first_request(job: int, example: Example, flag: Flag, part: str) -> RewriteExample:
    """The first request for a flagged example; `part` is "reference" or "prompt"."""
    question = example.prompt[-1].content
    reference = part == "reference"
    return RewriteExample(
        job=job,
        example=example.id,
        part=part,
        text=example.reference if reference else question,
        context=question if reference else example.reference,
        wanted=list(flag.wanted),
        faults=list(flag.faults),
        tried="",
        why=list(flag.why),
    )


def rewrite(example: Example, flag: Flag, request: RewriteExample, ask: Ask) -> RewriteOutcome:
    """Ask for rewrites of a flagged example until one passes every check, at most as often as MAX_CALLS allows."""
    outcome = RewriteOutcome(example.id, "rejected", "", (), flag.why)
    if len(request.text) + len(request.context) > LONGEST:
        return replace(outcome, reasons=(f"the example is longer than the {LONGEST} characters that are sent",))
    for _ in range(MAX_CALLS - (not flag.faults)):
        answer = ask(request)
        outcome = outcome.plus(answer)
        if answer.outcome in ENDS:
            return replace(outcome, state=ENDS[answer.outcome], reasons=(answer.reason,))
        if answer.outcome == "unneeded":
            return replace(outcome, state="satisfied", reasons=())
        reasons = refusals(example, request, answer)
        if not reasons:
            return replace(outcome, state="remade", text=answer.text, reasons=())
        outcome = replace(outcome, reasons=reasons)
        request = replace(request, tried=answer.text, faults=list(reasons))
    return outcome


def requests(flag: Flag, outcome: RewriteOutcome) -> int:
    """Requests that a rewrite took, recorded answers included: without a named fault a critique came first."""
    return outcome.steps + (not flag.faults and outcome.state != "satisfied")


def refusals(example: Example, request: RewriteExample, answer: Rewritten) -> tuple[str, ...]:
    """Why a rewrite is not accepted, in lines that the next step can act on; empty if it is."""
    if answer.outcome == "rejected":
        return (answer.reason,)
    if request.part == "prompt":
        return objections(request.text, answer.text)
    question = example.prompt[-1].content
    unmet = verify.faults(example.constraints, answer.text, question)
    lost = objections(
        example.reference, answer.text, prompt=question, answer=example.answer, constraints=example.constraints
    )
    return (*unmet, *lost)


def replace_text(example: Example, part: str, text: str) -> Example:
    """The example with its reference or its prompt replaced; id, split, answer and constraints stay as they are."""
    place = -1 if part == "reference" else -2
    messages = list(example.messages)
    messages[place] = Message(messages[place].role, text)
    return replace(example, messages=tuple(messages))


def failing_cases(flagged: Iterable[tuple[Example, Flag]]) -> dict[str, str]:
    """By constraint id, the first rule that a flagged reference breaks, and how: what a system prompt must mend."""
    cases: dict[str, str] = {}
    for _, flag in flagged:
        if flag.faults and len(cases) < MAX_CASES:
            case = f"Rule: {' '.join(flag.wanted)}\nBroken: {'; '.join(flag.faults)}"
            cases.setdefault(flag.why[0], case)
    return cases


def improve_prompt(job: int, prompt: str, cases: dict[str, str], ask: Ask) -> RewriteOutcome:
    """One step on the system prompt; rejected if it is too long, holds a case's number or smuggles tokens in."""
    start = prompt or DEFAULT_PROMPT
    answer = ask(ImprovePrompt(job, start, list(cases.values()), list(cases)))
    outcome = RewriteOutcome("system prompt", "rejected", "", (), tuple(cases)).plus(answer)
    if answer.outcome in ENDS:
        return replace(outcome, state=ENDS[answer.outcome], reasons=(answer.reason,))
    reasons = (answer.reason,) if answer.outcome == "rejected" else _prompt_refusals(start, answer.text, cases)
    return replace(outcome, reasons=reasons) if reasons else replace(outcome, state="remade", text=answer.text)


def _prompt_refusals(old: str, new: str, cases: dict[str, str]) -> tuple[str, ...]:
    """Why a system prompt is not accepted: above all, what one case asked for must be no rule for every answer."""
    if len(new) > LONGEST_PROMPT:
        return (f"the system prompt has {len(new)} characters, more than {LONGEST_PROMPT}",)
    known = set(ARGUMENT.findall(old))
    shown = set(ARGUMENT.findall("\n".join(cases.values()))) - known
    taken = [part for part in dict.fromkeys(ARGUMENT.findall(new)) if part in shown]
    return (*(f"the system prompt makes {part} of one case a rule for all" for part in taken), *injections(old, new))
