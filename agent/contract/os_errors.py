"""Errors of the disk and of SQLite as errors of ours: one line each, with what to do."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.contract.atomic_io import TEMPORARY
from agent.contract.errors import AgentError, Busy, StateError, StorageError


def _sqlite_fault(path: Path, fault: sqlite3.Error) -> AgentError:
    text = str(fault)
    if "locked" in text:
        return Busy(f"{path} is in use by another program ({text}); try again")
    if "full" in text or "disk I/O" in text:
        return StorageError(f"{path} cannot be written ({text}); free some space or check the disk")
    if "readonly" in text or "unable to open" in text:
        return StateError(f"{path} cannot be used ({text}); check owner and mode of it and of its folder")
    return StateError(f"{path} cannot be read ({text}); move it away or restore it from a backup")


def os_fault(
    path: Path | str, fault: OSError, mend: str = "check owner and mode of it and of its folder"
) -> AgentError:
    """Name the file and the fault: StorageError for a disk that is full or failing, else StateError with `mend`.

    The file is the one that the system names; `path` where it names none but one that is half-written, whose name says
    nothing to a person.
    """
    named = [name for name in (fault.filename, fault.filename2) if isinstance(name, str)]
    known = [name for name in named if not any(part.startswith(TEMPORARY) for part in Path(name).parts)]
    where = f"{known[0] if known else path}: {fault.strerror or fault}"
    if fault.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
        return StorageError(f"{where}; free some space or check the disk")
    return StateError(f"{where}; {mend}")


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn what the disk or SQLite says about `path` into StorageError, StateError or Busy, each one line."""
    try:
        yield
    except OSError as fault:
        raise os_fault(path, fault) from fault
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except sqlite3.DatabaseError as fault:
        raise _sqlite_fault(path, fault) from fault
