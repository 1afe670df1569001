"""Where a neurosymbolic job stands between two windows: all that a new attempt needs to go on."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.contract.atomic_io import write_file
from agent.data.formats import Example
from agent.decide.classifier import Classifier
from agent.decide.decision_store import Outcome
from agent.decide.monitor import Monitor, Phase, Window
from agent.runner import rewriting
from agent.runner.rows import Row

PROGRESS = "progress.json"


@dataclass(frozen=True)
class Progress:
    """One job's rounds so far; frozen, written down after every window."""

    rows: dict[str, Row]
    """By id, in the order of the file."""
    classifier: Classifier
    round: int = 0
    phase: Phase | None = None
    why: str = ""
    monitor: Monitor = dataclasses.field(default_factory=lambda: Monitor(Phase.NUMERIC))
    members: tuple[str, ...] = ()
    """Ids of the rows that this phase tunes on, or has still to offer for a rewrite."""
    outcomes: tuple[Outcome, ...] = ()
    """Of this round so far: its rewrites or, after the probe, its tuning."""
    ended: str = ""
    """Why the phase is over, empty while it is not."""
    finished: bool = False
    """Whether the round is over too: what came of the phase is kept and taught."""
    flat: tuple[Phase, ...] = ()
    """The sides whose last phase gained less than it cost."""
    step: int = 0
    first: int = 0
    """The step at which this phase began."""
    start: str = ""
    """The checkpoint from which it began."""
    start_tokens: int = 0
    """Tokens that the checkpoint itself knows of."""
    checkpoint: str = ""
    """The folder of the adapter's last checkpoint, empty before the first step."""
    tokens: int = 0
    undone: int = 0
    """Tokens of phases that were undone, which `tokens` counts too."""
    train_seconds: float = 0.0
    peak_rss_mb: float = 0.0
    peak_cuda_mb: float = 0.0
    seconds: float = 0.0
    """Spent on phases, over all attempts."""
    requests: int = 0
    """Requests to the remote LLM, recorded answers included."""
    requests_before: int = 0
    """The same when this phase began."""
    reward_before: float = 0.0
    """Mean reward when this phase began."""
    cut: str = ""
    """Why this symbolic phase could not go on, where that is not its own doing."""
    deferred: rewriting.RewriteOutcome | None = None
    """The last rewrite that the remote did not serve, if rows wait for it."""
    spent: bool = False
    """Whether the job's budget for the remote LLM is used up."""

    def save(self, path: Path) -> None:
        """Write it down, durably."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        record = {
            **fields,
            "rows": {name: row.to_json() for name, row in self.rows.items()},
            "classifier": self.classifier.to_json(),
            "monitor": dataclasses.asdict(self.monitor),
            "outcomes": [dataclasses.asdict(outcome) for outcome in self.outcomes],
            "deferred": self.deferred.to_json() if self.deferred else None,
        }
        # No indent, for json's fast encoder: a job with thousands of rows writes this after every window.
        write_file(path, json.dumps(record, allow_nan=False).encode())

    @property
    def reward(self) -> float:
        """Mean joint reward of the model's answers on all rows."""
        return math.fsum(row.standing.reward for row in self.rows.values()) / len(self.rows)

    @classmethod
    def load(cls, path: Path, examples: Sequence[Example]) -> Progress:
        """Read back what `save` wrote down of a job on these training rows."""
        kept: dict[str, Any] = json.loads(path.read_bytes())
        monitor, deferred = kept["monitor"], kept["deferred"]
        windows = tuple(Window(**window) for window in monitor["windows"])
        outcomes = (
            {**each, "features": tuple(each["features"]), "kinds": tuple(each["kinds"])} for each in kept["outcomes"]
        )
        progress = cls(
            **{
                **kept,
                "rows": {example.id: Row.from_json(example, kept["rows"][example.id]) for example in examples},
                "classifier": Classifier.from_json(kept["classifier"]),
                "phase": Phase(kept["phase"]) if kept["phase"] else None,
                "monitor": Monitor(Phase(monitor["phase"]), windows),
                "members": tuple(kept["members"]),
                "flat": tuple(map(Phase, kept["flat"])),
                "outcomes": tuple(Outcome(**each) for each in outcomes),
                "deferred": rewriting.RewriteOutcome.from_json(deferred) if deferred else None,
            }
        )
        # 0.1.0 did not write it down; while a phase goes on, the rows are as they were when it began.
        known = "reward_before" in kept or progress.phase is None
        return progress if known else replace(progress, reward_before=progress.reward)
