"""The two operations: rewrite an example, improve the system prompt. Each is one step of TextGrad's optimizer.

Secrets are replaced before anything else sees the texts, and restored in what comes back. What an operation asks for
depends on the request alone, so that recorded answers fit on every machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.contract.offload_messages import LONGEST, ImprovePrompt, RewriteExample, Rewritten
from offload import prompts
from offload.budget import DayBudgetSpent, JobBudgetSpent, Subject
from offload.cache import Messages
from offload.prompts import Malformed
from offload.redact import Redactor
from offload.remote import Cost, Remote
from offload.retries import RemoteUnavailable, RequestRefused


class NotSent(Exception):
    """The request must not leave the box; the message says why."""


@dataclass(frozen=True)
class Step:
    """One optimizer step as it is sent: the redacted variable and its gradient, and how they become a message."""

    text: str
    gradient: str
    system: str
    prompt: Callable[[str, str], str]

    @property
    def messages(self) -> Messages:
        """The messages of the step."""
        return prompts.step_messages(self.system, self.prompt(self.text, self.gradient))


@dataclass(frozen=True)
class Redacted:
    """A request whose texts hold no secret; `faults` is empty where no local check names one."""

    text: str
    context: str
    wanted: list[str]
    faults: str
    tried: str


def redact_request(request: RewriteExample, redactor: Redactor) -> Redacted:
    """The texts of a request as they may be sent. Raises NotSent."""
    named = [fault for fault in request.faults if fault.strip()]
    texts = [request.text, request.context, *request.wanted, *named, request.tried]
    text, context, *more, tried = _redact(texts, redactor)
    rules = len(request.wanted)
    return Redacted(text, context, more[:rules], "; ".join(more[rules:]), tried)


def first_messages(request: RewriteExample, redactor: Redactor) -> Messages:
    """The messages to send first: the critique where no fault is named, else the step. Raises NotSent."""
    sent = redact_request(request, redactor)
    if not sent.faults:
        return prompts.critique_messages(sent.text, sent.wanted)
    return _example_step(request.part, sent, sent.faults).messages


class Rewriter:
    """Serves both operations over `remote`; `patterns` are what else must never be sent."""

    def __init__(self, remote: Remote, patterns: Sequence[str]) -> None:
        self._remote, self._patterns = remote, patterns

    def example(self, request: RewriteExample) -> Rewritten:
        """One step on a text of an example. Raises CacheMiss, or RemoteRefused where no request would be served."""
        subject = Subject(request.job, request.example, tuple(request.why))
        redactor = Redactor(self._patterns)

        def work(cost: Cost) -> tuple[str, str]:
            sent = redact_request(request, redactor)
            gradient = cost.critique = sent.faults or self._critique(subject, sent, cost)
            if not gradient:
                return "unneeded", ""
            return self._rewrite(subject, _example_step(request.part, sent, gradient), redactor, cost)

        return self._answer(request.job, work)

    def system_prompt(self, request: ImprovePrompt) -> Rewritten:
        """One step on the system prompt. Raises as `example` does."""
        subject = Subject(request.job, "", tuple(request.why))
        redactor = Redactor(self._patterns)

        def work(cost: Cost) -> tuple[str, str]:
            text, *failing = _redact([request.text, *request.failing], redactor)
            cases = prompts.cases(failing)
            step = Step(text, cases, prompts.PROMPT_OPTIMIZER, prompts.system_prompt_message)
            return self._rewrite(subject, step, redactor, cost)

        return self._answer(request.job, work)

    def _critique(self, subject: Subject, sent: Redacted, cost: Cost) -> str:
        """Ask the remote what is wrong, where no local check can name it; "" if nothing is."""
        found = self._remote.look_up(subject, prompts.critique_messages(sent.text, sent.wanted))
        if found:
            said = found.answer
        else:
            from offload import engine  # noqa: PLC0415  textgrad is imported only to serve a miss

            said = engine.critique(
                sent.text, sent.wanted, lambda messages: self._remote.ask(subject, messages, cost).answer
            )
        said = said.strip()
        if said.rstrip(".!").upper() == prompts.NOTHING_TO_MEND:
            return ""
        if prompts.holds_delimiters(said) or not said:
            raise Malformed("the critique is empty or holds tags")
        return said

    def _rewrite(self, subject: Subject, step: Step, redactor: Redactor, cost: Cost) -> tuple[str, str]:
        """The text after the step, secrets restored; a text that lost one or made one up is rejected.

        The reasons name no placeholder: shown to the remote with the next step, it would stand for itself.
        """
        text = self._take_step(subject, step, cost)
        if lost := redactor.placeholders_lost(step.text, text):
            return "rejected", f"the rewrite lost {len(lost)} of the placeholders in square brackets: keep each of them"
        if redactor.placeholders_invented(text):
            return "rejected", "the rewrite holds a placeholder in square brackets that stands for nothing"
        text = redactor.restore(text)
        if len(text) > LONGEST:
            return "rejected", f"the rewrite has {len(text)} characters, more than {LONGEST}"
        return "rewritten", text

    def _take_step(self, subject: Subject, step: Step, cost: Cost) -> str:
        """Let TextGrad's optimizer rewrite the text; recorded, so that it is made once."""
        found = self._remote.look_up(subject, step.messages)
        if found and found.text is not None:
            return found.text
        if found:
            prompts.between_tags(found.answer)  # a malformed answer stays one
        from offload import engine  # noqa: PLC0415  as above

        recorded: list[str] = []

        def ask(messages: Messages) -> str:
            answer = found or self._remote.ask(subject, messages, cost)
            recorded.append(answer.key)
            return answer.answer

        text = engine.step(step.text, step.gradient, step.system, step.prompt, ask)
        self._remote.cache.note_text(recorded[0], text)
        return text

    def _answer(self, job: int, work: Callable[[Cost], tuple[str, str]]) -> Rewritten:
        """Do the work and say how it ended."""
        cost, started = Cost(), time.monotonic()
        try:
            outcome, said = work(cost)
        except Malformed as fault:
            outcome, said = "rejected", str(fault)
        except (NotSent, RequestRefused) as fault:
            outcome, said = "refused", str(fault)
        except (RemoteUnavailable, DayBudgetSpent) as fault:
            outcome, said = "deferred", str(fault)
        except JobBudgetSpent as fault:
            outcome, said = "spent", str(fault)
        rewritten = outcome == "rewritten"
        return Rewritten(
            outcome=outcome,
            text=said if rewritten else "",
            reason="" if rewritten else said,
            critique=cost.critique,
            cached=cost.is_cached and outcome not in {"deferred", "spent"},
            calls=cost.calls,
            prompt_tokens=cost.prompt_tokens,
            completion_tokens=cost.completion_tokens,
            cost=cost.money,
            seconds=round(time.monotonic() - started, 3),
            remote=self._remote.status(job),
        )


def _example_step(part: str, sent: Redacted, gradient: str) -> Step:
    def prompt(text: str, feedback: str) -> str:
        return prompts.example_message(part, text, sent.context, sent.wanted, feedback, sent.tried)

    return Step(sent.text, gradient, prompts.OPTIMIZER, prompt)


def _redact(texts: list[str], redactor: Redactor) -> list[str]:
    """The texts without their secrets, twice over: what only a later text calls a password stands in earlier ones too.

    Raises NotSent.
    """
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise NotSent("it holds half a surrogate pair, which is no text") from None
    # Together, for `<` at the end of one and `TEXT>` at the start of the next could make one.
    if prompts.holds_delimiters("\n".join(texts)):
        raise NotSent("it holds one of the tags that delimit texts for the remote LLM")
    if sum(map(len, texts)) > LONGEST:
        raise NotSent(f"it is longer than the {LONGEST} characters that are sent for one example")
    for text in texts:
        redactor.redact(text)
    return [redactor.redact(text) for text in texts]
