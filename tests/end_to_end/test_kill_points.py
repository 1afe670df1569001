"""Killed at any write, rename or unlink, the agent loses nothing and shows nothing by halves."""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from pathlib import Path

import pytest
from harness import (
    CALLS,
    DAEMON,
    EVERY_CALL,
    PROCESSES,
    Harness,
    Outcome,
    Point,
    one_of_each,
    outcome,
    points_in,
    unflushed,
)
from life import forked
from needs import needs
from processes import PATIENCE, REPRODUCIBLE, agent, wait_until

from agent.contract.atomic_io import TEMPORARY, folder_fault
from agent.queue.jobs import State
from agent.queue.store import Store
from agent.system.paths import Home
from agent.versions.registry import Registry

pytestmark = pytest.mark.process

SAMPLE = 1
"""Kill points of each process of a whole job that `make test` tries; `make test-all` tries all."""
TOGETHER = 2
FAILING = ("write", "pwrite64", "fsync", "fdatasync", "rename", "mkdir", "unlink")

ROWS = [{"prompt": f"which number has pump {i}?", "completion": f"it has number {i * 37}"} for i in range(8)]
FLAGS = (
    "--mode", "numeric", "--steps", "8", "--rank", "4", "--micro-batch", "4", "--sequence-length", "64",
    "--checkpoint-every", "2", "--max-new-tokens", "2", "--learning-rate", "1e-2",
)  # fmt: skip


# ---- queue and registry, without a model ----


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a kill, unlike a power cut, asks nothing of the disk, and that is slow."""
    memory = Path("/dev/shm")  # noqa: S108  TemporaryDirectory makes a name of its own there
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


FORKS = multiprocessing.get_context("forkserver")
ENDS = threading.Lock()
"""start() looks how other processes ended, and of two threads that read how one did only the first gets to know."""
FORKS.set_forkserver_preload(["life", "sqlite_utils", "sqlite_utils.plugins"])


@pytest.fixture(scope="module", autouse=True)
def _forks_end() -> Iterator[None]:
    """Nothing of ours is left for tests that look at what runs below them."""
    yield
    forkserver._forkserver._stop()
    resource_tracker._resource_tracker._stop()


def life(state: Path, options: list[str], mutation: str = "-") -> subprocess.CompletedProcess[str]:
    """One start of the process that goes through a job's life, traced with these options if there are any."""
    outputs = (str(state.with_suffix(".stdout")), str(state.with_suffix(".stderr")))
    ready, waits = FORKS.Pipe()
    process = FORKS.Process(target=forked, args=(str(state), mutation, outputs, waits))
    with ENDS:
        process.start()
    with traced(int(process.pid or 0), options, state.with_suffix(".strace")):
        ready.send(None)
        wait([process.sentinel], PATIENCE)
        with ENDS:
            process.kill()
            process.join()
    said, told = (Path(path).read_text() for path in outputs)
    return subprocess.CompletedProcess([], int(process.exitcode or 0), said, told)


@contextmanager
def traced(pid: int, options: list[str], log: Path) -> Iterator[None]:
    """A process under strace, until it ends; without options nobody is traced."""
    if not options:
        yield
        return
    with subprocess.Popen([needs("strace", "strace"), "-qq", "-o", str(log), *options, "-p", str(pid)]):
        status = Path(f"/proc/{pid}/status")
        wait_until(lambda: "TracerPid:\t0\n" not in status.read_text(), "strace is there")
        yield


def life_points(tmp_path: Path, mutation: str = "-") -> list[Point]:
    """Every call that changes something, of a life that nobody disturbs."""
    state = tmp_path / "undisturbed"
    done = life(state, EVERY_CALL, mutation)
    assert done.returncode == 0, done.stderr
    return points_in((tmp_path / "undisturbed.strace").read_text(), "life", str(state))


def survives(tmp_path: Path, point: Point, mutation: str = "-") -> str:
    """What went wrong after a kill and a new start; empty if nothing did."""
    state = tmp_path / f"{point.call}-{point.number}"
    inject = f"inject={point.call}:signal=SIGKILL:when={point.number}"
    killed = life(state, ["-e", f"trace={point.call}", "-e", inject], mutation)
    if killed.returncode != -signal.SIGKILL:
        return f"{point}: nobody was killed"
    seen = half_seen(state)
    again = life(state, [], mutation)
    if again.returncode != 0:
        return f"{point}: the next start fails: {again.stderr[-300:]}"
    # A kill may come between a line and its end.
    fault = seen or left_wrong(state, f"{killed.stdout}\n{again.stdout}")
    shutil.rmtree(state)
    return f"{point}: {fault}" if fault else ""


def half_seen(state: Path) -> str:
    """What a reader could see of a version by halves, right after the kill."""
    versions = [path for path in (state / "versions").glob("[0-9]*") if path.is_dir()]
    return next((f"half a version: {fault}" for path in versions if (fault := folder_fault(path))), "")


def left_wrong(state: Path, told: str) -> str:
    """What differs from a life that nobody disturbed; `told` is what was acknowledged."""
    home = Home(state)
    with sqlite3.connect(home.database) as connection:
        if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            return "the database is damaged"
    with Store(home.database) as store:
        registry = Registry(home.path, store)
        jobs, numbers = store.list(), [version.number for version in registry.versions()]
        promoted = [row["version"] for row in store.execute("SELECT version FROM promotions ORDER BY id")]
        spools = {path.stem for path in home.spool.glob("*.jsonl")}
        active = registry.active()
    lost = set(re.findall(r"job (\d+) is (\w+)", told)) - {(str(job.id), job.file) for job in jobs}
    left = list(state.rglob(f"{TEMPORARY}*"))
    faults = {
        f"half-written: {left}": bool(left),
        f"acknowledged jobs are lost: {lost}": bool(lost),
        "an acknowledged version is lost": bool(set(map(int, re.findall(r"version (\d+)", told))) - set(numbers)),
        f"jobs are not done: {jobs}": {job.state for job in jobs} != {State.DONE},
        f"a job made two versions or none: {numbers}": len(numbers) != 1 + len(jobs),
        f"promoted twice: {promoted}": len(promoted) != len(set(promoted)),
        f"active is {active}": active != 1,
        "a job's data is gone": {job.spool for job in jobs} != spools,
    }
    return next((text for text, is_so in faults.items() if is_so), "")


def violations(tmp_path: Path, points: list[Point], mutation: str = "-") -> Iterator[str]:
    """What went wrong, of all points; who has seen enough leaves the rest untried."""
    pool = ThreadPoolExecutor(2 * TOGETHER)  # they wait more than they work
    try:
        yield from filter(None, pool.map(lambda each: survives(tmp_path, each, mutation), points))
    finally:
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("choose", [one_of_each, pytest.param(list, marks=pytest.mark.exhaustive)])
def test_queue_and_registry_survive_a_kill_at_every_point(
    tmp_path: Path, choose: Callable[[list[Point]], list[Point]]
) -> None:
    """Each write, flush, rename and unlink of a job's life: what was acknowledged is there, once and whole."""
    points = life_points(tmp_path)
    assert len(points) > 100
    assert list(violations(tmp_path, choose(points))) == []


@pytest.mark.parametrize(
    ("mutation", "fault"),
    [
        ("publish before writing", "half a version"),
        ("acknowledge before storing", "acknowledged jobs are lost"),
        ("sweep nothing", "half-written"),
    ],
)
def test_a_planted_bug_is_found(tmp_path: Path, mutation: str, fault: str) -> None:
    """The sample of points that is tried each time is enough for each of them."""
    assert any(fault in text for text in violations(tmp_path, one_of_each(life_points(tmp_path, mutation)), mutation))


# ---- the order of writes ----


@pytest.mark.parametrize(("mutation", "is_sound"), [("-", True), ("write without flushing", False)])
def test_files_and_folders_are_flushed_around_each_rename(tmp_path: Path, mutation: str, is_sound: bool) -> None:  # noqa: FBT001
    """What a power cut would need: the trace of a whole life shows it, and shows it missing where it was taken out."""
    state = tmp_path / "state"
    done = life(state, ["-f", "-y", "-e", "trace=?" + ",?".join(CALLS)], mutation)
    assert done.returncode == 0, done.stderr
    faults = list(unflushed((tmp_path / "state.strace").read_text(), str(state)))
    assert (faults == []) is is_sound, faults[:3]


# ---- a whole job ----


def job_in(folder: Path, base: Path, *flags: str) -> Path:
    """A state folder with a queued job on a prepared tiny model, `flags` after the usual ones."""
    folder.mkdir(exist_ok=True)
    home = Home(folder / "state").create()
    home.config.write_text(f'base = "tiny"\n{REPRODUCIBLE}')
    home.model("tiny").symlink_to(base)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done = agent("enqueue", folder / "data.jsonl", *FLAGS, *flags, state=home.path)
    assert done.returncode == 0, done.stderr
    return home.path


def without_kill(harness: Harness) -> Outcome:
    """What the job comes to when nobody is killed."""
    folder = harness.fresh()
    harness.plan(folder, [], [], once=True)
    harness.finish(folder)
    return outcome(folder)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tiny_base: Callable[[str], Path]) -> Path:
    """A state folder with a queued job on a tiny model."""
    return job_in(tmp_path_factory.mktemp("template"), tiny_base("llama"))


@pytest.fixture(scope="module")
def undisturbed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What the job comes to when nobody is killed."""
    found = without_kill(Harness(template, tmp_path_factory.mktemp("undisturbed")))
    assert (found.state, found.versions, found.active, found.promotions) == ("done", 1, 1, (1,))
    return found


@pytest.fixture(scope="module")
def points(template: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Point]:
    """Every point of that job."""
    return Harness(template, tmp_path_factory.mktemp("points")).points()


def tried(harness: Harness, points: list[Point], wanted: Outcome) -> list[str]:
    """What went wrong, of all points."""

    def fault(point: Point) -> str:
        try:
            folder = harness.kill(point)
            found = outcome(folder)
        except AssertionError as wrong:
            return f"{point}: {wrong}"
        shutil.rmtree(folder)
        return "" if found == wanted else f"{point}: {found}, not {wanted}"

    with ThreadPoolExecutor(TOGETHER) as pool:
        return [text for text in pool.map(fault, points) if text]


def some_of_each_process(points: list[Point], most: int = SAMPLE) -> list[Point]:
    """A sample that is spread over processes and kinds of files."""
    draw = random.Random(0)
    of_process = ([each for each in one_of_each(points) if each.process == process] for process in PROCESSES)
    return [point for each in of_process for point in draw.sample(each, min(most, len(each)))]


@pytest.mark.parametrize("choose", [some_of_each_process, pytest.param(list, marks=pytest.mark.exhaustive)])
def test_a_job_ends_as_if_nobody_had_been_killed(
    template: Path,
    tmp_path: Path,
    undisturbed: Outcome,
    points: list[Point],
    choose: Callable[[list[Point]], list[Point]],
) -> None:
    """Daemon, loop or worker, at their writes: the same adapter, promoted once, and no process left."""
    assert tried(Harness(template, tmp_path), choose(points), undisturbed) == []


def test_the_daemon_is_what_is_traced(template: Path, tmp_path: Path) -> None:
    """The harness kills whom it says: a daemon at its first write ends, and the next one does the job."""
    folder = Harness(template, tmp_path).kill(Point(DAEMON, "write", 1))
    assert list(folder.glob("strace.*"))
    assert "killed by SIGKILL" in next(folder.glob("strace.*")).read_text()


# ---- single calls that fail ----


def after_a_fault(harness: Harness, point: Point, error: str, wanted: Outcome) -> str:
    """What went wrong after one call failed: the job must end, for a reason in words, and a retry must succeed."""
    try:
        folder = harness.disturb(point, f"error={error}")
        found = outcome(folder)
        told = (folder / "daemon.log").read_text()
        assert "Traceback" not in told + found.reason, found.reason + told
        if found.state != "done":
            assert agent("retry", 1, state=folder / "state").returncode == 0, found
            harness.finish(folder)
            found = outcome(folder)
    except AssertionError as wrong:
        return f"{point}, {error}: {wrong}"
    shutil.rmtree(folder)
    return "" if found == wanted else f"{point}, {error}: {found}, not {wanted}"


def a_few(points: list[Point]) -> list[Point]:
    """One call of each process."""
    return some_of_each_process(points, 1)


@pytest.mark.parametrize("choose", [a_few, pytest.param(one_of_each, marks=pytest.mark.exhaustive)])
def test_a_disk_that_fails_once_costs_a_retry_at_most(
    template: Path,
    tmp_path: Path,
    undisturbed: Outcome,
    points: list[Point],
    choose: Callable[[list[Point]], list[Point]],
) -> None:
    """ENOSPC or EIO at any write of daemon, loop or worker: no traceback, no half version, and the job can be done."""
    harness = Harness(template, tmp_path)
    draw = random.Random(0)
    # A pipe is on no disk: Python prints a traceback where its signal handler cannot write into one.
    chosen = choose([point for point in points if point.call in FAILING and point.what.startswith("/")])
    with ThreadPoolExecutor(TOGETHER) as pool:
        found = pool.map(lambda each: after_a_fault(harness, each, draw.choice(["ENOSPC", "EIO"]), undisturbed), chosen)
        assert [fault for fault in found if fault] == []
