"""Answers on the screen while they are given: as plain text, or in columns beside each other on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unicodedata import category

TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that change the direction of what follows."""
Show = Callable[[int, str], None]
"""Called with (speaker index, new text); empty text starts that speaker's answer."""


@contextmanager
def show_answers(names: Sequence[str], *, quiet: bool) -> Iterator[Show]:
    """Show what each of some versions says while the block runs, one after the other."""
    if quiet:
        yield lambda _place, _text: None
    elif len(names) > 1 and sys.stdout.isatty():
        with _show_columns(names) as show:
            yield show
    else:
        yield _Plain(names).show
        print(flush=True)


class _Plain:
    """Text as it comes, under the name of who says it where there are several."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._heard: set[int] = set()

    def show(self, place: int, text: str) -> None:
        """Write out what is new."""
        if place not in self._heard and len(self._names) > 1:
            print(f"{chr(10) * 2 if self._heard else ''}{self._names[place]}:")
        self._heard.add(place)
        print(without_controls(text) if sys.stdout.isatty() else text, end="", flush=True)


def without_controls(text: str) -> str:
    """The text without characters with which an answer could do things to a terminal, or turn a line around."""
    return "".join(each for each in text if each in "\n\t" or not (category(each) == "Cc" or each in TURNING))


@contextmanager
def _show_columns(names: Sequence[str]) -> Iterator[Show]:
    from rich import box  # noqa: PLC0415  rich costs 80 ms, and only a terminal needs it
    from rich.live import Live  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    said = [""] * len(names)

    def table() -> Table:
        made = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
        for name in names:
            made.add_column(name, ratio=1, overflow="fold")
        made.add_row(*map(Text, said))
        return made

    with Live(table(), refresh_per_second=8, vertical_overflow="visible") as live:

        def show(place: int, text: str) -> None:
            said[place] += without_controls(text)
            live.update(table())

        yield show
