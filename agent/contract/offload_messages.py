"""Requests to `offload.worker` and its answers: a part of the contract in `protocol`."""

from __future__ import annotations

from dataclasses import dataclass

from agent.contract.requests import Request
from agent.contract.settings import Offload

LONGEST = 20_000
"""Characters of all texts of a request for a rewrite, and of a rewrite: a longer one is not worth a small remote
model's while, and would not fit into a line of the protocol."""

# ---- requests ----


@dataclass(frozen=True)
class Open(Request["Opened"]):
    """Use the database at `cache` and these settings; the first request."""

    cache: str
    settings: Offload


@dataclass(frozen=True)
class RewriteExample(Request["Rewritten"]):
    """One TextGrad step on one text of an example.

    `part` is "reference" (then `context` is its question) or "prompt" (then `context` is its reference). `wanted` are
    the constraints in words, `faults` what local checks found wrong with `text`: without any, the remote LLM is asked
    for a critique first. `tried` is an earlier rewrite that was refused, "" if there is none. `why` goes into the
    audit log: constraint ids, never text.
    """

    job: int
    example: str
    part: str
    text: str
    context: str
    wanted: list[str]
    faults: list[str]
    tried: str
    why: list[str]


@dataclass(frozen=True)
class ImprovePrompt(Request["Rewritten"]):
    """One TextGrad step on the system prompt `text`; `failing`: prompts, each with what was wrong with its answer."""

    job: int
    text: str
    failing: list[str]
    why: list[str]


@dataclass(frozen=True)
class Preview(Request["Previewed"]):
    """Show what would be sent first for this rewrite, and send nothing."""

    request: RewriteExample


@dataclass(frozen=True)
class Ping(Request["Ponged"]):
    """One tiny round trip to the remote LLM, outside of the cache."""


@dataclass(frozen=True)
class ReadLog(Request["Listed"]):
    """Write the newest `last` rows of the audit log to the file `out`, oldest first, as JSON lines."""

    out: str
    last: int


@dataclass(frozen=True)
class CacheStats(Request["CacheFigures"]):
    """Count what the cache holds."""


@dataclass(frozen=True)
class CacheExport(Request["Listed"]):
    """Write every recorded answer to the file `out` as JSON lines."""

    out: str


@dataclass(frozen=True)
class CacheImport(Request["Listed"]):
    """Take over the recorded answers in a file that `CacheExport` wrote."""

    path: str


@dataclass(frozen=True)
class CachePrune(Request["Pruned"]):
    """Forget answers that were not used for this many seconds."""

    older_than: float


# ---- answers ----


@dataclass(frozen=True)
class Remote:
    """State of the remote LLM: `breaker` is closed, open or half-open; `retry_at` and days are in unix time, UTC.

    Sums are over the day and over all attempts at the job that asked, reservations included.
    """

    breaker: str
    failures: int
    reason: str
    retry_at: float | None
    requests_today: int
    tokens_today: int
    money_today: float
    requests_job: int
    tokens_job: int
    money_job: float


@dataclass(frozen=True)
class Opened:
    """The worker is ready."""

    remote: Remote


@dataclass(frozen=True)
class Rewritten:
    """The end of a rewrite.

    `outcome` is "rewritten" (only then `text` is not empty), "unneeded" (the critique found nothing), "rejected" (the
    answer cannot be used), "refused" (the request cannot be served, now or later), "deferred" (the remote or the day's
    budget may allow it after `remote.retry_at`) or "spent" (a cap of the job is reached). `calls` are HTTP requests,
    `cost` is in the currency of the price settings. `critique` is what the step was told to mend: the faults that local
    checks named, or what the remote said, as it was sent.
    """

    outcome: str
    text: str
    reason: str
    critique: str
    cached: bool
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    seconds: float
    remote: Remote


@dataclass(frozen=True)
class Previewed:
    """Messages as they would be sent, how many secrets of each kind were replaced, and whether the answer is known."""

    messages: list[dict[str, str]]
    redacted: dict[str, int]
    cached: bool


@dataclass(frozen=True)
class Ponged:
    """The remote LLM answered: which model it says it is, and what the round trip took and cost."""

    model: str
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    cost: float
    remote: Remote


@dataclass(frozen=True)
class Listed:
    """Rows written to a file, or taken from one: `known` of them were there before."""

    rows: int
    known: int = 0


@dataclass(frozen=True)
class CacheFigures:
    """Answers in the cache by model, their size, how often one was used again, and the oldest use in unix time."""

    answers: int
    bytes: int
    hits: int
    models: dict[str, int]
    oldest: float | None


@dataclass(frozen=True)
class Pruned:
    """Answers forgotten, and their size."""

    answers: int
    bytes: int
