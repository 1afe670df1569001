"""The decision benchmark's tables: rewards by slice with intervals, and what they took."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from agent.data.formats import Example
from agent.runner.rows import rewards

RESAMPLES = 1000
SPENT = ("requests", "tokens", "seconds", "peak_rss_mb")
SLICES = ("single", "double", "wordings", "arguments", "plain", "file")

Scores = dict[str, list[tuple[float, float | None]]]
"""By id of a held-out row: content and style of each seed's answer."""


def report(
    results: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]], truth: dict[str, Example]
) -> dict[str, Any]:
    """Print the tables; returns their figures."""
    slices = {name: [row["id"] for row in held_out if row["slice"] == name] for name in SLICES}
    arms: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        arms.setdefault(result["arm"], []).append(result)
    figures = {}
    for arm, runs in arms.items():
        scores = scored(runs, truth)
        spent = {name: median(run.get(name) or 0 for run in runs) for name in SPENT}
        by_slice = {name: _figures([scores[i] for i in ids if i in scores]) for name, ids in slices.items()}
        figures[arm] = {"seeds": len(runs), **spent, "slices": {k: v for k, v in by_slice.items() if v}}
    _print(figures)
    return figures


def scored(runs: Sequence[dict[str, Any]], truth: dict[str, Example]) -> Scores:
    """Rewards of all answers of an arm."""
    scores: Scores = {}
    for run in runs:
        for answer in run["answers"]:
            scores.setdefault(answer["id"], []).append(rewards(truth[answer["id"]], answer["text"]))
    return scores


def joint_reward(scores: Scores) -> float:
    """Share of answers whose content is right and which keep every constraint."""
    return fmean(content * (style in (None, 1)) for row in scores.values() for content, style in row)


def _figures(rows: Sequence[Sequence[tuple[float, float | None]]]) -> dict[str, list[float]]:
    """Content, style and joint reward in per cent, each with its interval; none for a slice that was not measured."""
    if not rows:
        return {}
    constrained = [row for row in rows if row[0][1] is not None]
    columns = {
        "content": [[content for content, _ in row] for row in rows],
        "style": [[style or 0.0 for _, style in row] for row in constrained],
        "joint": [[content * (style in (None, 1)) for content, style in row] for row in rows],
    }
    return {name: interval(values) for name, values in columns.items() if values}


def interval(values: Sequence[Sequence[float]]) -> list[float]:
    """Mean of some shares, in per cent, and its 95 % interval over prompts and seeds (percentile bootstrap of both)."""
    draw = random.Random(0)
    seeds = range(len(values[0]))
    means = []
    for _ in range(RESAMPLES):
        chosen = draw.choices(seeds, k=len(seeds))
        each = [fmean(row[seed] for seed in chosen) for row in values]
        means.append(fmean(draw.choices(each, k=len(each))))
    means.sort()
    mean = fmean(fmean(row) for row in values)
    return [round(100 * value, 1) for value in (mean, means[25], means[974])]


def _print(figures: dict[str, Any]) -> None:
    for name in SLICES:
        print(f"\n{name:<22}{'content':>20}{'style':>20}{'joint':>20}{'requests':>10}{'tokens':>9}{'s':>7}{'MB':>7}")
        for arm, found in figures.items():
            shown = found["slices"].get(name)
            if shown:
                cells = "".join(f"{_cell(shown.get(column)):>20}" for column in ("content", "style", "joint"))
                spent = zip(SPENT, (10, 9, 7, 7), strict=True)
                print(f"{arm:<22}{cells}" + "".join(f"{found[key]:>{width}.0f}" for key, width in spent))


def _cell(value: list[float] | None) -> str:
    return "-" if value is None else f"{value[0]:.1f} [{value[1]:.1f}, {value[2]:.1f}]"
