"""The spool: data files that were accepted, normalised, one for each job.

    <name>.jsonl        the examples, one `Example.to_json` a line
    <name>.bad.jsonl    the lines that were skipped: {"line", "problem", "fix", "raw"}

A file with a final name is whole. The bad lines are published first: who sees the examples sees them too.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from agent.contract import atomic_io
from agent.contract.errors import DataError, NotFound, StateError
from agent.contract.lines import quantity
from agent.contract.os_errors import disk_faults
from agent.contract.settings import Limits
from agent.data.dataset import BadLine, Report, list_bad, survey
from agent.data.formats import Example

ORPHAN_AGE = 3600.0
"""Seconds after which a spool file without a job is taken for what an enqueue that died left behind."""

_NAME = re.compile(rf"(?:{re.escape(atomic_io.TEMPORARY)})?(?P<name>.+?)(?:\.bad)?\.jsonl(?:-[0-9]+)?")


@dataclass(frozen=True)
class Spooled:
    """A data file in the spool; `bad_path` is None if no line was skipped, `sha256` is that of `path`."""

    path: Path
    bad_path: Path | None
    sha256: str
    report: Report

    @property
    def rows(self) -> int:
        """Examples in the file."""
        return self.report.rows

    @property
    def bad(self) -> int:
        """Lines that were skipped."""
        return self.report.bad_total


def spool(source: BinaryIO, folder: Path, name: str, limits: Limits, *, skip_bad: bool) -> Spooled:
    """Normalise `source` into the existing `folder`; on any failure nothing is left there.

    Raises DataError if the file cannot be used or, without `skip_bad`, has a bad line; StorageError if the disk is
    full or failing; StateError if the folder cannot be written or the spool already has a file of this name.
    """
    path, bad_path = folder / f"{name}.jsonl", folder / f"{name}.bad.jsonl"
    if path.exists():
        raise StateError(f"{path} exists already: choose another name")
    draft, bad_draft = atomic_io.temporary_beside(path), atomic_io.temporary_beside(bad_path)
    with disk_faults(folder), _remove_on_failure(draft, bad_draft, bad_path):
        with draft.open("wb") as rows, bad_draft.open("wb") as bad:
            report = survey(
                source,
                limits,
                on_example=lambda example: rows.write(example.to_json().encode() + b"\n"),
                on_bad=lambda line: bad.write(_bad_json(line)),
            )
        if report.bad_total and not skip_bad:
            raise DataError(
                f"{quantity(report.bad_total, 'line')} of the data cannot be used: "
                f"mend or pass --skip-bad to leave out\n{list_bad(report.bad)}"
            )
        if report.bad_total:
            _publish(bad_draft, bad_path)
        bad_draft.unlink(missing_ok=True)
        digest = atomic_io.sha256_file(draft)
        _publish(draft, path)
    return Spooled(path, bad_path if report.bad_total else None, digest, report)


def load_spool(path: Path) -> list[Example]:
    """All examples of a spool file; raises NotFound if it is gone, StateError if it is damaged or a link elsewhere."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as stream:
            return [Example.from_json(line) for line in stream]
    except FileNotFoundError:
        raise NotFound(f"{path} is gone: enqueue the data again") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as fault:
        raise StateError(f"{path} is damaged ({type(fault).__name__}): enqueue the data again") from fault


def sweep_orphans(folder: Path, known: set[str], older_than: float = ORPHAN_AGE) -> list[Path]:
    """Delete the spool files and temporaries of names that are not in `known`; returns what was deleted.

    An enqueue that is running has published its file, or is about to, but its job is not yet in the queue, so its
    name is unknown like that of one that died. Only files not written to for `older_than` seconds are taken. If that
    is wrong (standard input that stalls for an hour, a clock that jumps), the enqueue fails for want of its file, or
    the job does with NotFound; no job ever runs on half of its data.
    """
    newest = time.time() - older_than
    orphans = [path for path in sorted(folder.iterdir()) if _is_orphan(path, known, newest)]
    for path in orphans:
        path.unlink(missing_ok=True)
    return orphans


def _is_orphan(path: Path, known: set[str], newest: float) -> bool:
    found = _NAME.fullmatch(path.name)
    if found is None or found["name"] in known:
        return False
    try:
        return path.lstat().st_mtime < newest
    except FileNotFoundError:
        return False


def _bad_json(bad: BadLine) -> bytes:
    raw = bad.raw.decode(errors="backslashreplace")
    return json.dumps({"line": bad.line, "problem": bad.problem, "fix": bad.fix, "raw": raw}).encode() + b"\n"


def _publish(draft: Path, final: Path) -> None:
    atomic_io.fsync_path(draft)
    draft.rename(final)
    with _remove_on_failure(final):
        atomic_io.fsync_path(final.parent)


@contextmanager
def _remove_on_failure(*paths: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
