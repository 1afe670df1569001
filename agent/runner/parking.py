"""Putting a job aside until the remote LLM may answer again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from agent.runner.rewriting import RewriteOutcome

TRY_AGAIN = 300.0
"""Seconds after which a parked job is tried again where the remote did not say when."""


class Parked(Exception):
    """Everything that is left needs the remote LLM; `wake` is when to try again, in unix seconds."""

    def __init__(self, reason: str, wake: float) -> None:
        super().__init__(reason)
        self.wake = wake


def park_if_deferred(outcomes: Sequence[RewriteOutcome]) -> None:
    """Raise Parked if some rewrites wait for the remote."""
    deferred = [outcome for outcome in outcomes if outcome.state == "deferred"]
    if deferred:
        wake = max(outcome.retry_at or 0.0 for outcome in deferred)
        park(replace(deferred[-1], retry_at=wake), len(deferred), f" of {len(outcomes)}")


def park(deferred: RewriteOutcome, waiting: int, of: str = "") -> None:
    """Raise Parked for so many rewrites, `deferred` being one of them."""
    wake = deferred.retry_at or 0.0
    reason = f"{waiting}{of} rewrites wait for the remote: {deferred.reasons[0]}"
    raise Parked(reason, wake if wake > time.time() else time.time() + TRY_AGAIN)
