"""The whole contract between a job's loop and its workers: the messages and how they travel.

Those of `offload.worker` stand in `agent.contract.offload_messages`.

One JSON object a line over the worker's stdin and stdout. A request is answered by any number of events and
then exactly one answer or error; all carry the request's id and the protocol version:

    {"v": 1, "id": 7, "request": "Train", "body": {...}}      to the worker
    {"v": 1, "id": 7, "event": "Step", "body": {...}}         from the worker, any number
    {"v": 1, "id": 7, "answer": "Trained", "body": {...}}     from the worker, last
    {"v": 1, "id": 7, "error": "DataError", "body": "..."}    from the worker, last

Bulk data (examples, answers, adapters, checkpoints) goes by path. Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass
from typing import Any

from agent.contract import errors
from agent.contract.export_messages import Saved, Templated
from agent.contract.offload_messages import (
    CacheFigures,
    Listed,
    Opened,
    Ponged,
    Previewed,
    Pruned,
    Rewritten,
)
from agent.contract.reply_messages import Replied, Said
from agent.contract.requests import Request
from agent.contract.settings import Training

VERSION = 1
MAX_LINE = 1 << 20
"""Longest line either side accepts, in bytes."""


class ProtocolError(errors.WorkerDied):
    """The other side sent something that is not this protocol."""


# ---- agent.versions.fetch ----


@dataclass(frozen=True)
class Fetch(Request["Fetched"]):
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
class Prepare(Request["Prepared"]):
    """Quantise the model at `source` (a Hugging Face folder or a .gguf file) to NF4 into the new folder `target`."""

    source: str
    target: str


@dataclass(frozen=True)
class Plan(Request["Peaks"]):
    """Predict the memory of a job with these settings on the prepared base in folder `model`, every file of it read.

    With `whole=False` its files are only looked at.
    """

    model: str
    settings: Training
    whole: bool = True


@dataclass(frozen=True)
class Load(Request["Loaded"]):
    """Load the prepared base in folder `model` and, if given, the PEFT adapter in folder `adapter`."""

    model: str
    adapter: str | None = None
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Score(Request["Written"]):
    """Write the loss of every example in `data` to `out`: {"id", "loss", "value_loss" (nats/token), "tokens"}.

    Lines of `data` are {"id", "messages"} and may name a "value": `value_loss` is the mean over its tokens in the last
    message, None where it does not stand there.
    """

    data: str
    out: str
    sequence_length: int


@dataclass(frozen=True)
class Generate(Request["Written"]):
    """Answer every prompt in `data` (lines of {"id", "messages"}) greedily into `out`: {"id", "text", "tokens"}.

    `memory_budget` is in MB, 0 for half of what is free.
    """

    data: str
    out: str
    max_new_tokens: int
    memory_budget: int = 0


@dataclass(frozen=True)
class Train(Request["Trained"]):
    """Train the adapter on `data`, checkpoints into the folder `checkpoints`, going on from `resume` if given.

    `first` is the step after which this data took over: its order counts from there. `until` is the step to stop at,
    0 for the end of the schedule.
    """

    data: str
    checkpoints: str
    settings: Training
    resume: str | None = None
    first: int = 0
    until: int = 0


@dataclass(frozen=True)
class Save(Request["Saved"]):
    """Write the adapter in PEFT's format into the existing folder `target`."""

    target: str


@dataclass(frozen=True)
class Check(Request["Checked"]):
    """Try a 4-bit quantise, matmul and backward on the device."""

    device: str = "auto"


# ---- events and answers of quant.worker ----


@dataclass(frozen=True)
class Alive:
    """Sent every few seconds while a request is served, so that a frozen worker can be told from a busy one."""

    rss_mb: float


@dataclass(frozen=True)
class Share:
    """The share of a request that is done, from 0 to 1."""

    done: float


@dataclass(frozen=True)
class Note:
    """Something a person should know about the run, in one sentence."""

    text: str


@dataclass(frozen=True)
class Step:
    """One optimizer step: mean losses in nats per target token, gradient norm before clipping.

    `value_loss` is the mean over the tokens of the rows' values, `form_loss` that over all others; None without any.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    value_loss: float | None
    form_loss: float | None
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
    """The result of `Prepare`: sizes in bytes, time in seconds."""

    architecture: str
    parameters: int
    bytes: int
    seconds: float


FITS_WITH = 0.95
"""Share of what is free that a plan may take: the box has other work."""


@dataclass(frozen=True)
class Peaks:
    """The peaks of a job's memory while it loads, trains, answers and saves, in MB; not `known` for every model.

    On a CPU resident memory of the process, which takes `now_mb` already; on a GPU the device's memory. `free_mb` can
    be had besides. Exporting is a job of its own; `answers_mb` is what answers take of `generate_mb`.
    """

    known: bool
    free_mb: float
    now_mb: float
    load_mb: float = 0.0
    train_mb: float = 0.0
    generate_mb: float = 0.0
    save_mb: float = 0.0
    export_mb: float = 0.0
    answers_mb: float = 0.0

    @property
    def highest(self) -> tuple[float, str]:
        """The highest of them and what it is for."""
        named = ((self.load_mb, "load"), (self.train_mb, "train"), (self.generate_mb, "answer"), (self.save_mb, "save"))
        return max(named)


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
    """The end of training; `finished` is False if it stopped early at a checkpoint because of SIGTERM.

    `checkpoint` is the folder of the last one; tokens and seconds are those of all steps from the first.
    """

    finished: bool
    step: int
    checkpoint: str
    tokens: int
    seconds: float
    peak_rss_mb: float
    peak_cuda_mb: float
    peak_cuda_reserved_mb: float = 0.0


@dataclass(frozen=True)
class Checked:
    """The result of `Check`: `ok` if a 4-bit backward pass gave the right gradient; `confined`: without network."""

    ok: bool
    device: str
    dtype: str
    detail: str
    versions: dict[str, str]
    confined: bool = False


Event = Alive | Share | Note | Said | Step | Checkpointed
Answer = (
    Fetched | Prepared | Peaks | Loaded | Written | Replied | Trained | Saved | Templated | Checked
    | Opened | Rewritten | Previewed | Ponged | Listed | CacheFigures | Pruned
)  # fmt: skip
Message = Request[Any] | Event | Answer
MESSAGES: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (*Request.__subclasses__(), *typing.get_args(Event), *typing.get_args(Answer))
}


@dataclass(frozen=True)
class Envelope:
    """One line: `kind` is request, event, answer or error; an error's message is the exception itself."""

    kind: str
    id: int
    message: Message | errors.AgentError


def encode(envelope: Envelope) -> bytes:
    """One line of JSON with its newline; numbers that are not finite raise ValueError."""
    message = envelope.message
    if isinstance(message, errors.AgentError):
        # A worker's own error is named after the one in `errors` that it derives from.
        ancestors = (cls.__name__ for cls in type(message).__mro__)
        name = next((ancestor for ancestor in ancestors if ancestor in errors.BY_NAME), "WorkerDied")
        body: Any = str(message)
    else:
        name, body = type(message).__name__, dataclasses.asdict(typing.cast("Any", message))
    record = {"v": VERSION, "id": envelope.id, envelope.kind: name, "body": body}
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Envelope:
    """The envelope in a line; raises ProtocolError for anything else."""
    try:
        record = json.loads(line, parse_constant=_refuse_constant)
        if record["v"] != VERSION:
            raise ProtocolError(f"protocol version {record['v']!r}, expected {VERSION}: reinstall nslora-agent")
        (kind,) = {"request", "event", "answer", "error"} & record.keys()
        name, body = record[kind], record["body"]
        message = errors.BY_NAME[name](body) if kind == "error" else _build(MESSAGES[name], body)
        return Envelope(kind, int(record["id"]), message)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as fault:
        raise ProtocolError(f"not a protocol line ({type(fault).__name__}: {fault}): {line[:200]!r}") from fault


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _build(cls: type[Any], body: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    return cls(**{name: _value(hints[name], value) for name, value in body.items()})


def _value(hint: Any, value: Any) -> Any:
    """A field's value out of JSON, which knows neither dataclasses nor tuples."""
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast("type[Any]", hint), value)
    return tuple(value) if typing.get_origin(hint) is tuple else value
