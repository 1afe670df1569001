"""Settings that travel to a worker: each is defined once, here; flags, config.toml and docs derive from it.

Standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

Settings = TypeVar("Settings")

RENAMED = {
    "accumulation": "gradient_accumulation_steps",
    "clip": "max_grad_norm",
    "most_fall": "max_slice_drop",
    "warmup": "warmup_ratio",
}
"""Names of settings until version 0.1, and what they are called now: in files, flags and queued jobs both are read."""


def part_of(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    """The settings of one class out of those of a job, which hold several; missing ones have their defaults."""
    names = {known.name for known in dataclasses.fields(cls)}  # type: ignore[arg-type]
    called = {RENAMED.get(name, name): value for name, value in values.items()}
    return cls(**{name: value for name, value in called.items() if name in names})


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    pattern: str = "",
) -> Any:
    """A dataclass field that also carries what flags, config.toml and the docs say about it.

    A text must match `pattern` as a whole, or be empty.
    """
    about = {"help": help, "low": low, "high": high, "choices": choices, "pattern": pattern}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Training:
    """Settings of training one adapter; the only definition of each."""

    rank: int = setting(16, "rank of the LoRA update of every linear layer", low=1, high=256)
    alpha: int = setting(32, "LoRA scale: updates are multiplied by alpha / rank", low=1, high=1024)
    learning_rate: float = setting(1e-3, "peak learning rate of AdamW", low=1e-7, high=1.0)
    epochs: float = setting(8.0, "passes over the training rows (ignored if steps is set)", low=0.01, high=1000)
    steps: int = setting(0, "optimizer steps; 0 means: as many as epochs gives", low=0, high=10_000_000)
    sequence_length: int = setting(512, "longest row in tokens; longer examples are cut", low=16, high=131_072)
    micro_batch: int = setting(8, "most examples packed into one row for one forward pass", low=1, high=4096)
    gradient_accumulation_steps: int = setting(1, "micro-batches per optimizer step", low=1, high=4096)
    warmup_ratio: float = setting(0.06, "share of the steps in which the learning rate rises", low=0.0, high=1.0)
    weight_decay: float = setting(0.0, "AdamW weight decay of the adapter", low=0.0, high=1.0)
    max_grad_norm: float = setting(1.0, "largest gradient norm; 0 means: no clipping", low=0.0, high=1000.0)
    value_weight: float = setting(
        2.0, "how many times as much the words of an answer's value count as its other words", low=0.01, high=100.0
    )
    seed: int = setting(0, "seed of the split, the order and the adapter's start", low=0, high=2**31)
    optimizer: str = setting(
        "adamw", "adamw8bit keeps a quarter of AdamW's memory, rounded", choices=("adamw", "adamw8bit")
    )
    memory_budget: int = setting(
        0,
        "MB for a training step over the loaded model; more is faster; 0: half of what is free",
        low=0,
        high=10_000_000,
    )
    top_layers: float = setting(
        1.0, "share of the blocks, from the last, that are tuned; fewer are faster and learn less", low=0.01, high=1.0
    )
    prefix_cache: int = setting(
        2000,
        "disk limit in MB for cached activations of the frozen blocks; 0: no cache",
        low=0,
        high=10_000_000,
    )
    checkpoint_every: int = setting(20, "optimizer steps between checkpoints", low=1, high=1_000_000)
    held_out: float = setting(0.1, "share of rows kept for evaluation where the file has no split", low=0.0, high=0.5)
    max_new_tokens: int = setting(128, "longest generated answer in tokens", low=1, high=8192)
    dtype: str = setting(
        "auto",
        "compute type; auto: the faster one by a probe, on CUDA bfloat16 where it is native",
        choices=("auto", "float32", "bfloat16"),
    )
    device: str = setting("auto", "where to compute; auto: CUDA where it works", choices=("auto", "cpu", "cuda"))


@dataclass(frozen=True)
class Decision:
    """When a neurosymbolic job tunes, rewrites or stops; the only definition of each of these settings."""

    rounds: int = setting(8, "most numeric and symbolic phases together", low=1, high=1000)
    minutes: float = setting(0.0, "minutes after which no new phase starts; 0: no limit", low=0.0, high=1e6)
    weights_cost: float = setting(0.02, "reward that tuning on an example must be expected to gain", low=0.0, high=1.0)
    rewrite_cost: float = setting(0.08, "reward that rewriting an example must be expected to gain", low=0.0, high=1.0)
    max_slice_drop: float = setting(0.1, "most that any slice of the held-out reward may fall", low=0.0, high=1.0)
    explore: float = setting(0.3, "standard deviations by which a gain may exceed what is expected", low=0.0, high=10.0)


@dataclass(frozen=True)
class Offload:
    """Settings of the remote LLM and of its use; the only definition of each."""

    base_url: str = setting("", "OpenAI-compatible endpoint, such as http://127.0.0.1:8080/v1; empty: nothing is sent")
    model: str = setting("", "name of the model at that endpoint")
    api_key_file: str = setting(
        "", "file with the API key, mode 600; empty: the systemd credential nslora-api-key, if there is one"
    )
    mode: str = setting(
        "remote", "cache-only: never open a socket, use recorded answers", choices=("remote", "cache-only")
    )
    allow_http: bool = setting(False, "allow http:// to other machines: what is sent can be read on the way")
    socket: str = setting("", "Unix socket of the offload unit; empty: the job starts the offload worker itself")
    rewrite: str = setting("reference", "which part of a flagged example is rewritten", choices=("reference", "prompt"))
    style: str = setting("", "how every reference should be written, in a sentence; empty: only constraints count")
    max_tokens: int = setting(512, "longest answer of the remote LLM in tokens", low=16, high=32_768)
    temperature: float = setting(0.0, "sampling temperature of the remote LLM", low=0.0, high=2.0)
    connect_timeout: float = setting(5.0, "seconds to wait for a connection", low=0.1, high=300)
    read_timeout: float = setting(60.0, "seconds to wait for the next byte of an answer", low=0.1, high=3600)
    total_timeout: float = setting(180.0, "seconds one try may take in all", low=0.1, high=7200)
    attempts: int = setting(3, "tries of one call before it counts as failed", low=1, high=10)
    max_response_kb: int = setting(1024, "largest response in KB", low=1, high=65_536)
    requests_per_job: int = setting(1000, "most HTTP requests for one job", low=0, high=10_000_000)
    requests_per_day: int = setting(5000, "most HTTP requests in a day (UTC)", low=0, high=10_000_000)
    tokens_per_job: int = setting(1_000_000, "most tokens for one job, sent and received", low=0, high=10**12)
    tokens_per_day: int = setting(5_000_000, "most tokens in a day (UTC)", low=0, high=10**12)
    money_per_job: float = setting(1.0, "most money for one job, in the currency of the prices", low=0.0, high=1e9)
    money_per_day: float = setting(5.0, "most money in a day (UTC)", low=0.0, high=1e9)
    price_in: float = setting(0.0, "price of a million tokens sent", low=0.0, high=1e6)
    price_out: float = setting(0.0, "price of a million tokens received", low=0.0, high=1e6)
    cache_mb: int = setting(64, "largest size of the recorded answers; the least used go first", low=1, high=100_000)
    patterns: tuple[str, ...] = setting((), "regular expressions of what else must never be sent")


@dataclass(frozen=True)
class Governor:
    """When training pauses, by itself, for the box's sake; the only definition of each of these settings."""

    train_between: str = setting(
        "",
        'hours of the day in which jobs run, such as "22:00-06:00"; empty: all day',
        pattern=r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d",
    )
    hottest: float = setting(90.0, "°C of the hottest thermal zone at which training pauses; 0: never", low=0, high=150)
    battery: float = setting(30.0, "per cent below which a discharging battery pauses training", low=0, high=100)
    power_modes: tuple[str, ...] = setting((), "numbers of nvpmodel's modes in which training may run; empty: any")
    memory_pressure: float = setting(
        20.0,
        "per cent of the time that all programs wait for memory (PSI); more pauses training; 0: never",
        low=0,
        high=100,
    )
    load: float = setting(
        0.0, "load average for each core that pauses training, whose own is about 1; 0: never", low=0, high=1000
    )


@dataclass(frozen=True)
class Retention:
    """The number of old jobs and versions to keep; the only definition of each setting."""

    jobs: int = setting(100, "ended jobs whose data, logs and decisions are kept", low=1, high=1_000_000)
    checkpoints: int = setting(
        5, "failed, dead or cancelled jobs whose checkpoints are kept for a retry", low=0, high=1_000_000
    )
    versions: int = setting(20, "versions kept besides those in use", low=0, high=1_000_000)


@dataclass(frozen=True)
class Metrics:
    """Settings of the metrics file; the only definition of each."""

    textfile: str = setting(
        "", "file for Prometheus's node exporter, such as /var/lib/node_exporter/nslora.prom; empty: none"
    )


@dataclass(frozen=True)
class Limits:
    """Limits of one data file; the only definition of each."""

    max_file_bytes: int = setting(256 << 20, "largest data file in bytes", low=1, high=1 << 40)
    max_lines: int = setting(1_000_000, "most lines of a data file, blank ones included", low=1, high=1_000_000_000)
    max_line_bytes: int = setting(1 << 20, "longest line of a data file in bytes", low=16, high=1 << 30)
