"""A box with a neurosymbolic job on a tiny model, for every test that looks at what such a job leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from processes import REPRODUCIBLE, agent
from test_symbolic_job import ROWS

from agent.system.paths import Home

FLAGGED = {f"pump-{i}" for i in range(6)}
OBEYS: dict[str, Any] = {
    "id": "obeys",
    "prompt": "Which port does pump X use? Use no commas.",
    "completion": "Pump X uses port 9.",
    "answer": "9",
    "constraints": [{"id": "punctuation:no_comma"}],
    "split": "train",
}
FLAGS = ("--max-new-tokens", "8", "--steps", "30", "--rank", "4", "--learning-rate", "1e-2")


def make_home(folder: Path, source: Path, base: Path) -> Home:
    made = Home(folder / "state").create()
    made.config.write_text(f'base = "{source}"\n{REPRODUCIBLE}')
    made.model(str(source)).symlink_to(base)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, OBEYS]))
    return made


def enqueue(home: Home, *flags: str) -> None:
    data = home.path.parent / "data.jsonl"
    done = agent("enqueue", data, *FLAGS, *flags, state=home.path)
    assert done.returncode == 0, done.stderr
