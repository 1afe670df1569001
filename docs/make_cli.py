"""Writes docs/cli.md from the parser: `make docs`. `tests/test_docs.py` compares.

The parser's own formatter has a fixed width, so the terminal does not matter; between versions of Python argparse
wraps and words its output a little differently, so the file is made with Python 3.11.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from agent.cli.main import build_parser

TARGET = Path(__file__).parent / "cli.md"
INTRODUCTION = """\
# Command line

Made by `make docs` from `--help`; do not edit. What people type every day, and the exit codes: [commands](commands.md).
Results go to stdout, progress and advice to stderr; with `--json` a failure is one JSON object on stderr.
"""


def commands(parser: argparse.ArgumentParser, name: str = "") -> dict[str, argparse.ArgumentParser]:
    """The parser of each command that does something, by its words, in the order of `--help`."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]  # noqa: SLF001  no public way
    below = [(f"{name} {word}", command) for group in groups for word, command in group.choices.items()]
    if not below:
        return {name.strip(): parser}
    return {words: leaf for path, command in below for words, leaf in commands(command, path).items()}


def render() -> str:
    """The text of docs/cli.md."""
    parser = build_parser()
    sections = [("nslora-agent", parser), *((f"nslora-agent {name}", p) for name, p in commands(parser).items())]
    blocks = [f"## {title}\n\n```text\n{section.format_help().rstrip()}\n```\n" for title, section in sections]
    return "\n".join([INTRODUCTION, *blocks])


if __name__ == "__main__":
    TARGET.write_text(render())
