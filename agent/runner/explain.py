"""Decisions as they are told: the reason stored with a choice, what `explain` shows, and the words it uses."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass

from agent.contract.errors import NotFound
from agent.contract.lines import shorten
from agent.decide.classifier import FEATURES, Choice, Gains
from agent.decide.decision_store import Chosen, DecisionStore, Round
from agent.queue.jobs import ENDED, Job
from agent.queue.store import Rows, Store
from agent.runner.rows import Row

WIDTH = 100
"""Columns of a screen of `explain`."""
LONGEST_ID = 40
"""Characters of an example's id in a line or a table."""
STATES = {
    "satisfied": "the model answers it right",
    "weights": "tune the weights on it",
    "rewrite": "have the remote LLM rewrite its reference",
    "both": "have its reference rewritten, then tune the weights on it",
    "neither": "leave it alone: nothing is expected to help",
}
"""What each state of an example means, in the order in which they are listed."""
MEANINGS = {
    "content_gap": "what the answer's content lacks",
    "style_gap": "what the answer's style lacks",
    "reference_gap": "what a rewrite could add to the better of answer and reference",
    "lift": "by how much the reference is better than the answer",
    "value_loss": "loss per token of the value, else of the reference; infinite counts as 1",
    "loss_change": "by how much the loss fell since the last round, from -1 to 1",
    "length": "words of the reference; 200 and more count as 1",
    "trained": "the lift that tuning has missed so far",
    "tried": "the gap that rewrites have missed so far",
    "likely_rewrite": "the gap times the share that rewrites of such constraints closed",
}
"""What the features measure; "one" is the same for all examples."""


@dataclass(frozen=True)
class Explanation:
    """The decisions of a job with their reasons, or those about one example.

    Attributes:
        rounds: the rounds of the job that are over, in order.
        choices: the last choice for each example in the order of the file, or each choice for the one example.
        outcomes: what came of the actions, in order.
    """

    job: Job
    rounds: list[Round]
    choices: Rows
    outcomes: Rows


def explain_job(store: Store, job_id: int, example: str | None = None) -> Explanation:
    """Why a job did what it did, or one example of it. Raises NotFound where nothing was decided."""
    job = store.get(job_id)
    decisions = DecisionStore(store, job_id)
    choices = decisions.last_choices() if example is None else decisions.choices(example)
    if not choices:
        raise NotFound(_nothing_decided(job) if example is None else _unknown_example(example, decisions, job))
    return Explanation(job, decisions.rounds(), choices, decisions.outcomes(example))


def _nothing_decided(job: Job) -> str:
    if job.mode in {"numeric", "symbolic"}:
        return f"job {job.id} is {job.mode}, which decides nothing: see nslora-agent show {job.id}"
    yet = "" if job.state in ENDED else " yet"
    return f"job {job.id} ({job.mode}, {job.state}) has decided nothing{yet}: see nslora-agent show {job.id}"


def _unknown_example(name: str, decisions: DecisionStore, job: Job) -> str:
    known = [shorten(row["example"], LONGEST_ID) for row in decisions.last_choices()[:3]]
    if not known:
        return _nothing_decided(job)
    like = f"its training examples are called {', '.join(known)}, ...; held-out ones are only measured"
    return f"job {job.id} has decided nothing about {shorten(name, LONGEST_ID)!r}: {like}"


def record(row: Row, choice: Choice, *, waits: bool, flagged: bool) -> Chosen:
    """A choice as it is stored, with its reason; `flagged` is whether the row, as it came, asks for a rewrite."""
    answer = row.answered.text if row.answered else None
    standing = asdict(row.standing) | {"answer": answer, "source": row.source, "flagged": flagged}
    features = dict(zip(FEATURES, (round(value, 4) for value in choice.features), strict=True))
    gains = {"features": features, "weights": asdict(choice.weights), "rewrite": asdict(choice.rewrite)}
    reason = _reason(row, choice, waits=waits, flagged=flagged)
    return Chosen(row.origin.id, row.origin.line, choice.state, reason, standing, gains)


def _reason(row: Row, choice: Choice, *, waits: bool, flagged: bool) -> str:
    if choice.state == "satisfied":
        return "the model's answer is right" + (" and keeps every constraint" if row.kinds else "")
    parts = [_in_words("tuning", choice.weights), _in_words("rewriting", choice.rewrite)]
    if row.waits:
        parts.append("the remote is to be asked again later")
    elif waits and choice.wants_tuning:
        parts.append("rewritten first, tuned on afterwards")
    elif choice.wants_rewrite and not flagged:
        parts.append("no check finds fault with its reference, so it is not rewritten")
    return "; ".join(parts)


def _in_words(action: str, gains: Gains) -> str:
    pays = "pays" if gains.worth_it else "does not pay"
    return f"{action} {pays}: it may gain {gains.hoped:.2f} (expected {gains.expected:.2f}) and costs {gains.cost:.2f}"


def wrap(text: str, label: str = "", *, indent: int = 0, labels: int = 0) -> str:
    """A text on lines of at most WIDTH columns, its label, `labels` columns wide, before the first of them."""
    first = " " * indent + label.ljust(labels)
    lines = textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * (indent + labels))
    return "\n".join(lines) or first.rstrip()
