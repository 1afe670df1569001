"""A model's results on held-out rows, and the card that tells people about them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from agent.scoring.gate import Measured
from agent.scoring.reward import joint

METRICS = {"content": "content reward", "style": "style reward", "loss": "loss, nats/token"}
"""What is measured on held-out rows, as a version's card calls it."""


@dataclass(frozen=True)
class Evaluation:
    """Held-out results, in the order of the held-out rows.

    Attributes:
        content: content reward of each row that has a prompt (plain text has none).
        style: style reward of each row that has a prompt, None where the row has no constraint.
        losses: mean loss of each row in nats per target token.
        answers: the greedy answer to each prompt: {"id", "text"}.
        kinds: the constraint ids of each row that has a prompt.
        likeness: how much each answer looks like the references to learn from (see agent.scoring.stylometry).
        earlier: rewards on held-out rows of earlier jobs, by what those are called.
    """

    content: list[float]
    style: list[float | None]
    losses: list[float]
    answers: list[dict[str, str]]
    kinds: list[list[str]] = field(default_factory=list)
    likeness: list[float] = field(default_factory=list)
    earlier: dict[str, list[float]] = field(default_factory=dict)

    @property
    def rewards(self) -> tuple[float, ...]:
        """Joint reward of each row that has a prompt."""
        return tuple(joint(content, style) for content, style in zip(self.content, self.style, strict=True))

    @property
    def measurement(self) -> Measured:
        """The gate's figures: content, or the mean of content and style where a row has constraints."""
        metric = "content reward" if all(style is None for style in self.style) else "mean of content and style reward"
        return Measured(self.rewards, tuple(self.losses), metric, self.slices)

    @property
    def slices(self) -> dict[str, tuple[float, ...]]:
        """Rewards that must not fall, by name: content, style, each kind of constraint, earlier jobs' held-out rows."""
        likeness = [alike for alike, style in zip(self.likeness, self.style, strict=False) if style is None]
        found: dict[str, list[float]] = {"content": self.content, **({"likeness": likeness} if likeness else {})}
        # A job that an older version of this program began has measured no kinds.
        for style, reward, kinds in zip(self.style, self.rewards, self.kinds or [[]] * len(self.style), strict=True):
            if style is not None:
                found.setdefault("style", []).append(style)
            for kind in dict.fromkeys(kinds):
                found.setdefault(kind, []).append(reward)
        return {name: tuple(rewards) for name, rewards in {**found, **self.earlier}.items()}

    @property
    def means(self) -> dict[str, float | None]:
        """Mean content reward and loss, None where there was nothing to measure; with constraints, style reward too."""
        styles = [style for style in self.style if style is not None]
        means = {"content": _mean(self.content), "style": _mean(styles), "loss": _mean(self.losses)}
        return means if styles else {"content": means["content"], "loss": means["loss"]}


def _mean(values: list[float]) -> float | None:
    return round(statistics.fmean(values), 4) if values else None


def model_card(about: dict[str, Any]) -> str:
    """README.md of a version: what it is, how good it is, how to use it."""
    figures = about["figures"]
    metrics = [(key, label) for key, label in METRICS.items() if key in figures["after"]]
    rows = "\n".join(
        f"| {label} | {_show(figures['before'][key])} | {_show(figures['after'][key])} |" for key, label in metrics
    )
    libraries = ", ".join(f"{name} {number}" for name, number in about["libraries"].items())
    story = {"numeric": _numeric, "symbolic": _symbolic}.get(about["mode"], _neurosymbolic)
    return f"""---
base_model: {about["base"]}
library_name: peft
tags: [lora, qlora, nslora-agent]
---
# Version for {about["base"]}

Made by nslora-agent {about["software"]} from `{about["file"]}` (job {about["job"]}, parent version {about["parent"]}),
with {libraries}.

{about["verdict"]["reason"]}

| {figures["held_out_rows"]} held-out rows | before | after |
| --- | --- | --- |
{rows}

{story(about)}
All figures: `manifest.json`.
"""


def _numeric(about: dict[str, Any]) -> str:
    figures, settings = about["figures"], about["settings"]
    rows, steps, tokens = figures["train_rows"], figures["steps"], figures["tokens"]
    return f"""{rows} rows, {steps} steps, {tokens} tokens in {figures["train_seconds"]:.0f} s
({figures["tokens_per_s"]:.0f} tokens/s), peak memory {figures["peak_rss_mb"]:.0f} MB.
Rank {settings["rank"]}, alpha {settings["alpha"]}, peak learning rate {settings["learning_rate"]:g},
seed {settings["seed"]}.

Load it with plain PEFT: `PeftModel.from_pretrained(base_model, "<this folder>")`.
"""


def _neurosymbolic(about: dict[str, Any]) -> str:
    figures = about["figures"]
    prompt = "`system_prompt.txt` goes with it." if figures["system_prompt"] else "It needs no system prompt."
    return f"""{figures["rounds"]} rounds; {prompt} Why each was what it was: `nslora-agent explain {about["job"]}`.
{figures["rewrites"]}
{_numeric(about)}"""


def _symbolic(about: dict[str, Any]) -> str:
    figures = about["figures"]
    adapter = "The adapter is the parent's, unchanged." if figures["adapter"] else "There is no adapter."
    return f"""New is the system prompt, `system_prompt.txt`. {adapter}

{figures["rewrites"]} The rewritten rows are in `remade.jsonl`, what became of each flagged one in `rewrites.json`:
{figures["rewrite_requests"]} requests, {figures["rewrite_tokens"]} tokens, cost {figures["rewrite_money"]:g}.
"""


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
