"""JSON lines as people send them: bounded reading, and strict parsing of one line.

`Lines` cuts a stream into lines without ever holding more than one of them, whatever the stream holds.
`parse_object` takes one line apart more strictly than `json.loads`: what RFC 8259 leaves open (twin keys, NaN,
lone surrogates) is refused here, so that nothing later in the agent can stumble over it.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from agent.contract.errors import DataError
from agent.contract.lines import kind, quote
from agent.contract.settings import Limits

QUOTED = 200
"""Most bytes of an overlong line that are kept to show it."""
MAX_DEPTH = 32
"""Deepest nesting of a kept value: far below Python's recursion limit, so that writing it again never fails."""
MAX_DIGITS = 300
"""Longest integer: converting longer ones takes quadratic time, and no float could hold their value."""

_CHUNK = 1 << 16
_UNUSABLE = re.compile("[\0\ud800-\udfff]")


class BadRow(Exception):
    """One line cannot be used: what is wrong with it, and how to mend it, in one short line each."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix


@dataclass(frozen=True)
class Line:
    """One line that is not blank: its number from 1, its bytes without the newline; cut to `QUOTED` if not whole."""

    number: int
    raw: bytes
    whole: bool


class Lines:
    """Iterates over the lines of a stream once; memory is bounded by `max_line_bytes`.

    Raises DataError where the whole file cannot be used: too large, too many lines, not UTF-8 but UTF-16,
    or unreadable.

    Attributes:
        bytes: bytes read so far.
    """

    def __init__(self, stream: BinaryIO, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self.bytes = 0

    def __iter__(self) -> Iterator[Line]:
        self._refuse_size(_file_size(self._stream))
        longest, most = self._limits.max_line_bytes, self._limits.max_lines
        for number in itertools.count(1):
            piece = self._read(longest + len(b"\r\n"))
            if not piece:
                return
            if number > most:
                raise DataError(f"the data has more lines than max_lines = {most}: split the file or raise max_lines")
            if number == 1 and piece.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise DataError("the data is UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8 FILE > NEW)")
            raw = (piece.removeprefix(b"\xef\xbb\xbf") if number == 1 else piece).rstrip(b"\r\n")
            whole = len(raw) <= longest
            while not whole and piece and not piece.endswith(b"\n"):
                piece = self._read(_CHUNK)
            if not whole or raw.strip():
                yield Line(number, raw if whole else raw[:QUOTED], whole)

    def _read(self, size: int) -> bytes:
        try:
            piece = self._stream.readline(size)
        except OSError as fault:
            raise DataError(f"the data cannot be read to its end ({fault.strerror}): copy it and try again") from fault
        self.bytes += len(piece)
        self._refuse_size(self.bytes)
        return piece

    def _refuse_size(self, size: int) -> None:
        most = self._limits.max_file_bytes
        if size > most:
            raise DataError(f"the data is larger than max_file_bytes = {most}: split the file or raise max_file_bytes")


def _file_size(stream: BinaryIO) -> int:
    """Bytes of the regular file behind `stream`, 0 for a pipe or a stream in memory."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in one line; raises BadRow for anything else."""
    if b"\0" in raw:
        raise BadRow("the line holds NUL bytes", "save the file as plain UTF-8 text")
    try:
        value = _DECODER.decode(raw.decode())
    except UnicodeDecodeError as fault:
        piece = raw[fault.start : fault.start + 4]
        raise BadRow(f"byte {fault.start + 1} is not UTF-8: {piece!r}", "save the file as UTF-8") from None
    except json.JSONDecodeError as fault:
        near = quote(fault.doc[fault.pos : fault.pos + 20])
        problem = f"not JSON: {fault.msg} (column {fault.colno}, at {near})"
        raise BadRow(problem, "write one whole JSON object on each line") from None
    except RecursionError:
        raise BadRow("brackets are nested too deeply", f"keep nesting below {MAX_DEPTH} levels") from None
    if not isinstance(value, dict):
        raise BadRow(f"the line is {kind(value)}, not an object", 'write {"messages": [...]} or another known shape')
    return value


def check_text(value: Any, depth: int = 0) -> None:
    """Raise BadRow if a parsed value holds NUL or half a surrogate pair, or is nested below `MAX_DEPTH`."""
    if depth > MAX_DEPTH:
        raise BadRow(f"a value is nested more than {MAX_DEPTH} levels deep", "flatten it")
    if isinstance(value, str):
        if found := _UNUSABLE.search(value):
            name = "the NUL character" if found[0] == "\0" else "half a surrogate pair"
            raise BadRow(f"a string holds {name} (\\u{ord(found[0]):04x})", "remove or replace this character")
    elif isinstance(value, dict):
        check_text([*value.keys(), *value.values()], depth)
    elif isinstance(value, list):
        for item in value:
            check_text(item, depth + 1)


def _refuse_twin_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise BadRow(f"the key {quote(twin)} is there twice in one object", "keep one of them")
    return result


def _refuse_constant(name: str) -> None:
    raise BadRow(f"{name} is not JSON", "use null or a finite number")


def _parse_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise BadRow(f"the number {quote(digits)} is too large", "use a smaller number, or a string")
    return value


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise BadRow(f"an integer has {len(digits)} digits", f"use at most {MAX_DIGITS} digits, or a string")
    return int(digits)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_refuse_twin_keys, parse_constant=_refuse_constant, parse_float=_parse_float, parse_int=_parse_int
)
