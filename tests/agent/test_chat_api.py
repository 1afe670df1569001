"""OpenAI's chat completions as JSON: what is asked is understood or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.errors import DataError
from agent.contract.reply_messages import ANSWER_TOKENS, Replied, Reply
from agent.serve import chat_api

HI = {"messages": [{"role": "user", "content": "hi"}]}


def parsed(**more: Any) -> Reply:
    return chat_api.parse(json.dumps(HI | more).encode()).reply


def test_a_plain_question_is_answered_with_the_likeliest_tokens() -> None:
    """As everything was measured."""
    assert parsed(model="whatever", stream=True) == Reply(({"role": "user", "content": "hi"},), ANSWER_TOKENS)


def test_what_clients_send_besides_is_understood() -> None:
    """Both names of the longest answer, a stop as text or list, parts of text, a developer's message."""
    assert parsed(max_tokens=5).max_new_tokens == parsed(max_completion_tokens=5).max_new_tokens == 5
    assert parsed(seed=-1).seed == (1 << 63) - 1
    assert parsed(stop="a").stops == parsed(stop=["a"]).stops == ("a",)
    assert parsed(temperature=0.5, seed=3, n=1, top_p=0.9, tools=[], response_format={"type": "text"}).seed == 3
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    told = parsed(messages=[{"role": "developer", "content": parts}])
    assert told.messages == ({"role": "system", "content": "a\nb"},)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"messages": []}, "messages must be"),
        ({"messages": "hi"}, "messages must be"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role must be one of"),
        ({"messages": ["hi"]}, "role must be one of"),
        ({"messages": [{"role": [], "content": "x"}]}, "role must be one of"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half a character"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"seed": 1.9}, "seed must be a whole number"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content must be text"),
        ({"messages": [{"role": "user", "content": None}]}, "content must be text"),
        ({"max_tokens": 0.5}, "max_tokens must be"),
        ({"max_tokens": -1}, "max_tokens must be"),
        ({"max_tokens": True}, "max_tokens must be"),
        ({"temperature": 3}, "temperature must be a number from 0 to 2"),
        ({"temperature": "hot"}, "temperature must be"),
        ({"stop": ["a", ""]}, "stop must be"),
        ({"stop": list("abcde")}, "stop must be"),
        ({"n": 2}, "n other than 1 is not served"),
        ({"tools": [{"type": "function"}]}, "tools other than"),
        ({"logprobs": True}, "logprobs other than"),
        ({"response_format": {"type": "json_object"}}, "response_format other than"),
        ({"response_format": "json"}, "response_format"),
    ],
)
def test_what_is_wrong_or_not_served_is_refused_by_name(more: dict[str, Any], words: str) -> None:
    """An answer that ignores what was asked for would be worse."""
    with pytest.raises(DataError, match=words):
        parsed(**more)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
MESSAGES = st.lists(st.dictionaries(st.sampled_from(("role", "content")), JSON | st.sampled_from(("user", "system"))))
NAMES = ("messages", "max_tokens", "temperature", "seed", "stop", "n", "tools", "response_format", "role", "content")


NEARLY = st.fixed_dictionaries({"messages": MESSAGES}, optional=dict.fromkeys(NAMES[1:], JSON))


@given(st.dictionaries(st.sampled_from(NAMES), JSON) | NEARLY | JSON)
def test_no_body_brings_anything_but_a_question_or_a_refusal(body: Any) -> None:
    """Whatever is sent; a question keeps what was said by whom, and asks for what the model can do."""
    try:
        asked = chat_api.parse(json.dumps(body).encode()).reply
    except DataError as fault:
        assert str(fault)  # noqa: PT017  a question is fine too
        return
    assert [each["role"] for each in asked.messages] == [each["role"] for each in body["messages"]]
    said = [each["content"] for each in body["messages"]]
    assert all(isinstance(one, list) or one == each["content"] for one, each in zip(said, asked.messages, strict=True))
    assert all(isinstance(each["content"], str) for each in asked.messages)
    assert asked.max_new_tokens >= 1
    assert 0 <= asked.temperature <= chat_api.HOTTEST
    assert 0 <= asked.seed < chat_api.MOST_SEEDS
    assert len(asked.stops) <= chat_api.MOST_STOPS
    assert all(asked.stops)


@pytest.mark.parametrize("raw", [b"", b"\xff", b"[" * 100_000, b"[]", b"1", b'"a"'])
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    """However deep it goes."""
    with pytest.raises(DataError):
        chat_api.parse(raw)


def test_a_stream_ends_as_clients_expect() -> None:
    """A reason, the tokens if they were asked for, and the word that it is over."""
    replied = Replied("a b", 2, 5, "length", 0.1)
    *events, done, empty = chat_api.last_chunks({"id": "x"}, replied, with_usage=True).split(b"\n\n")
    assert (done, empty) == (b"data: [DONE]", b"")
    last, usage = (json.loads(event.removeprefix(b"data: ")) for event in events)
    assert last["choices"][0]["finish_reason"] == "length"
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
