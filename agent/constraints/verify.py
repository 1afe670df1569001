"""Verifiable constraints on a text: what is wrong with it, in words that a small LLM can act on.

A constraint is `{"id": "length_constraints:number_words", "kwargs": {"relation": "less than", "num_words": 40}}`.
Ids and arguments are IFEval's (`ifeval`) and three of our own (`extra_constraints`); an argument that is null is
absent. All functions are pure. The lines that they give go into prompts and cache keys: changing one makes recorded
answers of the remote LLM miss.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from agent.constraints.constraint_types import Check
from agent.constraints.extra_constraints import OWN_CHECKS
from agent.constraints.ifeval import CHECKS
from agent.contract.lines import kind, quote

_CHECKS = {**CHECKS, **OWN_CHECKS}
_REPEAT = "combination:repeat_prompt"


def fault(constraint: dict[str, Any], text: str, prompt: str = "") -> str | None:
    """None if the text obeys, else what is wrong with it in one short line, such as `12 words, must be less than 8`.

    `prompt` is what combination:repeat_prompt compares with where the constraint does not say. A blank text obeys
    nothing. Raises ValueError for a constraint that has a `problem`.
    """
    check, arguments = _parse(constraint)
    if constraint["id"] == _REPEAT:
        arguments.setdefault("prompt_to_repeat", prompt)
        if not arguments["prompt_to_repeat"].strip():
            raise ValueError(f"{_REPEAT} needs a prompt_to_repeat, or the prompt")
    return check.fault(text, **arguments) if text.strip() else "the answer is empty"


def faults(constraints: Iterable[dict[str, Any]], text: str, prompt: str = "") -> tuple[str, ...]:
    """The faults of a text, in the order of its constraints; empty if it obeys them all. Raises as `fault` does."""
    found = (fault(constraint, text, prompt) for constraint in constraints)
    return tuple(line for line in found if line is not None)


def describe(constraint: dict[str, Any]) -> str:
    """The constraint as one imperative English sentence: `Write fewer than 8 words.` Raises as `fault` does."""
    check, arguments = _parse(constraint)
    return check.describe(**arguments)


def problem(constraint: dict[str, Any]) -> str | None:
    """Say what is wrong with a constraint itself, in one line; None if texts can be checked with it."""
    identifier, arguments = constraint.get("id"), constraint.get("kwargs")
    if not isinstance(identifier, str) or identifier not in _CHECKS:
        return f"unknown constraint {quote(str(identifier))}{_suggestion(str(identifier))}"
    if arguments is not None and not isinstance(arguments, dict):
        return f"kwargs of {identifier} is {kind(arguments)}, must be an object"
    wrong = _wrong_arguments(_CHECKS[identifier], _drop_nulls(arguments))
    return f"{identifier}: {wrong}" if wrong else None


def _suggestion(identifier: str) -> str:
    """The id that is most like an unknown one, as a whole or in its part after the colon; all ids if none is."""
    if alike := difflib.get_close_matches(identifier, _CHECKS, n=1):
        return f", did you mean {alike[0]}?"
    by_name = {known.partition(":")[2]: known for known in _CHECKS}
    if alike := difflib.get_close_matches(identifier.rpartition(":")[2], by_name, n=1):
        return f", did you mean {by_name[alike[0]]}?"
    return f": known are {', '.join(_CHECKS)}"


def _drop_nulls(arguments: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (arguments or {}).items() if value is not None}


def _wrong_arguments(check: Check, arguments: dict[str, Any]) -> str | None:
    names = ", ".join(check.arguments) or "none"
    for name in arguments:
        if name not in check.arguments:
            return f"unknown argument {quote(name)}, it takes {names}"
    for name, argument in check.arguments.items():
        if name not in arguments and not argument.optional:
            return f"{name} is missing, it takes {names}"
        if name in arguments and (wrong := argument.wrong(arguments[name])):
            return f"{name} {wrong}"
    return check.conflict(**arguments)


def _parse(constraint: dict[str, Any]) -> tuple[Check, dict[str, Any]]:
    if wrong := problem(constraint):
        raise ValueError(wrong)
    return _CHECKS[constraint["id"]], _drop_nulls(constraint.get("kwargs"))
