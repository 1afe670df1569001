"""An answer as text while its tokens come."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

Tokens = Generator[int, None, None]
"""Tokens as they come; to be closed where the rest is not wanted."""
HALF = "\ufffd"
"""What the first bytes of a character decode to."""


class IncrementalDetokenizer:
    """Makes text of tokens; what may yet turn out otherwise is held back.

    That is half a character, space at the end (an answer is stripped), and what may be the start of a stop.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.ids: list[int] = []
        self.ended = False
        """Whether a stop was said."""
        self.text = ""
        """All of it, up to the first stop."""
        self._tokenizer, self._stops = tokenizer, stops
        self._said = ""

    def add(self, token: int) -> str:
        """Take one more token; returns what can be said now."""
        self.ids.append(token)
        whole = str(self._tokenizer.decode(self.ids, skip_special_tokens=True)).lstrip()
        found = [place for place in (whole.find(stop) for stop in self._stops) if place >= 0]
        self.ended = bool(found)
        self.text = whole[: min(found, default=len(whole))].rstrip()
        if self.ended:
            return self._new(self.text)
        sure = whole.rstrip(HALF)
        starts = [size for stop in self._stops for size in range(1, len(stop)) if sure.endswith(stop[:size])]
        return self._new(sure[: len(sure) - max(starts, default=0)].rstrip())

    def rest(self) -> str:
        """The text that was held back, once no token follows."""
        return self._new(self.text)

    def finish_reason(self, most: int) -> str:
        """The reason why an answer of at most that many tokens ended."""
        return "length" if len(self.ids) == most and not self.ended else "stop"

    def _new(self, text: str) -> str:
        if not text.startswith(self._said):
            return ""
        new, self._said = text[len(self._said) :], text
        return new
