"""How the tests read data: rows to bytes, bytes to examples and bad lines, lines to messages."""

import io
import json
from typing import Any

from agent.contract.errors import AgentError
from agent.contract.protocol import ProtocolError, decode, encode
from agent.contract.settings import Limits
from agent.data.dataset import BadLine, read_examples
from agent.data.formats import Example, Message

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


def assert_refused_or_kept(line: bytes) -> None:
    """A protocol line is refused in one way, or is a message that is the same after it was written and read again."""
    try:
        read_once = decode(line)
    except ProtocolError as fault:
        assert len(str(fault)) < 2000  # noqa: PT017  a message is fine too
        return
    told, written = json.loads(line), encode(read_once)
    assert told[read_once.kind] == json.loads(written)[read_once.kind]
    again = decode(written)
    assert encode(again) == written
    assert (again.kind, again.id) == (read_once.kind, read_once.id)
    if isinstance(read_once.message, AgentError):  # exceptions are equal only to themselves
        assert (type(again.message), str(again.message)) == (type(read_once.message), str(read_once.message))
    else:
        assert again == read_once
