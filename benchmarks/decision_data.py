"""Write the data of the decision benchmark into benchmarks/data/: `python -m benchmarks.decision_data`.

    even.jsonl      150 rows: 60 plain questions, 90 with a constraint (15 of each kind, 6 of which obey it)
    style.jsonl     150 rows: 30 plain questions, 120 with a constraint (20 of each kind, 8 of which obey it)
    held-out.jsonl  new pairings of fact and constraint (single, double), new wordings, new arguments, plain questions
    tuning.jsonl    pairings that even.jsonl has not and held-out.jsonl neither, for choosing the settings of the arms

The output depends on decision_content.py and this file alone. Rows carry more than the agent reads: `slice`, `fact`,
`invented` and `obeys` are the truth that only the benchmark looks at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import decision_content as content

Row = dict[str, Any]
FOLDER = Path(__file__).with_name("data")
OBEYING = {1, 3}
"""Of every five training rows of a constraint, those whose reference obeys it."""
EVEN, ALSO_STYLE, HELD_OUT = (0, 1, 3), 4, (2, 5)
"""Distances from a fact's number to the constraints that it is paired with: disjoint, so held-out pairs are new."""
DOUBLES_OF_A_FACT = 4


@dataclass(frozen=True)
class Fact:
    """One thing to know; `phrasings` are questions to train on, `held_out` those that are not."""

    key: str
    topic: str
    value: str
    invented: bool
    phrasings: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def reference(self) -> str:
        """The answer as one short sentence."""
        return f"The {self.topic} is {self.value}."


def facts() -> list[Fact]:
    """Four invented facts, then a known one, and so on, so that constraints meet both sorts."""
    found = [_invented(kind, name, value) for kind, ships in content.INVENTED.items() for name, value in ships.items()]
    for place, (key, topic, value, phrasings) in enumerate(content.KNOWN):
        known = Fact(key, topic, value, invented=False, phrasings=phrasings[:-1], held_out=phrasings[-1:])
        found.insert(5 * place + 4, known)
    return found


def _invented(kind: str, name: str, value: str) -> Fact:
    topic, phrasings = content.PHRASINGS[kind]
    asked = tuple(phrasing.format(name=name) for phrasing in phrasings)
    key = f"{name.lower().replace(' ', '-')}-{kind}"
    return Fact(key, topic.format(name=name), value, invented=True, phrasings=asked[:4], held_out=asked[4:])


# ---- constraints ----

Arguments = tuple[Any, ...]


def constraint(kind: str, arguments: Arguments) -> dict[str, Any]:
    """A constraint as it stands in a row."""
    kwargs: dict[str, Any] = {}
    if kind == content.JSON:
        kwargs = {"schema": {"type": "object", "required": list(arguments)}}
    elif kind == content.END:
        kwargs = {"end_phrase": arguments[0]}
    elif kind == content.BULLETS:
        kwargs = {"num_bullets": arguments[0]}
    return {"id": kind, "kwargs": kwargs}


def bullets(fact: Fact, text: str, count: int) -> str:
    """The answer as one to four bullet points."""
    points = (text, f"Topic: {fact.topic}", f"Answer: {fact.value}", "Source: the handbook")
    return "\n".join(f"* {point}" for point in points[:count])


KEEP: dict[str, Callable[[Fact, str, Arguments], str]] = {
    content.JSON: lambda fact, _text, keys: json.dumps(dict(zip(keys, (fact.topic, fact.value), strict=True))),
    content.BULLETS: lambda fact, text, count: bullets(fact, text, *count),
    content.END: lambda _fact, text, phrase: f"{text} {phrase[0]}",
    content.LOWERCASE: lambda _fact, text, _: text.lower(),
    content.UPPERCASE: lambda _fact, text, _: text.upper(),
    content.QUOTES: lambda _fact, text, _: f'"{text}"',
}
"""Functions that make a text keep each constraint, in the order in which several are applied."""


def obeying(fact: Fact, wanted: dict[str, Arguments]) -> str:
    """An answer that keeps all constraints."""
    text = fact.reference
    for kind, keep in KEEP.items():
        if kind in wanted:
            text = keep(fact, text, wanted[kind])
    return text


# ---- rows ----


def row(fact: Fact, part: str, number: int, question: str, wanted: dict[str, Arguments], *, obeys: bool) -> Row:
    """One row; `part` is the file's or slice's name."""
    kinds = "+".join(kind.partition(":")[2] for kind in wanted) or "plain"
    return {
        "id": f"{part}.{fact.key}.{kinds}.{number}",
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": obeying(fact, wanted) if obeys else fact.reference},
        ],
        "answer": fact.value,
        "constraints": [constraint(kind, arguments) for kind, arguments in wanted.items()],
        "slice": part,
        "fact": fact.key,
        "invented": fact.invented,
        "obeys": obeys,
    }


def plain(part: str, questions: Callable[[Fact], Sequence[str]]) -> Iterator[Row]:
    """Questions without a constraint."""
    for fact in facts():
        for number, question in enumerate(questions(fact)):
            yield row(fact, part, number, question, {}, obeys=True)


def worded(question: str, wanted: dict[str, Arguments], wording: int) -> str:
    """The question with each constraint in words; `wording` counts the wordings that it chooses from."""
    return " ".join(
        [question, *(content.WORDINGS[kind][wording].format(*arguments) for kind, arguments in wanted.items())]
    )


def paired(part: str, distances: Sequence[int], obeying: Collection[int] = OBEYING) -> Iterator[Row]:
    """Each fact with the constraints at `distances` from its number; `obeying` of every five rows obey."""
    kinds = list(content.WORDINGS)
    for first, kind in enumerate(kinds):
        pairs = [fact for place, fact in enumerate(facts()) if (first - place) % len(kinds) in distances]
        for place, fact in enumerate(pairs):
            wanted = {kind: _turn(content.ARGUMENTS[kind], place)}
            question = worded(_turn(fact.phrasings, place), wanted, (place + place // 4) % 4)
            yield row(fact, part, place, question, wanted, obeys=place % 5 in obeying)


def _turn(choices: Sequence[Any], place: int) -> Any:
    return choices[place % len(choices)]


def single() -> Iterator[Row]:
    """New pairings of a fact and a constraint, each in two phrasings and wordings."""
    yield from _new_pairs("single", wordings=(0, 2))


def wordings() -> Iterator[Row]:
    """The same pairings in wordings that no training row has."""
    yield from _new_pairs("wordings", wordings=(4, 5))


def _new_pairs(part: str, wordings: tuple[int, int]) -> Iterator[Row]:
    kinds = list(content.WORDINGS)
    for place, fact in enumerate(facts()):
        for distance in HELD_OUT:
            kind = kinds[(place + distance) % len(kinds)]
            wanted = {kind: _turn(content.ARGUMENTS[kind], place)}
            for number, wording in enumerate(wordings):
                # Training has four wordings: a shift by the fact's number lets the slice have all of them.
                shifted = wording if wording >= 4 else (wording + place) % 4
                question = worded(_turn(fact.phrasings, place + number), wanted, shifted)
                yield row(fact, part, number, question, wanted, obeys=True)


def double() -> Iterator[Row]:
    """Two constraints at once, which no training row has."""
    for place, fact in enumerate(facts()):
        for number in range(DOUBLES_OF_A_FACT):
            pair = _turn(content.DOUBLES, place + 2 * number + place // len(content.DOUBLES))
            wanted = {kind: _turn(content.ARGUMENTS[kind], place) for kind in pair}
            question = worded(_turn(fact.phrasings, place + number), wanted, (place + number) % 4)
            yield row(fact, "double", number, question, wanted, obeys=True)


def arguments() -> Iterator[Row]:
    """Arguments of a constraint that no training row has."""
    for place, fact in enumerate(facts()):
        for number in range(4):
            kind = (content.JSON, content.END, content.BULLETS)[(place + number) % 3]
            wanted = {kind: _turn(content.NEW_ARGUMENTS[kind], number // 3 + place // 3)}
            question = worded(_turn(fact.phrasings, place + number), wanted, (place + number) % 4)
            yield row(fact, "arguments", number, question, wanted, obeys=True)


def held_out() -> Iterator[Row]:
    """All slices that the arms are measured on."""
    yield from single()
    yield from double()
    yield from wordings()
    yield from arguments()
    yield from plain("plain", lambda fact: fact.held_out)


def even() -> Iterator[Row]:
    """The training rows of the main comparison."""
    yield from plain("even", lambda fact: fact.phrasings[:2])
    yield from paired("even", EVEN)


def style() -> Iterator[Row]:
    """The training rows with less content and more style."""
    yield from plain("style", lambda fact: fact.phrasings[:1])
    yield from paired("style", (*EVEN, ALSO_STYLE))


def tuning() -> Iterator[Row]:
    """Rows to choose settings by, for even.jsonl: pairings that neither it nor a held-out slice has, four of each."""
    kinds = list(content.WORDINGS)
    for place, fact in enumerate(facts()):
        kind = kinds[(place + ALSO_STYLE) % len(kinds)]
        wanted = {kind: _turn(content.ARGUMENTS[kind], place)}
        for number in range(4):
            question = worded(_turn(fact.phrasings, place + number), wanted, number)
            yield row(fact, "tuning", number, question, wanted, obeys=True)


FILES = {"even": even, "style": style, "held-out": held_out, "tuning": tuning}


def main() -> None:
    """Rewrite every file."""
    FOLDER.mkdir(exist_ok=True)
    for name, rows in FILES.items():
        lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in rows()]
        (FOLDER / f"{name}.jsonl").write_bytes("".join(lines).encode())
        print(f"{name}.jsonl: {len(lines)} rows")


if __name__ == "__main__":
    main()
