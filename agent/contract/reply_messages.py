"""Messages between `generate`, `chat` and `serve` and the training worker. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from agent.contract.requests import Request

ANSWER_TOKENS = 512
"""Longest answer in tokens where nobody says otherwise."""
Message = dict[str, str]
"""Who says what: {"role", "content"}."""


@dataclass(frozen=True)
class Reply(Request["Replied"]):
    """Answer a conversation, text told as it comes; SIGUSR1 breaks the answer off.

    `temperature` 0 takes the likeliest token each time, above it tokens are drawn, the same for the same `seed`. An
    answer also ends before the first of `stops`. `memory_budget` is in MB, 0 for half of what is free.
    """

    messages: tuple[Message, ...]
    max_new_tokens: int
    memory_budget: int = 0
    temperature: float = 0.0
    seed: int = 0
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Said:
    """A text chunk of an answer."""

    text: str


@dataclass(frozen=True)
class Replied:
    """A whole answer; `ended` is stop, length or broken off."""

    text: str
    tokens: int
    prompt_tokens: int
    ended: str
    seconds: float
