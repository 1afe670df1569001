"""The calls from Python, as docs/python.md shows them and where they fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from checkout import ROOT
from processes import GOOD, PATIENCE, agent

from agent import api
from agent.contract.errors import ConfigError, DataError, NotFound, StateError
from agent.queue.jobs import Job, State
from agent.queue.store import Store

TEXT = (ROOT / "docs" / "python.md").read_text()
ROWS = [{"prompt": "Which port?", "completion": "Port 4713."}] * 2


def ran(code: str, state: Path) -> str:
    """What a block of docs/python.md prints, in a process of its own beside the examples."""
    environment = {**os.environ, "NSLORA_STATE": str(state)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "examples", env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.process
def test_the_example_prints_what_the_page_says(state: Path) -> None:
    """Rows and a file into a new state folder, and what is refused."""
    assert ran(blocks("python")[0], state) == blocks("text")[0]


@pytest.mark.process
def test_the_example_of_a_job_that_has_ended(state: Path) -> None:
    """On a folder with one: figures, decisions, back to the base model and forth again."""
    shutil.copytree(ROOT / "tests" / "upgrade" / "0.1.0", state, symlinks=True)
    said = ran(blocks("python")[1], state).splitlines()
    assert said[0] == "done 1"
    assert re.fullmatch(r"1 True \d\.\d+ \d\.\d+", said[1])
    assert said[2:4] == ["pump-ask both", "lamp-ask both"]
    assert said[4].startswith("tuned on, reward")
    assert 0 < int(said[5]) <= 8
    assert said[6:] == ["0 0", "1"]


def test_every_call_is_on_the_page() -> None:
    """And the page names no other."""
    calls = {name for name, each in vars(api).items() if getattr(each, "__module__", "") == "agent.api"}
    public = {name for name in calls if not name.startswith("_")}
    assert set(re.findall(r"(?<!\w)(\w+)\(", "".join(re.findall("^\\| `.*`", TEXT, re.MULTILINE)))) == public


@pytest.mark.process
def test_rows_and_a_file_of_them_make_the_same_job(state: Path, data: Path) -> None:
    """Whoever queues it, by whatever way: one queue, one history."""
    rows = api.enqueue([{"prompt": "Which port?", "completion": "Port 4713.", "answer": "4713"}] * 3, state=state)
    file = api.enqueue(str(data), state=str(state))
    assert agent("enqueue", data, state=state).returncode == 0
    first, second, third = api.jobs(state=state)
    assert (first, second) == (rows, file)
    assert first.sha256 == second.sha256 == third.sha256
    assert (first.file, second.file) == ("rows from Python", str(data))
    assert second.settings == third.settings
    assert [each.id for each in api.jobs(state=state, last=1)] == [3]
    assert api.cancel(2, state=state).state is State.CANCELLED
    assert [each.id for each in api.jobs(state=state, only=State.QUEUED)] == [1, 3]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epoch": 3}, "unknown setting epoch; did you mean epochs?"),
        ({"rank": 0, "dtype": "int4"}, "rank must be between 1 and 256, not 0"),
        ({"rank": "8"}, "rank must be of type int, not '8'"),
        ({"mode": "magic"}, "mode must be one of neurosymbolic, numeric, symbolic, alternate, not 'magic'"),
        ({"mode": "symbolic"}, "a symbolic job needs a remote LLM"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_made(state: Path, settings: dict[str, object], said: str) -> None:
    """All faults at once, as for flags."""
    with pytest.raises(ConfigError) as found:
        api.enqueue(ROWS, state=state, **settings)  # type: ignore[arg-type]
    assert str(found.value).startswith(said)
    assert not state.exists()


def test_rows_that_are_no_json_are_told_by_number(state: Path) -> None:
    """What json cannot write; what it writes and the file format forbids is a bad line like any other."""
    with pytest.raises(DataError, match="row 2 is not JSON: Object of type set"):
        api.enqueue([*ROWS[:1], {"prompt": {1}}], state=state)
    report = api.validate([*ROWS, {"prompt": "?", "completion": "!", "x": float("nan")}, ["a", "list"]], state=state)
    assert (report.rows, [bad.line for bad in report.bad]) == (2, [3, 4])
    assert api.enqueue([*ROWS, {"prompt": 5}], state=state, skip_bad=True).bad_rows == 1


def test_a_folder_that_is_not_there_is_not_made(state: Path) -> None:
    """Reading a mistyped folder must not look like an empty queue."""
    with pytest.raises(StateError, match="has no queue"):
        api.jobs(state=state)
    with pytest.raises(NotFound, match="there is no file"):
        api.enqueue(state / "nothing.jsonl", state=state)
    assert not (state / "jobs.db").exists()


def end(state: Path) -> Job:
    """End the next job, as its loop would."""
    with Store(state / "jobs.db") as store:
        claimed = store.claim("boot", 1)
        assert claimed is not None
        return store.finish(claimed.id, str(claimed.token), State.DONE, "because", version=3)


@pytest.mark.slow
def test_wait_returns_when_the_job_ends_and_gives_up_in_time(state: Path, data: Path) -> None:
    """Any number of threads may call."""
    number = api.enqueue(data, state=state).id
    with pytest.raises(TimeoutError, match=r"job 1 is queued after 0\.1 s"):
        api.wait(number, 0.1, state=state)
    waited: list[Job] = []
    waiting = threading.Thread(target=lambda: waited.append(api.wait(number, PATIENCE, state=state)))
    waiting.start()
    time.sleep(0.2)
    assert not waited
    ended = end(state)
    waiting.join()
    assert waited == [ended]


@pytest.mark.process
def test_the_calls_need_no_heavy_library() -> None:
    """A program that only queues rows must not pay for torch."""
    code = "import sys, agent.api as api; api.Job; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"torch", "transformers", "numpy", "sqlite_utils", "argcomplete", "quant", "offload"}


@pytest.mark.process
def test_the_commands_and_the_calls_see_one_folder(state: Path, tmp_path: Path) -> None:
    """$NSLORA_STATE is followed where no folder is named."""
    (tmp_path / "data.jsonl").write_text(GOOD)
    code = f"from agent import api; api.enqueue({str(tmp_path / 'data.jsonl')!r})"
    ran(code, state)
    assert agent("ls", "--json", state=state).stdout.startswith('[{"id": 1')
