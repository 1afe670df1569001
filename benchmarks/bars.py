"""What the benchmarks must show, computed from what they found: each bar with its aim and the figure beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.models import SMOLLM2

LEAST, FREE = "ours, 1 MB", "ours"
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
    """A ratio or a figure, and the most (or with `at_least`, the least) that it may be."""

    name: str
    aim: float
    found: float
    unit: str = "times"
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the aim is reached."""
        return self.found >= self.aim if self.at_least else self.found <= self.aim

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """What stands in a table: name, aim, found, verdict."""
        aim = f"{'≥' if self.at_least else '≤'} {self.aim:.3g} {self.unit}"
        return self.name, aim, f"{self.found:.3g} {self.unit}", "yes" if self.holds else "**no**"


def over_imports(run: Figures) -> float:
    """Anonymous memory of a step over that of the imports, MiB."""
    return float(run["phases"]["step"]["anonymous"] - run["phases"]["import"]["anonymous"])


def resident(run: Figures) -> float:
    """The most resident memory of any phase, MiB."""
    return max(phase["resident"] for phase in run["phases"].values())


def of_step(name: str, model: Figures) -> list[Bar]:
    """Memory and speed of one model's training step."""
    runs = {run: told for run, told in model["runs"].items() if not told["fault"]}
    least, free = runs[LEAST], runs[FREE]
    plain = min((runs[peer] for peer in (TRAINER, TRL) if peer in runs), key=resident)
    tuned = min((runs[peer] for peer in (TUNED, TUNED_TRL) if peer in runs), key=resident)
    step = over_imports(least)
    best = min(over_imports(runs[peer]) for peer in (TRAINER, TRL) if peer in runs)
    share = SHARE_OF_PEER.get(name)
    speed = least["tokens_per_s"]
    return [
        *([Bar("step over imports, of the better peer's", share, step / best)] if share else []),
        Bar("step over imports, of Trainer's with tuned malloc", 1 / 4, step / over_imports(runs[TUNED])),
        Bar("step over imports, of the floor", 1.25, step / model["floor"]),
        Bar("peak resident, of the best peer's", 1 / 3, resident(least) / resident(plain)),
        Bar("peak resident, of the best peer's with tuned malloc", 1 / 2, resident(least) / resident(tuned)),
        Bar("the same run's tokens/s, of that peer's", 1.0, speed / plain["tokens_per_s"], at_least=True),
        Bar("... with tuned malloc", 1.0, speed / tuned["tokens_per_s"], at_least=True),
        Bar("tokens/s with more memory", 1.2, free["tokens_per_s"] / plain["tokens_per_s"], at_least=True),
        Bar("seconds to the first step", 1 / 5, least["first_step_s"] / plain["first_step_s"]),
        Bar("first load: anonymous memory, of the quantised bytes", 1.0, first_load(model)),
    ]


def first_load(model: Figures) -> float:
    """What quantising or loading takes over imports, whichever is more, as a share of what is quantised."""
    prepared, least = model["prepare"], model["runs"][LEAST]["phases"]
    made = prepared["phases"]["step"]["anonymous"] - prepared["phases"]["import"]["anonymous"]
    loaded = least["load"]["anonymous"] - least["import"]["anonymous"]
    return float(max(made, loaded) * 2**20 / prepared["figures"]["bytes"])


def of_limits(model: Figures) -> list[Bar]:
    """What was found beyond one step."""
    found = model["limits"]
    steps, lines, token = list(found["steps"].values()), list(found["lines"].values()), found["growth"]
    ended = found["group"].get(LEAST) == ENDED_WELL and found["group"].get(TRAINER) != ENDED_WELL
    return [
        Bar("memory that a token of sequence adds, of Trainer's", 1 / 10, token[LEAST] / token[TRAINER]),
        Bar("ends in 0.4 of Trainer's memory, which is killed", 1, float(ended), "", at_least=True),
        Bar("growth over 1,000 steps", 1, 100 * (steps[1] / steps[0] - 1), "%"),
        Bar("growth from 1,000 lines to a million", 1, 100 * (lines[1] / lines[0] - 1), "%"),
    ]


PLANNED = {"load": "load_mb", "step": "train_mb", "generate": "generate_mb", "save": "save_mb", "export": "export_mb"}
"""By phase, what the plan of a job calls its peak."""


def planned(figures: Figures) -> dict[str, dict[str, tuple[float, float]]]:
    """By configuration and phase: peak resident memory as planned and as measured, MiB."""
    found = {}
    for name, model in figures["models"].items():
        runs = {f"{name}, {run}": told for run, told in model["runs"].items() if run in {LEAST, FREE}}
        runs |= {f"{name}, {run}": told for run, told in model.get("limits", {}).get("planned", {}).items()}
        for run, told in runs.items():
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
    for name, model in figures["models"].items():
        found[name] = of_step(name, model) + (of_limits(model) if "limits" in model else [])
    found["Plans"] = [Bar("largest error of a planned peak", 15, plan_error(figures), "%")]
    return found


def of_latency(figures: Figures) -> list[Bar]:
    """All bars of `benchmarks.latency`."""
    probe, top = figures["probe"], figures["top"]
    ours, free, stock = probe[BOUNDED], probe["ours"], probe["one by one"]
    whole, quarter, cached = top["all blocks"], top["top quarter"], top["top quarter, cached"]
    faster = ours["tokens_per_s"] / stock["tokens_per_s"]
    recipe = whole / figures["recipe"]["tokens_per_s"]
    name = "training, tokens/s of bfloat16 as compute type, which this CPU lacks"
    return [
        *([] if figures["recipe"]["native"] else [Bar(name, 10, recipe, at_least=True)]),
        Bar("probing 64 prompts: tokens/s, of one by one", 5, faster, at_least=True),
        Bar("... the same run's peak resident, of one by one", 1.0, ours["resident"] / stock["resident"]),
        Bar("... tokens/s with more memory", 5, free["tokens_per_s"] / stock["tokens_per_s"], at_least=True),
        Bar("top quarter over the cached prefix, of without the cache", 1.4, cached / quarter, at_least=True),
        Bar("... of all blocks", 2.5, cached / whole, at_least=True),
        Bar("... largest difference of a loss", 0.0, top["largest difference of a loss"], ""),
    ]


def of_footprint(figures: Figures) -> list[Bar]:
    """All bars of `benchmarks.footprint`."""
    idle = figures["daemon_idle_mib"]["pss"]
    after = max(found["pss"] for found in figures["daemon_after_jobs_mib"])
    return [
        Bar("idle daemon, proportional memory", 25, idle, "MiB"),
        Bar("... more of it after jobs", 2, after - idle, "MiB"),
        Bar("`nslora-agent --help`", 0.15, figures["help_s"], "s"),
    ]


def table(bars: list[Bar]) -> str:
    """In Markdown, which also reads well on a screen."""
    rows = [("bar", "aim", "found", "holds"), ("---", "---", "---", "---"), *(bar.cells for bar in bars)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
