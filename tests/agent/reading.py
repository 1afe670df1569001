"""How the tests read data: rows to bytes, bytes to examples and bad lines."""

import io
import json
from typing import Any

from agent.dataset import BadLine, read_examples
from agent.jsonl import Limits
from agent.shapes import Example, Message

LIMITS = Limits()
SMALL = Limits(max_file_bytes=100_000, max_lines=200, max_line_bytes=2_000)


def read(data: bytes, limits: Limits = LIMITS) -> tuple[list[Example], list[BadLine]]:
    bad: list[BadLine] = []
    return list(read_examples(io.BytesIO(data), limits, bad.append)), bad


def rows(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def one(record: Any) -> Example:
    examples, bad = read(rows(record))
    assert bad == []
    return examples[0]


def only_bad(line: bytes) -> BadLine:
    """The fault of a line that follows a good one."""
    examples, bad = read(rows({"text": "good"}) + line + b"\n")
    assert [example.reference for example in examples] == ["good"]
    assert [fault.line for fault in bad] == [2]
    return bad[0]


def turns(*pairs: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(*pair) for pair in pairs)
