"""Parse a server's bytes: chat completions, errors, and lines fit for a person's eyes. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from agent.contract.lines import shorten

LONGEST_LINE = 200
"""Characters of a server's own words that are shown."""
LARGEST_COUNT = 2**53
"""A token count from here on is nonsense, and would not fit where it is stored."""


@dataclass(frozen=True)
class Completion:
    """One chat completion; `finish_reason` and `model` are empty and the counts None where it has none."""

    text: str
    finish_reason: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None


def parse(body: bytes) -> Completion:
    """The first choice of a chat completion. Raises ValueError with a reason for anything else."""
    match _load(body):
        case {"error": error} as value if error:
            raise ValueError(f"it holds an error: {_error_text(value)}")
        case {"choices": [{"message": {"content": str(text)}} as choice, *_]} as value:
            return Completion(
                _storable(text),
                _string(choice, "finish_reason"),
                _string(value, "model"),
                _count(value, "prompt_tokens"),
                _count(value, "completion_tokens"),
            )
        case _:
            raise ValueError("it has no choices[0].message.content that is text")


def error_message(body: bytes) -> str:
    """The message in an error's body as OpenAI and its imitators put it, else the body itself."""
    try:
        said = _error_text(_load(body))
    except ValueError:
        said = ""
    return said or body.decode(errors="replace")


def one_line(text: str, secret: str | None = None) -> str:
    """Text of a stranger made fit for an error message or a log: one short line without the secret.

    Everything a terminal might act on (controls, escapes, changes of writing direction) becomes a space.
    """
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    if secret:
        line = re.sub(re.escape(secret), "[key]", line, flags=re.IGNORECASE)  # as part of a host it is in lower case
    return shorten(line, LONGEST_LINE)


def _load(body: bytes) -> Any:
    try:
        return json.loads(body)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except ValueError as fault:
        raise ValueError(f"it is not JSON ({fault})") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _error_text(value: Any) -> str:
    match value:
        case {"error": {"message": str(text)}} | {"error": str(text)} | {"message": str(text)} | {"detail": str(text)}:
            return text
        case _:
            return ""


def _storable(text: str) -> str:
    """The text itself; ValueError for what agent.data.jsonl would not take back as training data."""
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("its text holds the NUL character or half a surrogate pair")
    return text


def _string(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    return _storable(value) if isinstance(value, str) else ""


def _count(record: dict[str, Any], name: str) -> int | None:
    usage = record.get("usage")
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value < LARGEST_COUNT else None
