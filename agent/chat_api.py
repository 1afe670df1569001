"""OpenAI's chat completions as JSON: what may be asked, and the shapes of what is answered. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from agent.errors import DataError
from agent.reply_messages import ANSWER_TOKENS, Message, Replied, Reply

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Roles of messages, and what they are for a chat template."""
ENDS = {"stop": "stop", "length": "length", "broken off": "stop"}
"""Why an answer ended, in OpenAI's words."""
MOST_STOPS = 4
TEXT = {"type": "text"}
NOT_HERE = {"tools": [], "functions": [], "logprobs": False, "n": 1, "audio": None, "response_format": TEXT}
"""What changes an answer's shape and is not served, with the value that asks for nothing."""
Body = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A question, and how its answer is to come."""

    reply: Reply
    stream: bool
    with_usage: bool
    """At the end of a stream; a whole answer always has it."""


def parsed(raw: bytes, memory_budget: int) -> Asked:
    """What the body of a request asks for. Raises DataError for what is wrong or not served."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise DataError("the body is not JSON") from None
    if not isinstance(body, dict):
        raise DataError("the body is not a JSON object")
    for name, nothing in NOT_HERE.items():
        if body.get(name) not in (None, nothing):
            raise DataError(f"{name} other than {json.dumps(nothing)} is not served here")
    reply = Reply(
        messages=tuple(map(_message, _list(body.get("messages"), "messages"))),
        max_new_tokens=_longest(body),
        memory_budget=memory_budget,
        temperature=_number(body, "temperature", 0.0, 2.0),
        seed=int(_number(body, "seed", 0, 2**63 - 1)),
        stops=_stops(body.get("stop")),
    )
    return Asked(reply, body.get("stream") is True, body.get("stream_options") == {"include_usage": True})


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{name} must be a list with something in it")
    return value


def _message(told: Any) -> Message:
    """A message for the chat template; content may be text or a list of parts that are."""
    role = told.get("role") if isinstance(told, dict) else None
    if role not in ROLES:
        raise DataError(f"a message's role must be one of {', '.join(ROLES)}, not {role!r}")
    content = told.get("content")
    if isinstance(content, list):
        parts: list[Any] = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "\n".join(parts) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(content, str):
        raise DataError("a message's content must be text")
    return {"role": ROLES[role], "content": content}


def _longest(body: Body) -> int:
    told = body.get("max_completion_tokens") or body.get("max_tokens") or ANSWER_TOKENS
    if not isinstance(told, int) or isinstance(told, bool) or told < 1:
        raise DataError("max_tokens must be a whole number above 0")
    return told


def _number(body: Body, name: str, low: float, high: float) -> float:
    told = body.get(name) or 0
    if not isinstance(told, int | float) or isinstance(told, bool) or not low <= told <= high:
        raise DataError(f"{name} must be a number from {low:g} to {high:g}")
    return told


def _stops(told: Any) -> tuple[str, ...]:
    stops = [told] if isinstance(told, str) else told or []
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
