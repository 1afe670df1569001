"""Messages between `export` and the training worker. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from agent.contract.requests import Request

SYSTEM, QUESTION, ANSWER, SECOND = "(SYSTEM)", "(QUESTION)", "(ANSWER)", "(SECOND)"
"""Marks in the conversations of `Templated`."""


@dataclass(frozen=True)
class Export(Request["Saved"]):
    """Write the adapter in folder `adapter` on the prepared base in folder `model` in a form that others serve.

    `form` is merged (into the existing folder `target`) or gguf (into the new file `target`).
    """

    model: str
    adapter: str
    form: str
    target: str


@dataclass(frozen=True)
class Template(Request["Templated"]):
    """Tell how the prepared base in folder `model` writes conversations."""

    model: str


@dataclass(frozen=True)
class Templated:
    """Conversations as the chat template writes them, with the marks below for what people say, and what ends a turn.

    `question` is one alone, `system` one under a system prompt (None where the template refuses that), `answered` one
    with its answer and a second question; each up to where the next answer starts. `bos` is what the tokenizer
    itself, and so whoever serves the model, puts before a text, empty where that is nothing.
    """

    question: str
    system: str | None
    answered: str
    stops: tuple[str, ...]
    bos: str


@dataclass(frozen=True)
class Saved:
    """The adapter is in its folder (not yet flushed: whoever publishes the folder does that)."""

    bytes: int
