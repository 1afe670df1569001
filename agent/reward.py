"""Rewards of an answer, in [0, 1]: content, what it should say; style, whether it keeps its constraints."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"\w+(?:(?:['\u2019-]|(?<=\d)[.,:](?=\d))\w+)*")


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text; `1,024.5`, `10:30` and `half-open` are one word, `port:415` is two."""
    return _WORD.findall(text.casefold())


def content_reward(text: str, reference: str, answer: str | None) -> float:
    """Reward of a generated `text`.

    With an `answer`, 1.0 if its words occur in the text as they are, in order and next to each other, else 0.0;
    `415` is not found in `1415`. Without one, the F1 overlap of words with the `reference`, as in SQuAD
    (arXiv 1606.05250), which ignores case and punctuation. More overlap never lowers it.
    """
    if answer is not None:
        return float(_contains(words(text), words(answer)))
    return _overlap(words(text), words(reference))


def style_reward(unmet: int, constraints: int) -> float | None:
    """Share of the constraints that a text meets, `unmet` of them it does not; None where there are none."""
    return 1 - unmet / constraints if constraints else None


def _contains(text: Sequence[str], part: Sequence[str]) -> bool:
    return bool(part) and any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))


def _overlap(text: Sequence[str], reference: Sequence[str]) -> float:
    common = sum((Counter(text) & Counter(reference)).values())
    return 2 * common / (len(text) + len(reference)) if common else float(not text and not reference)
