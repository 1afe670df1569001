"""What the system says of a file, in one wording wherever it is said."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.cli import export_commands
from agent.contract.errors import StateError, StorageError
from agent.contract.os_errors import os_fault
from agent.system.paths import Home

DENIED, FULL = (os.strerror(code) for code in (errno.EACCES, errno.ENOSPC))
OWNER, SPACE = "check owner and mode of it and of its folder", "free some space or check the disk"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (OSError(errno.EACCES, DENIED, "/a/file"), f"/a/file: {DENIED}; {OWNER}"),
        (OSError(errno.EACCES, DENIED), f"/given: {DENIED}; {OWNER}"),
        (OSError(errno.EACCES, DENIED, 7), f"/given: {DENIED}; {OWNER}"),
        (OSError(errno.EACCES, DENIED, "/a/.tmp-file-4711"), f"/given: {DENIED}; {OWNER}"),
        (OSError(errno.EACCES, DENIED, "/a/.tmp-x/made/README.md"), f"/given: {DENIED}; {OWNER}"),
        (OSError(errno.EACCES, DENIED, "/a/.tmp-file-4711", None, "/a/file"), f"/a/file: {DENIED}; {OWNER}"),
        (OSError("no number"), f"/given: no number; {OWNER}"),
    ],
)
def test_a_file_is_named_by_the_name_that_people_know(fault: OSError, told: str) -> None:
    """The one that the system names, unless it names none or one of ours that is half-written."""
    known = os_fault(Path("/given"), fault)
    assert (type(known), str(known)) == (StateError, told)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_is_full_or_failing_is_told_as_such_whatever_else_would_help(code: int) -> None:
    """Another owner or sudo would not."""
    known = os_fault("/given", OSError(code, os.strerror(code)), "run it with sudo")
    assert (type(known), str(known)) == (StorageError, f"/given: {os.strerror(code)}; {SPACE}")


def test_another_mend_may_be_named() -> None:
    """Where a flag gives another place."""
    known = os_fault("/given", OSError(errno.EACCES, DENIED), "give another folder with -o")
    assert (type(known), str(known)) == (StateError, f"/given: {DENIED}; give another folder with -o")


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [(errno.ENOSPC, StorageError, f"{FULL}; {SPACE}"), (errno.EACCES, StateError, f"{DENIED}; give another folder")],
)
def test_an_export_tells_a_full_disk_from_a_folder_that_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception], told: str
) -> None:
    """By the folder that was asked for, and nothing is left."""

    def fill(_: object, folder: Path, *__: object) -> None:
        raise OSError(code, os.strerror(code), str(folder / "adapter.gguf"))

    monkeypatch.setattr(export_commands, "ExportedVersion", lambda *_: SimpleNamespace(number=1))
    monkeypatch.setattr(export_commands, "_fill", fill)
    arguments = argparse.Namespace(version=1, to="gguf", output=str(tmp_path / "out"), json=False)
    with pytest.raises(kind, match=f"^{tmp_path / 'out'}: {told}"):
        export_commands.export(arguments, Home(tmp_path))
    assert list(tmp_path.iterdir()) == []
