"""The training worker's answer to each request of the protocol."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from agent.contract import worker_server
from agent.contract.errors import BaseModelError, DataError, OutOfMemory, StateError
from agent.contract.export_messages import Export, Saved, Template
from agent.contract.lines import json_line, read_json_lines
from agent.contract.os_errors import os_fault
from agent.contract.protocol import (
    Answer,
    Check,
    Generate,
    Load,
    Loaded,
    Plan,
    Prepare,
    Save,
    Score,
    Share,
    Train,
    Written,
)
from agent.contract.reply_messages import Replied, Reply, Said
from agent.contract.worker_server import Emit
from quant.check import check
from quant.lean import export
from quant.lean.tokens import Tokenizer
from quant.load import load
from quant.plan import peaks
from quant.prepare import prepare
from quant.shared import allocators
from quant.shared.chat import Encoded, Encoder
from quant.shared.corpus import Corpus
from quant.shared.devices import is_out_of_memory
from quant.shared.generate import greedy
from quant.shared.loss import mean_losses
from quant.shared.model import Model, foreign_faults
from quant.shared.sampling import Sampler
from quant.shared.streaming import IncrementalDetokenizer
from quant.shared.templates import render_marks
from quant.shared.train import build_corpus, start, train

WINDOWS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
ROWS = 512
"""Rows of a file worked on at a time; what a worker that was killed left half-written is written again by the next."""


class Commands:
    """One method for each request; the model stays loaded between them."""

    def __init__(self, stopping: Callable[[], bool], breaks: list[int]) -> None:
        self._model: Model | None = None
        self._window = 0
        self._kept: tuple[object, Corpus] | None = None
        self._stopping, self._breaks = stopping, breaks

    def handle(self, request: Any, emit: Emit) -> Answer:
        """Answer one request; raises AgentError for what a person can mend."""
        handlers: dict[type[Any], Callable[[Any, Emit], Answer]] = {
            Prepare: self._prepare,
            Plan: lambda request, _: peaks(request),
            Load: self._load,
            Score: self._score,
            Generate: self._generate,
            Reply: self._reply,
            Train: self._train,
            Save: self._save,
            Export: self._export,
            Template: self._template,
            Check: lambda request, _: check(request.device),
        }
        try:
            return handlers[type(request)](request, emit)
        except (MemoryError, RuntimeError) as fault:
            if is_out_of_memory(fault):
                raise OutOfMemory(f"out of memory while {type(request).__name__.lower()} was served") from fault
            raise
        except OSError as fault:
            raise os_fault(f"the files of {type(request).__name__.lower()}", fault) from fault

    @property
    def model(self) -> Model:
        """The loaded model; raises StateError before `Load`."""
        if self._model is None:
            raise StateError("no model is loaded: send Load first")
        return self._model

    def _prepare(self, request: Prepare, emit: Emit) -> Answer:
        return prepare(Path(request.source), Path(request.target), lambda done: emit(Share(round(done, 4))))

    def _load(self, request: Load, _: Emit) -> Answer:
        started = time.monotonic()
        self._model = None
        self._forget()
        adapter = Path(request.adapter) if request.adapter else None
        model = self._model = load(Path(request.model), adapter, request.device, request.dtype)
        self._window = _window(Path(request.model))
        allocators.trim()
        dtype = str(model.dtype).removeprefix("torch.")
        seconds = round(time.monotonic() - started, 2)
        return Loaded(model.architecture, model.device.type, dtype, seconds, worker_server.rss_mb())

    def _score(self, request: Score, _: Emit) -> Answer:
        model, started, rows, tokens = self.model, time.monotonic(), 0, 0
        with Path(request.out).open("wb") as out:
            for some in _batches(request.data):
                judged = [e for e in self._encode(some, request.sequence_length) if e.targets]
                losses = mean_losses(model, judged, request.sequence_length)
                for example, (loss, value_loss) in zip(judged, losses, strict=True):
                    line = {"id": example.id, "loss": loss, "value_loss": value_loss, "tokens": example.targets}
                    out.write(json_line(line))
                rows, tokens = rows + len(judged), tokens + sum(len(e.ids) for e in judged)
        return Written(rows, tokens, round(time.monotonic() - started, 2))

    def _generate(self, request: Generate, _: Emit) -> Answer:
        model, started, rows, tokens = self.model, time.monotonic(), 0, 0
        with Path(request.out).open("wb") as out:
            for some in _batches(request.data):
                prompts = [model.encoder.prompt(r["messages"]) for r in some]
                answers = dict(greedy(model, prompts, request.max_new_tokens, request.memory_budget))
                for number, row in enumerate(some):
                    line = {"id": row["id"], "text": answers[number].text, "tokens": answers[number].tokens}
                    out.write(json_line(line))
                rows, tokens = rows + len(some), tokens + sum(a.tokens for a in answers.values())
        return Written(rows, tokens, round(time.monotonic() - started, 2))

    def _reply(self, request: Reply, emit: Emit) -> Answer:
        self._breaks.clear()
        model, started = self.model, time.monotonic()
        try:
            prompt = model.encoder.prompt(list(request.messages))
        except BaseModelError as fault:  # the chat template refuses the conversation
            raise DataError(str(fault)) from fault
        if len(prompt) >= self._window:
            told = f"the conversation has {len(prompt)} tokens, the model takes {self._window}"
            raise DataError(f"{told}: begin a new conversation, or ask something shorter")
        most = model.prepare_answer(
            len(prompt), min(request.max_new_tokens, self._window - len(prompt)), request.memory_budget
        )
        sampler = Sampler(request.temperature, request.seed, model.device) if request.temperature else None
        answer = IncrementalDetokenizer(model.encoder.tokenizer, request.stops)
        with contextlib.closing(model.stream(prompt, most, sampler)) as tokens:
            for token in tokens:
                _say(answer.add(token), emit)
                if answer.ended or self._breaks:
                    break
        _say(answer.rest(), emit)
        ended = "broken off" if self._breaks else answer.finish_reason(most)
        return Replied(answer.text, len(answer.ids), len(prompt), ended, round(time.monotonic() - started, 2))

    def _train(self, request: Train, emit: Emit) -> Answer:
        # The rows as tokens stay, because a phase asks for the same ones window after window.
        data, longest = Path(request.data), request.settings.sequence_length
        key = (request.data, data.stat().st_mtime_ns, longest)
        if self._kept is None or self._kept[0] != key:
            self._forget()
            rows = itertools.chain.from_iterable(_batches(request.data))
            self._kept = key, build_corpus(self._encode(rows, longest), data.parent, emit)
        _, examples = self._kept
        self.model.encoder.release()
        resume = Path(request.resume) if request.resume else None
        run = start(self.model, examples, request.settings, resume, request.first)
        return train(run, Path(request.checkpoints), emit, self._stopping, request.until)

    def _forget(self) -> None:
        if self._kept is not None:
            self._kept[1].close()
        self._kept = None

    def _encode(self, rows: Iterable[dict[str, Any]], longest: int) -> Iterator[Encoded]:
        return (self.model.encoder.example(r["id"], r["messages"], longest, r.get("value")) for r in rows)

    def _save(self, request: Save, _: Emit) -> Answer:
        target = Path(request.target)
        self.model.save(target)
        return Saved(sum(p.stat().st_size for p in target.iterdir()))

    def _export(self, request: Export, emit: Emit) -> Answer:
        write = {"merged": export.write_merged, "gguf": export.write_gguf}[request.form]
        target = Path(request.target)
        with foreign_faults(f"cannot export {request.adapter}"):
            write(Path(request.model), Path(request.adapter), target, lambda done: emit(Share(round(done, 4))))
        files = [target] if target.is_file() else [path for path in target.iterdir() if path.is_file()]
        return Saved(sum(path.stat().st_size for path in files))

    def _template(self, request: Template, _: Emit) -> Answer:
        with foreign_faults(f"{request.model} cannot be read"):
            return render_marks(Encoder(Tokenizer(Path(request.model))))


def _window(folder: Path) -> int:
    """Tokens that a model was made for, by whatever name its family gives that."""
    config = json.loads((folder / "config.json").read_text())
    told = [each.get(name) for each in (config, config.get("text_config") or {}) for name in WINDOWS]
    return next((int(each) for each in told if each), sys.maxsize)


def _say(text: str, emit: Emit) -> None:
    if text:
        emit(Said(text))


def _batches(path: str) -> Iterator[list[dict[str, Any]]]:
    """Rows, some at a time: memory does not grow with the file."""
    rows = read_json_lines(Path(path))
    while some := list(itertools.islice(rows, ROWS)):
        yield some
