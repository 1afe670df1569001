"""Rewritten rows: all rows of a job with the accepted rewrites in place, each with where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.contract.atomic_io import write_file
from agent.contract.lines import json_line
from agent.data.formats import HELD_OUT, TRAIN, Example
from agent.queue.jobs import Job
from agent.runner.rewriting import RewriteOutcome, replace_text
from agent.system.paths import REMADE


@dataclass(frozen=True)
class Rewrite:
    """A row's new text, which part of it that replaces ("reference" or "prompt"), and its lineage."""

    text: str
    part: str
    lineage: dict[str, Any]


def lineage(job: Job, model: str, outcome: RewriteOutcome) -> dict[str, Any]:
    """Where the text of an accepted rewrite comes from and what it took; the source line is the row's own `line`."""
    names = ("critique", "calls", "prompt_tokens", "completion_tokens", "cost")
    return {"job": job.id, "file": job.file, "model": model, **{name: getattr(outcome, name) for name in names}}


def write_rewritten_rows(
    run: Path, train: Sequence[Example], held_out: Sequence[Example], changed: Mapping[str, Rewrite]
) -> None:
    """Write remade.jsonl into a run's folder: every row, ready for `enqueue`, with `remade` where it changed."""
    rows = [_row(example, changed.get(example.id), TRAIN) for example in train]
    rows += [_row(example, None, HELD_OUT) for example in held_out]
    write_file(run / REMADE, b"".join(map(json_line, rows)))


def _row(example: Example, new: Rewrite | None, split: str) -> dict[str, Any]:
    now = replace_text(example, new.part, new.text) if new else example
    more = {"remade": {"part": new.part, **new.lineage}} if new else {}
    return {**json.loads(now.to_json()), "split": split, **more}
