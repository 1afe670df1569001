"""Decisions in a real jobs.db: what a running attempt writes, what one that repeats a round replaces, what is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from deciding import GOOD, add, choices, claimed, example, numeric, offered, row, token, tuned

from agent.contract.errors import StaleAttempt
from agent.decide import decision_store
from agent.decide.classifier import FEATURES, Tally, prior
from agent.decide.decision_store import DecisionStore, Outcome
from agent.queue.jobs import Job, State
from agent.queue.migrations import LATEST
from agent.queue.store import Store

TABLES = ("rounds", "choices", "outcomes")
PUMP, FAN = row(example("pump", 7)), row(example("fan", 3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "jobs.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store(path, actor="test") as opened:
        yield opened


def everything(store: Store) -> list[object]:
    """All rows of the three tables."""
    return [store.execute(f"SELECT * FROM {table}") for table in TABLES]  # noqa: S608  ours


def states(decisions: DecisionStore, name: str) -> list[tuple[int, str]]:
    return [(each["round"], each["state"]) for each in decisions.choices(name)]


def ended(store: Store, job: Job) -> None:
    store.finish(job.id, token(job), State.DONE, "done")


# ---- choices ----


def test_a_choice_comes_back_as_it_was_made(store: Store) -> None:
    """Its reason, what was known of the example and what each action was expected to gain."""
    job, decisions = claimed(store)
    (made,) = choices(PUMP)
    decisions.choose(token(job), 1, [made])
    (kept,) = decisions.choices("pump")
    assert kept == {
        **vars(made),
        "standing": {**made.standing, "kinds": ["punctuation:no_comma"]},
        "job": 1,
        "round": 1,
    }
    assert set(kept["gains"]["features"]) == set(FEATURES)
    assert kept["standing"]["flagged"] is True


def test_a_choice_is_kept_only_where_the_state_changes(store: Store) -> None:
    """Thousands of examples that stay as they are cost nothing in a round."""
    job, decisions = claimed(store)
    for number, state in enumerate(("weights", "weights", "both", "weights"), start=1):
        decisions.choose(token(job), number, choices(PUMP, FAN, pump=state))
    assert states(decisions, "pump") == [(1, "weights"), (3, "both"), (4, "weights")]
    assert states(decisions, "fan") == [(1, "weights")]


def test_the_last_choices_are_the_newest_of_each_example_in_the_order_of_the_file(store: Store) -> None:
    """One for every example, whatever order they were chosen in, and those of this job alone."""
    job, decisions = claimed(store)
    decisions.choose(token(job), 1, choices(PUMP, FAN))
    decisions.choose(token(job), 2, choices(PUMP, FAN, pump="neither"))
    other, others = claimed(store)
    others.choose(token(other), 1, choices(FAN, fan="both"))
    assert [(each["example"], each["state"], each["round"]) for each in decisions.last_choices()] == [
        ("fan", "weights", 1),
        ("pump", "neither", 2),
    ]
    assert [each["example"] for each in others.last_choices()] == ["fan"]


# ---- rounds ----


def test_a_round_comes_back_with_its_figures(store: Store) -> None:
    """In order, what it did and why, why it ended, and what came of it for each example."""
    job, decisions = claimed(store)
    first, second = numeric(1), numeric(2, gained=0.25)
    decisions.finish(token(job), first, [tuned("pump"), tuned("fan", 0.0)])
    decisions.finish(token(job), second, [tuned("pump", 0.5)])
    assert decisions.rounds() == [first, second]
    assert [(each["round"], each["example"], each["gain"]) for each in decisions.outcomes()] == [
        (1, "pump", 0.75),
        (1, "fan", 0.0),
        (2, "pump", 0.5),
    ]
    (kept,) = decisions.outcomes("fan")
    assert kept["features"] == list(tuned().features)
    assert kept["kinds"] == ["punctuation:no_comma"]


def test_a_repeated_round_replaces_what_an_attempt_that_died_left(store: Store) -> None:
    """Choices, outcomes and rounds of that and of later rounds go; earlier rounds and other jobs stay."""
    other, others = claimed(store)
    others.choose(token(other), 2, choices(PUMP))
    others.finish(token(other), numeric(2), [tuned()])
    job, decisions = claimed(store)
    for number, state in enumerate(("weights", "both", "neither"), start=1):
        decisions.choose(token(job), number, choices(PUMP, pump=state))
        decisions.finish(token(job), numeric(number), [tuned("pump", number / 4)])
    decisions.choose(token(job), 2, choices(PUMP, FAN, pump="rewrite"))
    assert states(decisions, "pump") == [(1, "weights"), (2, "rewrite")]
    assert states(decisions, "fan") == [(2, "weights")]
    assert [each.number for each in decisions.rounds()] == [1]
    assert [each["round"] for each in decisions.outcomes()] == [1]
    assert (states(others, "pump"), len(others.rounds()), len(others.outcomes())) == ([(2, "weights")], 1, 1)


def test_a_repeated_round_is_compared_with_the_round_before_it(store: Store) -> None:
    """What the dead attempt chose in the same round does not hide that the state changed."""
    job, decisions = claimed(store)
    decisions.choose(token(job), 1, choices(PUMP))
    for _ in range(2):
        decisions.choose(token(job), 2, choices(PUMP, pump="both"))
    assert states(decisions, "pump") == [(1, "weights"), (2, "both")]


def test_a_round_that_ends_twice_is_there_once(store: Store) -> None:
    """The second account stands, because the process that wrote it goes on from there."""
    job, decisions = claimed(store)
    decisions.finish(token(job), numeric(1), [tuned("pump", 0.1)])
    again = numeric(1, gained=0.9)
    decisions.finish(token(job), again, [tuned("pump", 0.9)])
    assert decisions.rounds() == [again]
    assert [each["gain"] for each in decisions.outcomes()] == [0.9]


# ---- attempts ----

WRITES: dict[str, Callable[[DecisionStore, str], None]] = {
    "choose": lambda decisions, old: decisions.choose(old, 1, choices(PUMP, pump="neither")),
    "finish": lambda decisions, old: decisions.finish(old, numeric(1, gained=9.0), [offered()]),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_stale_token_changes_nothing(store: Store, write: str) -> None:
    """An attempt that was replaced neither adds nor removes a row."""
    job, decisions = claimed(store)
    decisions.choose(token(job), 1, choices(PUMP))
    decisions.finish(token(job), numeric(1), [tuned()])
    store.requeue(job.id, token(job), "stopped")
    store.claim("boot", 1)
    before = everything(store)
    with pytest.raises(StaleAttempt):
        WRITES[write](decisions, token(job))
    assert everything(store) == before


def test_choices_are_kept_all_or_none(store: Store) -> None:
    """A process that dies half-way leaves the round before as it was."""
    job, decisions = claimed(store)
    decisions.choose(token(job), 1, choices(PUMP))
    before = everything(store)
    bad = replace(choices(FAN)[0], standing={"loss": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        decisions.choose(token(job), 1, [*choices(PUMP, pump="both"), bad])
    assert everything(store) == before


# ---- what the box has learned ----


def test_a_job_learns_from_the_jobs_before_it_only(store: Store) -> None:
    """Neither its own outcomes nor those of later jobs, which may run while it is parked."""
    outcomes = [tuned("first"), offered("second"), tuned("third")]
    jobs = [claimed(store) for _ in outcomes]
    for (job, decisions), outcome in zip(reversed(jobs), reversed(outcomes), strict=True):
        decisions.finish(token(job), numeric(), [outcome])
    assert [decisions.earlier_outcomes() for _, decisions in jobs] == [[], outcomes[:1], outcomes[1::-1]]


def test_only_the_newest_outcomes_are_learned_oldest_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen long ago was of another model."""
    assert decision_store.REMEMBERED == 5000
    monkeypatch.setattr(decision_store, "REMEMBERED", 3)
    job, decisions = claimed(store)
    decisions.finish(token(job), numeric(1), [tuned(name, 0.25) for name in "ab"])
    decisions.finish(token(job), numeric(2), [tuned(name, 0.5) for name in "ab"])
    later = DecisionStore(store, add(store).id)
    assert [(each.example, each.gain) for each in later.earlier_outcomes()] == [("b", 0.25), ("a", 0.5), ("b", 0.5)]


def test_what_tuning_gained_teaches_what_to_expect_of_tuning() -> None:
    """And nothing about rewriting."""
    outcome = tuned(gain=1.0)
    before = prior()
    after = outcome.teach(before)
    assert after.weights.expectation(outcome.features) > before.weights.expectation(outcome.features)
    assert (after.rewrite, after.tallies) == (before.rewrite, before.tallies)


def test_what_a_rewrite_gained_teaches_what_to_expect_of_rewrites() -> None:
    """And how often the kinds of its constraints were mended; nothing about tuning."""
    outcome = offered(gain=0.5)
    before = prior()
    after = outcome.teach(before)
    assert after.rewrite.expectation(outcome.features) > before.rewrite.expectation(outcome.features)
    old = before.tallies.get("punctuation:no_comma", Tally())
    assert after.tallies["punctuation:no_comma"].offered == old.offered + 1
    assert after.tallies["punctuation:no_comma"].gained > old.gained
    assert after.weights == before.weights


def test_what_was_stored_teaches_the_same_as_what_was_measured(store: Store) -> None:
    """The numbers lose nothing on their way through the database."""
    job, decisions = claimed(store)
    measured: list[Outcome] = [tuned(gain=1 / 3), offered(gain=0.1)]
    decisions.finish(token(job), numeric(), measured)
    told = one = prior()
    for outcome in measured:
        told = outcome.teach(told)
    for outcome in DecisionStore(store, add(store).id).earlier_outcomes():
        one = outcome.teach(one)
    assert one == told


# ---- the tables ----


def test_a_queue_of_the_schema_before_keeps_its_rows(path: Path) -> None:
    """Jobs, their history, promotions and what was heard of the remote survive, and decisions can be kept."""
    with Store(path) as old:
        job, _ = claimed(old, "numeric")
        old.push_promotion(3, job.id)
        old.note_remote({"breaker": "closed"})
        for table in TABLES:
            old.execute(f"DROP TABLE {table}")
        old.execute("DELETE FROM _sqlite_migrations WHERE name = 'decisions'")
        old.execute("PRAGMA user_version = 3")
        before = (old.list(), old.moves(job.id), old.promotion_stack(), old.remote())
    with Store(path) as store:
        assert (store.list(), store.moves(job.id), store.promotion_stack(), store.remote()) == before
        assert store.execute("PRAGMA user_version") == [{"user_version": LATEST}]
        decisions = DecisionStore(store, job.id)
        decisions.choose(token(job), 1, choices(row(example("pump"), GOOD)))
        decisions.finish(token(job), numeric(), [tuned()])
        assert [each["state"] for each in decisions.last_choices()] == ["satisfied"]
