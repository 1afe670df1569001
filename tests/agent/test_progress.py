"""What a job writes down after every window, and reads again in the next attempt."""

from __future__ import annotations

import json
import math
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
from deciding import COSTS, GOOD, example, offered, rewritten, row, tuned
from hypothesis import given
from hypothesis import strategies as st

from agent.data.formats import Example, Message
from agent.decide.classifier import prior
from agent.decide.monitor import Monitor, Phase, Window
from agent.runner.progress import Progress
from agent.scoring.stylometry import Stylometry

ROWS = {
    "pump": row(example("pump", 1), loss_before=3.25, trained=2, tried=1, rewrite=rewritten(), waits=True),
    "Köln 日本": row(example("Köln 日本", 2)).after_rewrite(rewritten("Köln 日本"), "qwen"),
    "asked": row(example("asked", 3), GOOD).with_reference(GOOD, "own answer"),
    "a text": row(Example("a text", (Message("assistant", "pumps hum"),), "train", None, (), 4), None, loss=1e6),
    "not asked": replace(row(example("not asked", 5)), answered=None),
}
FULL = Progress(
    rows=ROWS,
    classifier=offered().teach(tuned(gain=1 / 3).teach(prior())),
    round=3,
    phase=Phase.SYMBOLIC,
    why="2 examples to rewrite, expected gain 0.4",
    monitor=Monitor(Phase.SYMBOLIC, (Window(0.1), Window(0.2, 0.01, 1.5))),
    members=("pump", "Köln 日本"),
    outcomes=(tuned(gain=0.1 + 0.2), offered(told="rejected: 1 comma found: “a”,")),
    ended="rewriting gains little",
    flat=(Phase.SYMBOLIC,),
    cut="the remote is away",
    finished=True,
    deferred=rewritten(),
    step=40,
    first=20,
    checkpoint="attempt-1/checkpoints/step-40",
    tokens=12345,
    train_seconds=1.5,
    peak_rss_mb=1000.5,
    peak_cuda_mb=2.5,
    seconds=61.25,
    requests=7,
    requests_before=3,
    reward_before=0.25,
    start="attempt-1/checkpoints-2/step-20",
    start_tokens=9,
    undone=4,
    spent=True,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "progress.json"


def reloaded(progress: Progress, path: Path) -> Progress:
    progress.save(path)
    return Progress.load(path, [each.origin for each in progress.rows.values()])


def test_every_field_is_read_as_it_was_written(path: Path) -> None:
    """Rows with all that was tried, the classifier, windows, members and outcomes; nothing starts at its default."""
    fresh = Progress(rows={}, classifier=prior())
    assert all(getattr(FULL, field.name) != getattr(fresh, field.name) for field in fields(Progress))
    assert reloaded(FULL, path) == FULL


def test_a_job_that_has_just_begun_is_read_as_it_was_written(path: Path) -> None:
    """No phase, no window, no outcome yet."""
    begun = Progress(rows=ROWS, classifier=prior())
    assert reloaded(begun, path) == begun


def test_rows_keep_the_order_of_the_file(path: Path) -> None:
    """Later rounds draw and choose in this order, so that a job repeats itself."""
    back = {name: ROWS[name] for name in reversed(ROWS)}
    assert list(reloaded(replace(FULL, rows=back), path).rows) == list(reversed(ROWS))


def test_what_is_read_chooses_and_teaches_as_before(path: Path) -> None:
    """Values are tuples again, not lists: the same rewards, the same features, the same gains."""
    again = reloaded(FULL, path)
    for name in ("pump", "Köln 日本", "asked"):
        assert again.rows[name].standing == ROWS[name].standing
    assert again.outcomes[0].teach(again.classifier) == FULL.outcomes[0].teach(FULL.classifier)


numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(gain=numbers, told=texts, why=texts, seconds=numbers, level=numbers)
def test_any_number_and_text_survives(
    gain: float, told: str, why: str, seconds: float, level: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Floats to the last bit, texts in every script."""
    path = tmp_path_factory.getbasetemp() / "any-progress.json"
    monitor = Monitor(Phase.NUMERIC, (Window(level),))
    outcome = replace(tuned(), gain=gain, told=told)
    progress = replace(FULL, why=why, seconds=seconds, monitor=monitor, outcomes=(outcome,))
    assert reloaded(progress, path) == progress


def test_a_file_that_cannot_be_written_leaves_the_one_before(path: Path) -> None:
    """A job goes on from the window before, never from half a state."""
    FULL.save(path)
    with pytest.raises(ValueError, match="JSON"):
        replace(FULL, seconds=math.nan).save(path)
    assert Progress.load(path, [each.origin for each in ROWS.values()]) == FULL


def test_the_file_is_flushed_before_it_takes_the_place_of_the_last_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves the old state or the new one: the new file and then the folder are synced."""
    synced: list[str] = []
    fsync = os.fsync

    def seen(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    FULL.save(path)
    assert synced == [f".tmp-progress.json-{os.getpid()}", path.parent.name]
    assert [each.name for each in path.parent.iterdir()] == ["progress.json"]
    assert json.loads(path.read_bytes())["round"] == 3


def test_a_row_without_a_token_to_learn_can_be_written_down(path: Path) -> None:
    """Its loss is as bad as can be, but finite: JSON and the classifier know no infinity."""
    styled = Stylometry.of([GOOD])
    row_ = row(example("cut off")).after_probe("", math.inf, styled, trained=False)
    row_ = row_.after_probe("", math.inf, styled, trained=True)
    progress = Progress(rows={"cut off": row_}, classifier=prior())
    assert reloaded(progress, path) == progress
    seen = prior().choose(row_.standing, COSTS["both"])
    assert all(map(math.isfinite, (*seen.features, seen.weights.hoped, seen.rewrite.hoped)))


def test_progress_of_the_first_release_is_read(path: Path) -> None:
    """What it did not write down is as it is at the reading: the rows change when a phase is over."""
    probed = replace(FULL, rows={name: row for name, row in ROWS.items() if row.answered})
    probed.save(path)
    told = json.loads(path.read_text())
    del told["reward_before"]
    path.write_text(json.dumps(told))
    read = Progress.load(path, [each.origin for each in probed.rows.values()])
    assert read.reward_before == probed.reward > 0
