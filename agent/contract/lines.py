"""Lines: texts cut to fit on one, and JSON lines, one value each. Standard library only, for the workers too.

These are files that this program wrote itself; what people send is read by `agent.data.jsonl`, which trusts nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ASCII_MARK = "..."
"""The mark in what our checks say of a text. Those words are sent to the remote LLM, and the hash of a request is the
key of its recorded answer: cut in another way, they would find no answer that is recorded. For people it is `…`."""


def shorten(text: str, longest: int, mark: str = "…") -> str:
    """The text or, where it has more than `longest` characters, its start and `mark`: `longest` characters in all."""
    return text if len(text) <= longest else text[: longest - len(mark)] + mark


def shorten_line(text: str, longest: int, mark: str = "…") -> str:
    """`shorten` for a text on one line: whitespace and line breaks become single spaces."""
    return shorten(" ".join(text.split()), longest, mark)


def kind(value: Any) -> str:
    """The JSON type of a parsed value, for a message."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def quote(text: str) -> str:
    """The start of a text, on one line, for a message."""
    return repr(shorten(text, 40))


def quantity(number: int, noun: str, verb: str = "") -> str:
    """A number of things: `1 word`, `2 words`, with the verb "is" `1 word is`, `2 words are`; the plural is regular."""
    plural = {"": "", "is": " are", "was": " were"}[verb]
    return f"{number} {noun} {verb}".rstrip() if number == 1 else f"{number} {noun}s{plural}"


def json_line(value: Any) -> bytes:
    """A value as JSON in UTF-8 and a newline; numbers that are not finite raise ValueError."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write values into a file as they come, without flushing it to the disk; OSError leaves half of them there."""
    with path.open("wb") as stream:
        stream.writelines(map(json_line, values))


def read_json_lines(path: Path) -> Iterator[Any]:
    """The values in a file, read as they are asked for.

    Lines end at newlines alone: `str.splitlines` would also cut a text at U+2028, which JSON leaves as it is.
    """
    with path.open("rb") as stream:
        yield from map(json.loads, stream)
