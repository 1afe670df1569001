"""OpenAI's chat completions as JSON: what may be asked, and the shapes of what is answered. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from agent.contract.errors import DataError
from agent.contract.reply_messages import ANSWER_TOKENS, Message, Replied, Reply

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Roles of messages, and what they are for a chat template."""
ENDS = {"stop": "stop", "length": "length", "broken off": "stop"}
"""Why an answer ended, in OpenAI's words."""
MOST_STOPS = 4
HOTTEST = 2.0
MOST_SEEDS = 1 << 63
TEXT = {"type": "text"}
NOT_HERE = {"tools": [], "functions": [], "logprobs": False, "n": 1, "audio": None, "response_format": TEXT}
"""What changes an answer's shape and is not served, with the value that asks for nothing."""
Body = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A question, and how its answer is to come."""

    reply: Reply
    stream: bool
    with_usage: bool
    """At the end of a stream; a whole answer always has it."""


def parse(raw: bytes) -> Question:
    """Parse the body of a request. Raises DataError for what is wrong or not served."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise DataError("the body is not JSON") from None
    if not isinstance(body, dict):
        raise DataError("the body is not a JSON object")
    for name, nothing in NOT_HERE.items():
        if body.get(name) not in (None, nothing):
            raise DataError(f"{name} other than {json.dumps(nothing)} is not served here")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError("messages must be a list with something in it")
    options = body.get("stream_options")
    reply = Reply(
        messages=tuple(map(message, messages)),
        max_new_tokens=_max_tokens(body),
        temperature=_temperature(body.get("temperature")),
        seed=_seed(body.get("seed")),
        stops=_stops(body.get("stop")),
    )
    with_usage = isinstance(options, dict) and options.get("include_usage") is True
    return Question(reply, stream=body.get("stream") is True, with_usage=with_usage)


def message(value: Any) -> Message:
    """A message for the chat template; content may be text or a list of parts that are. Raises DataError."""
    role = value.get("role") if isinstance(value, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"a message's role must be one of {', '.join(ROLES)}, not {role!r}")
    content = value.get("content")
    if isinstance(content, list):
        parts: list[Any] = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "\n".join(parts) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(content, str):
        raise DataError("a message's content must be text")
    if any("\ud800" <= each <= "\udfff" for each in content):
        raise DataError("a message's content has half a character in it (a lone surrogate)")
    return {"role": ROLES[role], "content": content}


def _max_tokens(body: Body) -> int:
    given = [body[name] for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None]
    value = given[0] if given else ANSWER_TOKENS
    if not _is_whole(value) or value < 1:
        raise DataError("max_tokens must be a whole number above 0")
    return int(value)


def _temperature(value: Any) -> float:
    if value is None:
        return 0.0
    if not (_is_whole(value) or isinstance(value, float)) or not 0 <= value <= HOTTEST:
        raise DataError(f"temperature must be a number from 0 to {HOTTEST:g}")
    return float(value)


def _seed(value: Any) -> int:
    if value is not None and not _is_whole(value):
        raise DataError("seed must be a whole number")
    return (value or 0) % MOST_SEEDS


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise DataError(f"stop must be a text, or a list of up to {MOST_STOPS}")
    return tuple(stops)


def completion(about: Body, replied: Replied) -> Body:
    """A whole answer; `about` has its id, created and model."""
    message = {"role": "assistant", "content": replied.text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": ENDS[replied.ended]}
    return {**about, "object": "chat.completion", "choices": [choice], "usage": usage(replied)}


def usage(replied: Replied) -> Body:
    """The tokens that an answer took."""
    return {
        "prompt_tokens": replied.prompt_tokens,
        "completion_tokens": replied.tokens,
        "total_tokens": replied.prompt_tokens + replied.tokens,
    }


def chunk(about: Body, delta: Body, finish: str | None = None) -> bytes:
    """A piece of an answer as a server-sent event."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return event({**about, "object": "chat.completion.chunk", "choices": [choice]})


def last_chunks(about: Body, replied: Replied, *, with_usage: bool) -> bytes:
    """The end of an answer, its usage if that was asked for, and the end of the stream."""
    found = chunk(about, {}, ENDS[replied.ended])
    if with_usage:
        found += event({**about, "object": "chat.completion.chunk", "choices": [], "usage": usage(replied)})
    return found + b"data: [DONE]\n\n"


def event(body: Body) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def fault(message: str, kind: str) -> Body:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
