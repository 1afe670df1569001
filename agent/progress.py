"""Where a neurosymbolic job stands between two windows: all that a new attempt needs to go on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.classifier import Classifier
from agent.decision_store import Outcome
from agent.durable import write_json
from agent.monitor import Monitor, Phase, Window
from agent.rows import Row
from agent.shapes import Example


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
    """Of this round's rewrites so far."""
    ended: str = ""
    """Why the phase is over, empty while it is not."""
    flat: tuple[Phase, ...] = ()
    """The sides whose last phase gained less than it cost."""
    step: int = 0
    first: int = 0
    """The step at which this phase began."""
    checkpoint: str = ""
    """The folder of the adapter's last checkpoint, empty before the first step."""
    tokens: int = 0
    train_seconds: float = 0.0
    peak_rss_mb: float = 0.0
    peak_cuda_mb: float = 0.0
    seconds: float = 0.0
    """Spent on phases, over all attempts."""
    requests: int = 0
    """Requests to the remote LLM, recorded answers included."""
    requests_before: int = 0
    """The same when this phase began."""
    cut: str = ""
    """Why this symbolic phase could not go on, where that is not its own doing."""
    spent: bool = False
    """Whether the job's budget for the remote LLM is used up."""

    def save(self, path: Path) -> None:
        """Write it down, durably."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        write_json(
            path,
            {
                **fields,
                "rows": {name: row.to_json() for name, row in self.rows.items()},
                "classifier": self.classifier.to_json(),
                "monitor": dataclasses.asdict(self.monitor),
                "outcomes": [dataclasses.asdict(outcome) for outcome in self.outcomes],
            },
        )

    @classmethod
    def load(cls, path: Path, examples: Sequence[Example]) -> Progress:
        """What `save` wrote down of a job on these training rows."""
        kept: dict[str, Any] = json.loads(path.read_bytes())
        rows = {example.id: Row.from_json(example, kept["rows"][example.id]) for example in examples}
        monitor = kept["monitor"]
        windows = tuple(Window(**window) for window in monitor["windows"])
        outcomes = (
            {**each, "features": tuple(each["features"]), "kinds": tuple(each["kinds"])} for each in kept["outcomes"]
        )
        return cls(
            **{
                **kept,
                "rows": rows,
                "classifier": Classifier.from_json(kept["classifier"]),
                "phase": Phase(kept["phase"]) if kept["phase"] else None,
                "monitor": Monitor(**{**monitor, "phase": Phase(monitor["phase"]), "windows": windows}),
                "members": tuple(kept["members"]),
                "flat": tuple(map(Phase, kept["flat"])),
                "outcomes": tuple(Outcome(**each) for each in outcomes),
            }
        )
