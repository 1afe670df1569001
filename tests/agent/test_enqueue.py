from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from processes import BAD, GOOD, agent, failed

pytestmark = pytest.mark.process


def spooled(state: Path) -> list[str]:
    return sorted(path.name for path in (state / "spool").iterdir())


# ---- enqueue ----


def test_a_good_file_becomes_job_1_while_no_daemon_runs(state: Path, data: Path) -> None:
    """The id is the result; that nobody works on it yet is said beside it."""
    done = agent("enqueue", data, state=state)
    assert (done.returncode, done.stdout) == (0, "job 1: 3 rows queued\n")
    assert "nslora-agent run" in done.stderr
    (shown,) = json.loads(agent("ls", "--json", state=state).stdout)
    assert (shown["id"], shown["state"], shown["rows"], shown["file"]) == (1, "queued", 3, str(data))
    assert "token" not in shown


def test_rows_can_come_from_standard_input(state: Path) -> None:
    """`-` reads a pipe to its end."""
    done = agent("enqueue", "-", state=state, input=GOOD * 2)
    assert done.stdout == "job 1: 2 rows queued\n"


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_a_bad_line_refuses_the_whole_file_and_leaves_nothing(state: Path, tmp_path: Path, how: str) -> None:
    """The message has the line's number; there is no job and nothing in the spool."""
    path = tmp_path / "bad.jsonl"
    path.write_text(GOOD + GOOD + BAD + GOOD)
    done = (
        agent("enqueue", path, state=state) if how == "file" else agent("enqueue", "-", state=state, input=GOOD + BAD)
    )
    failed(done, 65, "line 3" if how == "file" else "line 2", "--skip-bad")
    assert spooled(state) == []
    assert not (state / "jobs.db").exists() or json.loads(agent("ls", "--json", state=state).stdout) == []


def test_skipped_lines_are_kept_beside_the_job(state: Path, tmp_path: Path) -> None:
    """Whoever wants to mend them finds number, problem and the line itself."""
    path = tmp_path / "bad.jsonl"
    path.write_text(GOOD + BAD + GOOD)
    done = agent("enqueue", "--skip-bad", path, state=state)
    assert (done.returncode, done.stdout) == (0, "job 1: 2 rows queued\n")
    (bad,) = (state / "spool").glob("*.bad.jsonl")
    assert str(bad) in done.stderr
    (kept,) = map(json.loads, bad.read_text().splitlines())
    assert (kept["line"], kept["raw"]) == (2, BAD.strip())
    assert json.loads(agent("show", 1, "--json", state=state).stdout)["bad_rows"] == 1


def test_what_cannot_be_a_data_file_is_refused_without_hanging(state: Path, tmp_path: Path) -> None:
    """A missing file, a folder, a FIFO nobody writes to, an empty file, UTF-16, a JSON array."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").write_text("")
    (tmp_path / "utf16").write_bytes(GOOD.encode("utf-16"))
    (tmp_path / "array").write_text(f"[{GOOD}]")
    failed(agent("enqueue", tmp_path / "missing", state=state), 66, "missing")
    failed(agent("enqueue", tmp_path, state=state), 65, "directory")
    failed(agent("enqueue", tmp_path / "fifo", state=state), 65, "pipe")
    failed(agent("enqueue", tmp_path / "empty", state=state), 65, "empty")
    failed(agent("enqueue", tmp_path / "utf16", state=state), 65, "iconv")
    failed(agent("enqueue", tmp_path / "array", state=state), 65, "jq")
    assert spooled(state) == []


def test_a_file_whose_name_is_not_utf_8_can_be_queued(state: Path, tmp_path: Path) -> None:
    """Its name is shown with escapes, here and in JSON."""
    path = os.fsencode(tmp_path) + b"/n\xff.jsonl"
    with open(path, "w") as stream:  # noqa: PTH123  a path of bytes
        stream.write(GOOD)
    done = agent("enqueue", os.fsdecode(path), state=state)
    assert done.stdout == "job 1: 1 row queued\n"
    assert "n\\udcff.jsonl" in agent("ls", state=state).stdout


def test_what_happens_to_the_file_afterwards_changes_nothing(job: Path, data: Path) -> None:
    """The job has a copy of its own, the same whatever becomes of the source."""
    (copy,) = (job / "spool").iterdir()
    before = copy.read_bytes()
    data.write_text("not even JSON")
    data.unlink()
    assert copy.read_bytes() == before
    assert before.count(b"4713") == 6


def test_settings_come_from_the_file_then_the_flags_and_stay_with_the_job(job: Path, data: Path) -> None:
    """What config.toml says later changes no queued job."""
    (job / "config.toml").write_text("[training]\nrank = 8\nepochs = 2\n[decision]\nrounds = 3\n")
    flags = ("--rank", 4, "--memory-budget", 900, "--weights-cost", 0.5)
    assert agent("enqueue", data, *flags, state=job).returncode == 0
    (job / "config.toml").write_text("[training]\nepochs = 9\n[decision]\nrounds = 9\n")
    settings = json.loads(agent("show", 2, "--json", state=job).stdout)["settings"]
    assert (settings["rank"], settings["epochs"], settings["memory_budget"]) == (4, 2.0, 900)
    assert (settings["rounds"], settings["weights_cost"]) == (3, 0.5)


# ---- validate ----


def test_validate_tells_good_rows_from_bad_and_makes_nothing(state: Path, data: Path, tmp_path: Path) -> None:
    """Exit code 0 for a good file, 65 for one that enqueue would refuse; no state folder is needed."""
    done = agent("validate", data, state=state)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 good rows" in done.stdout
    (tmp_path / "bad.jsonl").write_text(GOOD + BAD * 30)
    done = agent("validate", tmp_path / "bad.jsonl", state=state)
    assert done.returncode == 65
    assert "line 2:" in done.stdout
    assert "30 bad lines" in done.stdout
    assert "and 10 more" in done.stdout
    report = json.loads(agent("validate", tmp_path / "bad.jsonl", "--json", state=state).stdout)
    assert (report["rows"], report["bad_total"], report["bad"][0]["line"]) == (1, 30, 2)
    assert not state.exists()
