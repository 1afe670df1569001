"""Starting a worker process and talking to it; the loop's side of `agent.protocol`."""

from __future__ import annotations

import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from agent import protocol
from agent.errors import AgentError, WorkerDied
from agent.protocol import Answer, Envelope, Event, Request

SILENCE = 50.0
"""Seconds without a line from a worker that serves a request until it counts as frozen (it beats every 5)."""
TICK = 0.5
"""Seconds between calls of `idle` while waiting."""

PASSED_ON = {
    "PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_TF32_OVERRIDE",
}  # fmt: skip
"""Environment variables a worker may see: no key, no token, no proxy (NVIDIA_API_KEY is one, LANGCHAIN_API_KEY too)."""
PREFIXES = ("LC_", "CUDA_", "OMP_", "MKL_", "MALLOC_")
"""Families of variables it may see: none of them has a secret."""
NETWORK = ("PIP_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "HF_", "SSL_CERT")
"""What the downloading process may see besides, by prefix."""


def child_environment(*, network: bool = False) -> dict[str, str]:
    """The environment of a worker: an allow-list, and everything that could phone home switched off."""
    prefixes = PREFIXES + NETWORK if network else PREFIXES
    kept = {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith(prefixes)}
    offline = {} if network else {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return {**kept, **offline, "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}


def start_module(
    module: str, *arguments: str, log: Path, pipes: bool, network: bool = False, keep: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    """Start one of our modules from the installed package, in a session of its own, its stderr appended to `log`.

    A session of its own keeps a terminal's Ctrl-C away: the parent decides how a child stops. `keep` are file
    descriptors of locks that are to be held until the child is dead too.
    """
    stream = subprocess.PIPE if pipes else subprocess.DEVNULL
    with log.open("ab") as stderr:
        return subprocess.Popen(
            [sys.executable, "-I", "-m", module, *arguments],
            stdin=stream,
            stdout=stream,
            stderr=stderr,
            cwd="/",
            env=child_environment(network=network),
            start_new_session=True,
            pass_fds=keep,
            bufsize=0,
        )


class Worker:
    """A worker process; use as a context manager, which ends it. `silence` is in seconds."""

    def __init__(
        self, module: str, log: Path, *, network: bool = False, keep: tuple[int, ...] = (), silence: float = SILENCE
    ) -> None:
        self.module = module
        self.log = log
        self.silence = silence
        self.process = start_module(module, str(os.getpid()), log=log, pipes=True, network=network, keep=keep)
        self._ids = itertools.count(1)
        self._lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._drain, daemon=True).start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def ask(
        self,
        request: Request,
        on_event: Callable[[Event], None] = lambda _: None,
        idle: Callable[[], None] = lambda: None,
    ) -> Answer:
        """Send a request and wait for its answer; `idle` is called a few times a second meanwhile.

        Raises the worker's AgentError, or WorkerDied if it ends, falls silent or breaks the protocol.
        """
        number = next(self._ids)
        self._send(Envelope("request", number, request))
        heard = time.monotonic()
        while True:
            idle()
            try:
                line = self._lines.get(timeout=TICK)
            except queue.Empty:
                if time.monotonic() - heard > self.silence:
                    raise WorkerDied(f"{self.module} has been silent for {self.silence:.0f} s: frozen") from None
                continue
            heard = time.monotonic()
            message = self._receive(line, number)
            if message is None:
                continue
            if isinstance(message, protocol.Event):
                on_event(message)
            elif isinstance(message, protocol.Answer):
                return message

    def stop(self) -> None:
        """Ask the worker to come to an end where it can be taken up again (SIGTERM)."""
        self.process.send_signal(signal.SIGTERM)

    def _send(self, envelope: Envelope) -> None:
        assert self.process.stdin is not None  # noqa: S101  tells the type checker what pipes=True means
        try:
            self.process.stdin.write(protocol.encode(envelope))
        except BrokenPipeError:
            raise self._death() from None

    def _receive(self, line: bytes, number: int) -> object:
        if not line:
            raise self._death()
        if not line.endswith(b"\n"):
            raise protocol.ProtocolError(f"{self.module} sent an overlong or torn line")
        envelope = protocol.decode(line)
        if isinstance(envelope.message, AgentError):
            raise envelope.message
        return envelope.message if envelope.id == number else None

    def _drain(self) -> None:
        """Keep the pipe empty, so that a worker never blocks on us; b"" marks its end."""
        assert self.process.stdout is not None  # noqa: S101
        with self.process.stdout, os.fdopen(os.dup(self.process.stdout.fileno()), "rb") as stream:
            while line := stream.readline(protocol.MAX_LINE):
                self._lines.put(line)
        self._lines.put(b"")

    def _death(self) -> WorkerDied:
        return WorkerDied(f"{self.module} {how_it_ended(self.process.wait())}{last_words(self.log)}")


def how_it_ended(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"ended with exit code {status}"
    hint = " (out of memory?)" if -status == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-status).name}{hint}"


def last_words(log: Path) -> str:
    """The last line a process wrote to its log, as a suffix for an error message."""
    try:
        lines = log.read_bytes()[-4096:].decode(errors="replace").split("\n")
    except OSError:
        return ""
    spoken = [line.strip() for line in lines if line.strip()]
    return f"; its last words: {spoken[-1][:300]}" if spoken else ""
