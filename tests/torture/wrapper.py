"""Stands in for the Python interpreter with which our processes start each other: traces the one that is to be traced.

Called as `WRAPPER -I -m MODULE ARGUMENTS...`; what to do stands in plan.json beside it: which processes, with which
options of strace, once or always. strace runs beside the process (-D), so that it stays its parent's child.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).absolute().parent


def is_ours(plan: dict[str, Any], module: str) -> bool:
    """Whether this start is the one to be traced; a kill is for one start only."""
    if module not in plan["processes"]:
        return False
    if not plan["once"]:
        return True
    with suppress(FileExistsError):
        os.close(os.open(HERE / "fired", os.O_CREAT | os.O_EXCL))
        return True
    return False


def main() -> None:
    """Become Python, or Python under strace."""
    plan = json.loads((HERE / "plan.json").read_text())
    module, *arguments = sys.argv[3:]
    command = [plan["python"], "-I", plan["driver"], sys.argv[0], plan["mutation"], module, *arguments]
    if is_ours(plan, module):
        command = [
            plan["strace"],
            "-D",
            "-qq",
            "-o",
            str(HERE / f"strace.{module}.{os.getpid()}"),
            *plan["options"],
            *command,
        ]
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
