import io
import json
import os
import time
from pathlib import Path

import pytest
from reading import LIMITS, read, rows

from agent.contract import atomic_io
from agent.contract.errors import AgentError, DataError, NotFound, StateError, StorageError
from agent.data.spool import Spooled, load_spool, spool, sweep_orphans

GOOD = rows({"prompt": "Q", "completion": "A", "answer": 7, "split": "test"}, {"prompt": "é", "completion": "B"})
MIXED = b"not json\n" + GOOD + b'{"prompt": "\xff"}\n'


def put(data: bytes, folder: Path, *, skip_bad: bool = False) -> Spooled:
    return spool(io.BytesIO(data), folder, "job", LIMITS, skip_bad=skip_bad)


def test_spooled_data_is_what_was_read(tmp_path: Path) -> None:
    """Every example comes back from the spool equal, and the digest, counts and only file are as told."""
    done = put(GOOD, tmp_path)
    assert load_spool(done.path) == read(GOOD)[0]
    assert done.sha256 == atomic_io.sha256_file(done.path)
    assert (done.rows, done.bad, done.bad_path, done.report.held_out) == (2, 0, None, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["job.jsonl"]


def test_the_spool_of_an_older_version_can_be_loaded(tmp_path: Path) -> None:
    """Its examples say nothing of how an answer is checked: they have the check that there always was."""
    path = put(GOOD, tmp_path).path
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    path.write_text(
        "".join(json.dumps({k: v for k, v in line.items() if k != "answer_check"}) + "\n" for line in lines)
    )
    assert load_spool(path) == read(GOOD)[0]


def test_spooled_data_can_be_enqueued_again(tmp_path: Path) -> None:
    """A spool file is itself a data file with the same examples."""
    data = put(GOOD, tmp_path).path.read_bytes()
    again = [example.to_json() for example in read(data)[0]]
    assert [{**json.loads(line), "line": 0} for line in again] == [
        {**json.loads(line), "line": 0} for line in data.splitlines()
    ]


def test_bad_lines_are_set_aside_with_skip_bad(tmp_path: Path) -> None:
    """Skipped lines go into a file of their own, with number, problem, fix and what was there."""
    done = put(MIXED, tmp_path, skip_bad=True)
    assert done.bad_path is not None
    bad = [json.loads(line) for line in done.bad_path.read_text().splitlines()]
    assert [(line["line"], line["raw"]) for line in bad] == [(1, "not json"), (4, '{"prompt": "\\xff"}')]
    assert all(line["problem"] and line["fix"] for line in bad)
    assert (done.rows, done.bad) == (2, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.bad.jsonl", "job.jsonl"]


def test_a_bad_line_refuses_the_file_and_is_listed(tmp_path: Path) -> None:
    """Without skip_bad the error counts the bad lines, lists the first few one a line, and nothing is left."""
    with pytest.raises(DataError) as caught:
        put(MIXED + b"{\n" * 10, tmp_path)
    first, *listed = str(caught.value).splitlines()
    assert first.startswith("12 lines of the data cannot be used")
    assert "--skip-bad" in first
    assert [line.split(":")[0] for line in listed] == ["line 1", "line 4", "line 5", "line 6", "line 7"]
    assert " — write one whole JSON object on each line" in listed[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"{\n", b"[1]\n"])
def test_unusable_data_leaves_nothing_behind(tmp_path: Path, data: bytes) -> None:
    """A file that is refused as a whole leaves neither temporary nor bad lines, even with skip_bad."""
    with pytest.raises(DataError):
        put(data, tmp_path, skip_bad=True)
    assert list(tmp_path.iterdir()) == []


def fail(folder: Path, kind: type[AgentError]) -> str:
    with pytest.raises(kind) as caught:
        put(MIXED, folder, skip_bad=True)
    return str(caught.value)


@pytest.mark.parametrize("name", ["job.jsonl", "job.bad.jsonl"])
def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    """ENOSPC, here from a temporary that leads to /dev/full, is retryable and cleaned up."""
    atomic_io.temporary_beside(tmp_path / name).symlink_to("/dev/full")
    assert "No space left on device" in fail(tmp_path, StorageError)
    assert list(tmp_path.iterdir()) == []


class Obstructing(io.BytesIO):
    """Data that, while it is read, puts a folder where its spool file should go."""

    def __init__(self, data: bytes, obstacle: Path) -> None:
        super().__init__(data)
        self._obstacle = obstacle

    def readline(self, size: int | None = -1, /) -> bytes:
        """A line as ever."""
        self._obstacle.mkdir(exist_ok=True)
        return super().readline(size)


def test_bad_lines_are_withdrawn_if_the_examples_cannot_be_published(tmp_path: Path) -> None:
    """A failure after the bad lines have their final name takes them away again."""
    with pytest.raises(StateError, match=r"job\.jsonl: Is a directory; check owner and mode"):
        spool(Obstructing(MIXED, tmp_path / "job.jsonl"), tmp_path, "job", LIMITS, skip_bad=True)
    assert [path.name for path in tmp_path.iterdir()] == ["job.jsonl"]


def test_a_folder_that_is_missing_is_a_state_error(tmp_path: Path) -> None:
    """A spool folder that cannot be written says so instead of blaming the data."""
    told = f"{tmp_path / 'missing'}: No such file or directory; check owner and mode of it and of its folder"
    assert fail(tmp_path / "missing", StateError) == told


def test_a_name_in_use_is_refused_and_its_data_stays(tmp_path: Path) -> None:
    """Spooling never replaces another job's data."""
    done = put(GOOD, tmp_path)
    assert "exists already" in fail(tmp_path, StateError)
    assert atomic_io.sha256_file(done.path) == done.sha256


def test_a_spool_file_that_is_gone_or_damaged_says_to_enqueue_again(tmp_path: Path) -> None:
    """Loading tells a missing file from a damaged one, and both messages say what to do."""
    with pytest.raises(NotFound, match="enqueue the data again"):
        load_spool(tmp_path / "job.jsonl")
    path = put(GOOD, tmp_path).path
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StateError, match=r"damaged .* enqueue the data again"):
        load_spool(path)


def test_sweep_takes_old_files_without_a_job_and_nothing_else(tmp_path: Path) -> None:
    """Orphans and their temporaries go; known jobs, young files and foreign files stay."""
    old = time.time() - 100
    orphans = ["gone.jsonl", "gone.bad.jsonl", ".tmp-gone.jsonl-12", ".tmp-gone.bad.jsonl-12"]
    kept = ["job.jsonl", "job.bad.jsonl", ".tmp-job.jsonl-12", "notes.txt"]
    for name in (*orphans, *kept):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (old, old))
    (tmp_path / "running.jsonl").touch()
    assert sweep_orphans(tmp_path, {"job"}) == []
    assert sorted(path.name for path in sweep_orphans(tmp_path, {"job"}, older_than=50)) == sorted(orphans)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "running.jsonl"])
