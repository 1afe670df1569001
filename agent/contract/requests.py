"""The base of every request to a worker, which names the class of its answer. Standard library only."""

from __future__ import annotations

import typing
from typing import Generic, TypeVar

AnswerT = TypeVar("AnswerT")


class Request(Generic[AnswerT]):
    """A message to a worker: `class Ping(Request["Ponged"])` is answered by a Ponged, or by an error."""


def answer_name(request: Request[AnswerT]) -> str:
    """The name of the class of a request's answer."""
    (base,) = type(request).__orig_bases__  # type: ignore[attr-defined]
    (answer,) = typing.get_args(base)
    return str(answer.__forward_arg__)
