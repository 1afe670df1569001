"""A neurosymbolic job whose remote LLM is away: it is parked, and goes on when it is woken. No worker runs here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from deciding import GOOD, claimed, example, opened, row

from agent.contract.offload_messages import ImprovePrompt, Remote, RewriteExample, Rewritten
from agent.decide.classifier import prior
from agent.decide.decision_store import DecisionStore
from agent.queue.jobs import Job
from agent.queue.store import Store
from agent.runner.attempt import Attempt, Stopping
from agent.runner.job_context import JobContext
from agent.runner.learning import monitored_learning
from agent.runner.neurosymbolic_job import learn
from agent.runner.parking import Parked
from agent.runner.progress import PROGRESS, Progress
from agent.runner.publisher import Publisher
from agent.system.paths import Home

ROWS = [example("first", 1), example("second", 2)]
REMOTE = Remote("closed", 0, "", None, 1, 2, 0.5, 1, 2, 0.5)
AWAY = Rewritten("deferred", "", "the remote is down", "", False, 0, 0, 0, 0.0, 0.0, REMOTE)
REWRITTEN = Rewritten("rewritten", GOOD, "", "1 comma found", False, 1, 10, 5, 0.0, 0.5, REMOTE)
ONLY_REWRITES = {"rewrite_cost": 0.0, "weights_cost": 1.0, "rounds": 3}


class Unloaded(Publisher):
    """With a model that need not be loaded: no phase of this job tunes."""

    def load_for_training(self) -> None:
        """Nothing."""


@pytest.fixture
def store(state: Path) -> Iterator[Store]:
    with opened(state) as store:
        yield store


@pytest.fixture
def job(state: Path, store: Store) -> Job:
    """A claimed job that has probed its rows."""
    home = Home(state).create()
    home.config.write_text('[offload]\nbase_url = "http://127.0.0.1:9/v1"\nmodel = "m"\n')
    job, _ = claimed(store, settings=ONLY_REWRITES)
    (home.spool / f"{job.spool}.jsonl").write_text("".join(each.to_json() + "\n" for each in ROWS))
    rows = {each.id: row(each) for each in ROWS}
    Progress(rows=rows, classifier=prior()).save(home.run(job.id) / PROGRESS)
    return job


def learned(store: Store, job: Job, *told: Rewritten) -> Progress:
    """One attempt at all rounds, every answer of the remote used up. Raises Parked."""
    home = Home(store.path.parent)
    answers = list(told)

    def ask(request: RewriteExample | ImprovePrompt) -> Rewritten:
        assert request.job == job.id
        return answers.pop(0)

    with Attempt(home, store, job, Stopping()) as attempt:
        context = JobContext.of(attempt)
        context = replace(context, publisher=Unloaded(attempt, context.data, context.model))
        try:
            return learn(replace(monitored_learning(context), ask=ask))
        finally:
            assert answers == []


def test_a_woken_job_offers_again_what_had_to_wait(store: Store, job: Job) -> None:
    """The remote was away for the second row; later it rewrites that one and nothing else."""
    with pytest.raises(Parked, match="the remote is down"):
        learned(store, job, REWRITTEN, AWAY)
    progress = learned(store, job, REWRITTEN)
    assert [each.reference for each in progress.rows.values()] == [GOOD, GOOD]
    assert not any(each.waits for each in progress.rows.values())


def test_waiting_for_the_remote_uses_up_no_rounds(store: Store, job: Job) -> None:
    """However often it is woken in vain, a job does not give its rewrites up."""
    for _ in range(6):
        with pytest.raises(Parked):
            learned(store, job, AWAY)
    progress = learned(store, job, REWRITTEN, REWRITTEN)
    assert [each.reference for each in progress.rows.values()] == [GOOD, GOOD]
    assert progress.round == 2


def test_the_end_of_the_rounds_is_kept_for_explain(store: Store, job: Job) -> None:
    """The last round says why the job went no further, and has no figures."""
    progress = learned(store, job, REWRITTEN, REWRITTEN)
    first, last = DecisionStore(store, job.id).rounds()
    assert (first.phase, first.figures["requests_here"]) == ("symbolic", 2)
    assert (last.number, last.phase, last.why, last.figures) == (2, "stop", progress.why, {})
    kept = json.loads((Home(store.path.parent).run(job.id) / PROGRESS).read_bytes())
    assert kept["phase"] == "stop"
