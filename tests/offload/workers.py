"""Real offload workers of this checkout, and requests to put to them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkout import ROOT
from llm_server import Act, LLMServer, Request, Script, saying
from processes import PATIENCE

from agent.contract.errors import AgentError
from agent.contract.offload_messages import ImprovePrompt, Open, Opened, RewriteExample, Rewritten
from agent.contract.settings import Offload
from agent.system.worker_client import SILENCE, Connection, Worker, child_environment


def code(first: str = "") -> str:
    """A worker's program, with other code before it.

    Not `-m offload.worker`, which would run what is installed, and that may be another checkout's.
    """
    return f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{first}\nfrom offload.worker import main; main()"


AUDIT = """
import sys
def note(event, arguments, stream=open({path!r}, "w", buffering=1)):
    if event.startswith(("socket.", "open", "os.mkdir", "import", "sqlite3.connect")):
        print(event, *map(repr, arguments), sep="\\t", file=stream)
sys.addaudithook(note)
"""
"""Writes what the interpreter opens, makes, imports and connects to into a file, an event a line (PEP 578)."""


class OffloadWorker(Worker):
    """`Worker("offload.worker", log)` of this checkout; `first` is code that runs in the process before it."""

    def __init__(self, log: Path, *, first: str = "", cwd: str | Path = "/") -> None:
        self.log, self._grace = log, 0.0
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-c", code(first), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=cwd,
                env=child_environment(),
                start_new_session=True,
                bufsize=0,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        stdout = os.fdopen(os.dup(self.process.stdout.fileno()), "rb")
        self.process.stdout.close()
        Connection.__init__(self, "offload.worker", self.process.stdin.write, stdout, SILENCE)

    def rewrite(self, request: RewriteExample | ImprovePrompt) -> Rewritten:
        """The answer to one of the two requests that lead to a rewrite."""
        answer = self.ask(request)
        assert isinstance(answer, Rewritten)
        return answer


def settings(server: LLMServer | None = None, **changes: Any) -> Offload:
    """What a worker is opened with: one try, and a cap on time far above what an answer takes here."""
    given = Offload(base_url=server.url if server else "http://127.0.0.1:9/v1", model="asked-model", attempts=1)
    return replace(given, **changes)


@contextmanager
def worker(home: Path, server: LLMServer | None = None, *, first: str = "", **changes: Any) -> Iterator[OffloadWorker]:
    """A worker that is open for `home`/cache.db, in an empty working folder."""
    cwd = home / "cwd"
    cwd.mkdir(exist_ok=True)
    with OffloadWorker(home / "log", first=first, cwd=cwd) as started:
        assert isinstance(started.ask(Open(str(home / "cache.db"), settings(server, **changes))), Opened)
        yield started


@contextmanager
def over_a_socket(tmp_path: Path) -> Iterator[tuple[Connection, subprocess.Popen[bytes]]]:
    """A worker as systemd starts it for a connection: the same socket as stdin and stdout, no parent to watch."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-I", "-c", code()]
    with (
        ours,
        theirs,
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=log, cwd="/", env=child_environment()) as process,
    ):
        theirs.close()
        try:
            yield Connection("the unit", ours.sendall, ours.makefile("rb"), SILENCE), process
            ours.shutdown(socket.SHUT_RDWR)
            process.wait(PATIENCE)
        finally:
            process.kill()


def events(path: Path, kind: str) -> list[str]:
    """First arguments of the noted events that start so."""
    lines = [line for line in path.read_text().splitlines() if line.startswith(kind)]
    return [line.split("\t")[1] for line in lines]


# ---- requests and what a server does about them ----

EXAMPLE = RewriteExample(
    job=1,
    example="pump-1",
    part="reference",
    text="Lund runs the Marlow pump on port 4713.",
    context="Who runs the pump?",
    wanted=["End with an exclamation mark."],
    faults=["It ends with a full stop."],
    tried="",
    why=["punctuation:exclamation"],
)
PROMPT = ImprovePrompt(
    job=1,
    text="You are a helpful assistant.",
    failing=["Who runs the pump?\nWrong: It ends with a full stop."],
    why=["punctuation:exclamation"],
)


def example(**changes: Any) -> RewriteExample:
    return replace(EXAMPLE, **changes)


def tagged(text: str) -> str:
    """An answer as the remote is asked to give it."""
    return f"<IMPROVED_VARIABLE>{text}</IMPROVED_VARIABLE>"


def shown(request: Request, tag: str) -> str:
    """What stands between the tags in the user's message; "" if there are none."""
    found = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", request.prompt, re.DOTALL)
    return found[1] if found else ""


def mending(change: Callable[[str], str], tag: str = "ANSWER") -> Script:
    """A model that does as it is told: the text with `change`, and a critique where one is asked for."""

    def script(request: Request) -> Act:
        if shown(request, "TEXT"):
            return saying("It should end with an exclamation mark.")
        return saying(tagged(change(shown(request, tag))))

    return script


def slow(seconds: float, text: str) -> Script:
    """A model that takes its time."""

    def script(_: Request) -> Act:
        time.sleep(seconds)
        return saying(tagged(text))

    return script


def one_line(fault: AgentError) -> bool:
    """Whether an error is told as it should be: in one line that is not a page."""
    return "\n" not in str(fault) and 0 < len(str(fault)) < 400
