"""The worker's side of the protocol: a process that answers requests on its stdin."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import threading
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from agent.contract import errors
from agent.contract.protocol import MAX_LINE, Alive, Answer, Envelope, Event, decode, encode

STDIN = 0
"""File descriptor, read without a buffer of Python's."""
ALIVE_EVERY = 5.0
"""Seconds between `Alive` events while a request is being served."""

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
    """Answers requests from stdin, one after the other, until stdin closes or none came for `idle` seconds."""

    def __init__(self, handler: Handler, stdout: typing.BinaryIO, *, idle: float | None = None) -> None:
        self._handler = handler
        self._stdout = stdout
        self._idle = idle
        self._lock = threading.Lock()
        self._unread = bytearray()

    def serve(self) -> None:
        """Run until the other side closes the pipe; a failed request is answered and the next one is read."""
        while line := self._next_line():
            request = decode(line)
            idle = threading.Event()
            threading.Thread(target=self._beat, args=(request.id, idle), daemon=True).start()
            try:
                answer: Answer | errors.AgentError = self._handler(request.message, partial(self._emit, request.id))
            except errors.AgentError as fault:
                answer = fault
            idle.set()
            self._send(Envelope("error" if isinstance(answer, errors.AgentError) else "answer", request.id, answer))

    def _next_line(self) -> bytes:
        """The next line, torn where stdin ends in it or it is overlong; b"" if there is none or none in time.

        Read without `sys.stdin`, whose buffer may hold lines that `select` knows nothing of.
        """
        while b"\n" not in self._unread and len(self._unread) < MAX_LINE:
            if not select.select([STDIN], [], [], self._idle)[0]:
                return b""
            chunk = os.read(STDIN, 1 << 16)
            if not chunk:
                break
            self._unread += chunk
        end = self._unread.find(b"\n") + 1 or MAX_LINE
        line = bytes(self._unread[:end])
        del self._unread[:end]
        return line

    def _beat(self, request: int, idle: threading.Event) -> None:
        while not idle.wait(ALIVE_EVERY):
            self._emit(request, Alive(rss_mb()))

    def _emit(self, request: int, event: Event) -> None:
        self._send(Envelope("event", request, event))

    def _send(self, envelope: Envelope) -> None:
        line = encode(envelope)
        with self._lock:
            while line:
                line = line[self._stdout.write(line) :]
