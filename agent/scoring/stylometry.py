"""Likeness of a text to others, whatever it says: the style reward of rows without constraints.

Cheap stylometric features, each compared with its mean and spread over the references (Burrows' Delta, Literary and
Linguistic Computing 17(3), 2002, with features of form in the place of word frequencies).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import log2
from statistics import fmean, pstdev

from agent.scoring.reward import words

LEAST_SPREAD = (0.15, 0.25, 0.02, 0.02, 0.05, 0.25)
"""Spread of each feature below which differences mean nothing, for references that are all alike."""
_SENTENCE = re.compile(r"[.!?]+(?=\s|$)")
_MARK = re.compile(r"[^\w\s]")


def form(text: str) -> tuple[float, ...]:
    """Features of a text's form.

    Words a sentence in doublings, letters a word, the shares of capitals among letters and of digits among characters,
    punctuation marks a word, and lines in doublings.
    """
    found = words(text)
    count = max(1, len(found))
    letters = [character for character in text if character.isalpha()]
    sentences = max(1, len(_SENTENCE.findall(text)))
    return (
        log2(count / sentences),
        sum(map(len, found)) / count,
        sum(character.isupper() for character in letters) / max(1, len(letters)),
        sum(character.isdigit() for character in text) / max(1, len(text)),
        len(_MARK.findall(text)) / count,
        log2(len(text.strip().splitlines()) or 1),
    )


@dataclass(frozen=True)
class Stylometry:
    """Mean and spread of each feature over some references."""

    means: tuple[float, ...]
    spreads: tuple[float, ...]

    @classmethod
    def of(cls, references: Iterable[str]) -> Stylometry:
        """The style of some references, of which there must be one at least."""
        columns = list(zip(*map(form, references), strict=True))
        spreads = (max(least, pstdev(column)) for least, column in zip(LEAST_SPREAD, columns, strict=True))
        return cls(tuple(map(fmean, columns)), tuple(spreads))

    def likeness(self, text: str) -> float:
        """Style reward of a text in [0, 1]: 1 within one spread of the mean in every feature, less the farther off.

        The mean over the features of 1 / (1 + spreads beyond the first); a blank text has 0.
        """
        if not text.strip():
            return 0.0
        compared = zip(form(text), self.means, self.spreads, strict=True)
        away = (abs(value - mean) / spread for value, mean, spread in compared)
        return fmean(1 / (1 + max(0.0, distance - 1)) for distance in away)
