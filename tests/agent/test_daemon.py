from __future__ import annotations

import datetime as dt
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path

import processes
import pytest
from processes import agent, daemon, descendants, internet_sockets, is_alive, resident_mb, wait_until

from agent.contract.atomic_io import folder_fault, hold_lock
from agent.contract.errors import Busy
from agent.daemon.daemon import FROZEN, Daemon, boot_id
from agent.daemon.throttle_rules import Hold
from agent.queue.jobs import Job, State
from agent.queue.store import Store
from agent.system.paths import Home

ROW = '{{"prompt": "port of pump {0}?", "completion": "it is {1}", "answer": "{1}"}}\n'
LONG = ("--steps", "1000000", "--rank", "4", "--sequence-length", "64", "--max-new-tokens", "4")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A state folder whose base model is not prepared."""
    made = Home(tmp_path / "state").create()
    made.config.write_text('base = "tiny"\n')
    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pumps.jsonl"
    path.write_text("".join(ROW.format(i, i * 37) for i in range(12)))
    return path


@pytest.fixture
def prepared(home: Home, tiny_base: Callable[[str], Path]) -> Home:
    """A state folder that is ready to train a tiny random model."""
    shutil.copytree(tiny_base("llama"), home.model("tiny"))
    return home


def free(_: float) -> None:
    """A governor of a box with room."""


def enqueue(home: Home, data: Path, *flags: str) -> None:
    done = agent("enqueue", data, "--mode", "numeric", *flags, state=home.path)
    assert done.returncode == 0, done.stderr


def wait_for_phase(running: processes.Daemon, job: int, phase: str) -> None:
    """Until the job's row says that it is there, in training with a first step done."""

    def reached() -> bool:
        done = running.job(job).progress
        return done.get("phase") == phase and (phase != "train" or "step" in done)

    wait_until(reached, f"job {job} is in phase {phase}")


# ---- at rest ----


@pytest.mark.process
def test_an_idle_daemon_is_small_silent_and_alive(home: Home) -> None:
    """It tells systemd that it is ready, idle and alive; under 45 MB, no child, no socket of the internet."""
    with daemon(home.path) as running:
        told = running.told("STATUS=")
        assert told[0] == "READY=1"
        assert told[-1] == "STATUS=idle"
        assert running.told("WATCHDOG=1")
        assert running.told("WATCHDOG=1")
        assert resident_mb(running.process.pid) < 45
        assert internet_sockets(running.process.pid) == set()
        assert descendants(running.process.pid) == []
        assert running.stop() == 0
        assert running.told("STOPPING=1")


@pytest.mark.process
def test_drain_ends_with_the_queue(home: Home, data: Path) -> None:
    """Every job is worked on once; an empty queue is no reason to wait."""
    assert agent("run", "--drain", state=home.path).returncode == 0
    for _ in range(2):
        enqueue(home, data)
    done = agent("run", "--drain", state=home.path)
    assert done.returncode == 0
    assert "job 1 failed" in done.stdout
    assert "job 2 failed" in done.stdout


def test_half_written_models_are_swept_unless_init_is_at_work(home: Home) -> None:
    """What a killed init left goes; what a living one is writing stays."""
    left = home.models / ".tmp-left"
    left.mkdir()
    with Store(home.database) as store:
        with hold_lock(home.models_lock, "init"):
            Daemon(home, store, lambda *_: None, free).initialize()
        assert left.exists()
        Daemon(home, store, lambda *_: None, free).initialize()
    assert not left.exists()


# ---- jobs that cannot be worked on ----


@pytest.mark.process
def test_a_job_without_its_base_model_fails_with_advice_and_the_next_one_starts(prepared: Home, data: Path) -> None:
    """And cancelling that one, while it trains, ends every process of it and not the daemon."""
    prepared.config.write_text('base = "gone"\n')
    enqueue(prepared, data)
    prepared.config.write_text('base = "tiny"\n')
    enqueue(prepared, data, *LONG)
    with daemon(prepared.path) as running:
        failed = running.wait_for(1, "failed")
        assert failed.reason == "the base model gone is not prepared: run `nslora-agent init`, then try again"
        assert failed.deaths == 0
        running.wait_for(2, "running")
        wait_for_phase(running, 2, "train")
        assert "pumps.jsonl" in running.told("STATUS=job 2")[-1]
        below = descendants(running.process.pid)
        assert len(below) >= 2
        assert not [pid for pid in below if internet_sockets(pid)]
        assert agent("cancel", 2, state=prepared.path).returncode == 0
        wait_until(lambda: not any(map(is_alive, below)), "the job's processes are gone")
        cancelled = running.job(2)
        assert (cancelled.state, cancelled.deaths) == (State.CANCELLED, 0)
        assert running.told("STATUS=idle")
        assert running.stop() == 0


# ---- deaths ----


@pytest.mark.process
def test_a_job_that_dies_three_times_is_given_up_with_the_reason(home: Home, data: Path) -> None:
    """Each kill -9 of its process is counted, the job is taken up again twice, then it is dead until a retry."""
    enqueue(home, data)
    killed: set[int] = set()
    with daemon(home.path) as running, hold_lock(home.device_lock, "a test"):
        for deaths in (1, 2, 3):
            (loop,) = wait_until(lambda: set(running.loops) - killed, "the job runs")
            os.kill(loop, signal.SIGKILL)
            killed.add(loop)
            wait_until(lambda: running.job(1).deaths == deaths, f"death {deaths}")  # noqa: B023
        dead = running.job(1)
        assert (dead.state, dead.attempt) == (State.DEAD, 3)
        assert dead.reason == "3 process deaths, the last: the job's process was killed by SIGKILL (out of memory?)"
        assert running.loops == []
        with Store(home.database) as store:
            assert [move.new for move in store.moves(1)] == ["queued", *["running", "queued"] * 2, "running", "dead"]
        assert agent("retry", 1, state=home.path).returncode == 0
        retried = running.wait_for(1, "running")
        assert (retried.deaths, retried.attempt) == (0, 4)


@pytest.mark.process
def test_when_the_daemon_is_killed_its_job_dies_with_it_and_is_taken_up_by_the_next(home: Home, data: Path) -> None:
    """On the same boot that counts as a death."""
    home.model("tiny").mkdir()
    enqueue(home, data)
    with hold_lock(home.device_lock, "a test"):
        with daemon(home.path) as running:
            wait_for_phase(running, 1, "wait")
            below = descendants(running.process.pid)
            running.process.kill()
            running.process.wait()
            wait_until(lambda: not any(map(is_alive, below)), "the job's processes are gone")
            assert running.job(1).state is State.RUNNING
        with daemon(home.path) as running:
            wait_until(lambda: running.job(1).attempt == 2, "the job is taken up again")
            assert running.job(1).deaths == 1
    with Store(home.database) as store:
        assert "the daemon died" in [move.reason for move in store.moves(1)]


@pytest.mark.process
def test_a_power_cut_counts_no_death(home: Home, data: Path) -> None:
    """A row that was left running on another boot goes back as it was, and is worked on."""
    for boot in ("another boot", boot_id()):
        enqueue(home, data)
        with Store(home.database) as store:
            store.claim(boot, 4711)
    assert agent("run", "--drain", state=home.path).returncode == 0
    with Store(home.database) as store:
        jobs = store.list()
        reasons = [store.moves(job.id)[2].reason for job in jobs]
    assert [(job.state, job.attempt, job.deaths) for job in jobs] == [(State.FAILED, 2, 0), (State.FAILED, 2, 1)]
    assert reasons == ["the box restarted", "the daemon died"]


def freeze(home: Home, pid: int) -> None:
    """SIGSTOP, which stands for whatever freezes a process, at a moment when it does not lock the database."""
    with closing(sqlite3.connect(home.database, timeout=0, isolation_level=None)) as database:
        while True:
            os.kill(pid, signal.SIGSTOP)
            try:
                database.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError:
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.01)
            else:
                return


@pytest.mark.process
@pytest.mark.parametrize("locks", [False, True])
def test_a_job_that_no_longer_beats_is_killed(
    home: Home, data: Path, monkeypatch: pytest.MonkeyPatch, *, locks: bool
) -> None:
    """Also one that froze within a transaction, so that nobody can read the database; the clock is the test's."""
    monkeypatch.setattr("agent.queue.store.BUSY_TIMEOUT", 2.0)
    home.model("tiny").mkdir()
    enqueue(home, data)
    told: list[tuple[str, Job]] = []
    with (
        Store(home.database, actor="daemon") as store,
        closing(sqlite3.connect(home.database, isolation_level=None)) as within,
        hold_lock(home.device_lock, "a test"),
    ):
        frozen = Daemon(home, store, lambda what, job: told.append((what, job)), free)
        frozen.initialize()
        frozen.tick(0.0)
        wait_until(lambda: store.get(1).progress, "the job beats")
        (loop,) = descendants(os.getpid())
        freeze(home, loop)
        frozen.tick(1.0)
        within.execute("BEGIN EXCLUSIVE" if locks else "BEGIN")
        for now, alive in ((FROZEN, True), (2.0 + FROZEN, False)):
            with pytest.raises(Busy) if locks else nullcontext():
                frozen.tick(now)
            wait_until(lambda: is_alive(loop) == alive, "the job is killed")  # noqa: B023
        within.rollback()
        store.cancel(1, "the test is over")
        frozen.tick(3.0 + FROZEN)
    assert frozen.idle
    assert [what for what, _ in told] == ["started", *([] if locks else ["progress"]), "ended"]


# ---- stopping ----


@pytest.mark.process
def test_a_stop_while_training_checkpoints_and_puts_the_job_back_without_a_death(prepared: Home, data: Path) -> None:
    """SIGTERM, as systemd sends it: exit code 0, a whole checkpoint, a queued job, and no process left."""
    enqueue(prepared, data, *LONG)
    with daemon(prepared.path) as running:
        wait_for_phase(running, 1, "train")
        below = descendants(running.process.pid)
        assert running.stop() == 0
        assert running.told("STOPPING=1")
        assert not [pid for pid in below if is_alive(pid)]
        job = running.job(1)
    assert (job.state, job.deaths, job.attempt) == (State.QUEUED, 0, 1)
    assert "checkpoint" in str(job.reason)
    (*_, checkpoint) = sorted(prepared.run(1).glob("attempt-1/checkpoints/step-*"))
    assert folder_fault(checkpoint) is None
    assert int(checkpoint.name.removeprefix("step-")) >= 1


@pytest.mark.process
def test_a_stop_while_a_job_waits_for_the_device_counts_no_death(home: Home, data: Path) -> None:
    """Nothing was done yet, so nothing is lost."""
    home.model("tiny").mkdir()
    enqueue(home, data)
    with hold_lock(home.device_lock, "a test"), daemon(home.path) as running:
        wait_for_phase(running, 1, "wait")
        assert running.stop() == 0
        job = running.job(1)
    assert (job.state, job.deaths) == (State.QUEUED, 0)


# ---- the governor ----


@pytest.mark.process
def test_a_hot_box_pauses_its_job_at_a_checkpoint_and_goes_on_when_it_has_cooled(prepared: Home, data: Path) -> None:
    """What holds it stands in the job's row and in systemd's status; no other job starts meanwhile, nothing is lost."""
    enqueue(prepared, data, *LONG)
    enqueue(prepared, data, *LONG)
    held: list[Hold] = []
    told: list[str] = []
    with Store(prepared.database, actor="daemon") as store:
        governed = Daemon(prepared, store, lambda what, _: told.append(what), lambda _: held[0] if held else None)
        governed.initialize()

        def ticked(reached: Callable[[Job], object]) -> bool:
            governed.tick(time.monotonic())
            return bool(reached(store.get(1)))

        wait_until(lambda: ticked(lambda job: "step" in job.progress), "the job trains")
        held.append(Hold("zone is at 91 °C, the limit is 90", 0.0))
        wait_until(lambda: ticked(lambda job: job.state is State.PAUSED), "the job pauses")
        assert store.get(1).reason == "zone is at 91 °C, the limit is 90"
        assert store.get(1).deaths == 0
        assert store.get(2).state is State.QUEUED
        assert descendants(os.getpid()) == []
        assert not governed.idle
        assert list(prepared.run(1).glob("attempt-1/checkpoints/step-*"))
        held.clear()
        wait_until(lambda: ticked(lambda job: job.state is State.RUNNING), "the job goes on")
        assert store.get(1).attempt == 2
        governed.shutdown()
    assert told[-1] == "ended"
    assert {"paused", "resumed"} < set(told)


@pytest.mark.process
def test_hours_of_the_day_hold_a_box(home: Home, data: Path) -> None:
    """`ls` and the service's status say why nothing runs."""
    hour = dt.datetime.now().astimezone().hour
    never = f"{(hour + 2) % 24:02}:00-{(hour + 3) % 24:02}:00"
    home.config.write_text(f'base = "tiny"\n[governor]\ntrain_between = "{never}"\n')
    enqueue(home, data)
    with daemon(home.path) as running:
        assert running.wait_for(1, "paused").reason == f"training is for {never} only"
        assert running.told("STATUS=paused")[-1] == f"STATUS=paused: training is for {never} only"
        assert "paused" in agent("ls", state=home.path).stdout
