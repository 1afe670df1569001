"""Answers of a version: by a private worker, which respects the running job's memory reservation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from agent.contract.atomic_io import hold_lock
from agent.contract.errors import Busy, DataError, NotFound, OutOfMemory, WorkerDied
from agent.contract.protocol import FITS_WITH, MAX_LINE, Envelope, Event, Load, Plan, encode
from agent.contract.reply_messages import Replied, Reply, Said
from agent.contract.requests import AnswerT, Request
from agent.queue.jobs import State
from agent.queue.store import Store, open_existing
from agent.system.config import Config
from agent.system.paths import Home
from agent.system.worker_client import Worker
from agent.versions.registry import Registry

Hear = Callable[[str], None]
"""Called with each text chunk of an answer."""


@dataclass(frozen=True)
class ServedVersion:
    """Who answers: number (0 is the base model itself), base model, adapter and system prompt (empty for none)."""

    number: int
    base: str
    adapter: Path | None = None
    system: str = ""

    @property
    def name(self) -> str:
        """As people call it."""
        return f"version {self.number}" if self.number else "base"

    @property
    def title(self) -> str:
        """The same with its base model."""
        return f"{self.name} of {self.base}" if self.number else f"the base model {self.base}"


def find_version(asked: str | None, home: Home, config: Config) -> ServedVersion:
    """The version of that number, the base model for "base", the active one for None. Raises NotFound."""
    if asked is not None and not re.fullmatch("base|[0-9]{1,18}", asked):
        raise NotFound(f'--version must be a number from `nslora-agent versions` or "base", not {asked!r}')
    number = active(home) if asked is None else 0 if asked == "base" else int(asked)
    if not number:
        return ServedVersion(0, config.base)
    with open_existing(home.database) as store:
        registry = Registry(home.path, store)
        base = registry.get(number).about["base"]
        return ServedVersion(number, base, registry.adapter(number), registry.system_prompt(number))


def active(home: Home) -> int:
    """The number of the active version."""
    if not home.database.exists():
        return 0
    with Store(home.database) as store:
        return Registry(home.path, store).active()


class Answerer:
    """A worker that answers as the version that was loaded last; use as a context manager, which ends it.

    `log` is where what libraries say goes.
    """

    def __init__(self, home: Home, config: Config, log: Path) -> None:
        self._home, self._settings, self._log = home, config.training, log
        self._workers = ExitStack()
        self._worker: Worker | None = None
        self._budget = config.training.memory_budget
        self.loaded: ServedVersion | None = None

    def __enter__(self) -> Answerer:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Give the worker's memory back; it is started again when it is needed."""
        self._workers.close()
        self._worker = self.loaded = None

    def load(self, version: ServedVersion) -> None:
        """Have this version answer from now on.

        Raises OutOfMemory if it does not fit, Busy if it does not fit beside the running job, BaseModelError.
        """
        if self._worker is not None and self._worker.process.poll() is not None:
            self.end()
        if version == self.loaded:
            return
        model = self._home.require_model(version.base)
        same_base = self.loaded is not None and self.loaded.base == version.base
        worker = self._worker = self._worker or self._workers.enter_context(Worker("quant.worker", self._log))
        adapter = str(version.adapter) if version.adapter else None
        request = Load(str(model), adapter, self._settings.device, self._settings.dtype)
        with ExitStack() as stack:
            # A job that starts meanwhile waits, and then plans with what is left.
            is_alone = True
            try:
                stack.enter_context(hold_lock(self._home.device_lock, "in use"))
            except Busy:
                is_alone = False
            if not same_base:
                self._check_room(worker, model, is_alone=is_alone)
            self.loaded = None
            self._ask(worker, request)
        self.loaded = version

    def _check_room(self, worker: Worker, model: Path, *, is_alone: bool) -> None:
        peaks = self._ask(worker, Plan(str(model), self._settings, whole=False))
        if not peaks.known:
            return
        room = FITS_WITH * peaks.free_mb - (0.0 if is_alone else self._memory_reservation())
        needed = max(peaks.load_mb, peaks.generate_mb) - peaks.now_mb
        if needed <= room:
            self._budget = max(1, int(peaks.answers_mb))
            return
        lacking = f"answers take {needed:.0f} MB, {max(0.0, room):.0f} MB are to spare"
        if is_alone:
            raise OutOfMemory(f"{lacking}: close other programs, or take a smaller base model")
        raise Busy(f"a job is using the device, and {lacking} beside it: wait for it, or cancel it")

    def _memory_reservation(self) -> float:
        """MB that the running job was found room for and has not taken yet."""
        with Store(self._home.database) as store:
            running = [job.progress for job in store.list([State.RUNNING])]
        reserved = 0.0
        for progress in running:
            planned = progress.get("planned_mb", math.inf)  # until it has planned, it may take everything
            taken = progress.get("cuda_mb") or progress.get("rss_mb", 0.0)  # of the device, where that is a GPU
            reserved += planned - min(taken, planned)
        return reserved

    def reply(self, request: Reply, hear: Hear = lambda _: None) -> Replied:
        """The answer of the loaded version; `hear` gets it as it comes.

        The version's system prompt is added, unless the conversation brings one, and the memory found for answers.
        """
        version, worker = self.loaded, self._worker
        if version is None or worker is None:
            raise RuntimeError("load a version first")

        def forward(event: Event) -> None:
            if isinstance(event, Said):
                hear(event.text)

        messages = request.messages
        if version.system and not any(message["role"] == "system" for message in messages):
            messages = ({"role": "system", "content": version.system}, *messages)
        request = replace(request, messages=messages, memory_budget=self._budget)
        if len(encode(Envelope("request", 0, request))) > MAX_LINE:
            raise DataError(f"the conversation is too long: more than {MAX_LINE >> 10} kB")
        return self._ask(worker, request, forward)

    def _ask(
        self, worker: Worker, request: Request[AnswerT], on_event: Callable[[Event], None] = lambda _: None
    ) -> AnswerT:
        try:
            return worker.ask(request, on_event)
        except WorkerDied:
            self.end()
            raise

    def break_off(self) -> None:
        """End the answer that is being given, from another thread or a signal's handler."""
        worker = self._worker
        # Before it has loaded a model, a worker may not know the signal yet, and would die of it.
        if worker is not None and self.loaded is not None:
            worker.break_off()
