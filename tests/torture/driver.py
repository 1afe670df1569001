"""Runs one of our modules as a process of the harness: what it starts goes through the harness's wrapper too.

    python -I driver.py WRAPPER MUTATION MODULE ARGUMENTS...

A mutation is a bug planted on purpose, to see that the harness finds it; "-" is none.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

from agent.contract import atomic_io
from agent.queue.jobs import Job
from agent.queue.store import Store
from agent.versions import registry


def publish_before_writing(temporary: Path, final: Path, about: dict[str, Any]) -> None:
    """The folder is renamed first, its manifest written afterwards: half a version can be seen."""
    files = {
        str(path.relative_to(temporary)): {"bytes": path.stat().st_size, "sha256": atomic_io.sha256_file(path)}
        for path in sorted(temporary.rglob("*"))
        if path.is_file()
    }
    temporary.rename(final)
    (final / atomic_io.MANIFEST).write_text(json.dumps({**about, "files": files}))


def write_without_flushing(path: Path, data: bytes) -> None:
    """Nothing reaches the disk before the rename does."""
    temporary = atomic_io.temporary_beside(path)
    temporary.write_bytes(data)
    temporary.rename(path)


def acknowledge_before_storing(store: Store, file: str, *given: Any) -> Job:
    """The number is told before the job is on the disk."""
    print(f"job {len(store.list()) + 1} is {file}", flush=True)
    return ADD(store, file, *given)


ADD = Store.add


def sweep_nothing(_: Path) -> None:
    """What a killed writer left half-written stays for ever."""


def plant(mutation: str) -> None:
    """Replace what the mutation is about."""
    if mutation == "publish before writing":
        atomic_io.publish_folder = registry.publish_folder = publish_before_writing
    elif mutation == "write without flushing":
        atomic_io.write_file = write_without_flushing
    elif mutation == "acknowledge before storing":
        Store.add = acknowledge_before_storing  # type: ignore[method-assign, assignment]
    elif mutation == "sweep nothing":
        atomic_io.sweep_temporaries = registry.sweep_temporaries = sweep_nothing
    else:
        assert mutation == "-", mutation


def main() -> None:
    """Become the module."""
    wrapper, mutation, module, *arguments = sys.argv[1:]
    sys.executable = wrapper
    plant(mutation)
    sys.argv = [module, *arguments]
    if module == "agent.cli.main":
        from agent.cli.main import main as command

        sys.exit(command())
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
