"""People's JSONL → examples: open, read line by line, validate, and split into training and held-out rows.

A bad line never ends the reading: it is reported with its number, what is wrong and how to mend it, and the next
line is read. What makes the whole file unusable (too large, UTF-16, one JSON array, no good line) is a DataError.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from agent.contract.errors import DataError, NotFound
from agent.contract.lines import quote
from agent.contract.settings import Limits
from agent.data.formats import HELD_OUT, TRAIN, Example, Shape, detect, to_example
from agent.data.jsonl import QUOTED, BadRow, Line, Lines, parse_object

BAD_KEPT = 20
"""Bad lines a report keeps; the rest are only counted."""
BAD_LISTED = 5
"""Bad lines an error message lists."""


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be used; `problem` and `fix` are one short line each, `raw` is cut if the line is too long."""

    line: int
    problem: str
    fix: str
    raw: bytes

    def __str__(self) -> str:
        return f"line {self.line}: {self.problem} — {self.fix}"


@dataclass(frozen=True)
class Report:
    """The contents of a data file, counted.

    `train` and `held_out` count the rows that say so themselves; `bad` holds the first bad lines of `bad_total`.
    """

    shape: str
    bytes: int
    rows: int
    train: int
    held_out: int
    with_answer: int
    with_constraints: int
    bad: tuple[BadLine, ...]
    bad_total: int


OnBad = Callable[[BadLine], Any]
OnExample = Callable[[Example], Any]


def list_bad(bad: Sequence[BadLine]) -> str:
    """The first few bad lines, one a line, for an error message."""
    return "\n".join(map(str, bad[:BAD_LISTED]))


# ---- opening ----


def open_source(path: str) -> BinaryIO:
    """Open a data file for reading; "-" is standard input.

    Raises NotFound if there is nothing at `path`, DataError if it is no regular file or cannot be read.
    """
    if path == "-":
        if sys.stdin is None:
            raise DataError("standard input is closed: name a file instead of -")
        return sys.stdin.buffer
    try:
        _refuse_special(Path(path).stat().st_mode, path)
        # Without O_NONBLOCK, a FIFO that took the file's place just now would block here for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"there is no file {path}: check the path") from None
    except (OSError, ValueError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else fault
        raise DataError(f"{quote(path)} cannot be opened ({reason}): check the path and its permissions") from None
    return os.fdopen(descriptor, "rb")


def _refuse_special(mode: int, path: str) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise DataError(f"{path} is a directory: name one JSONL file in it")
    if stat.S_ISFIFO(mode):
        raise DataError(f"{path} is a pipe: give - as the file and send the data to standard input")
    what = "a socket" if stat.S_ISSOCK(mode) else "a device"
    raise DataError(f"{path} is {what}: write the data to a JSONL file first")


# ---- reading ----


class Reader:
    """Iterates over the good lines of a stream once, as examples; memory does not grow with the text that was read.

    The shape of the first row that has one holds for the whole file. What grows is 1 byte for every line and about
    100 bytes for every row with an id of its own, so that two rows with one id are noticed.

    Attributes:
        bytes: bytes read so far.
        shape: the shape of the rows, None before the first.
        bad: the first `BAD_KEPT` bad lines so far, their bytes cut short.
        bad_total: how many bad lines there were so far.
    """

    def __init__(self, stream: BinaryIO, limits: Limits, on_bad: OnBad) -> None:
        self._lines = Lines(stream, limits)
        self._limits = limits
        self._on_bad = on_bad
        self._ids = _Ids()
        self.shape: Shape | None = None
        self.bad: list[BadLine] = []
        self.bad_total = 0

    @property
    def bytes(self) -> int:
        """Bytes read so far."""
        return self._lines.bytes

    def __iter__(self) -> Iterator[Example]:
        rows = 0
        for count, line in enumerate(self._lines):
            if count == 0 and line.raw.lstrip().startswith(b"["):
                raise DataError("this looks like one JSON array: put one object on each line (jq -c '.[]' FILE > NEW)")
            try:
                example = self._example(line)
            except BadRow as fault:
                self._report(BadLine(line.number, fault.problem, fault.fix, line.raw))
            else:
                rows += 1
                yield example
        if not rows and not self.bad:
            raise DataError("the data is empty: write one JSON object on each line")
        if not rows:
            raise DataError(f"no line of the data can be used, {self.bad_total} bad:\n{list_bad(self.bad)}")

    def _example(self, line: Line) -> Example:
        if not line.whole:
            most = self._limits.max_line_bytes
            raise BadRow(f"the line is longer than max_line_bytes = {most}", "shorten it or raise max_line_bytes")
        record = parse_object(line.raw)
        self.shape = self.shape or detect(record)
        example = to_example(record, self.shape, line.number)
        self._ids.claim(example)
        return example

    def _report(self, bad: BadLine) -> None:
        self.bad_total += 1
        if len(self.bad) < BAD_KEPT:
            self.bad.append(replace(bad, raw=bad.raw[:QUOTED]))
        self._on_bad(bad)


class _Ids:
    """Which ids are taken, kept as 64-bit digests: one false alarm in 30 million files of a million rows."""

    def __init__(self) -> None:
        self._named: set[int] = set()
        self._numbered = bytearray()

    def claim(self, example: Example) -> None:
        """Take the example's id; raises BadRow if an earlier row has it."""
        digest = int.from_bytes(hashlib.blake2b(example.id.encode(), digest_size=8).digest(), "big")
        if digest in self._named or self._is_numbered(example.id):
            raise BadRow(f'the "id" {quote(example.id)} is taken by an earlier row', "give every row an id of its own")
        if example.id == f"line-{example.line}":
            self._numbered.extend(bytes(example.line + 1 - len(self._numbered)))
            self._numbered[example.line] = 1
        else:
            self._named.add(digest)

    def _is_numbered(self, name: str) -> bool:
        found = re.fullmatch(r"line-([1-9][0-9]{0,17})", name)
        return found is not None and any(self._numbered[int(found[1]) : int(found[1]) + 1])


def read_examples(stream: BinaryIO, limits: Limits, on_bad: OnBad) -> Iterator[Example]:
    """The good lines of a stream in order, while `on_bad` gets the others.

    Raises DataError if the file as a whole cannot be used, at its end also if it had no good line.
    """
    return iter(Reader(stream, limits, on_bad))


def survey(source: BinaryIO, limits: Limits, on_example: OnExample, on_bad: OnBad) -> Report:
    """Read a stream to its end, give every line to one of the two calls, and count; raises DataError as the reader."""
    reader = Reader(source, limits, on_bad)
    counts: Counter[str | None] = Counter()
    for example in reader:
        on_example(example)
        counts["rows"] += 1
        counts[example.split] += 1
        counts["with_answer"] += example.answer is not None
        counts["with_constraints"] += bool(example.constraints)
    return Report(
        shape=reader.shape.name if reader.shape else "",
        bytes=reader.bytes,
        rows=counts["rows"],
        train=counts[TRAIN],
        held_out=counts[HELD_OUT],
        with_answer=counts["with_answer"],
        with_constraints=counts["with_constraints"],
        bad=tuple(reader.bad),
        bad_total=reader.bad_total,
    )


def validate(source: BinaryIO, limits: Limits) -> Report:
    """Count the rows of a data file and list its bad lines; raises DataError if the whole file cannot be used."""
    return survey(source, limits, lambda _: None, lambda _: None)


# ---- split ----


def split(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """The training rows and the held-out rows, each in the order of the file.

    If any row names its split, the names are obeyed and unmarked rows are trained on. Otherwise `fraction` of the
    rows is held out: the same ones for the same rows and seed, on every machine. Raises DataError if the file's
    own split leaves nothing to train on.

    Rows with one reference (one fact, asked in several ways) form a group, of which one row at least stays in
    training; rows that stand alone are held out only where the groups give too few. A fact that is never trained
    on cannot be learned, so holding out its only row would measure nothing.
    """
    if any(example.split for example in examples):
        train = [example for example in examples if example.split != HELD_OUT]
        if not train:
            raise DataError(f'every row has "split": "{HELD_OUT}": mark some rows "{TRAIN}" or remove the field')
        return train, [example for example in examples if example.split == HELD_OUT]
    rows, target = len(examples), 0
    if rows > 1 and fraction > 0:
        target = min(rows - 1, max(1, round(fraction * rows)))
    held_out = _draw(examples, target, seed)
    return (
        [example for index, example in enumerate(examples) if index not in held_out],
        [example for index, example in enumerate(examples) if index in held_out],
    )


def _draw(examples: Sequence[Example], target: int, seed: int) -> set[int]:
    """Indices of `target` rows: from groups while these keep a row, then from rows that stand alone."""
    sizes = Counter(example.reference for example in examples)
    order = sorted(range(len(examples)), key=lambda index: _rank(examples[index], seed))
    grouped = [index for index in order if sizes[examples[index].reference] > 1]
    alone = [index for index in order if sizes[examples[index].reference] == 1]
    held_out: set[int] = set()
    for index in grouped:
        reference = examples[index].reference
        if len(held_out) < target and sizes[reference] > 1:
            held_out.add(index)
            sizes[reference] -= 1
    return held_out.union(alone[: target - len(held_out)])


def _rank(example: Example, seed: int) -> bytes:
    """A place in the lottery that depends on the row's text alone, so that adding rows moves no others."""
    text = json.dumps([seed, [[message.role, message.content] for message in example.messages]])
    return hashlib.sha256(text.encode()).digest()
