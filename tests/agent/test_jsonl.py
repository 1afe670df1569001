import io
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from reading import LIMITS, SMALL, only_bad, read, rows

from agent.contract.errors import DataError
from agent.contract.settings import Limits
from agent.data.dataset import validate


@pytest.mark.parametrize(
    "data",
    [
        b'{"text": "a"}\n{"text": "\xc3\xa9"}\n',
        b'{"text": "a"}\r\n{"text": "\xc3\xa9"}\r\n',
        b'\xef\xbb\xbf{"text": "a"}\n{"text": "\xc3\xa9"}',
    ],
)
def test_line_ends_and_byte_order_mark_do_not_matter(data: bytes) -> None:
    """LF, CRLF, a UTF-8 byte order mark and a missing last newline all read the same."""
    examples, bad = read(data)
    assert [example.reference for example in examples] == ["a", "é"]
    assert bad == []


def test_blank_lines_are_ignored_but_numbered() -> None:
    """A blank line is no row, yet the lines after it keep their numbers in the file."""
    examples, bad = read(b'\n{"text": "a"}\n \t\r\n\n{"text": "b"}\n')
    assert [example.id for example in examples] == ["line-2", "line-5"]
    assert bad == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "\xff"}', "byte 11 is not UTF-8"),
        (b'{"text": "x",}', "not JSON"),
        (b'{"text": "a\x00b"}', "NUL bytes"),
        (b'{"text": "x", "answer": NaN}', "NaN is not JSON"),
        (b'{"text": "x", "answer": -Infinity}', "-Infinity is not JSON"),
        (b'{"text": "x", "answer": 1e999}', "'1e999' is too large"),
        (b'{"text": "x", "answer": ' + b"9" * 5000 + b"}", "an integer has 5000 digits"),
        (b'{"text": "x", "text": "y"}', "the key 'text' is there twice"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"text": "x", "constraints": [{"id": "a", "kwargs": ' + b'{"a":' * 100 + b"1" + b"}" * 102, "nested"),
        (b'"text"', "the line is a string, not an object"),
        (b"7", "the line is a number, not an object"),
    ],
)
def test_a_line_that_is_no_clean_json_object_is_bad(line: bytes, problem: str) -> None:
    """What JSON or UTF-8 does not allow is a bad line with a short message, never a traceback."""
    fault = only_bad(line if b"constraints" not in line else line.replace(b"}" * 102, b"}" * 101 + b"]}"))
    assert problem in fault.problem
    assert len(str(fault)) < 200
    assert "\n" not in str(fault)


def test_a_line_over_the_limit_is_bad_and_the_next_one_is_read() -> None:
    """The limit holds to the byte, an overlong line is skipped whole, and its bytes are not kept."""
    limits = Limits(max_line_bytes=400_000)
    exact = rows({"text": "x" * 400_000}).replace(b"x" * len(b'{"text": ""}'), b"", 1)
    over = exact.replace(b"x", b"xx", 1)
    examples, bad = read(
        exact + over + b"x" * 2_000_000 + b"\n" + exact.replace(b"\n", b"\r\n") + rows({"text": "end"}), limits
    )
    assert [example.line for example in examples] == [1, 4, 5]
    assert [(fault.line, len(fault.raw)) for fault in bad] == [(line, 200) for line in (2, 3)]
    assert "max_line_bytes = 400000" in bad[0].problem


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\n\n  \n", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b'{"chosen": 1}\nnot json\n', "no line of the data can be used, 2 bad:\nline 1: unknown shape"),
        (b'\n [\n{"text": "a"}\n]', "one JSON array"),
        ("\ufeff".encode("utf-16-le") + '{"text": "a"}\n'.encode("utf-16-le"), "UTF-16"),
        ("\ufeff".encode("utf-16-be") + '{"text": "a"}\n'.encode("utf-16-be"), "UTF-16"),
        (rows({"text": "a"}) * 201, "more lines than max_lines = 200"),
        (b"\n" * 201, "more lines than max_lines = 200"),
        (rows({"text": "a" * 1_000}) * 150, "larger than max_file_bytes = 100000"),
        (b"x" * 100_001, "larger than max_file_bytes = 100000"),
    ],
)
def test_a_file_that_cannot_be_used_as_a_whole_is_refused(data: bytes, message: str) -> None:
    """A fault of the whole file is one DataError that names it, limits with their setting and value."""
    with pytest.raises(DataError) as caught:
        read(data, SMALL)
    assert message in str(caught.value)


class Generated(io.RawIOBase):
    """A stream that makes its lines as they are read."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._left = b""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what is left of a line, or with the next one."""
        self._left = self._left or next(self._lines, b"")
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def peak_of_reading(lines: Iterator[bytes]) -> int:
    stream = io.BufferedReader(Generated(lines))
    tracemalloc.start()
    try:
        validate(stream, LIMITS)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_reading_takes_the_same_memory_however_many_lines_there_are() -> None:
    """10,000 rows without ids, 4 MB of them, are read in half a megabyte."""
    assert peak_of_reading(rows({"text": f"row {n} " * 20}) for n in range(10_000)) < 500_000


@pytest.mark.slow
def test_ids_of_their_own_cost_about_a_hundred_bytes_a_row() -> None:
    """The memory that uniqueness takes does not depend on how long the ids are."""
    assert peak_of_reading(rows({"text": "x", "id": f"{n:0200}"}) for n in range(10_000)) < 10_000 * 180


@pytest.mark.slow
def test_an_endless_line_is_never_held_whole() -> None:
    """A line of 60 MB costs a few megabytes of memory: the rest of it is thrown away as it comes."""
    data = (chunk for part in ([b"x" * 1_000_000] * 60, [b"\n"], [rows({"text": "end"})]) for chunk in part)
    assert peak_of_reading(data) < 5_000_000
