"""Starting a worker process and talking to it; the loop's side of `agent.contract.protocol`."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from agent.contract import protocol
from agent.contract.errors import AgentError, WorkerDied
from agent.contract.protocol import Envelope, Event
from agent.contract.requests import AnswerT, Request, answer_name

SILENCE = 50.0
"""Seconds without a line from a worker that serves a request until it counts as frozen (it beats every 5)."""
TICK = 0.5
"""Seconds between calls of `idle` while waiting."""
MOST_WAITING = 10_000
"""Lines of a worker that wait to be read; one that floods us has to wait then."""

PASSED_ON = {
    "PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_TF32_OVERRIDE",
}  # fmt: skip
"""Environment variables a worker may see: no key, no token, no proxy (NVIDIA_API_KEY is one, LANGCHAIN_API_KEY too)."""
PREFIXES = ("LC_", "CUDA_", "OMP_", "MKL_", "MALLOC_")
"""Families of variables it may see: none of them has a secret."""
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait for one another sleep instead of spinning: beside other busy processes they would spin away the
time of the thread that they wait for. libgomp reads it when it is loaded; what the operator has set wins."""
NETWORK = ("PIP_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "HF_", "SSL_CERT")
"""What the downloading process may see besides, by prefix."""


def child_environment(more: tuple[str, ...] = ()) -> dict[str, str]:
    """The environment of a worker: an allow-list, and everything that could phone home switched off."""
    prefixes = PREFIXES + more
    kept = {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith(prefixes)}
    offline = {} if more else {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return {**WAITING, **kept, **offline, "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}


def start_module(
    module: str, *arguments: str, log: Path, pipes: bool, more: tuple[str, ...] = (), keep: tuple[int, ...] = ()
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
            env=child_environment(more),
            start_new_session=True,
            pass_fds=keep,
            bufsize=0,
        )


class Connection:
    """Requests to a worker and its answers, over a pipe or a socket. `silence` is in seconds."""

    def __init__(self, name: str, write: Callable[[bytes], object], read: BinaryIO, silence: float) -> None:
        self.module = name
        self.silence = silence
        self._write, self._read = write, read
        self._ids = itertools.count(1)
        self._lines: queue.Queue[bytes] = queue.Queue(MOST_WAITING)
        threading.Thread(target=self._drain, daemon=True).start()

    def ask(
        self,
        request: Request[AnswerT],
        on_event: Callable[[Event], None] = lambda _: None,
        idle: Callable[[], None] = lambda: None,
    ) -> AnswerT:
        """Send a request and wait for its answer; `idle` is called a few times a second meanwhile.

        Raises the worker's AgentError, or WorkerDied if it ends, falls silent or breaks the protocol.
        """
        number = next(self._ids)
        try:
            self._write(protocol.encode(Envelope("request", number, request)))
        except (BrokenPipeError, ConnectionResetError):
            raise self._death() from None
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
            elif type(message).__name__ == answer_name(request):
                return cast("AnswerT", message)
            else:
                raise protocol.ProtocolError(
                    f"{self.module} answered {type(request).__name__} with {type(message).__name__}"
                )

    def _receive(self, line: bytes, number: int) -> object:
        if not line:
            raise self._death()
        if not line.endswith(b"\n"):
            raise protocol.ProtocolError(f"{self.module} sent an overlong or torn line")
        envelope = protocol.decode(line)
        if envelope.id != number:  # of a request that nobody waits for any more
            return None
        if isinstance(envelope.message, AgentError):
            raise envelope.message
        return envelope.message

    def _drain(self) -> None:
        """Keep the stream empty, so that a worker need not wait for us; b"" marks its end."""
        with self._read as stream:
            try:
                while line := stream.readline(protocol.MAX_LINE):
                    self._lines.put(line)
            except OSError:  # a reset connection is an end like any other
                pass
        self._lines.put(b"")

    def _death(self) -> WorkerDied:
        return WorkerDied(f"{self.module} closed the connection")


class Worker(Connection):
    """A worker process; use as a context manager, which ends it. `more`: prefixes of variables it may see besides.

    `grace` is how many seconds it gets at its end to put down what it holds, after SIGTERM.
    """

    def __init__(
        self,
        module: str,
        log: Path,
        *,
        more: tuple[str, ...] = (),
        keep: tuple[int, ...] = (),
        silence: float = SILENCE,
        grace: float = 0.0,
    ) -> None:
        self.log, self._grace = log, grace
        self.process = start_module(module, str(os.getpid()), log=log, pipes=True, more=more, keep=keep)
        assert self.process.stdin is not None  # noqa: S101  tells the type checker what pipes=True means
        assert self.process.stdout is not None  # noqa: S101
        stdout = self.process.stdout
        super().__init__(module, self.process.stdin.write, os.fdopen(os.dup(stdout.fileno()), "rb"), silence)
        stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self._grace:
            self.stop()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(self._grace)
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask the worker to come to an end where it can be taken up again (SIGTERM)."""
        self.process.send_signal(signal.SIGTERM)

    def break_off(self) -> None:
        """Ask the training worker to end the answer that it is giving (SIGUSR1)."""
        self.process.send_signal(signal.SIGUSR1)

    def _death(self) -> WorkerDied:
        return WorkerDied(f"{self.module} {how_it_ended(self.process.wait())}{last_words(self.log)}")


class SocketWorker(Connection):
    """A worker that systemd starts for a connection to the Unix socket at `path`; use as a context manager.

    Raises WorkerDied if nobody listens there.
    """

    def __init__(self, path: str, *, silence: float = SILENCE) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(path)
        except OSError as fault:
            self._socket.close()
            advice = "systemctl status nslora-offload.socket tells more"
            raise WorkerDied(f"the offload unit does not answer at {path} ({fault.strerror}): {advice}") from fault
        super().__init__(f"the offload unit at {path}", self._socket.sendall, self._socket.makefile("rb"), silence)

    def __enter__(self) -> SocketWorker:
        return self

    def __exit__(self, *_: object) -> None:
        # Not close(): the reading thread may hold the file open.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


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
