"""Regular expressions from data, matched in time linear in the text.

Python's own matcher backtracks: a pattern such as `(a+)+b` keeps it busy for years on forty characters, so a pattern
that somebody sends must not reach it. Thompson's construction (1968) cannot blow up, and needs no time limit, which
would make the verdict depend on the machine. It covers what describes a whole text: characters, classes, groups,
alternatives and repetition. What needs backtracking (references, lookaround) is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

LONGEST_PATTERN = 200
"""Characters; also bounds how deeply groups nest."""
LONGEST_TEXT = 10_000
"""Characters of a text that can match; with `MOST_STATES` it bounds the time."""
MOST_STATES = 300
"""States of the automaton: one or two for each character of the pattern, times its counted repetitions."""

_TOKEN = re.compile(
    r"""\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[dDsSwWnrtfva]|[^0-9A-Za-z])  # an escape that stands for one character
    | \[\^?\]?(?:\\.|[^]\\])*\]                                            # a class
    | (?:\{(?:\d+(?:,\d*)?|,\d*)\}|[*+?])\??(?!\+)                         # a repetition; laziness changes no verdict
    | \(\?:|\(\?P<\w+>|\((?!\?)|[)|]
    | \A\^|\$\Z                                                            # the whole text has to match anyway
    | (?!\{(?:\d+(?:,\d*)?|,\d*)\})[^\\()\[|*+?^$]""",
    re.VERBOSE | re.DOTALL,
)
_Build = Callable[[int], int]
"""Adds the states of one part of a pattern before the given state; returns the part's first state."""


def matches(pattern: str, text: str) -> bool:
    """True if the whole text matches; texts longer than `LONGEST_TEXT` do not. Raises ValueError for a bad pattern."""
    automaton = _Automaton()
    states = automaton.reachable(frozenset([automaton.compile(_tokens(pattern))]))
    if len(text) > LONGEST_TEXT:
        return False
    for character in text:
        states = automaton.after(states, character)
    return _ACCEPT in states


_ACCEPT = 0
_TOO_LARGE = "the pattern is too large: use smaller repetitions"


def _tokens(pattern: str) -> list[str]:
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"the pattern is longer than {LONGEST_PATTERN} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            re.compile(pattern)
    except (re.error, OverflowError, Warning) as fault:
        raise ValueError(f"not a regular expression: {fault}") from fault
    tokens, position = [], 0
    while position < len(pattern):
        found = _TOKEN.match(pattern, position)
        if found is None:
            part = pattern[position : position + 4]
            raise ValueError(f"{part} is not supported: use characters, classes, groups, |, *, +, ? and {{m,n}}")
        tokens.append(found[0])
        position = found.end()
    return tokens


class _Automaton:
    """States that read one character each, or lead on without reading; the first one accepts."""

    def __init__(self) -> None:
        self.reads: list[re.Pattern[str] | None] = [None]
        self.next: list[frozenset[int]] = [frozenset()]

    def reachable(self, states: frozenset[int]) -> frozenset[int]:
        """The states that read or accept to which these lead without reading."""
        seen, todo = set(states), list(states)
        while todo:
            state = todo.pop()
            if self.reads[state] is None:
                todo += self.next[state] - seen
                seen |= self.next[state]
        return frozenset(state for state in seen if state == _ACCEPT or self.reads[state])

    def after(self, states: frozenset[int], character: str) -> frozenset[int]:
        """The states to which these lead by reading a character."""
        reading = [state for state in states if (reads := self.reads[state]) and reads.match(character)]
        return self.reachable(frozenset().union(*(self.next[state] for state in reading)))

    def compile(self, tokens: list[str]) -> int:
        """Add a whole pattern; returns the state to start from."""
        return self._choice(list(reversed([token for token in tokens if token not in ("^", "$")])))(_ACCEPT)

    def _add(self, following: frozenset[int], reads: re.Pattern[str] | None = None) -> int:
        if len(self.next) >= MOST_STATES:
            raise ValueError(_TOO_LARGE)
        self.reads.append(reads)
        self.next.append(following)
        return len(self.next) - 1

    def _choice(self, tokens: list[str]) -> _Build:
        """Take alternatives from the end of `tokens`, up to the bracket that closes them."""
        options: list[list[_Build]] = [[]]
        while tokens and (item := tokens.pop()) != ")":
            if item == "|":
                options.append([])
            elif item[0] == "(":
                options[-1].append(self._choice(tokens))
            elif item[0] in "*+?" or (item[0] == "{" and len(item) > 1):
                options[-1].append(self._repeat(options[-1].pop(), *_bounds(item)))
            else:
                options[-1].append(self._character(item))
        return lambda after: self._add(frozenset(_sequence(parts, after) for parts in options))

    def _character(self, item: str) -> _Build:
        reads = re.compile(item if len(item) > 1 or item == "." else re.escape(item))
        return lambda after: self._add(frozenset([after]), reads)

    def _repeat(self, part: _Build, low: int, high: int | None) -> _Build:
        if low > MOST_STATES:
            raise ValueError(_TOO_LARGE)

        def build(after: int) -> int:
            start = after
            if high is None:
                start = self._add(frozenset())
                self.next[start] = frozenset([part(start), after])
            for _ in range((high or low) - low):
                start = self._add(frozenset([part(start), after]))
            return _sequence([part] * low, start)

        return build


def _sequence(parts: list[_Build], after: int) -> int:
    for part in reversed(parts):
        after = part(after)
    return after


def _bounds(token: str) -> tuple[int, int | None]:
    if token[0] != "{":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[token[0]]
    low, comma, high = token.rstrip("?").strip("{}").partition(",")
    if not comma:
        return int(low), int(low)
    return int(low or 0), int(high) if high else None
