"""Disks that fill up, fail or go read-only, files that rot, workers that freeze or rave: said clearly, nothing lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import LOOP, NONE, Harness, Outcome, outcome
from needs import lacks
from processes import agent, daemon, failed, wait_until
from test_kill_points import FLAGS, ROWS, job_in, without_kill

from agent.contract.offload_messages import Ping
from agent.contract.protocol import Alive, Envelope, encode
from agent.queue.jobs import ENDED, Job, State
from agent.queue.store import Store
from agent.system.paths import Home
from agent.system.worker_client import MOST_WAITING, Connection

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tiny_base: Callable[[str], Path]) -> Path:
    """A state folder with a queued job on a tiny model."""
    return job_in(tmp_path_factory.mktemp("faults"), tiny_base("llama"))


@pytest.fixture(scope="module")
def undisturbed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What the job comes to when the disk works."""
    return without_kill(Harness(template, tmp_path_factory.mktemp("undisturbed")))


# ---- disks ----


@contextmanager
def disk(path: Path, size: str) -> Iterator[Path]:
    """A small disk of its own; where nothing can be mounted the test is skipped, except under CI, where it fails."""
    path.mkdir()
    mount, umount = shutil.which("mount") or "mount", shutil.which("umount") or "umount"
    done = subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "none", path], check=False, capture_output=True)
    if done.returncode:
        lacks(f"no disk can be mounted: {done.stderr.decode(errors='replace').strip()}")
    try:
        yield path
    finally:
        subprocess.run([umount, "--lazy", path], check=True)


def small_state(path: Path, template: Path) -> Path:
    """The template's state on another disk."""
    return Path(shutil.copytree(template, path / "state", symlinks=True))


def _ended(job: Job) -> Job | None:
    return job if job.state in ENDED else None


def test_a_full_disk_is_said_and_the_job_is_done_when_there_is_room(
    template: Path, tmp_path: Path, undisturbed: Outcome
) -> None:
    """2 MB for everything: an enqueue is refused, a job fails or waits, nothing acknowledged is lost."""
    with disk(tmp_path / "disk", "2m") as path:
        state = small_state(path, template)
        ballast = path / "ballast"
        with ballast.open("wb") as stream:
            while stream.write(b"x" * 4096) and shutil.disk_usage(path).free > 60_000:
                stream.flush()
        data = tmp_path / "data.jsonl"
        data.write_text("".join(json.dumps({"prompt": "a" * 900, "completion": "b" * 900}) + "\n" for _ in range(200)))
        failed(agent("enqueue", data, state=state), 74, "free some space")
        with daemon(state) as running:
            # Where not even the job's row can be written, the daemon says so and tries again until there is room.
            told = lambda: "free some space" in (state / "daemon.log").read_text()  # noqa: E731
            wait_until(lambda: told() or running.job(1).state is State.FAILED, "the full disk is told")
            assert "Traceback" not in (state / "daemon.log").read_text()
            ballast.unlink()
            ended = wait_until(lambda: _ended(running.job(1)), "the job ends")
            if ended.state is State.FAILED:
                assert "No space left on device" in str(ended.reason)
                assert agent("retry", 1, state=state).returncode == 0
                running.wait_for(1, "done")
            running.stop()
        (state / "daemon.log").unlink()
        assert outcome(path) == undisturbed


def test_a_read_only_state_folder_is_said_in_one_line(template: Path, tmp_path: Path) -> None:
    """As a file system becomes after errors of its disk; what can be read is still shown."""
    with disk(tmp_path / "disk", "4m") as path:
        state = small_state(path, template)
        (tmp_path / "data.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
        subprocess.run([shutil.which("mount") or "mount", "-o", "remount,ro", path], check=True)
        for command in (("enqueue", tmp_path / "data.jsonl"), ("run", "--drain"), ("cancel", 1)):
            failed(agent(*command, state=state), 73, "check")
        assert "data.jsonl" in agent("ls", state=state).stdout


# ---- files that rot ----


def test_a_base_model_with_a_wrong_bit_is_refused_and_the_next_job_runs(
    template: Path, tmp_path: Path, tiny_base: Callable[[str], Path]
) -> None:
    """The file and what to do are named; the size alone would not have told."""
    state = small_state(tmp_path, template)
    home = Home(state)
    shutil.copytree(tiny_base("llama"), home.model("rotten"))
    file = home.model("rotten") / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with Store(home.database) as store:
        store.execute("UPDATE jobs SET base = 'rotten' WHERE id = 1")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert agent("enqueue", tmp_path / "data.jsonl", *FLAGS, state=state).returncode == 0
    assert agent("run", "--drain", state=state).returncode == 0
    with Store(home.database) as store:
        rotten, sound = store.list()
    assert rotten.state is State.FAILED
    assert "model.safetensors differs from its manifest (sha256); run `nslora-agent init --again`" in str(rotten.reason)
    assert sound.state is State.DONE


@pytest.mark.parametrize("command", [("ls",), ("run", "--drain", "--json"), ("enqueue", "{data}"), ("show", "1")])
def test_a_database_with_a_wrong_page_is_said_in_one_line(
    template: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """No traceback, and what to do about it; nothing is made anew in its place."""
    state = small_state(tmp_path, template)
    (tmp_path / "data.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    database = state / "jobs.db"
    data = bytearray(database.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    database.write_bytes(data)
    arguments = [each.format(data=tmp_path / "data.jsonl") for each in command]
    done = agent(*arguments, state=state)
    assert (done.returncode, done.stdout) == (73, "")
    assert "move it away or restore it from a backup" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert database.read_bytes() == bytes(data)


# ---- clocks and workers ----


def test_a_clock_that_jumps_holds_up_nothing(tmp_path: Path) -> None:
    """A box without a battery starts in 1970 and is told the time later; both ways, jobs are claimed and wake."""
    now = [1_000_000_000.0]
    with Store(tmp_path / "jobs.db", clock=lambda: now[0]) as store:
        store.add("f", "s", 1, 0, "", {}, "base", "numeric")
        for jump in (-999_999_000.0, 2_000_000_000.0, -1_500_000_000.0):
            claimed = store.claim("boot", 1)
            assert claimed
            store.park(1, str(claimed.token), "offline", now[0] + 600)
            now[0] += jump
            store.beat(1, str(claimed.token)) if store.get(1).state is State.RUNNING else None
            assert [job.id for job in store.wake(3600)] == [1] or jump == 0


FLOOD = """
import sys
line = sys.argv[1].encode() + b"\\n"
while True:
    sys.stdout.buffer.write(line * 1000)
"""


def test_a_worker_that_floods_us_fills_no_memory() -> None:
    """It has to wait until it is heard; whoever asks it can still break off."""
    line = encode(Envelope("event", 1, Alive(1.0))).decode().strip()
    heard = []
    with subprocess.Popen([sys.executable, "-c", FLOOD, line], stdout=subprocess.PIPE) as process:
        assert process.stdout
        connection = Connection("flood", lambda _: None, process.stdout, 10)

        def idle() -> None:
            heard.append(connection._lines.qsize())
            if len(heard) == 30_000:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            connection.ask(Ping(), idle=idle)
        process.kill()
        while connection._lines.get():
            pass
    assert max(heard) <= MOST_WAITING


def test_the_harness_changes_nothing_by_itself(template: Path, tmp_path: Path, undisturbed: Outcome) -> None:
    """Traced and left alone, a job comes to the same."""
    harness = Harness(template, tmp_path, NONE)
    folder = harness.fresh()
    harness.plan(folder, [LOOP], ["-e", "trace=fsync"], once=False)
    harness.finish(folder)
    assert outcome(folder) == undisturbed
