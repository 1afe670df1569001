"""What `watch` shows: put together from the events of real runs, drawn at any width, followed until the job ends."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from processes import AGENT, PATIENCE, agent
from rich.console import Console

from agent.cli import screen
from agent.cli.run_history import KEPT, RunHistory
from agent.cli.screen import View, sparkline
from agent.queue.jobs import Job, State
from agent.queue.store import Store
from agent.system.events import EventLog
from agent.system.paths import Home
from agent.system.sensors import Reading, Zone

STEP = {"tokens": 500, "tokens_per_s": 250.0, "rss_mb": 700.0, "steps": 40, "grad_norm": 1.0}
PLAN = {"known": True, "train_mb": 720.0, "generate_mb": 650.0, "changed": "sequence_length 256 instead of 512"}


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    """Events of a run in its first round."""
    log = EventLog(tmp_path / "events.jsonl")
    log.add("phase", phase="plan")
    log.add("plan", **PLAN)
    log.add("round", round=1, phase="numeric", why="tuning gains more", states={"weights": 30, "satisfied": 4})
    log.add("phase", phase="train")
    for step in range(1, 21):
        log.add("step", step=step, loss=3.0 / step, **STEP)
    return log


@pytest.fixture
def job(tmp_path: Path) -> Job:
    with Store(tmp_path / "jobs.db") as store:
        store.add("data.jsonl", "s", 34, 0, "", {}, "base", "neurosymbolic")
        claimed = store.claim("boot", 1)
    assert claimed
    return replace(claimed, progress={"phase": "train", "done": 3, "flagged": 9})


def drawn(view: View, width: int) -> list[str]:
    """The screen as lines of text; none may be wider than the terminal."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(screen.box(view, width))
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    return lines


def view(tmp_path: Path, job: Job) -> View:
    followed = RunHistory(tmp_path / "events.jsonl").refresh()
    reading = Reading(Zone(51.0, "cpu"), 80.0, load=0.5)
    return View([job], followed, job, reading, 2000.0, 5e9, None, job.created + 65)


def test_a_run_is_put_together_from_its_events(tmp_path: Path, log: EventLog) -> None:
    """New events are added; steps that a later attempt does again count once."""
    followed = RunHistory(tmp_path / "events.jsonl").refresh()
    assert [step["step"] for step in followed.steps] == list(range(1, 21))
    assert followed.seconds_left == pytest.approx(40)
    for step in (16, 17):
        log.add("step", step=step, loss=0.1, **STEP)
    log.add("rewrite", id="a", state="remade")
    log.add("note", text="look")
    followed.refresh()
    assert [step["step"] for step in followed.steps] == list(range(1, 18))
    assert (followed.rewrites["remade"], followed.notes) == (1, ["look"])


@pytest.mark.slow
def test_a_very_long_run_is_thinned(tmp_path: Path) -> None:
    """What is kept spans all of it."""
    lines = (json.dumps({"at": 0, "event": "step", "step": step, "loss": 1.0, **STEP}) for step in range(1, 3 * KEPT))
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    steps = [step["step"] for step in RunHistory(tmp_path / "events.jsonl").refresh().steps]
    assert KEPT // 2 <= len(steps) <= KEPT
    assert steps[0] == 1
    assert steps[-1] > 3 * KEPT - 8


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_screen_fits_any_terminal(tmp_path: Path, log: EventLog, job: Job, width: int) -> None:
    """Phase, why, progress, loss, memory against the plan, decisions, queue, resources."""
    del log
    text = "\n".join(drawn(view(tmp_path, job), width))
    for words in (
        "round 1 training",
        "tuning gains",
        "step 20/40",
        "loss 0.150",
        "700 MB",
        "30 weights",
        "rewrites 3/9",
    ):
        assert words in text.replace("\n", " ") or width < 60
    assert "51 °C" in text.replace("\n", " ")
    assert "40s left" in text or width < 60


def test_a_job_that_has_ended_says_why(tmp_path: Path, log: EventLog, job: Job) -> None:
    """Whatever the reason's length."""
    del log
    ended = replace(job, state=State.FAILED, reason="the base model is damaged: " + "x" * 200)
    assert "the base model is damaged" in "\n".join(drawn(view(tmp_path, ended), 80))


def test_a_box_without_jobs_says_what_to_do(tmp_path: Path) -> None:
    """The first thing a newcomer sees."""
    empty = View([], None, None, Reading(), 2000.0, 5e9, None, 0.0)
    assert "nslora-agent enqueue" in "\n".join(drawn(empty, 80))
    del tmp_path


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [([], 5, ""), ([1.0], 5, "▁"), ([1.0, 1.0], 5, "▁▁"), ([3, 2, 1], 5, "█▅▁"), ([9, 3, 2, 1], 3, "█▅▁")],
)
def test_a_sparkline_has_the_newest_to_the_right(values: list[float], width: int, bars: str) -> None:
    """From the lowest bar to the highest."""
    assert sparkline(values, width) == bars


# ---- for real ----


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A state folder with a job that cannot be worked on."""
    made = Home(tmp_path / "state").create()
    made.config.write_text('base = "gone"\n')
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    assert agent("enqueue", tmp_path / "data.jsonl", state=made.path).returncode == 0
    return made


@pytest.mark.process
def test_off_a_terminal_there_are_lines_until_the_job_ends(home: Home) -> None:
    """No colour, no cursor; with --json one object a line."""
    agent("run", "--drain", state=home.path)
    done = agent("watch", 1, state=home.path)
    assert done.returncode == 0
    assert "job 1 failed: the base model gone is not prepared" in done.stdout
    assert "\x1b" not in done.stdout
    told = json.loads(agent("watch", 1, "--json", state=home.path).stdout)
    assert (told["job"], told["state"]) == (1, "failed")
    assert agent("watch", 7, state=home.path).returncode == 66


@pytest.mark.process
def test_on_a_terminal_q_leaves_the_screen_as_it_was(home: Home) -> None:
    """And the keyboard."""
    ours, theirs = pty.openpty()
    command = [AGENT, "watch", "--state", str(home.path)]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as shown:
        told = b""
        while b"data.jsonl" not in told:
            assert select.select([ours], [], [], PATIENCE)[0], told
            told += os.read(ours, 65536)
        os.write(ours, b"q")
        assert shown.wait(PATIENCE) == 0
        told += os.read(ours, 65536)
    assert b"queued" in told
    assert told.count(b"\x1b[?1049h") == told.count(b"\x1b[?1049l") == 1
