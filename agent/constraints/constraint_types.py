"""The parts of a verifiable constraint (arguments, check, description) and the wording of counts and quotes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.contract.lines import ASCII_MARK, kind, quantity, shorten_line

LESS_THAN, AT_LEAST = "less than", "at least"
LONGEST_QUOTE = 100
"""Characters of a text that a fault quotes: enough to find the place, little enough for the prompt of a small LLM."""


@dataclass(frozen=True)
class Argument:
    """One keyword argument of a constraint.

    `wrong` gives what a value that is not null must be instead, None for a good value; `optional` ones may be absent.
    """

    wrong: Callable[[Any], str | None]
    optional: bool = False


@dataclass(frozen=True)
class Check:
    """One kind of constraint; all three functions take its arguments by name.

    `fault` takes the text too, which is never blank, and gives one line or None; `describe` gives one imperative
    sentence; `conflict` says what is wrong with good arguments together.
    """

    fault: Callable[..., str | None]
    describe: Callable[..., str]
    arguments: Mapping[str, Argument]
    conflict: Callable[..., str | None] = lambda **_: None


def _must_be(expected: str, fits: Callable[[Any], bool]) -> Argument:
    def wrong(value: Any) -> str | None:
        if fits(value):
            return None
        nested = isinstance(value, (dict, list))
        found = kind(value) if nested else double_quote(json.dumps(value, ensure_ascii=False)[:200])
        return f"must be {expected}, not {found}"

    return Argument(wrong)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


COUNT = _must_be("a whole number, 0 or more", lambda value: type(value) is int and value >= 0)
RELATION = _must_be('"less than" or "at least"', lambda value: value in (LESS_THAN, AT_LEAST))
TEXT = _must_be("a text that is not blank", _is_text)
TEXTS = _must_be(
    "a list of texts that are not blank",
    lambda value: isinstance(value, list) and bool(value) and all(map(_is_text, value)),
)
LETTER = _must_be("one character", lambda value: _is_text(value) and len(value) == 1)


def double_quote(text: str) -> str:
    """The start of a text in double quotes and on one line."""
    return f'"{shorten_line(text, LONGEST_QUOTE, ASCII_MARK)}"'


def quote_all(texts: Iterable[str]) -> str:
    """Texts in quotes, whole, as a list for people."""
    return ", ".join(f'"{text}"' for text in texts)


def requirement(relation: str, number: int, noun: str) -> str:
    """The relation as an instruction: `fewer than 8 words`."""
    return f"{'fewer than' if relation == LESS_THAN else relation} {quantity(number, noun)}"


def relation_fault(found: str, number: int, relation: str, limit: int) -> str | None:
    """The fault `found` where `number` is not in the relation to the limit."""
    obeys = number < limit if relation == LESS_THAN else number >= limit
    return None if obeys else f"{found}, must be {relation} {limit}"
