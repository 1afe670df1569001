"""The whole contract between a job's loop and its workers: messages, settings, and how they travel.

One JSON object a line over the worker's stdin and stdout. A request is answered by any number of events and
then exactly one answer or error; all carry the request's id and the protocol version:

    {"v": 1, "id": 7, "request": "Train", "body": {...}}      to the worker
    {"v": 1, "id": 7, "event": "Step", "body": {...}}         from the worker, any number
    {"v": 1, "id": 7, "answer": "Trained", "body": {...}}     from the worker, last
    {"v": 1, "id": 7, "error": "DataError", "body": "..."}    from the worker, last

Bulk data (examples, answers, adapters, checkpoints) goes by path. Standard library only.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import sys
import threading
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent import errors

VERSION = 1
MAX_LINE = 1 << 20
"""Longest line either side accepts, in bytes."""
ALIVE_EVERY = 5.0
"""Seconds between `Alive` events while a request is being served."""


class ProtocolError(errors.WorkerDied):
    """The other side sent something that is not this protocol."""


def setting(
    default: Any, help: str, *, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = ()
) -> Any:
    """A dataclass field that also carries what flags, config.toml and the docs say about it."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Training:
    """How one adapter is trained; the only definition of each of these settings."""

    rank: int = setting(16, "rank of the LoRA update of every linear layer", low=1, high=256)
    alpha: int = setting(32, "LoRA scale: updates are multiplied by alpha / rank", low=1, high=1024)
    learning_rate: float = setting(1e-3, "peak learning rate of AdamW", low=1e-7, high=1.0)
    epochs: float = setting(8.0, "passes over the training rows (ignored if steps is set)", low=0.01, high=1000)
    steps: int = setting(0, "optimizer steps; 0 means: as many as epochs gives", low=0, high=10_000_000)
    sequence_length: int = setting(512, "longest row in tokens; longer examples are cut", low=16, high=131_072)
    micro_batch: int = setting(8, "most examples packed into one row for one forward pass", low=1, high=4096)
    accumulation: int = setting(1, "micro-batches per optimizer step", low=1, high=4096)
    warmup: float = setting(0.06, "share of the steps in which the learning rate rises", low=0.0, high=1.0)
    weight_decay: float = setting(0.0, "AdamW weight decay of the adapter", low=0.0, high=1.0)
    clip: float = setting(1.0, "largest gradient norm; 0 means: no clipping", low=0.0, high=1000.0)
    seed: int = setting(0, "seed of the split, the order and the adapter's start", low=0, high=2**31)
    checkpointing: bool = setting(True, "recompute activations in the backward pass: less memory, a third more time")
    checkpoint_every: int = setting(20, "optimizer steps between checkpoints", low=1, high=1_000_000)
    held_out: float = setting(0.1, "share of rows kept for evaluation where the file has no split", low=0.0, high=0.5)
    max_new_tokens: int = setting(128, "longest generated answer in tokens", low=1, high=8192)
    dtype: str = setting(
        "auto", "compute type; auto: bfloat16 where it is native", choices=("auto", "float32", "bfloat16")
    )
    device: str = setting("auto", "where to compute; auto: CUDA where it works", choices=("auto", "cpu", "cuda"))


# ---- agent.fetch ----


@dataclass(frozen=True)
class Fetch:
    """Bring the base model `source` to this machine, into the existing folder `target` if it has to be downloaded."""

    source: str
    target: str


@dataclass(frozen=True)
class Fetched:
    """Where the model file or folder is; `sha256` is empty for a folder."""

    path: str
    sha256: str


# ---- requests to quant.worker ----


@dataclass(frozen=True)
class Prepare:
    """Quantise the model at `source` (a Hugging Face folder or a .gguf file) to NF4 into the new folder `target`."""

    source: str
    target: str


@dataclass(frozen=True)
class Load:
    """Load the prepared base in folder `model` and, if given, the PEFT adapter in folder `adapter`."""

    model: str
    adapter: str | None = None
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Score:
    """Write the loss of every example in `data` to `out`: lines of {"id", "loss" (nats/token), "tokens"}."""

    data: str
    out: str
    sequence_length: int


@dataclass(frozen=True)
class Generate:
    """Answer every prompt in `data` (lines of {"id", "messages"}) greedily into `out`: {"id", "text", "tokens"}."""

    data: str
    out: str
    max_new_tokens: int


@dataclass(frozen=True)
class Train:
    """Train the adapter on `data`, checkpoints into the folder `checkpoints`, going on from `resume` if given."""

    data: str
    checkpoints: str
    settings: Training
    resume: str | None = None


@dataclass(frozen=True)
class Save:
    """Write the adapter in PEFT's format into the existing folder `target`."""

    target: str


@dataclass(frozen=True)
class Check:
    """Try a 4-bit quantise, matmul and backward on the device."""

    device: str = "auto"


# ---- events and answers of quant.worker ----


@dataclass(frozen=True)
class Alive:
    """Sent every few seconds while a request is served, so that a frozen worker can be told from a busy one."""

    rss_mb: float


@dataclass(frozen=True)
class Note:
    """Something a person should know about the run, in one sentence."""

    text: str


@dataclass(frozen=True)
class Step:
    """One optimizer step: mean loss in nats per target token, gradient norm before clipping."""

    step: int
    steps: int
    epoch: float
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    target_tokens: int
    tokens_per_s: float
    rss_mb: float
    cuda_mb: float


@dataclass(frozen=True)
class Checkpointed:
    """A checkpoint of `step` is on the disk, whole."""

    step: int
    path: str


@dataclass(frozen=True)
class Prepared:
    """What `Prepare` made: sizes in bytes, time in seconds."""

    architecture: str
    parameters: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Loaded:
    """The model is in memory, on `device`, computing in `dtype`."""

    architecture: str
    device: str
    dtype: str
    seconds: float
    rss_mb: float


@dataclass(frozen=True)
class Written:
    """Rows and tokens written by `Score` or `Generate`, and the seconds it took."""

    rows: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Trained:
    """How training ended; `finished` is False if it stopped early at a checkpoint because of SIGTERM."""

    finished: bool
    step: int
    tokens: int
    seconds: float
    peak_rss_mb: float
    peak_cuda_mb: float


@dataclass(frozen=True)
class Saved:
    """The adapter is in its folder (not yet flushed: whoever publishes the folder does that)."""

    bytes: int


@dataclass(frozen=True)
class Checked:
    """What `Check` found: `ok` only if a 4-bit backward pass gave the right gradient."""

    ok: bool
    device: str
    dtype: str
    detail: str
    versions: dict[str, str]


Request = Fetch | Prepare | Load | Score | Generate | Train | Save | Check
Event = Alive | Note | Step | Checkpointed
Answer = Fetched | Prepared | Loaded | Written | Trained | Saved | Checked
Message = Request | Event | Answer
MESSAGES: dict[str, type[Any]] = {cls.__name__: cls for cls in typing.get_args(Message)}


@dataclass(frozen=True)
class Envelope:
    """One line: `kind` is request, event, answer or error; an error's message is the exception itself."""

    kind: str
    id: int
    message: Message | errors.AgentError


def encode(envelope: Envelope) -> bytes:
    """One line of JSON with its newline; numbers that are not finite raise ValueError."""
    message = envelope.message
    body = str(message) if isinstance(message, errors.AgentError) else dataclasses.asdict(message)
    record = {"v": VERSION, "id": envelope.id, envelope.kind: type(message).__name__, "body": body}
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Envelope:
    """The envelope in a line; raises ProtocolError for anything else."""
    try:
        record = json.loads(line, parse_constant=_no_constant)
        if record["v"] != VERSION:
            raise ProtocolError(f"protocol version {record['v']!r}, expected {VERSION}: reinstall nslora-agent")
        (kind,) = {"request", "event", "answer", "error"} & record.keys()
        name, body = record[kind], record["body"]
        message = errors.BY_NAME[name](body) if kind == "error" else _build(MESSAGES[name], body)
        return Envelope(kind, int(record["id"]), message)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as fault:
        raise ProtocolError(f"not a protocol line ({type(fault).__name__}: {fault}): {line[:200]!r}") from fault


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _build(cls: type[Any], body: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    nested = {
        name: _build(hints[name], value) if dataclasses.is_dataclass(hints[name]) else value
        for name, value in body.items()
    }
    return cls(**nested)


# ---- the worker's side ----

Emit = Callable[[Event], None]
Handler = Callable[[Any, Emit], Answer]


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when `parent` dies; exit at once if it already has."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(errors.WorkerDied.exit_code)


def claim_stdout() -> typing.BinaryIO:
    """Keep the real stdout for the protocol and point fd 1 at stderr, so that a library's print breaks nothing."""
    stream = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return stream


def rss_mb() -> float:
    """This process's resident memory in MB (10^6 bytes)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


class Server:
    """Answers requests from stdin, one after the other, until stdin closes."""

    def __init__(self, handler: Handler, stdout: typing.BinaryIO) -> None:
        self._handler = handler
        self._stdout = stdout
        self._lock = threading.Lock()

    def serve(self) -> None:
        """Run until the other side closes the pipe; a failed request is answered and the next one is read."""
        while line := sys.stdin.buffer.readline(MAX_LINE):
            request = decode(line)
            idle = threading.Event()
            threading.Thread(target=self._beat, args=(request.id, idle), daemon=True).start()
            try:
                answer: Answer | errors.AgentError = self._handler(request.message, self._emitter(request.id))
            except errors.AgentError as fault:
                answer = fault
            idle.set()
            self._send(Envelope("error" if isinstance(answer, errors.AgentError) else "answer", request.id, answer))

    def _emitter(self, request: int) -> Emit:
        return lambda message: self._send(Envelope("event", request, message))

    def _beat(self, request: int, idle: threading.Event) -> None:
        while not idle.wait(ALIVE_EVERY):
            self._send(Envelope("event", request, Alive(rss_mb())))

    def _send(self, envelope: Envelope) -> None:
        line = encode(envelope)
        with self._lock:
            while line:
                line = line[self._stdout.write(line) :]
