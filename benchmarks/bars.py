"""Bars that the benchmarks must reach, computed from their figures: each bar with its aim and the figure beside it.

A figure that was not measured, or whose contender failed, leaves its bar "not measured". Like is compared with like:
the bars of a training step are those of the rows in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.models import SMOLLM2

LEAST, FREE = "ours, least memory, float32", "ours, free, float32"
FORMER = {"ours, 1 MB": LEAST, "ours": FREE}
"""Names of rows in figures of `benchmarks.memory` that were kept before rows were named by their number format."""
TRAINER, TRL, TUNED, TUNED_TRL = (
    "trainer, float32",
    "trl, float32",
    "trainer, float32, tuned malloc",
    "trl, float32, tuned malloc",
)
ENDED_WELL = "ended well"
BOUNDED = "ours, 300 MB"
"""Prompts probed with a memory_budget that keeps them below the peer."""
SHARE_OF_PEER = {SMOLLM2: 1 / 6, "Qwen2.5-0.5B": 1 / 10}
Figures = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """A ratio or a figure, None where it was not measured, and the most (with `at_least`, the least) that it may be."""

    name: str
    aim: float
    found: float | None
    unit: str = "times"
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """True if the aim is reached."""
        if self.found is None:
            return False
        return self.found >= self.aim if self.at_least else self.found <= self.aim

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """A table's row: name, aim, found, verdict."""
        aim = f"{'≥' if self.at_least else '≤'} {self.aim:.3g} {self.unit}"
        if self.found is None:
            return self.name, aim, "not measured", ""
        return self.name, aim, f"{self.found:.3g} {self.unit}", "yes" if self.holds else "**no**"


def bar(name: str, aim: float, figure: Callable[[], float], unit: str = "times", *, at_least: bool = False) -> Bar:
    """A bar for a figure that may be missing."""
    try:
        found: float | None = figure()
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # a row, a part or a phase that is not there
        found = None
    return Bar(name, aim, found, unit, at_least)


def current(figures: Any) -> Any:
    """Figures of `benchmarks.memory` with their rows named as today."""
    if isinstance(figures, dict):
        return {FORMER.get(name, name): current(value) for name, value in figures.items()}
    return figures


def well(rows: Figures) -> Figures:
    """The rows that did not fail."""
    return {name: row for name, row in rows.items() if not row.get("fault")}


def over_imports(row: Figures) -> float:
    """Anonymous memory of a step over that of the imports, MiB."""
    return round(float(row["phases"]["step"]["anonymous"] - row["phases"]["import"]["anonymous"]), 1)


def resident(row: Figures) -> float:
    """The most resident memory of any phase, MiB."""
    return float(max(phase["resident"] for phase in row["phases"].values()))


def of_step(name: str, model: Figures) -> list[Bar]:
    """Memory and speed of one model's training step."""
    rows = well(model["runs"])

    def peer(*names: str) -> Figures:
        """Of these peers the one that takes least; ValueError if all failed."""
        return min((rows[name] for name in names if name in rows), key=resident)

    def ours() -> float:
        return over_imports(rows[LEAST])

    def speed_beside(mine: str, *theirs: str) -> float:
        return float(rows[mine]["tokens_per_s"] / peer(*theirs)["tokens_per_s"])

    plain, tuned = (TRAINER, TRL), (TUNED, TUNED_TRL)
    best = lambda: min(over_imports(rows[peer]) for peer in plain if peer in rows)  # noqa: E731
    share = SHARE_OF_PEER.get(name)
    return [
        *([bar("step over imports, of the better peer's", share, lambda: ours() / best())] if share else []),
        bar("step over imports, of Trainer's with tuned malloc", 1 / 4, lambda: ours() / over_imports(rows[TUNED])),
        bar("step over imports, of the floor", 1.25, lambda: ours() / model["floor"]),
        bar("peak resident, of the best peer's", 1 / 3, lambda: resident(rows[LEAST]) / resident(peer(*plain))),
        bar(
            "peak resident, of the best peer's with tuned malloc",
            1 / 2,
            lambda: resident(rows[LEAST]) / resident(peer(*tuned)),
        ),
        bar("the same run's tokens/s, of that peer's", 1.0, lambda: speed_beside(LEAST, *plain), at_least=True),
        bar("... with tuned malloc", 1.0, lambda: speed_beside(LEAST, *tuned), at_least=True),
        bar("tokens/s with more memory", 1.2, lambda: speed_beside(FREE, *plain), at_least=True),
        bar("seconds to the first step", 1 / 5, lambda: rows[LEAST]["first_step_s"] / peer(*plain)["first_step_s"]),
        bar("first load: anonymous memory, of the quantised bytes", 1.0, lambda: first_load(model)),
    ]


def first_load(model: Figures) -> float:
    """Memory of quantising or loading over imports, whichever is more, as a share of what is quantised."""
    prepared, least = model["prepare"], model["runs"][LEAST]["phases"]
    made = prepared["phases"]["step"]["anonymous"] - prepared["phases"]["import"]["anonymous"]
    loaded = least["load"]["anonymous"] - least["import"]["anonymous"]
    return float(max(made, loaded) * 2**20 / prepared["figures"]["bytes"])


def of_limits(model: Figures) -> list[Bar]:
    """Bars beyond one step."""
    found = model["limits"]

    def grown(part: str) -> float:
        before, after = found[part].values()
        return float(100 * (after / before - 1))

    def ended() -> float:
        return float(found["group"][LEAST] == ENDED_WELL and found["group"][TRAINER] != ENDED_WELL)

    return [
        bar(
            "memory that a token of sequence adds, of Trainer's",
            1 / 10,
            lambda: found["growth"][LEAST] / found["growth"][TRAINER],
        ),
        bar("ends in 0.4 of Trainer's memory, which is killed", 1, ended, "", at_least=True),
        bar("growth over 1,000 steps", 1, lambda: grown("steps"), "%"),
        bar("growth from 1,000 lines to a million", 1, lambda: grown("lines"), "%"),
    ]


PLANNED = {"load": "load_mb", "step": "train_mb", "generate": "generate_mb", "save": "save_mb", "export": "export_mb"}
"""By phase, what the plan of a job calls its peak."""


def planned(figures: Figures) -> dict[str, dict[str, tuple[float, float]]]:
    """By configuration and phase: peak resident memory as planned and as measured, MiB."""
    found = {}
    for name, model in current(figures)["models"].items():
        runs = {f"{name}, {run}": told for run, told in model["runs"].items() if "planned" in told}
        of_limits = model.get("limits", {}).get("planned", {})
        runs |= {f"{name}, {run}": told for run, told in of_limits.items() if isinstance(told, dict)}
        for run, told in well(runs).items():
            plan = told["planned"]
            found[run] = {
                phase: (round(plan[field] / 1.048576, 1), told["phases"][phase]["resident"])
                for phase, field in PLANNED.items()
                if phase in told["phases"]
            }
    return found


def plan_error(figures: Figures) -> float:
    """The largest distance of a planned peak from the measured one, in per cent of that."""
    return max(100 * abs(plan / took - 1) for phases in planned(figures).values() for plan, took in phases.values())


def of_memory(figures: Figures) -> dict[str, list[Bar]]:
    """All bars of `benchmarks.memory`, by model."""
    found = {}
    for name, model in current(figures)["models"].items():
        found[name] = of_step(name, model) + (of_limits(model) if "limits" in model else [])
    found["Plans"] = [bar("largest error of a planned peak", 15, lambda: plan_error(figures), "%")]
    return found


def of_latency(figures: Figures) -> list[Bar]:
    """All bars of `benchmarks.latency`."""
    probe, top, recipe = figures["probe"], figures["top"], figures["recipe"]
    quarter, cached = "top quarter", "top quarter, cached"

    def probed(mine: str, figure: str) -> float:
        return float(probe[mine][figure] / probe["one by one"][figure])

    name = "training, tokens/s of bfloat16 as compute type, which this CPU lacks"
    return [
        *(
            []
            if recipe.get("native")
            else [bar(name, 10, lambda: top["all blocks"] / recipe["tokens_per_s"], at_least=True)]
        ),
        bar("probing 64 prompts: tokens/s, of one by one", 5, lambda: probed(BOUNDED, "tokens_per_s"), at_least=True),
        bar("... the same run's peak resident, of one by one", 1.0, lambda: probed(BOUNDED, "resident")),
        bar("... tokens/s with more memory", 5, lambda: probed("ours", "tokens_per_s"), at_least=True),
        bar(
            "top quarter over the cached prefix, of without the cache",
            1.4,
            lambda: top[cached] / top[quarter],
            at_least=True,
        ),
        bar("... of all blocks", 2.5, lambda: top[cached] / top["all blocks"], at_least=True),
        bar("... largest difference of a loss", 0.0, lambda: top["largest difference of a loss"], ""),
        *of_busy(figures.get("busy", {})),
    ]


def of_busy(busy: Figures) -> list[Bar]:
    """Ours beside busy processes, by how many they are: of the share of the cores that is left to it."""
    counts = sorted(busy.get("shares", {}), key=int)
    return [
        bar(
            f"training beside {count} busy processes, of the share of the cores left to it",
            0.8,
            lambda count=count: busy["ours"][count]["of_share"],  # type: ignore[misc]
            at_least=True,
        )
        for count in counts
    ]


def of_footprint(figures: Figures) -> list[Bar]:
    """All bars of `benchmarks.footprint`."""
    idle = lambda: figures["daemon_idle_mib"]["pss"]  # noqa: E731
    after = lambda: max(found["pss"] for found in figures["daemon_after_jobs_mib"])  # noqa: E731
    return [
        bar("idle daemon, proportional memory", 25, idle, "MiB"),
        bar("... more of it after jobs", 2, lambda: after() - idle(), "MiB"),
        bar("`nslora-agent --help`", 0.15, lambda: figures["help_s"], "s"),
    ]


def table(bars: list[Bar]) -> str:
    """In Markdown, which also reads well on a screen."""
    rows = [("bar", "aim", "found", "holds"), ("---", "---", "---", "---"), *(each.cells for each in bars)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
