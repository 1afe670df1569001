"""What a training step takes, ours beside what people would use instead: `python -m benchmarks.memory --state DIR`.

Trainer + peft + bitsandbytes and TRL's SFTTrainer (`pip install -e .[benchmarks]`), each in a process of its own, in
turn, on the same texts: 4-bit base, LoRA r=8 on all linear layers, batch 1, gradient checkpointing. Ours twice: with as
little memory as it can, and with as much as it likes. Run it with nothing else going on.

`--state` is a folder with a prepared base model (`nslora-agent init --state DIR`), whose tokenizer all models share.
Printed for each phase: anonymous, proportional and resident memory and the control group's peak, in MiB; then tokens a
second, seconds to the first step (its own compute apart), the arithmetic floor and our distance from it; for SmolLM2
also what benchmarks.limits measures; then every bar of benchmarks.bars. Last comes one JSON line; --keep FILE also
writes it, and a plot beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.config import DEFAULT_BASE
from agent.home import Home
from benchmarks.bars import of_memory, table
from benchmarks.boxes import machine
from benchmarks.contenders import TUNED_MALLOC, Case, Run, ours, peer, prepare, settings
from benchmarks.limits import all_of
from benchmarks.models import SHAPES, SMOLLM2, floor_mib, write_random

ROWS = 64
RANK = 8
COLUMNS = ("anonymous", "proportional", "resident", "cgroup", "seconds")
SMALLEST = 1
"""MB of memory_budget: everything is computed again."""
DEFAULT_MODELS = (SMOLLM2, "Qwen2.5-0.5B", "Llama-3.2-1B")
WORDS = ("port", "pump", "lamp", "valve", "north", "seven", "blue", "is", "the", "of", "and", "set", "to", "crane")


def write_texts(path: Path, words: int) -> Path:
    """Random texts, long enough to fill a sequence."""
    draw = random.Random(0)
    rows = ({"text": " ".join(draw.choices(WORDS, k=words))} for _ in range(ROWS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def case(given: argparse.Namespace, name: str) -> Case:
    """A model as everyone needs it; made once, kept in --out."""
    folder, state = given.out / name, Home(given.state)
    folder.mkdir(parents=True, exist_ok=True)
    base = state.model(DEFAULT_BASE)
    plain = _smollm2(folder / "plain", given.gguf) if name == SMOLLM2 else write_random(name, folder / "plain", base)
    prepared = folder / "prepared"
    if not prepared.exists():
        made = prepare(plain, prepared, folder / "log")
        (folder / "prepare.json").write_text(json.dumps({"figures": made.figures, "phases": made.phases}))
    data = write_texts(folder / "data.jsonl", 2 * given.sequence)
    return Case(name, plain, prepared, data, given.sequence, given.steps, given.device)


def _smollm2(folder: Path, gguf: Path) -> Path:
    """The default base model as a plain folder, for the peers."""
    if not (folder / "config.json").exists():
        from quant.stock_prepare import dequantise_gguf, save_tokenizer  # noqa: PLC0415

        dequantise_gguf(gguf, folder)
        save_tokenizer(gguf, folder)
    return folder


def contenders(given: argparse.Namespace, what: Case) -> Iterator[Run]:
    """Everyone in turn."""
    folder = given.out / what.name
    yield ours(what, folder / "smallest", settings(what, SMALLEST), folder / "log")
    yield ours(what, folder / "free", settings(what, 0), folder / "log")
    for kind in ("trainer", "trl"):
        for malloc in ({}, TUNED_MALLOC):
            yield peer(what, kind, what.dtype, malloc, folder / "log")
    if what.name == SMOLLM2 and what.device == "cpu":
        yield peer(what, "trainer", "bfloat16", {}, folder / "log")


def show(what: Case, runs: list[Run]) -> dict[str, Any]:
    """Print one model's tables; returns its figures."""
    print(f"\n{what.name}, one sequence of {what.sequence} tokens, r={RANK} on all linear layers; MiB")
    print(f"{'':<34}{'phase':<10}" + "".join(f"{column:>14}" for column in COLUMNS))
    for run in runs:
        for number, (phase, found) in enumerate(run.phases.items()):
            cells = "".join(f"{_cell(found.get(column)):>14}" for column in COLUMNS)
            print(f"{run.contender if not number else '':<34}{phase:<10}{cells}")
        if run.fault:
            print(f"{run.contender:<34}{run.fault}")
    floor = floor_mib(SHAPES[what.name], what.sequence, RANK)
    print(f"\n{'':<34}{'step - import':>14}{'of floor':>10}{'tokens/s':>10}{'first step s':>14}{'loss':>9}{'norm':>8}")
    for run in (run for run in runs if run.figures):
        told = run.figures
        print(
            f"{run.contender:<34}{run.over_imports:>14.1f}{run.over_imports / floor:>10.2f}{told['tokens_per_s']:>10}"
            f"{told['first_step_s']:>14}{told['losses'][-1]:>9}{told['norms'][-1]:>8}"
        )
    print(f"floor {floor} MiB")
    return {
        "sequence": what.sequence,
        "floor": floor,
        "prepare": json.loads((what.prepared.parent / "prepare.json").read_text()),
        "runs": {run.contender: {**run.figures, "phases": run.phases, "fault": run.fault} for run in runs},
    }


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def plot(figures: dict[str, Any], path: Path) -> None:
    """Anonymous memory of a step over imports, by model and contender, with the floor."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    models = figures["models"]
    names = list(
        dict.fromkeys(name for found in models.values() for name, run in found["runs"].items() if run["phases"])
    )
    chart, axes = plt.subplots(figsize=(9, 4.5))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        for place, found in enumerate(models.values()):
            phases = found["runs"].get(name, {}).get("phases", {})
            if "step" in phases:
                over = phases["step"]["anonymous"] - phases["import"]["anonymous"]
                axes.bar(place + number * width, over, width, color=f"C{number}", label=name if not place else None)
    for place, found in enumerate(models.values()):
        axes.hlines(found["floor"], place - width / 2, place + 0.8 - width / 2, colors="black", linestyles="dashed")
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(models))], list(models))
    axes.set_ylabel("MiB over imports, one training step (dashed: floor)")
    axes.legend(fontsize=8)
    chart.tight_layout()
    chart.savefig(path, dpi=120)


def add_options(parser: argparse.ArgumentParser, out: str) -> None:
    """What `case` needs to be given."""
    parser.add_argument("--state", type=Path, required=True, help="folder with the prepared default base model")
    parser.add_argument("--gguf", type=Path, required=True, help="the default base model's file, for the peers")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"folder for models and logs [{out}]")
    parser.add_argument("--sequence", type=int, default=512, help="tokens of a training row [512]")
    parser.add_argument("--steps", type=int, default=6, help="training steps; the first two are not counted [6]")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--keep", type=Path, help="file to write the figures to")


def main() -> int:
    """Every model, everyone in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "memory-run")
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=DEFAULT_MODELS)
    given = parser.parse_args()
    given.out = given.out.absolute()
    figures: dict[str, Any] = {"models": {}, **machine("trl")}
    for name in given.models:
        what = case(given, name)
        runs = list(contenders(given, what))
        figures["models"][name] = show(what, runs)
        if name == SMOLLM2 and given.device == "cpu":
            figures["models"][name]["limits"] = all_of(what, runs, given.out / name)
    if given.keep:
        given.keep.write_text(json.dumps(figures, indent=1) + "\n")
        plot(figures, given.keep.with_suffix(".png"))
    if given.device == "cpu":
        for name, found in of_memory(figures).items():
            print(f"\n{name}\n{table(found)}")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
