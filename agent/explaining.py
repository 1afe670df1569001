"""Decisions in words: the reason stored with a choice, and what `explain` prints."""

from __future__ import annotations

from dataclasses import asdict

from agent.classifier import FEATURES, Choice, Gains
from agent.decision_store import Chosen
from agent.rows import Row


def chosen(row: Row, choice: Choice, *, waits: bool) -> Chosen:
    """A choice as it is stored, with its reason."""
    standing = asdict(row.standing) | {"answer": row.answered.text if row.answered else None}
    features = dict(zip(FEATURES, (round(value, 4) for value in choice.features), strict=True))
    gains = {"features": features, "weights": asdict(choice.weights), "rewrite": asdict(choice.rewrite)}
    return Chosen(row.origin.id, row.origin.line, choice.state, _reason(row, choice, waits=waits), standing, gains)


def _reason(row: Row, choice: Choice, *, waits: bool) -> str:
    if choice.state == "satisfied":
        return "the model's answer is right and keeps every constraint"
    parts = [_in_words("tuning", choice.weights), _in_words("rewriting", choice.rewrite)]
    if row.waits:
        parts.append("the remote is to be asked again later")
    elif waits and choice.tune:
        parts.append("rewritten first, tuned on afterwards")
    return "; ".join(parts)


def _in_words(action: str, gains: Gains) -> str:
    sign = ">" if gains.worth_it else "≤"
    return f"{action} may gain {gains.hoped:.2f} (expected {gains.expected:.2f}) {sign} its cost {gains.cost:.2f}"
