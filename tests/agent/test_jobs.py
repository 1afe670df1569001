import dataclasses
import itertools

import pytest

from agent.contract.errors import IllegalMove
from agent.queue.jobs import MOVES, Job, State, after_death, check_move, check_retry

LEGAL = {
    "queued": "running paused cancelled",
    "running": "queued parked done failed cancelled dead",
    "paused": "queued cancelled",
    "parked": "queued cancelled",
    "done": "",
    "failed": "queued",
    "cancelled": "queued",
    "dead": "queued",
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)))
def test_exactly_the_legal_moves_pass(old: State, new: State) -> None:
    """Of all 64 pairs of states, those of the specification pass and every other one is refused."""
    if new.value in LEGAL[old.value].split():
        check_move(1, old, new)
    else:
        with pytest.raises(IllegalMove):
            check_move(1, old, new)


def test_every_state_has_its_moves() -> None:
    """A state that is added without its row in the table is noticed."""
    assert set(MOVES) == set(State)


def test_a_refused_move_says_from_where_it_is_possible() -> None:
    """The message names the job, where it stands, and the states that allow the move."""
    with pytest.raises(
        IllegalMove, match=r"^job 3 is done; only queued, running, paused or parked jobs can be cancelled$"
    ):
        check_move(3, State.DONE, State.CANCELLED)


@pytest.mark.parametrize("state", [State.FAILED, State.DEAD, State.CANCELLED, State.PARKED])
def test_ended_and_parked_jobs_can_be_retried(state: State) -> None:
    """A retry is open to every job that ended without success or waits for the remote."""
    check_retry(3, state)


@pytest.mark.parametrize("state", [State.DONE, State.RUNNING, State.PAUSED, State.QUEUED])
def test_other_jobs_cannot_be_retried(state: State) -> None:
    """A job that is done, or has an attempt, or waits already, is not retried, and the message says which are."""
    with pytest.raises(
        IllegalMove, match=f"^job 3 is {state}; only parked, failed, cancelled or dead jobs can be retried$"
    ):
        check_retry(3, state)


def test_the_third_death_is_the_last() -> None:
    """Two deaths queue the job again, the third gives it up and keeps the last reason."""
    assert after_death(0, "killed", counts=True) == (State.QUEUED, 1, "killed")
    assert after_death(1, "killed", counts=True) == (State.QUEUED, 2, "killed")
    assert after_death(2, "signal 9", counts=True) == (State.DEAD, 3, "3 process deaths, the last: signal 9")


def test_a_death_that_does_not_count_never_gives_a_job_up() -> None:
    """A power cut leaves the number of deaths as it was."""
    assert after_death(2, "the box was restarted", counts=False) == (State.QUEUED, 2, "the box was restarted")


def test_a_job_survives_its_row() -> None:
    """Settings and progress come back from their JSON as they were."""
    fields = {field.name: None for field in dataclasses.fields(Job)}
    job = Job(**{**fields, "state": State.PARKED, "settings": {"rank": 4, "dtype": "auto"}, "progress": {"loss": 1.5}})  # type: ignore[arg-type]
    assert Job.from_row(job.to_row()) == job
