"""`generate` and `chat`: ask a version, or a version and the base model side by side."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cli.stream_output import show_answers
from agent.contract.errors import AgentError, ConfigError, DataError, NotFound
from agent.contract.reply_messages import ANSWER_TOKENS
from agent.contract.settings import Training
from agent.system.config import read_config, value_fault
from agent.system.output import hint, print_json, say
from agent.system.paths import Home

if TYPE_CHECKING:
    from agent.contract.reply_messages import Message
    from agent.serve.inference import ServedVersion

NEW, END = "/new", "/end"
"""What can be typed in `chat` besides questions."""


def generate(arguments: argparse.Namespace, home: Home) -> int:
    """One answer, or one of each where versions are compared."""
    from agent.data.dataset import open_source  # noqa: PLC0415

    talk = _Talk(arguments, home)
    from_stdin = arguments.prompt == "-"
    prompt = _text(open_source("-").read() if from_stdin else os.fsencode(arguments.prompt))
    with talk.open():
        talk.ask(prompt)
    return 0


def chat(arguments: argparse.Namespace, home: Home) -> int:
    """Questions from stdin, each answered with what was said before in mind."""
    talk = _Talk(arguments, home)
    if sys.stdin.isatty():
        import readline  # noqa: F401, PLC0415  input() uses it where it is

        names = " and ".join(version.title for version in talk.versions)
        say(f"{names}; {NEW} begins a new conversation, {END} or Ctrl-D ends it")
    with talk.open():
        for line in _read_lines():
            if line == NEW:
                talk.forget()
            elif not line:
                continue
            elif not sys.stdin.isatty():
                talk.ask(line)
            else:  # a person: what goes wrong, or Ctrl-C, ends the answer and not the chat
                try:
                    talk.ask(line)
                except AgentError as fault:
                    hint(str(fault))
                except KeyboardInterrupt:
                    talk.break_off()
    return 0


def serve(arguments: argparse.Namespace, home: Home) -> int:
    """Answer on a Unix socket until somebody ends it."""
    from agent.serve.server import serve as run  # noqa: PLC0415

    path = Path(arguments.socket or home.path / "serve.sock").absolute()

    def ready(version: ServedVersion) -> None:
        if arguments.json:
            print_json({"socket": str(path), "version": version.number, "base": version.base})
        else:
            say(f"{version.title} answers on {path}; stop with Ctrl-C")
            hint(f"curl --unix-socket {path} http://box/v1/models")

    run(home, read_config(home.config), path, ready)
    return 0


def _read_lines() -> Iterator[str]:
    """The lines that a person types, or those of stdin, up to its end."""
    while True:
        if sys.stdin.isatty():
            try:
                line = input("> ")
            except EOFError:
                return
        elif raw := sys.stdin.buffer.readline():
            line = _text(raw)
        else:
            return
        if line.strip() == END:
            return
        yield line.strip()


class _Talk:
    """A conversation with each of the versions that were asked for; what they say goes to the screen."""

    def __init__(self, arguments: argparse.Namespace, home: Home) -> None:
        from agent.serve.inference import find_version  # noqa: PLC0415

        self._home, self._config = home, read_config(home.config)
        self._longest = _longest(arguments.max_new_tokens)
        self._compare, self._as_json = arguments.compare, arguments.json
        names = ("base", arguments.version) if arguments.compare else (arguments.version,)
        self.versions = [find_version(name, home, self._config) for name in names]
        if arguments.compare and self.versions[0] == self.versions[1]:
            raise NotFound("the base model itself is active, there is nothing to compare it with: name a --version")
        self.forget()

    @contextmanager
    def open(self) -> Iterator[None]:
        """A worker for as long as it takes."""
        from agent.serve.inference import Answerer  # noqa: PLC0415

        with tempfile.TemporaryDirectory() as work, Answerer(self._home, self._config, Path(work) / "log") as it:
            self._answerer = it
            yield

    def forget(self) -> None:
        """Begin a new conversation."""
        self._said: list[list[Message]] = [[] for _ in self.versions]

    def ask(self, question: str) -> None:
        """Put a question to every version; what is not answered is not remembered."""
        with show_answers([version.name for version in self.versions], quiet=self._as_json) as show:
            found = [self._answer(place, question, partial(show, place)) for place in range(len(self.versions))]
        for said, answer in zip(self._said, found, strict=True):
            said.append({"role": "user", "content": question})
            said.append({"role": "assistant", "content": answer["text"]})
        if self._as_json:
            print_json(found if self._compare else found[0])

    def break_off(self) -> None:
        """End the answer that is being given."""
        self._answerer.break_off()

    def _answer(self, place: int, question: str, hear: Callable[[str], None]) -> dict[str, Any]:
        from agent.contract.reply_messages import Reply  # noqa: PLC0415

        version = self.versions[place]
        hear("")
        self._answerer.load(version)
        messages = (*self._said[place], {"role": "user", "content": question})
        replied = self._answerer.reply(Reply(messages, self._longest), hear)
        return {"version": version.number, "base": version.base, **dataclasses.asdict(replied)}


def _longest(asked: int | None) -> int:
    """Most tokens of an answer, as asked or as usual; raises ConfigError for a wrong number."""
    if asked is None:
        return ANSWER_TOKENS
    fault = value_fault(Training.__dataclass_fields__["max_new_tokens"], asked)
    if fault:
        raise ConfigError(f"--max-new-tokens {fault}")
    return asked


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise DataError("the prompt is not UTF-8: convert it with iconv") from None
