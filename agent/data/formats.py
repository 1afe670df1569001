"""The five shapes of people's data, and the one shape everything else works with: `Example`.

    messages    {"messages": [{"role": "user", "content": "..."}, ...]}           OpenAI, TRL
    completion  {"prompt": "...", "completion": "..."}                            TRL; also as two lists of messages
    text        {"text": "..."}                                                   learned as plain text
    alpaca      {"instruction": "...", "input": "...", "output": "..."}           input may be missing
    sharegpt    {"conversations": [{"from": "human", "value": "..."}, ...]}

Every shape may carry id, split, answer, answer_check and constraints; null means absent, other keys are ignored. In the
place of constraints, IFEval's own instruction_id_list and kwargs are read.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from agent.constraints.verify import problem
from agent.contract.lines import kind, quote
from agent.data.jsonl import BadRow, check_text
from agent.scoring.reward import ANSWER_CHECKS, NUMBER, last_number

TRAIN = "train"
HELD_OUT = "held_out"
SPLITS = {
    TRAIN: TRAIN,
    **dict.fromkeys(("held_out", "held-out", "heldout", "test", "validation", "valid", "val", "dev", "eval"), HELD_OUT),
}
"""What people call the two parts of a data set, and what we call them."""

_IFEVAL = ("instruction_id_list", "kwargs")
"""Where a row of IFEval (arXiv 2311.07911) has its constraints."""
_OPTIONAL = ("input", "id", "split", "answer", "answer_check", "constraints", *_IFEVAL)

MAX_ID = 200
"""Longest example id in characters."""

_REPEAT = "combination:repeat_prompt"
"""The constraint that needs a prompt."""
_ROLES = {name: name for name in ("system", "user", "assistant", "tool")}
_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One row of data: a conversation whose last message, by the assistant, is what the model shall learn.

    `split` is "train", "held_out" or None where the data leaves it open; `constraints` are
    {"id": str, "kwargs": object} with ids as in IFEval; `line` counts from 1 in the file it came from.
    """

    id: str
    messages: tuple[Message, ...]
    split: str | None
    answer: str | None
    constraints: tuple[dict[str, Any], ...]
    line: int
    answer_check: str = "contains"
    """How a generated text is compared with `answer`: a name in `agent.scoring.reward.ANSWER_CHECKS`."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last; none for plain text."""
        return self.messages[:-1]

    @property
    def reference(self) -> str:
        """The text of the last message."""
        return self.messages[-1].content

    def to_json(self) -> str:
        """One ASCII line without newline: the field names are the keys, and `messages` is a shape people may send."""
        return json.dumps(asdict(self), allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> Example:
        """The example `to_json` wrote; raises ValueError, KeyError or TypeError for any other line."""
        fields = json.loads(line)
        messages = tuple(Message(**message) for message in fields.pop("messages"))
        return cls(messages=messages, constraints=tuple(fields.pop("constraints")), **fields)


@dataclass(frozen=True)
class Shape:
    """A layout of a row: the keys that must be there (and not null), and how they become messages."""

    name: str
    keys: tuple[str, ...]
    messages: Callable[[dict[str, Any]], tuple[Message, ...]]

    def fits(self, record: dict[str, Any]) -> bool:
        """True if all required keys are there."""
        return all(record.get(key) is not None for key in self.keys)


def detect(record: dict[str, Any]) -> Shape:
    """The shape of a row by its keys; raises BadRow if it is none of the five."""
    for shape in SHAPES:
        if shape.fits(record):
            return shape
    found = ", ".join(map(quote, list(record)[:6])) or "none"
    known = " or ".join("+".join(shape.keys) for shape in SHAPES)
    raise BadRow(f"unknown shape, the keys are: {found}", f"use the keys {known}")


def to_example(record: dict[str, Any], shape: Shape, line: int) -> Example:
    """A row of the given shape as an example; raises BadRow if a field is not what it should be."""
    if not shape.fits(record):
        raise BadRow(
            f"the row lacks {' and '.join(map(quote, shape.keys))}, the shape of the rows before it",
            "use one shape in a file",
        )
    check_text([record.get(key) for key in (*shape.keys, *_OPTIONAL)])
    messages = shape.messages(record)
    last = messages[-1]
    if last.role != "assistant":
        raise BadRow(f"the last message is by the {last.role}", "end the conversation with the assistant's message")
    if not last.content.strip():
        raise BadRow("the last message is blank", "write what the model shall answer, or remove the line")
    answer = _answer(record.get("answer"))
    return Example(
        id=_identifier(record.get("id"), line),
        messages=messages,
        split=_split(record.get("split")),
        answer=answer,
        constraints=_constraints(_raw_constraints(record), messages[:-1]),
        line=line,
        answer_check=_answer_check(record.get("answer_check"), answer),
    )


# ---- messages ----


def _from_messages(record: dict[str, Any]) -> tuple[Message, ...]:
    return _conversation(record["messages"], "messages", ("role", "content"), _ROLES)


def _from_sharegpt(record: dict[str, Any]) -> tuple[Message, ...]:
    return _conversation(record["conversations"], "conversations", ("from", "value"), _SHAREGPT_ROLES)


def _from_completion(record: dict[str, Any]) -> tuple[Message, ...]:
    if isinstance(record["prompt"], list):
        prompt = _conversation(record["prompt"], "prompt", ("role", "content"), _ROLES)
        return prompt + _conversation(record["completion"], "completion", ("role", "content"), _ROLES)
    return _turns(_string(record["prompt"], "prompt"), _string(record["completion"], "completion"))


def _from_alpaca(record: dict[str, Any]) -> tuple[Message, ...]:
    instruction, more = _string(record["instruction"], "instruction"), record.get("input")
    if more is not None and _string(more, "input").strip():
        instruction = f"{instruction}\n\n{more}"
    return _turns(instruction, _string(record["output"], "output"))


def _from_text(record: dict[str, Any]) -> tuple[Message, ...]:
    return (Message("assistant", _string(record["text"], "text")),)


def _turns(question: str, answer: str) -> tuple[Message, ...]:
    return Message("user", question), Message("assistant", answer)


def _conversation(value: Any, where: str, keys: tuple[str, str], roles: dict[str, str]) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else kind(value)
        raise BadRow(f'"{where}" is {found}', f'make it a list of {{"{keys[0]}": ..., "{keys[1]}": ...}}')
    return tuple(_message(item, f"{where}[{index}]", keys, roles) for index, item in enumerate(value))


def _message(item: Any, where: str, keys: tuple[str, str], roles: dict[str, str]) -> Message:
    role_key, text_key = keys
    if not isinstance(item, dict):
        raise BadRow(f"{where} is {kind(item)}", f'make it {{"{role_key}": ..., "{text_key}": ...}}')
    role = item.get(role_key)
    if not isinstance(role, str) or role not in roles:
        found = quote(role) if isinstance(role, str) else kind(role)
        raise BadRow(f'"{role_key}" of {where} is {found}', f"use one of {', '.join(roles)}")
    return Message(roles[role], _content(item.get(text_key), f"{where}.{text_key}"))


def _content(value: Any, where: str) -> str:
    if not isinstance(value, list):
        return _string(value, where)
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise BadRow(f'"{where}" has a part that is not text', 'keep only parts {"type": "text", "text": ...}')
    return "".join(_string(part.get("text"), f"{where}[].text") for part in value)


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f'"{where}" is {kind(value)}', "make it a string")
    return value


# ---- optional fields ----


def _identifier(value: Any, line: int) -> str:
    if value is None:
        return f"line-{line}"
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRow(f'"id" is {kind(value)}', "make it a string or an integer, or leave it out")
    name = str(value)
    if not name.strip() or len(name) > MAX_ID:
        raise BadRow(f'"id" has {len(name)} characters', f"use 1 to {MAX_ID} characters, not all blank")
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise BadRow(f'"id" holds a control character: {quote(name)}', "remove it")
    return name


def _split(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in SPLITS:
        found = quote(value) if isinstance(value, str) else kind(value)
        raise BadRow(f'"split" is {found}', f'use "{TRAIN}" or "{HELD_OUT}", or leave it out')
    return SPLITS[value]


def _answer(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f'"answer" is {kind(value)}', "make it a string or a number, or leave it out")
    if not str(value).strip():
        raise BadRow('"answer" is blank', "write the answer, or leave it out")
    return str(value)


def _answer_check(value: Any, answer: str | None) -> str:
    names = tuple(ANSWER_CHECKS)
    if value is None:
        return names[0]
    if value not in names:
        found = quote(value) if isinstance(value, str) else kind(value)
        raise BadRow(f'"answer_check" is {found}', f"use one of {', '.join(names)}, or leave it out")
    if value == NUMBER and answer is not None and last_number(answer) is None:
        raise BadRow(f'"answer" holds no number: {quote(answer)}', 'write the number, or leave "answer_check" out')
    return str(value)


def _raw_constraints(record: dict[str, Any]) -> Any:
    """The constraints of a row, or those of a row of IFEval: a list of ids, and one of as many objects of kwargs."""
    ids, kwargs = (record.get(key) for key in _IFEVAL)
    if record.get("constraints") is not None or ids is None:
        return record.get("constraints")
    if not isinstance(ids, list) or not isinstance(kwargs, list) or len(ids) != len(kwargs):
        found = f'"{_IFEVAL[0]}" and "{_IFEVAL[1]}" are not two lists of the same length'
        raise BadRow(found, "give one object of kwargs for each id, as IFEval does")
    return [{"id": name, "kwargs": arguments} for name, arguments in zip(ids, kwargs, strict=True)]


def _constraints(value: Any, prompt: tuple[Message, ...]) -> tuple[dict[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise BadRow(f'"constraints" is {kind(value)}', 'make it a list of {"id": ..., "kwargs": {...}}')
    asked = prompt[-1].content if prompt else ""
    return tuple(_constraint(item, f"constraints[{index}]", asked) for index, item in enumerate(value))


def _constraint(item: Any, where: str, prompt: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise BadRow(f"{where} is {kind(item)}", 'make it {"id": ..., "kwargs": {...}}')
    name, kwargs = item.get("id"), item.get("kwargs")
    if not isinstance(name, str) or not name.strip():
        raise BadRow(f'"id" of {where} is not a name', 'use an id such as "length_constraints:number_words"')
    if kwargs is not None and not isinstance(kwargs, dict):
        raise BadRow(f'"kwargs" of {where} is {kind(kwargs)}', "make it an object, or leave it out")
    constraint: dict[str, Any] = {"id": name, "kwargs": kwargs or {}}
    wrong = problem(constraint)
    if wrong:
        raise BadRow(f"{where}: {wrong}", "use ids and kwargs as in IFEval, or leave the constraint out")
    if name == _REPEAT and constraint["kwargs"].get("prompt_to_repeat") is None and not prompt.strip():
        raise BadRow(f"{where}: there is no prompt to repeat", 'give "prompt_to_repeat", or leave the constraint out')
    return constraint


# Rows of well-known data sets have the keys of several shapes (Alpaca's also carry "text", UltraChat's "prompt"):
# the richer shape comes first.
SHAPES = (
    Shape("messages", ("messages",), _from_messages),
    Shape("sharegpt", ("conversations",), _from_sharegpt),
    Shape("completion", ("prompt", "completion"), _from_completion),
    Shape("alpaca", ("instruction", "output"), _from_alpaca),
    Shape("text", ("text",), _from_text),
)
