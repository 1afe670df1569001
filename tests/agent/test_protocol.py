from __future__ import annotations

import io
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading import assert_refused_or_kept

from agent.contract import errors
from agent.contract.protocol import (
    MESSAGES,
    VERSION,
    Alive,
    Answer,
    Checked,
    Envelope,
    Event,
    ProtocolError,
    Train,
    decode,
    encode,
)
from agent.contract.requests import Request, answer_name
from agent.contract.settings import Training
from agent.system.worker_client import Connection

FINITE = st.floats(allow_nan=False, allow_infinity=False)
st.register_type_strategy(float, FINITE)
NUMBERS = st.integers(min_value=1)


def kind_of(message: object) -> str:
    return "request" if isinstance(message, Request) else "event" if isinstance(message, Event) else "answer"


@pytest.mark.parametrize("cls", MESSAGES.values(), ids=MESSAGES.keys())
@given(data=st.data())
def test_every_message_comes_back_as_it_was_sent(cls: type[Any], data: st.DataObject) -> None:
    """Any values of the declared types, text in any script included, survive the trip on one line."""
    message = data.draw(st.from_type(cls))
    sent = Envelope(kind_of(message), data.draw(NUMBERS), message)
    line = encode(sent)
    assert line.count(b"\n") == 1
    assert decode(line) == sent


def test_requests_events_and_answers_are_told_apart() -> None:
    """Each message class is exactly one of the three."""
    for cls in MESSAGES.values():
        kinds = [issubclass(cls, union) for union in (Request, Event, Answer)]
        assert sum(kinds) == 1, cls


def test_every_request_names_the_class_of_its_answer() -> None:
    """A name in the contract, or `ask` would wait for ever."""
    for cls in Request.__subclasses__():
        assert issubclass(MESSAGES[answer_name(object.__new__(cls))], Answer), cls


def test_an_answer_to_another_question_breaks_the_protocol() -> None:
    """Whoever asked gets what the contract says, or an error."""
    line = encode(Envelope("answer", 1, MESSAGES["Saved"](3)))
    connection = Connection("quant.worker", lambda _: None, io.BytesIO(line), 60.0)
    with pytest.raises(ProtocolError, match=r"quant\.worker answered Check with Saved"):
        connection.ask(MESSAGES["Check"]())


@pytest.mark.parametrize("name", errors.BY_NAME)
def test_every_error_crosses_as_its_own_class_with_its_message(name: str) -> None:
    """What the worker raises is what the loop raises, exit code included."""
    envelope = decode(encode(Envelope("error", 3, errors.BY_NAME[name]('line 7: not JSON — "{x"'))))
    assert (envelope.kind, envelope.id) == ("error", 3)
    assert type(envelope.message) is errors.BY_NAME[name]
    assert str(envelope.message) == 'line 7: not JSON — "{x"'


def test_every_error_has_an_exit_code_of_its_own() -> None:
    """Scripts can tell the failures apart."""
    codes = [cls.exit_code for cls in errors.BY_NAME.values()]
    assert len(set(codes)) == len(codes)
    assert set(codes) <= set(range(64, 81))


def test_settings_travel_inside_a_request() -> None:
    """A nested dataclass is one again on the other side."""
    sent = Train("/data", "/checkpoints", Training(rank=4, dtype="float32"), resume=None)
    received = decode(encode(Envelope("request", 1, sent))).message
    assert received == sent
    assert isinstance(received, Train)
    assert type(received.settings) is Training


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_on_both_sides(number: float) -> None:
    """They are no JSON; another program's parser would choke on the line."""
    with pytest.raises(ValueError, match="JSON"):
        encode(Envelope("event", 1, Alive(number)))
    line = json.dumps({"v": VERSION, "id": 1, "event": "Alive", "body": {"rss_mb": number}})
    with pytest.raises(ProtocolError):
        decode(line.encode())


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_refused_with_advice(version: object) -> None:
    """After a half-done upgrade the message says what to do."""
    line = json.dumps({"v": version, "id": 1, "event": "Alive", "body": {"rss_mb": 1.0}}).encode()
    with pytest.raises(ProtocolError, match="reinstall"):
        decode(line)


def test_a_protocol_error_counts_as_a_death_of_the_worker() -> None:
    """So that the job is taken up again by a fresh one."""
    assert issubclass(ProtocolError, errors.WorkerDied)
    assert ProtocolError.retryable


@given(st.binary(max_size=300))
def test_bytes_are_refused_in_one_way(line: bytes) -> None:
    """Whatever a broken worker writes, only ProtocolError comes out."""
    assert_refused_or_kept(line)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([*MESSAGES]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "v": st.just(VERSION) | JSON,
        "id": st.integers() | JSON,
        "event": st.sampled_from([*MESSAGES]) | JSON,
        "request": st.sampled_from([*MESSAGES]) | JSON,
        "error": st.sampled_from([*errors.BY_NAME]) | JSON,
        "body": JSON | st.fixed_dictionaries({"rss_mb": JSON}) | st.fixed_dictionaries({"settings": JSON}),
    },
)


@given(JSON | RECORDS)
def test_json_of_another_shape_is_refused_in_one_way(record: Any) -> None:
    """Wrong types anywhere in the record lead to ProtocolError, never to another exception."""
    assert_refused_or_kept(json.dumps(record).encode())


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"null",
        b"[]",
        b'{"v":1}',
        b'{"v":1,"id":1,"event":"Alive"}',
        b'{"v":1,"id":1,"event":"Alive","body":null}',
        b'{"v":1,"id":1,"event":"Alive","body":{"rss_mb":1,"more":2}}',
        b'{"v":1,"id":1,"event":"Nothing","body":{}}',
        b'{"v":1,"id":1,"event":"Alive","answer":"Saved","body":{}}',
        b'{"v":1,"id":1e999,"event":"Alive","body":{"rss_mb":1}}',
        b'{"v":1,"id":1,"request":"Train","body":{"settings":5}}',
        b"[" * 100_000,
    ],
)
def test_lines_that_are_no_message_are_refused(line: bytes) -> None:
    """Too little, too much, unknown names, a number too large, brackets without end."""
    with pytest.raises(ProtocolError, match="not a protocol line"):
        decode(line)


def test_a_dictionary_in_a_message_survives() -> None:
    """The one message with free keys: library versions by name."""
    checked = Checked(ok=True, device="cpu", dtype="float32", detail="fine", versions={"torch": "2.9"})
    assert decode(encode(Envelope("answer", 1, checked))).message == checked
