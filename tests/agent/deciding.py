"""Rows, choices and outcomes as a neurosymbolic job makes them, and a state folder with a job that made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.data.formats import Example, Message
from agent.decide.classifier import Choice, Costs, prior
from agent.decide.decision_store import Chosen, DecisionStore, Outcome, Round
from agent.queue.jobs import Job
from agent.queue.store import Store
from agent.runner.explain import record
from agent.runner.rewriting import RewriteOutcome
from agent.runner.rows import Answered, Row, rewards
from agent.system.paths import Home

NO_COMMA: dict[str, Any] = {"id": "punctuation:no_comma", "kwargs": {}}
REFERENCE = "According to the handbook, the Marlow pump uses port 4713."
GOOD = "The Marlow pump uses port 4713."
DEAR = 9.0
COSTS = {
    "both": Costs(rewrite=-DEAR, weights=-DEAR, explore=0.3),
    "weights": Costs(rewrite=DEAR, weights=-DEAR, explore=0.3),
    "rewrite": Costs(rewrite=-DEAR, weights=DEAR, explore=0.3),
    "neither": Costs(rewrite=DEAR, weights=DEAR, explore=0.3),
}
"""Costs that lead to a state for every row that is not right yet, whatever prior ships."""
FIGURES = {
    "examples": 2, "gained": 1.5, "reward": 0.71234, "steps": 40, "tokens": 9876, "requests": 0, "requests_here": 0,
    "seconds": 61.2,
}  # fmt: skip


def example(name: str = "pump", line: int = 1, reference: str = REFERENCE, **more: Any) -> Example:
    """A row whose reference breaks its constraint, if no other is given."""
    messages = (Message("user", "Which port does the Marlow pump use? Use no commas."), Message("assistant", reference))
    return Example(name, messages, "train", "4713", more.pop("constraints", (NO_COMMA,)), line, **more)


def row(origin: Example, answer: str | None = "I do not know, sorry.", loss: float = 2.5, **more: Any) -> Row:
    """A row that the model has answered."""
    content, style = (0.1, None) if answer is None else rewards(origin, answer)
    return Row(origin, origin.reference, answered=Answered(answer, loss, content, style, 0.5), **more)


def choice(of: Row, state: str = "both") -> Choice:
    """What the classifier says of a row, at costs that lead to that state unless the row is right."""
    return prior().choose(of.standing, COSTS[state])


def choices(*rows: Row, waits: bool = False, **states: str) -> list[Chosen]:
    """The choices for some rows; `states` by id, weights where none is given."""
    return [_chosen(each, states.get(each.origin.id, "weights"), waits=waits) for each in rows]


def _chosen(of: Row, state: str, *, waits: bool) -> Chosen:
    flagged = rewards(of.origin, of.origin.reference)[1] not in {None, 1.0}
    return record(of, choice(of, state), waits=waits, flagged=flagged)


def tuned(name: str = "pump", gain: float = 0.75, told: str = "tuned on, reward 0.25 → 1.00") -> Outcome:
    """What tuning on a row gained."""
    return Outcome(name, "weights", choice(row(example())).features, ("punctuation:no_comma",), 0.25, gain, told)


def offered(name: str = "pump", gain: float = 0.25, told: str = "rewritten after 1 request") -> Outcome:
    """What a rewrite gained."""
    return Outcome(name, "rewrite", choice(row(example())).features, ("punctuation:no_comma",), 0.125, gain, told)


def rewritten(name: str = "pump") -> RewriteOutcome:
    """An accepted rewrite."""
    return RewriteOutcome(
        name, "remade", GOOD, (), ("punctuation:no_comma",), 2, 2, 310, 22, 0.0, 1.25, None, "1 comma found"
    )


def numeric(number: int = 1, **figures: Any) -> Round:
    """A numeric round that is over."""
    why, ended = "2 examples to tune the weights on, expected gain 1.2", "saturated: flat over 2 windows (change 0.001)"
    return Round(number, "numeric", why, ended, {**FIGURES, **figures})


def add(store: Store, mode: str = "neurosymbolic", settings: dict[str, Any] | None = None) -> Job:
    """One more job in the queue."""
    return store.add("/data/tickets.jsonl", "spooled", 3, 0, "ab" * 32, settings or {}, "smollm", mode)


def claimed(
    store: Store, mode: str = "neurosymbolic", settings: dict[str, Any] | None = None
) -> tuple[Job, DecisionStore]:
    """A new job, claimed, and its decisions."""
    added = add(store, mode, settings)
    job = store.claim("boot", 4711)
    assert job is not None
    assert job.id == added.id
    (Home(store.path.parent).run(job.id)).mkdir(parents=True)
    return job, DecisionStore(store, job.id)


def token(job: Job) -> str:
    """The token of a claimed job."""
    assert job.token
    return job.token


def opened(state: Path) -> Store:
    """The database of a state folder."""
    return Store(Home(state).database, actor="test")
