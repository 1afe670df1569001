"""Verifiable constraints beyond IFEval: a JSON Schema, a regular expression, and a length in characters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from agent.constraints import linear_regex
from agent.constraints.constraint_types import COUNT, Argument, Check
from agent.constraints.ifeval import json_value
from agent.contract.lines import ASCII_MARK, quantity, shorten_line

LONGEST_MESSAGE = 150
"""Characters of what the validator says about a value; it may quote all of the value."""
_REFUSED = {"pattern": str, "patternProperties": dict, "$id": str, "$dynamicRef": str}
"""Keywords and what they hold: regular expressions, which the validator would hand to a matcher that backtracks, and
references that cannot be checked beforehand. A property may have such a name: what it holds is another type."""


def _json_schema(text: str, *, schema: dict[str, Any]) -> str | None:
    from jsonschema.exceptions import best_match  # noqa: PLC0415  tens of milliseconds

    value, fault = json_value(text)
    if fault:
        return fault
    try:
        error = best_match(_validator(schema).iter_errors(value))
    except RecursionError:
        return "the JSON is nested too deeply to be checked"
    return None if error is None else f"the JSON breaks its schema at {error.json_path}: {_short(error.message)}"


def _validator(schema: dict[str, Any]) -> Any:
    """A validator that reads nothing from the network; it raises ValueError for a reference that leads nowhere."""
    from jsonschema import Draft202012Validator, validators  # noqa: PLC0415
    from referencing import Registry  # noqa: PLC0415

    return validators.validator_for(schema, default=Draft202012Validator)(schema, registry=Registry())


def _wrong_schema(value: Any) -> str | None:
    from jsonschema import SchemaError  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    if not isinstance(value, dict):
        return "must be a JSON Schema, an object"
    for key, item in _members(value):
        if isinstance(item, _REFUSED.get(key, ())):
            return f'must not use "{key}", which cannot be checked safely'
    try:
        type(validator := _validator(value)).check_schema(value)
        _resolve_references(value)
        validator.is_valid(None)
    except SchemaError as fault:
        return f"is not a JSON Schema: {_short(fault.message)}"
    except Unresolvable as fault:
        return f'refers to "{fault.ref}", which is not in the schema'
    except RecursionError:
        return "refers to itself without end"
    return None


def _resolve_references(schema: dict[str, Any]) -> None:
    from referencing import Registry  # noqa: PLC0415
    from referencing.jsonschema import DRAFT202012  # noqa: PLC0415

    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    for key, item in _members(schema):
        if key == "$ref" and isinstance(item, str):
            resolver.lookup(item)


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of all objects in a JSON value."""
    if isinstance(value, dict):
        yield from value.items()
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from _members(item)


def _short(message: str) -> str:
    return shorten_line(message, LONGEST_MESSAGE, ASCII_MARK)


def _regex(text: str, *, pattern: str) -> str | None:
    return None if linear_regex.matches(pattern, text.strip()) else f"does not match the regular expression {pattern}"


def _wrong_pattern(value: Any) -> str | None:
    if not isinstance(value, str) or not value:
        return "must be a regular expression"
    try:
        linear_regex.matches(value, "")
    except ValueError as fault:
        return f"is refused: {fault}"
    return None


def _max_characters(text: str, *, max_characters: int) -> str | None:
    return None if len(text) <= max_characters else f"{len(text)} characters, must be at most {max_characters}"


OWN_CHECKS = {
    "format:json_schema": Check(
        _json_schema,
        lambda schema: (
            "Answer as JSON that matches this JSON Schema (a ```json fence is allowed): "
            + json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
        ),
        {"schema": Argument(_wrong_schema)},
    ),
    "format:regex": Check(
        _regex,
        lambda pattern: f"Make the whole answer match this regular expression: {pattern}",
        {"pattern": Argument(_wrong_pattern)},
    ),
    "length_constraints:max_characters": Check(
        _max_characters,
        lambda max_characters: f"Write at most {quantity(max_characters, 'character')}.",
        {"max_characters": COUNT},
    ),
}
"""Our own constraints by id. A regular expression has to match the whole text, without the whitespace around it."""
