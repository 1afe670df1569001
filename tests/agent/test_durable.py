from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from processes import is_alive, wait_until

from agent.contract.atomic_io import (
    MANIFEST,
    TEMPORARY,
    folder_fault,
    hold_lock,
    publish_folder,
    read_manifest,
    remove_tree,
    sweep_temporaries,
    write_file,
    write_json,
)
from agent.contract.errors import Busy


@pytest.fixture
def published(tmp_path: Path) -> Path:
    work = tmp_path / ".tmp-work"
    (work / "deep").mkdir(parents=True)
    (work / "a.txt").write_bytes(b"alpha")
    (work / "deep" / "b.bin").write_bytes(b"\0\1\2")
    publish_folder(work, tmp_path / "final", {"step": 3})
    return tmp_path / "final"


def test_a_published_folder_is_whole_and_its_manifest_names_every_file(published: Path) -> None:
    """The working folder is gone; sizes, digests and what the caller said are in the manifest."""
    manifest = read_manifest(published)
    assert manifest is not None
    assert manifest["step"] == 3
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {"a.txt": 5, "deep/b.bin": 3}
    assert folder_fault(published) is None
    assert [path.name for path in published.parent.iterdir()] == ["final"]


def test_a_changed_byte_is_found(published: Path) -> None:
    """Same size, another content: only reading finds it, and it does."""
    (published / "deep" / "b.bin").write_bytes(b"\0\1\3")
    assert folder_fault(published, contents=False) is None
    assert "deep/b.bin differs" in str(folder_fault(published))


@pytest.mark.parametrize("contents", [True, False])
def test_a_missing_or_shortened_file_is_found_without_reading(published: Path, *, contents: bool) -> None:
    """Sizes are enough for these."""
    (published / "a.txt").write_bytes(b"alph")
    assert "a.txt" in str(folder_fault(published, contents=contents))
    (published / "a.txt").unlink()
    assert "a.txt is missing" in str(folder_fault(published, contents=contents))


@pytest.mark.parametrize("damage", [None, b"", b"{", b"[]", b'{"files": 5}', b"\xff"])
def test_a_folder_without_a_readable_manifest_does_not_exist_for_a_reader(
    published: Path, damage: bytes | None
) -> None:
    """The manifest comes last, so a folder without one was never finished."""
    (published / MANIFEST).unlink()
    if damage is not None:
        (published / MANIFEST).write_bytes(damage)
    assert read_manifest(published) is None
    assert MANIFEST in str(folder_fault(published))


def test_publishing_onto_a_finished_folder_fails_and_changes_nothing(published: Path, tmp_path: Path) -> None:
    """Who comes second learns of it; the first one's files stay."""
    work = tmp_path / ".tmp-second"
    work.mkdir()
    (work / "a.txt").write_bytes(b"other")
    with pytest.raises(OSError, match="not empty"):
        publish_folder(work, published, {})
    assert folder_fault(published) is None
    assert (published / "a.txt").read_bytes() == b"alpha"


def test_a_reader_beside_a_writer_sees_old_or_new_and_never_half(tmp_path: Path) -> None:
    """Two hundred replacements under a reader: each read is one of the two contents, whole."""
    path = tmp_path / "config"
    contents = (b"a" * 50_000, b"b" * 80_000)
    write_file(path, contents[0])
    written = threading.Event()

    def write() -> None:
        for i in range(200):
            write_file(path, contents[i % 2])
        written.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not written.is_set():
        seen.add(path.read_bytes())
    writer.join()
    assert seen <= set(contents)
    assert [p.name for p in tmp_path.iterdir()] == ["config"]


def test_json_that_no_other_program_could_read_is_refused(tmp_path: Path) -> None:
    """NaN and infinity are no JSON; the old file stays."""
    write_json(tmp_path / "x.json", {"b": 1, "a": [2.5]})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert (tmp_path / "x.json").read_text() == '{\n "a": [\n  2.5\n ],\n "b": 1\n}\n'


def test_sweeping_removes_the_half_written_and_nothing_else(published: Path) -> None:
    """Files, folders and links of killed writers go; a link's target stays."""
    root = published.parent
    (root / f"{TEMPORARY}file").write_text("half")
    (root / f"{TEMPORARY}folder").mkdir()
    (root / f"{TEMPORARY}folder" / "x").write_text("half")
    (root / f"{TEMPORARY}link").symlink_to(published)
    sweep_temporaries(root)
    assert [path.name for path in root.iterdir()] == ["final"]
    assert folder_fault(published) is None
    remove_tree(root / "nothing here")


# ---- locks ----

HOLD = """
import subprocess, sys, time
from pathlib import Path
from agent.contract.atomic_io import hold_lock
with hold_lock(Path(sys.argv[1]), "a test") as descriptor:
    child = subprocess.Popen(["sleep", "60"], pass_fds=(descriptor,) if sys.argv[2] == "inherit" else ())
    print(child.pid, flush=True)
    time.sleep(60)
"""


def hold(path: Path, how: str) -> tuple[subprocess.Popen[str], int]:
    """A process that holds the lock, and the pid of a child of its."""
    command = [sys.executable, "-I", "-c", HOLD, str(path), how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        return process, int(process.stdout.readline())


def is_locked(path: Path) -> bool:
    try:
        with hold_lock(path, "somebody is at work"):
            return False
    except Busy:
        return True


@pytest.mark.process
@pytest.mark.parametrize("how", ["inherit", "alone"])
def test_a_lock_excludes_others_until_the_last_process_that_inherited_it_is_dead(tmp_path: Path, how: str) -> None:
    """After kill -9 of the holder, a child with the descriptor still has the lock; one without has not."""
    path = tmp_path / "lock"
    process, child = hold(path, how)
    try:
        assert is_locked(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert is_alive(child)
        assert is_locked(path) == (how == "inherit")
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
    wait_until(lambda: not is_locked(path), "the lock is free")


def test_who_comes_second_learns_who_is_at_work_and_where(tmp_path: Path) -> None:
    """Not by waiting: at once, with the caller's words."""
    path = tmp_path / "lock"
    with hold_lock(path, "a daemon is running"), pytest.raises(Busy, match="a daemon is running") as fault:
        hold_lock(path, "a daemon is running").__enter__()
    assert str(path) in str(fault.value)


def test_a_lock_can_be_taken_again_after_the_block_also_if_it_raised(tmp_path: Path) -> None:
    """Leaving the block frees it."""
    with pytest.raises(ZeroDivisionError), hold_lock(tmp_path / "lock", "x"):
        raise ZeroDivisionError
    assert not is_locked(tmp_path / "lock")
