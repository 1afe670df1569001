"""How a job steps down where memory is short: the ladder, the planner's choice, a worker that is really killed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from needs import lacks
from processes import agent, command_line, daemon, descendants, is_alive, wait_until

from agent.contract.atomic_io import publish_folder, write_json
from agent.contract.errors import OutOfMemory
from agent.contract.protocol import Peaks
from agent.contract.settings import Training
from agent.queue.jobs import State
from agent.queue.store import Store
from agent.runner import memory_fallbacks
from agent.runner.memory_plan import PLAN, Rung, fall_back, fit_to_memory
from agent.system.events import read_events
from agent.system.paths import Home
from agent.system.sensors import memory_kills
from benchmarks.watching import Group

GIVEN = Training()
ROW = '{{"prompt": "port of pump {0}?", "completion": "it is {1}", "answer": "{1}"}}\n'


def peaks(most: float, free: float = 1000.0, *, known: bool = True) -> Peaks:
    return Peaks(known=known, free_mb=free, now_mb=200.0, load_mb=300.0, train_mb=most, generate_mb=400.0, save_mb=1.0)


# ---- the ladder ----


def test_each_rung_takes_less_than_the_one_above() -> None:
    """First nothing but time is lost, then the tail of long examples, then what an adapter can hold."""
    found = [memory_fallbacks.differences(*both) for both in itertools.pairwise(memory_fallbacks.rungs(GIVEN))]
    assert found == [
        "memory_budget 1 instead of 0",
        "sequence_length 256 instead of 512",
        "sequence_length 128 instead of 256",
        "optimizer adamw8bit instead of adamw",
        "top_layers 0.5 instead of 1.0",
        "top_layers 0.25 instead of 0.5",
        "rank 8 instead of 16, alpha 16 instead of 32",
    ]


def test_a_rung_that_would_change_nothing_is_left_out() -> None:
    """Or a job would be started again as it was."""
    small = Training(memory_budget=1, sequence_length=64, optimizer="adamw8bit", top_layers=0.25, rank=4)
    assert [memory_fallbacks.differences(small, below) for below in memory_fallbacks.rungs(small)] == [
        "",
        "top_layers 0.125 instead of 0.25",
        "top_layers 0.0625 instead of 0.25",
    ]


def test_a_checkpoint_is_kept_while_the_adapter_has_its_shape() -> None:
    """The first three rungs."""
    first, *lower = memory_fallbacks.rungs(GIVEN)
    assert [memory_fallbacks.keeps_checkpoint(first, each) for each in lower] == [
        True,
        True,
        True,
        False,
        False,
        False,
        False,
    ]


# ---- the planner's choice ----


def test_what_fits_is_taken_as_it_is(tmp_path: Path) -> None:
    """Nothing is written down for a job with room."""
    for most in (1100, 1150):  # 200 are taken already, and 950 of 1000 may be
        assert fit_to_memory(tmp_path, GIVEN, lambda _, most=most: peaks(most)) == (GIVEN, peaks(most))
    assert list(tmp_path.iterdir()) == []


def test_the_first_rung_that_fits_is_taken_and_kept(tmp_path: Path) -> None:
    """The next attempt starts there, also where more is free by then."""
    ask = lambda settings: peaks(200 + 2 * settings.sequence_length + 500 * (settings.memory_budget == 0))  # noqa: E731
    settings, found = fit_to_memory(tmp_path, GIVEN, ask)
    assert (
        memory_fallbacks.differences(GIVEN, settings)
        == "sequence_length 256 instead of 512, memory_budget 1 instead of 0"
    )
    assert found.train_mb == 712
    assert Rung.of(tmp_path) == Rung(2, 0)
    assert fit_to_memory(tmp_path, GIVEN, lambda _: peaks(100, free=1e6))[0] == settings


def test_a_job_that_fits_nowhere_is_refused_with_figures(tmp_path: Path) -> None:
    """And what to do about it."""
    with pytest.raises(OutOfMemory, match=r"needs 2000 MB more \(to train\), 1000 MB are free: close other"):
        fit_to_memory(tmp_path, GIVEN, lambda _: peaks(2200))


def test_a_model_that_cannot_be_planned_for_is_tried(tmp_path: Path) -> None:
    """It is stepped down when memory has run out."""
    assert fit_to_memory(tmp_path, GIVEN, lambda _: peaks(9999, known=False))[0] == GIVEN


def test_what_was_trained_with_another_shape_goes(tmp_path: Path) -> None:
    """A checkpoint that fits stays."""
    (tmp_path / "attempt-1").mkdir()
    (tmp_path / "progress.json").write_text("{}")
    fit_to_memory(tmp_path, GIVEN, lambda settings: peaks(9999 if settings.memory_budget == 0 else 100))
    assert (tmp_path / "attempt-1").exists()
    fit_to_memory(tmp_path, GIVEN, lambda settings: peaks(9999 if settings.optimizer == "adamw" else 100))
    assert sorted(path.name for path in tmp_path.iterdir()) == [PLAN]
    (tmp_path / "attempt-2").mkdir()
    fit_to_memory(tmp_path, GIVEN, lambda settings: peaks(9999 if settings.optimizer == "adamw" else 100))
    assert (tmp_path / "attempt-2").exists()


def test_a_job_falls_three_times_at_most(tmp_path: Path) -> None:
    """Each time one rung, told in words."""
    fault = OutOfMemory("killed")
    told = [fall_back(tmp_path, GIVEN, fault) for _ in range(3)]
    assert told[0] == "memory_budget 1 instead of 0"
    assert told[2] == "sequence_length 128 instead of 256"
    assert Rung.of(tmp_path) == Rung(3, 3)
    with pytest.raises(OutOfMemory, match="killed, 4 times: close other programs"):
        fall_back(tmp_path, GIVEN, fault)


def test_a_job_on_the_last_rung_falls_no_further(tmp_path: Path) -> None:
    """There is nothing left to lower; from the one above it falls once more."""
    last = Rung(len(memory_fallbacks.rungs(GIVEN)) - 1, 1)
    write_json(tmp_path / PLAN, dataclasses.asdict(Rung(last.number - 1)))
    assert fall_back(tmp_path, GIVEN, OutOfMemory("killed")) == "rank 8 instead of 16, alpha 16 instead of 32"
    with pytest.raises(OutOfMemory, match="killed, 2 times: close other programs"):
        fall_back(tmp_path, GIVEN, OutOfMemory("killed"))
    assert Rung.of(tmp_path) == last


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rungs": 1}', "null"])
def test_a_damaged_note_is_none(tmp_path: Path, text: str) -> None:
    """The job starts at the top again."""
    (tmp_path / PLAN).write_text(text)
    assert Rung.of(tmp_path) == Rung()


# ---- for real ----

HOG = """
import sys
block = bytearray()
while True:
    block += b"x" * (4 << 20)
"""
"""Takes memory until the kernel kills somebody in its group."""


@pytest.fixture
def home(tmp_path: Path, tiny_base: Callable[[str], Path]) -> Home:
    """A state folder with a tiny model as its base."""
    made = Home(tmp_path / "state").create()
    made.config.write_text('base = "tiny"\n')
    shutil.copytree(tiny_base("llama"), made.model("tiny"))
    return made


def enqueue_a_long_job(home: Home) -> None:
    """Queue a job that trains until it is stopped."""
    data = home.path.parent / "pumps.jsonl"
    data.write_text("".join(ROW.format(i, i * 37) for i in range(40)))
    flags = (
        "--mode",
        "numeric",
        "--steps",
        "1000000",
        "--rank",
        "4",
        "--checkpoint-every",
        "5",
        "--max-new-tokens",
        "4",
    )
    done = agent("enqueue", data, *flags, state=home.path)
    assert done.returncode == 0, done.stderr


def told(home: Home, kind: str) -> list[dict[str, object]]:
    return [event for event, _ in read_events(home.run(1) / "events.jsonl") if event["event"] == kind]


def limited_group(limit: int) -> Group:
    try:
        return Group(limit)
    except OSError as fault:
        lacks(f"no control group can be made: {fault}")


@pytest.mark.process
def test_a_kill_elsewhere_on_the_box_is_not_counted_here() -> None:
    """A worker that somebody killed meanwhile would be taken for one that had too little memory."""
    before = memory_kills()
    with (
        closing(limited_group(64 << 20)) as group,
        subprocess.Popen([sys.executable, "-c", HOG], preexec_fn=lambda: group.add(os.getpid())) as hog,  # noqa: PLW1509
    ):
        assert hog.wait() == -signal.SIGKILL
    assert memory_kills() == before


@pytest.mark.process
def test_a_worker_that_the_kernel_kills_goes_on_from_its_checkpoint_with_less(home: Home) -> None:
    """Another program takes the group's memory; the job counts no death, and goes on one rung lower."""
    group = limited_group(1400 << 20)
    with daemon(home.path) as running:
        group.add(running.process.pid)
        enqueue_a_long_job(home)
        wait_until(lambda: "step" in running.job(1).progress, "the job trains")
        (worker,) = [pid for pid in descendants(running.process.pid) if "quant.worker" in command_line(pid)]
        # The kernel shall choose the worker: the others are what a box cannot do without.
        Path(f"/proc/{worker}/oom_score_adj").write_text("1000")
        with subprocess.Popen([sys.executable, "-c", HOG]) as hog:
            group.add(hog.pid)
            wait_until(lambda: not is_alive(worker), "the worker is killed")
            hog.kill()
        wait_until(lambda: told(home, "resume"), "the job goes on")
        job = running.job(1)
        reasons = [move.reason for move in running.moves(1)]
        assert running.stop() == 0
    group.close()
    assert (job.deaths, job.attempt) == (0, 2)
    assert "the training worker was killed because memory ran out; goes on with memory_budget 1 instead of 0" in reasons
    assert Rung.of(home.run(1)) == Rung(1, 1)
    assert told(home, "plan")[-1]["changed"] == "memory_budget 1 instead of 0"


LARGE = {
    "model_type": "llama",
    "hidden_act": "silu",
    "num_hidden_layers": 100_000,
    "hidden_size": 16384,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "intermediate_size": 53248,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
}
"""Larger than any box."""


@pytest.mark.process
def test_a_job_that_the_box_has_no_memory_for_is_refused_before_it_loads(home: Home) -> None:
    """With what it needs and what is free, though every setting was lowered."""
    enqueue_a_long_job(home)
    base = home.model("tiny")
    (base / "config.json").write_text(json.dumps(LARGE))
    (base / "manifest.json").unlink()
    work = base.rename(base.with_name("work"))
    publish_folder(work, base, {})
    assert agent("run", "--drain", state=home.path).returncode == 0
    with Store(home.database) as store:
        job = store.get(1)
    assert job.state is State.FAILED
    assert "this job needs" in str(job.reason)
    assert "MB are free: close other programs" in str(job.reason)
    assert told(home, "loaded") == []
