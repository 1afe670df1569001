"""A training row as a neurosymbolic job works on it: its reference as it is now, how the model did, what was tried."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from agent.constraints import verify
from agent.data.formats import Example
from agent.decide.classifier import Standing
from agent.runner.rewriting import RewriteOutcome, replace_text
from agent.scoring.acceptance import objections
from agent.scoring.reward import content_reward, joint, style_reward, words
from agent.scoring.stylometry import Stylometry

RIGHT = 1.0
"""Joint reward of an example that is right."""
WORST_LOSS = 100.0
"""Nats per token that stand for an infinite loss, as of a row without a token to learn: JSON has no infinity."""
OWN_ANSWER = "own answer"
"""The source of a reference that the model being trained wrote itself."""


@dataclass(frozen=True)
class Answered:
    """The model's last answer to a row and its rewards; `text` is None for plain text, which asks nothing.

    `likeness` is the style reward without regard to constraints: how much the answer looks like the references.
    """

    text: str | None
    loss: float
    content: float
    style: float | None
    likeness: float


@dataclass(frozen=True)
class Row:
    """One training row between two rounds; `origin` is the row as it was enqueued."""

    origin: Example
    reference: str
    source: str = ""
    """Who wrote the reference: the remote's model, OWN_ANSWER, or nobody where it is the row's own."""
    answered: Answered | None = None
    loss_before: float | None = None
    trained: int = 0
    tried: int = 0
    waits: bool = False
    """Whether its rewrite waits for the remote."""
    rewrite: RewriteOutcome | None = None
    """What became of the last rewrite that was offered."""

    @cached_property
    def example(self) -> Example:
        """The row with its present reference."""
        return (
            self.origin
            if self.reference == self.origin.reference
            else replace_text(self.origin, "reference", self.reference)
        )

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The ids of its constraints, each once."""
        return tuple(dict.fromkeys(str(constraint["id"]) for constraint in self.origin.constraints))

    @cached_property
    def standing(self) -> Standing:
        """The row as the classifier sees it. The row must have been answered."""
        if self.answered is None:
            raise ValueError(f"row {self.origin.id} was not probed")
        content, style = rewards(self.origin, self.reference)
        return Standing(
            content=self.answered.content,
            style=self.answered.style,
            likeness=self.answered.likeness,
            reference_content=content,
            reference_style=style,
            loss=self.answered.loss,
            loss_before=self.loss_before,
            kinds=self.kinds,
            words=len(words(self.reference)),
            trained=self.trained,
            tried=self.tried,
        )

    @property
    def is_learnable(self) -> bool:
        """True if the reference has a token to learn within sequence_length."""
        return self.answered is not None and self.answered.loss < WORST_LOSS

    @property
    def is_right(self) -> bool:
        """True if answer and reference are both right."""
        return min(self.standing.reward, self.standing.reference_reward) >= RIGHT

    def after_probe(self, text: str | None, loss: float, styled: Stylometry, *, trained: bool) -> Row:
        """The row after the model was asked again.

        Plain text, which asks nothing, has the mean likelihood of its tokens for its content.
        """
        loss = min(WORST_LOSS, loss)  # in this order, NaN is worst too
        content, style = (math.exp(-loss), None) if text is None else rewards(self.origin, text)
        return replace(
            self,
            answered=Answered(text, loss, content, style, 1.0 if text is None else styled.likeness(text)),
            loss_before=self.answered.loss if self.answered else None,
            trained=self.trained + trained,
        )

    def with_own_answer(self) -> Row:
        """The row with the model's own answer for its reference where that is better."""
        if self.answered is None or self.answered.text is None or not self.answers_better():
            return self
        return self.with_reference(self.answered.text, OWN_ANSWER)

    def after_rewrite(self, told: RewriteOutcome, model: str) -> Row:
        """The row after a rewrite by the remote's `model` was accepted or refused."""
        tried = replace(self, rewrite=told, waits=False, tried=self.tried + 1)
        return tried.with_reference(told.text, model) if told.state == "remade" else tried

    def reward_of(self, text: str) -> float:
        """Joint reward of a text as an answer to this row."""
        return joint(*rewards(self.origin, text))

    def with_reference(self, text: str, source: str) -> Row:
        """The row with another reference."""
        return replace(self, reference=text, source=source)

    def answers_better(self) -> bool:
        """True if the model's own answer is right where the reference is not, and may stand in for it."""
        standing = self.standing
        if standing.reward < RIGHT or standing.reference_reward >= RIGHT or self.answered is None:
            return False
        return not objections(
            self.origin.reference,
            str(self.answered.text),
            prompt=self.origin.prompt[-1].content,
            answer=self.origin.answer,
            constraints=self.origin.constraints,
        )

    def to_json(self) -> dict[str, Any]:
        """Everything that `from_json` needs besides the example."""
        kept = {
            name: getattr(self, name) for name in ("reference", "source", "loss_before", "trained", "tried", "waits")
        }
        answered = vars(self.answered) if self.answered else None
        return {**kept, "answered": answered, "rewrite": self.rewrite.to_json() if self.rewrite else None}

    @classmethod
    def from_json(cls, origin: Example, kept: Mapping[str, Any]) -> Row:
        """The row that `to_json` wrote down."""
        answered = Answered(**kept["answered"]) if kept["answered"] else None
        rewrite = RewriteOutcome.from_json(kept["rewrite"]) if kept["rewrite"] else None
        return cls(origin, **{**kept, "answered": answered, "rewrite": rewrite})


def rewards(example: Example, text: str) -> tuple[float, float | None]:
    """Content and style reward of a text as an answer to a row; style is None without constraints or a prompt."""
    content = content_reward(text, example.reference, example.answer, example.answer_check)
    if not example.prompt:
        return content, None
    unmet = len(verify.faults(example.constraints, text, example.prompt[-1].content))
    return content, style_reward(unmet, len(example.constraints))
