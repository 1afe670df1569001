"""Write the example data into the folder of this script: `python examples/make_examples.py`.

The output depends on nothing but `content.py` and this file: the same sources give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import content

Row = dict[str, Any]

HANDBOOK = "the site handbook"
GENERAL = "general knowledge"
TRAINING_PHRASINGS = 3
HELD_OUT_PHRASINGS = 2
TRAINING_PAIRS = (0, 2, 3, 5)
HELD_OUT_PAIRS = (1, 6)
"""Distances from a fact's number to the constraints it is paired with: disjoint, so held-out pairs are new."""


@dataclass(frozen=True)
class Fact:
    """One thing to know: `topic` is `value`, and the questions that ask for it."""

    key: str
    topic: str
    value: str
    source: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def reference(self) -> str:
        """The answer as one short sentence."""
        return f"The {self.topic} is {self.value}."


def invented(kinds: dict[str, dict[str, str]]) -> list[Fact]:
    """The facts of a table of `content`, in its order."""
    return [
        _invented_fact(kind, place, device, value)
        for kind, devices in kinds.items()
        for place, (device, value) in enumerate(devices.items())
    ]


def _invented_fact(kind: str, place: int, device: str, value: str) -> Fact:
    topic, phrasings = content.PHRASINGS[kind]
    # A step of two makes every phrasing that is held out here one that a neighbour trains on.
    chosen = [
        phrasings[(2 * place + i) % len(phrasings)].format(device=device)
        for i in range(TRAINING_PHRASINGS + HELD_OUT_PHRASINGS)
    ]
    return Fact(
        key=f"{device.lower().replace(' ', '-')}.{kind}",
        topic=topic.format(device=device),
        value=value,
        source=HANDBOOK,
        training=tuple(chosen[:TRAINING_PHRASINGS]),
        held_out=tuple(chosen[TRAINING_PHRASINGS:]),
    )


def general_knowledge() -> list[Fact]:
    """The facts that the base model knows without training."""
    return [
        Fact(key, topic, value, GENERAL, phrasings[:-1], phrasings[-1:])
        for key, topic, value, phrasings in content.GENERAL_KNOWLEDGE
    ]


def phrased(facts: list[Fact]) -> Iterator[tuple[Fact, int, str, str]]:
    """Every question once, as (fact, number from 1, question, split)."""
    for fact in facts:
        for number, question in enumerate(fact.training + fact.held_out, start=1):
            yield fact, number, question, "train" if number <= len(fact.training) else "held_out"


def conversation(question: str, reference: str) -> list[dict[str, str]]:
    """One exchange in the shape of `messages`."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reference}]


def facts_rows() -> Iterator[Row]:
    """facts.jsonl: 24 facts, 72 rows to train on and 48 held out."""
    for fact, number, question, split in phrased(invented(content.FACTS)):
        yield {
            "id": f"{fact.key}.{number}",
            "messages": conversation(question, fact.reference),
            "answer": fact.value,
            "split": split,
        }


def alpaca_rows() -> Iterator[Row]:
    """facts-alpaca.jsonl: 24 other facts; every third question is the input of a general instruction."""
    for place, (fact, number, question, split) in enumerate(phrased(invented(content.ALPACA_FACTS))):
        instruction = content.ALPACA_INSTRUCTIONS[place // 3 % len(content.ALPACA_INSTRUCTIONS)]
        as_input = place % 3 == 0
        yield {
            "id": f"{fact.key}.{number}",
            "instruction": instruction if as_input else question,
            "input": question if as_input else "",
            "output": fact.reference,
            "answer": fact.value,
            "split": split,
        }


def box_rows() -> Iterator[Row]:
    """box.jsonl: three facts about one device in three phrasings each."""
    for fact in invented(content.BOX_FACTS):
        for question in fact.training:
            yield {"prompt": question, "completion": fact.reference, "answer": fact.value}


def mixed_facts() -> list[Fact]:
    """Four invented facts, then a known one, and so on, so that constraints meet both sorts."""
    facts = invented(content.MIXED_FACTS)
    for place, fact in enumerate(general_knowledge()):
        facts.insert(5 * place + 4, fact)
    return facts


def mixed_rows() -> Iterator[Row]:
    """mixed.jsonl: plain rows, then rows with a constraint, each fact with four constraints and two held-out ones."""
    facts = mixed_facts()
    yield from plain_rows(facts)
    yield from constrained_rows(facts, TRAINING_PAIRS, "train")
    yield from constrained_rows(facts, HELD_OUT_PAIRS, "held_out")


def plain_rows(facts: list[Fact]) -> Iterator[Row]:
    """Questions without a constraint; one held-out phrasing a fact."""
    for fact in facts:
        # The model knows these already: a few rows keep them, more would teach nothing.
        training = fact.training[:2] if fact.source == GENERAL else fact.training
        for number, question in enumerate(training + fact.held_out[:1], start=1):
            yield {
                "id": f"{fact.key}.plain-{number}",
                "messages": conversation(question, fact.reference),
                "answer": fact.value,
                "split": "train" if number <= len(training) else "held_out",
            }


def constrained_rows(facts: list[Fact], distances: tuple[int, ...], split: str) -> Iterator[Row]:
    """Each fact with the constraints at `distances` from its number; two of every five references obey."""
    ids = list(content.WORDINGS)
    for first, name in enumerate(ids):
        pairs = [fact for place, fact in enumerate(facts) if (first - place) % len(ids) in distances]
        for place, fact in enumerate(pairs):
            yield constrained_row(fact, name, place, split)


def constrained_row(fact: Fact, name: str, place: int, split: str) -> Row:
    """The `place`-th row of constraint `name`: wording, arguments and phrasing take turns."""
    arguments = content.ARGUMENTS.get(name, ({},))
    kwargs = arguments[place % len(arguments)]
    about, value = content.JSON_KEYS[place % len(content.JSON_KEYS)]
    wordings = content.WORDINGS[name]
    wording = wordings[(place + place // len(wordings)) % len(wordings)].format(about=about, value=value, **kwargs)
    question = fact.training[place % len(fact.training)]
    reference = OBEY[name](fact, kwargs, (about, value)) if place % 5 in {1, 3} else disobeying(fact, name)
    return {
        "id": f"{fact.key}.{name.partition(':')[2]}",
        "messages": conversation(f"{question} {wording}", reference),
        "answer": fact.value,
        "constraints": [{"id": name, "kwargs": kwargs}],
        "split": split,
    }


def disobeying(fact: Fact, name: str) -> str:
    """A right answer that breaks the constraint: the short sentence, or a long one with a comma."""
    if name in {"punctuation:no_comma", "length_constraints:number_words"}:
        return f"According to {fact.source}, the {fact.topic} is {fact.value}."
    return fact.reference


def bullets(fact: Fact, count: int) -> str:
    """The answer as two or three bullet points."""
    points = (f"Topic: {fact.topic}", f"Answer: {fact.value}", f"Source: {fact.source}")
    return "\n".join(f"* {point}" for point in points[:count])


OBEY: dict[str, Callable[[Fact, dict[str, Any], tuple[str, str]], str]] = {
    "change_case:english_lowercase": lambda fact, _kwargs, _keys: fact.reference.lower(),
    "change_case:english_capital": lambda fact, _kwargs, _keys: fact.reference.upper(),
    "detectable_format:json_format": lambda fact, _kwargs, keys: json.dumps(
        dict(zip(keys, (fact.topic, fact.value), strict=True))
    ),
    "startend:end_checker": lambda fact, kwargs, _keys: f"{fact.reference} {kwargs['end_phrase']}",
    "startend:quotation": lambda fact, _kwargs, _keys: f'"{fact.reference}"',
    "detectable_format:number_bullet_lists": lambda fact, kwargs, _keys: bullets(fact, kwargs["num_bullets"]),
    "punctuation:no_comma": lambda fact, _kwargs, _keys: fact.reference,
    "length_constraints:number_words": lambda fact, _kwargs, _keys: f"It is {fact.value}.",
}
"""By IFEval id: an answer to the fact that obeys the constraint."""

FILES = {
    "facts.jsonl": facts_rows,
    "facts-alpaca.jsonl": alpaca_rows,
    "mixed.jsonl": mixed_rows,
    "box.jsonl": box_rows,
}


def main() -> None:
    """Rewrite every data file beside this script."""
    for name, rows in FILES.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows()]
        Path(__file__).with_name(name).write_bytes("".join(lines).encode())
        print(f"{name}: {len(lines)} rows")


if __name__ == "__main__":
    main()
