"""Writes that survive a power cut: fsync before rename, the folder synced after, the manifest last.

Standard library only: the daemon, the loop and the training worker all publish through this file.
A folder made by `publish_folder` carries `manifest.json` with the size and sha256 of every file in it;
a folder without one, or whose files differ from it, does not exist for a reader (`folder_fault`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agent.contract.errors import Busy

MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"
"""Prefix of everything half-written; swept by whoever owns the folder."""


def fsync_path(path: Path) -> None:
    """Flush one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that no reader takes for the finished `path`."""
    return path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")


def make_private(path: Path) -> None:
    """Make an empty file that its owner alone can read, unless there is one: SQLite would make one that all can read.

    A file that is there is not opened: closing it again would drop every lock that this process holds on it (POSIX).
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step: a reader sees the old bytes or the new ones, never half.

    Raises OSError, and leaves nothing half-written beside the file, which may be in a folder that nobody sweeps.
    """
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(data)
        fsync_path(temporary)
        temporary.rename(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    fsync_path(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_file` for a JSON value; numbers that are not finite raise ValueError."""
    write_file(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n")


def sha256_file(path: Path) -> str:
    """The sha256 of a file as hexadecimal digits, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def publish_folder(temporary: Path, final: Path, about: dict[str, Any]) -> None:
    """Make a finished folder visible under its final name in one rename.

    Every file is flushed, then the manifest (`about` and the sha256 of each file) is written, then the
    folder is renamed. Raises OSError if `final` already exists with something in it.
    """
    files = {}
    for path in sorted(p for p in temporary.rglob("*") if p.is_file() and p.name != MANIFEST):
        fsync_path(path)
        files[str(path.relative_to(temporary))] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    for folder in [p for p in temporary.rglob("*") if p.is_dir()]:
        fsync_path(folder)
    write_json(temporary / MANIFEST, {**about, "files": files})
    temporary.rename(final)
    fsync_path(final.parent)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a published folder, or None where there is none that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    return manifest if isinstance(files, dict) and all(map(_is_entry, files.items())) else None


def _is_entry(entry: tuple[str, Any]) -> bool:
    """True if a manifest's entry names a file within its folder, its size and its sha256."""
    name, told = entry
    inside = not Path(name).is_absolute() and not {"..", ""} & set(name.split("/")) and "\0" not in name
    if not inside or not isinstance(told, dict):
        return False
    return type(told.get("bytes")) is int and isinstance(told.get("sha256"), str)  # True is an int too


def folder_fault(folder: Path, *, contents: bool = True) -> str | None:
    """Say what is wrong with a published folder, or None if it is whole.

    With `contents=False` only presence and sizes are compared, which costs no reading.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return f"{folder} has no readable {MANIFEST}"
    for name, entry in manifest["files"].items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or path.stat().st_size != entry["bytes"]:
            return f"{path} is missing, a link, or has another size than its manifest says"
        if contents and sha256_file(path) != entry["sha256"]:
            return f"{path} differs from its manifest (sha256)"
    return None


def remove_tree(path: Path) -> None:
    """Delete a file, link or folder; nothing there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep_temporaries(folder: Path) -> None:
    """Delete what a killed writer left half-written in `folder` (the caller is its only writer)."""
    for path in folder.glob(f"{TEMPORARY}*"):
        remove_tree(path)


@contextmanager
def hold_lock(path: Path, who: str, patience: float = 0.0) -> Iterator[int]:
    """Hold an exclusive lock on `path` while the block runs; yields its file descriptor.

    The kernel drops the lock when the last process that has the descriptor open is gone, so a child that inherits
    it keeps the lock until it is dead too. Raises Busy, naming `who`, if another process holds it for longer than
    `patience` seconds.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience
    try:
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise Busy(f"{who} ({path} is locked)")
            time.sleep(0.05)
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
