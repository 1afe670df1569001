"""The active version behind `serve`: a thread of its own answers one question at a time, first come, first served."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor

from agent.contract.errors import AgentError, Busy, OutOfMemory, StateError
from agent.contract.reply_messages import Replied, Reply
from agent.serve.inference import Answerer, active, find_version
from agent.system.config import Config
from agent.system.output import hint
from agent.system.paths import Home

LOOK = 1.0
"""Seconds between two checks that the waiting client is still connected."""
Piece = str | Replied | AgentError
"""A text chunk, then the final reply or an error."""


class ChatService:
    """Answers with the active version; methods marked "in the thread" must be called by tasks given to `submit`.

    A newly promoted version answers from the next question on. If it cannot be loaded, the previous one goes on.
    """

    def __init__(self, home: Home, config: Config, answerer: Answerer) -> None:
        self._home, self._config, self._answerer = home, config, answerer
        self._pool = ThreadPoolExecutor(1)
        self._unfinished: set[Future[None]] = set()
        self._lock = threading.Lock()
        self._current: Turn | None = None
        self._refused: int | None = None
        self._used = time.monotonic()
        self.version = find_version(None, home, config)

    @property
    def queue_length(self) -> int:
        """Tasks that have not finished."""
        return len(self._unfinished)

    def submit(self, task: Callable[[], None]) -> Future[None]:
        """Run a task in the thread, after all tasks submitted before it."""
        future = self._pool.submit(task)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return future

    def reply(self, turn: Turn, request: Reply, hear: Callable[[str], None]) -> Replied:
        """Answer with the version that is active now (in the thread). Raises AgentError."""
        self.load()
        turn.version = self.version
        with self._lock:
            self._current = turn
        try:
            return self._answerer.reply(request, hear)
        finally:
            with self._lock:
                self._current = None
            self._used = time.monotonic()

    def load(self) -> None:
        """Load the active version (in the thread, or before the first `submit`). Raises AgentError."""
        try:
            wanted = active(self._home)
            if wanted not in {self.version.number, self._refused}:
                version = find_version(str(wanted), self._home, self._config)
                try:
                    self._answerer.load(version)
                except (Busy, OutOfMemory):  # there may be room for it later
                    raise
                except AgentError:
                    self._refused = version.number
                    raise
                self.version = version
        except AgentError as fault:
            hint(f"{self.version.name} goes on answering, because what is active now cannot be loaded: {fault}")
        self._answerer.load(self.version)

    def drop(self, turn: Turn) -> None:
        """Stop generating an answer whose client has left."""
        with self._lock:
            if self._current is turn:
                self._answerer.break_off()

    def unload_after(self, idle: float) -> None:
        """Unload the model after `idle` seconds without a question."""
        if not self.queue_length and time.monotonic() - self._used > idle:
            self.submit(self._answerer.end)

    def close(self) -> None:
        """Wait for the running task and cancel the others."""
        self._pool.shutdown(cancel_futures=True)


class Turn:
    """A question and its answer: `pieces` receives the text, `version` is the version that answers."""

    def __init__(self, service: ChatService, request: Reply) -> None:
        self._service, self._request = service, request
        self.version = service.version
        self._is_over = False
        self._loop = asyncio.get_running_loop()
        self.pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self._task = service.submit(self._answer)

    def _answer(self) -> None:
        try:
            self._send(self._service.reply(self, self._request, self._send))
        except AgentError as fault:
            self._send(fault)
        except Exception as fault:  # noqa: BLE001  whatever it is, somebody waits for an answer
            self._send(StateError(f"{type(fault).__name__}: {fault}"))

    def _send(self, piece: Piece) -> None:
        if self._is_over:  # the client left before the answer had begun
            self._service.drop(self)
        self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

    async def next(self, is_gone: Callable[[], Awaitable[bool]]) -> Piece:
        """Wait for the next piece; raises ConnectionResetError once `is_gone` says that the client has left."""
        getter = asyncio.ensure_future(self.pieces.get())
        try:
            while not (await asyncio.wait({getter}, timeout=LOOK))[0]:
                if await is_gone():
                    raise ConnectionResetError  # noqa: TRY301  what is cleaned up below is cleaned up for this too
        except BaseException:
            getter.cancel()
            self.end()
            raise
        return getter.result()

    def end(self) -> None:
        """End the turn: cancel the task if it has not begun, else stop generating."""
        self._is_over = True
        if not self._task.cancel():
            self._service.drop(self)
