"""Rewards of an answer, in [0, 1]: content, what it should say; style, whether it keeps its constraints."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal

_WORD = re.compile(r"\w+(?:(?:['\u2019-]|(?<=\d)[.,:](?=\d))\w+)*")
_NUMBER = re.compile(
    r"(?<!\w)(?<!\d\.)(?:(?<![\w)\]}%])-)?[$€£]?"  # the dash of 5-7, 5%-7% and (a)-7 is no sign
    r"(?:\d+(?:,\d{3}(?!\d))*(?:\.\d+)?|(?<!\.)\.\d+)(?:[eE][-+]?\d{1,3}(?!\w))?"
)
_MINUS = str.maketrans("\u2212", "-")
_NO_DIGITS = str.maketrans("", "", ",$€£")


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text; `1,024.5`, `10:30` and `half-open` are one word, `port:415` is two."""
    return _WORD.findall(text.casefold())


def content_reward(text: str, reference: str, answer: str | None, check: str = "contains") -> float:
    """Reward of a generated `text`.

    With an `answer`, 1.0 if the text passes its `check`, else 0.0:

    - contains: the answer's words occur in the text as they are, in order and next to each other; `415` is not found
      in `1415`;
    - exact: the text's words are those of the answer and no others;
    - number: the last number in the text equals the answer, as GSM8K is judged (arXiv 2110.14168).

    Without an answer, the F1 overlap of words with the `reference`, as in SQuAD (arXiv 1606.05250), which ignores case
    and punctuation. More overlap never lowers it.
    """
    if answer is None:
        found, expected = words(text), words(reference)
        common = sum((Counter(found) & Counter(expected)).values())
        return 2 * common / (len(found) + len(expected)) if common else float(not found and not expected)
    return float(ANSWER_CHECKS[check](text, answer))


def last_number(text: str) -> Decimal | None:
    """The last number in a text, thousands separators and currency signs ignored; None if there is none."""
    found = _NUMBER.findall(text.translate(_MINUS))
    return Decimal(found[-1].translate(_NO_DIGITS)) if found else None


def _same_number(text: str, answer: str) -> bool:
    number = last_number(text)
    return number is not None and number == last_number(answer)


NUMBER = "number"
"""The check that needs a number in the answer."""
ANSWER_CHECKS: dict[str, Callable[[str, str], bool]] = {
    "contains": lambda text, answer: _contains(words(text), words(answer)),
    "exact": lambda text, answer: words(text) == words(answer) != [],
    NUMBER: _same_number,
}
"""How a text is compared with a row's answer, by the name that rows use; the first is the default."""


def style_reward(unmet: int, constraints: int) -> float | None:
    """Share of the constraints that a text meets, `unmet` of them it does not; None where there are none."""
    return 1 - unmet / constraints if constraints else None


def _contains(text: Sequence[str], part: Sequence[str]) -> bool:
    return bool(part) and any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))


def joint(content: float, style: float | None) -> float:
    """One reward of the two: their mean, or the content alone where nothing is asked of the style."""
    return content if style is None else (content + style) / 2
