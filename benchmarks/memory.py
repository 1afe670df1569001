"""Memory and time of a training step, ours beside what people would use instead: `python -m benchmarks.memory`.

Trainer + peft + bitsandbytes and TRL's SFTTrainer (`pip install -e .[benchmarks]`), each in a process of its own, in
turn, on the same texts: 4-bit base, LoRA r=8 on all linear layers, batch 1, gradient checkpointing. Ours twice: with as
little memory as it can, and with as much as it likes. All in float32; where a probe finds another format faster on this
machine, ours and Trainer in that one as well. Run it with nothing else going on.

First comes the machine's own ceiling (benchmarks.ceiling): large matrix products in each format. A row is printed when
its contender ends: anonymous memory of a step over that of the imports, in MiB and as a multiple of the arithmetic
floor; tokens a second, and the useful GFLOP/s that they are (benchmarks.models.step_gflop) as a share of that ceiling,
the figure that holds between machines; seconds to the first step (its own compute apart); last loss and gradient norm.
Then each phase in MiB (anonymous, proportional, resident, the control group's peak); for SmolLM2 what benchmarks.limits
measures; then every bar of benchmarks.bars. Last comes one JSON line; --keep FILE also writes it, and a plot beside it.

--state is a folder with a prepared base model (`nslora-agent init`), whose tokenizer all models share. Results are kept
in --out by contender: the same command goes on after an interruption, and tries again what failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.contract.atomic_io import remove_tree
from agent.system.config import DEFAULT_BASE
from benchmarks import ceiling
from benchmarks.bars import of_memory, over_imports, resident, table
from benchmarks.boxes import machine
from benchmarks.contenders import LEAST, TUNED_MALLOC, Case, our_name, ours, peer, peer_name, prepare, settings
from benchmarks.limits import parts as limit_parts
from benchmarks.models import CHECKED, SMOLLM2, TINY, floor_mib, step_gflop, write_random
from benchmarks.running import (
    Part,
    Session,
    add_run_options,
    add_state_option,
    code,
    default_gguf,
    prepared_home,
    run,
    say,
    whole,
    write_lines,
)

Figures = dict[str, Any]
ROWS = 64
RANK = 8
COLUMNS = ("anonymous", "proportional", "resident", "cgroup", "seconds")
DEFAULT_MODELS = (SMOLLM2, "Qwen2.5-0.5B", "Llama-3.2-1B")
SECONDS = {SMOLLM2: 36, "Qwen2.5-0.5B": 90, "Llama-3.2-1B": 200, "Llama-3.1-8B": 1600, TINY: 6}
"""Seconds of a contender on two cores."""
PREPARING = {SMOLLM2: 25, "Qwen2.5-0.5B": 30, "Llama-3.2-1B": 60, "Llama-3.1-8B": 500, TINY: 6}
WORDS = ("port", "pump", "lamp", "valve", "north", "seven", "blue", "is", "the", "of", "and", "set", "to", "crane")
OURS = code("agent", "quant")
"""Conditions of our rows alone."""


def write_texts(path: Path, words: int) -> Path:
    """Random texts, long enough to fill a sequence."""
    draw = random.Random(0)
    return write_lines(path, ({"text": " ".join(draw.choices(WORDS, k=words))} for _ in range(ROWS)))


# ---- the models ----


def case(given: argparse.Namespace, name: str) -> Case:
    """A model as everyone is to be given it: where it will be."""
    folder, prepared = given.out / name, given.out / "models" / name
    return Case(name, folder / "plain", prepared, folder / "data.jsonl", given.sequence, given.steps, given.device)


def make(session: Session, given: argparse.Namespace, what: Case) -> Figures:
    """The model's files, made once, and what quantising it took; {"fault": why} if that failed."""

    def made() -> Figures:
        plain(given, what)
        remove_tree(what.prepared)
        run = prepare(what.plain, what.prepared, given.out / what.name / "log")
        return {"figures": run.figures, "phases": run.phases}

    missing = not (what.plain.exists() and what.prepared.exists())
    return session.measure(preparing(what), made, anew=missing, code=OURS)


def plain(given: argparse.Namespace, what: Case) -> None:
    """A folder that the peers load, and the texts: the default base model unpacked, others random."""
    what.plain.parent.mkdir(parents=True, exist_ok=True)
    write_texts(what.data, 2 * what.sequence)
    if what.name == SMOLLM2:
        whole(what.plain, lambda folder: unpack(default_gguf(given.gguf, given.out), folder))
    else:
        tokenizer = prepared_home(given).model(DEFAULT_BASE)
        whole(what.plain, lambda folder: write_random(what.name, folder, tokenizer))


def unpack(gguf: Path, folder: Path) -> None:
    """The default base model as a plain folder."""
    from quant.hf.prepare import dequantise_gguf, save_tokenizer  # noqa: PLC0415

    dequantise_gguf(gguf, folder)
    save_tokenizer(gguf, folder)


def preparing(what: Case) -> str:
    """The name of the part that makes a model's files."""
    return f"{what.name}: prepare"


# ---- who is measured ----


@dataclass(frozen=True)
class Contender:
    """A row: its name, its number format, what measures it, and the code that its figures depend on."""

    name: str
    dtype: str
    measure: Callable[[], Figures]
    question: Figures


def contenders(given: argparse.Namespace, what: Case, chosen: str) -> Iterator[Contender]:
    """Everyone, in turn; `chosen` is the format that the probe found faster."""
    folder = given.out / what.name

    def our(budget: int, dtype: str) -> Contender:
        name = our_name(budget, dtype)
        how, work = settings(what, budget, dtype=dtype), folder / name.replace(", ", "-").replace(" ", "-")
        return Contender(name, dtype, lambda: ours(what, work, how, work.with_suffix(".log")).row, {"code": OURS})

    def other(kind: str, dtype: str, malloc: dict[str, str]) -> Contender:
        name = peer_name(kind, dtype, malloc)
        log = folder / f"{name.replace(', ', '-').replace(' ', '-')}.log"
        return Contender(name, dtype, lambda: peer(what, kind, dtype, malloc, log).row, {})

    formats = dict.fromkeys((what.dtype, chosen))
    yield from (our(budget, dtype) for dtype in formats for budget in (LEAST, 0))
    yield from (other(kind, what.dtype, malloc) for kind in ("trainer", "trl") for malloc in ({}, TUNED_MALLOC))
    yield from (other("trainer", dtype, {}) for dtype in formats if dtype != what.dtype)


def wanted(given: argparse.Namespace, name: str) -> bool:
    """True if --only lets a row or a part of this name be measured."""
    return not given.only or any(text in name for text in given.only)


def limits_of(given: argparse.Namespace, what: Case) -> list[Any]:
    """The parts beyond one step, for the default base model on a CPU."""
    if given.quick or what.name != SMOLLM2 or what.device != "cpu":
        return []
    return [part for part in limit_parts() if wanted(given, part[0])]


def plan(given: argparse.Namespace, cases: list[Case], chosen: str) -> list[Part]:
    """All parts in their order."""
    parts = []
    for what in cases:
        parts.append(Part(preparing(what), PREPARING[what.name], {"code": OURS}))
        rows = [each for each in contenders(given, what, chosen) if wanted(given, each.name)]
        parts += [Part(f"{what.name}: {each.name}", SECONDS[what.name], each.question) for each in rows]
    for what in cases:
        parts += [Part(f"{what.name}: {name}", took, {"code": OURS}) for name, took, _ in limits_of(given, what)]
    return parts


# ---- measuring and showing ----


def measure(session: Session, given: argparse.Namespace, what: Case, limit: Figures) -> Figures:
    """All rows of one model, each printed as it ends; then its phases."""
    made = make(session, given, what)
    shape = CHECKED[what.name]
    told = {
        "sequence": what.sequence,
        "floor": floor_mib(shape, what.sequence, RANK),
        "gflop": round(step_gflop(shape, what.sequence, RANK), 1),
        "prepare": made,
    }
    rows: dict[str, Figures] = {}
    print(f"\n{what.name}, one sequence of {what.sequence} tokens, r={RANK} on all linear layers; "
          f"floor {told['floor']} MiB, {told['gflop']} GFLOP a step")  # fmt: skip
    print(HEAD, flush=True)
    for each in contenders(given, what, limit.get("dtype", what.dtype)):
        if made.get("fault") or not wanted(given, each.name):
            continue

        def with_share(each: Contender = each) -> Figures:
            row = each.measure()
            return {**row, "dtype": each.dtype, "of_ceiling": of_ceiling(row, told, limit, shape, each.dtype)}

        rows[each.name] = session.measure(f"{what.name}: {each.name}", with_share, **each.question)
        print(line(each.name, rows[each.name], told["floor"]), flush=True)
    show_phases(rows)
    return {**told, "runs": rows}


def of_ceiling(row: Figures, model: Figures, limit: Figures, shape: Any, dtype: str) -> float | None:
    """Useful FLOP/s of a row's training steps as a share of the products' ceiling; None where one is missing."""
    if row.get("fault") or dtype not in limit.get("gflops", {}):
        return None
    top = ceiling.of_model(limit, shape.hidden_size, dtype)
    return round(row["tokens_per_s"] / model["sequence"] * model["gflop"] / top, 3)


HEAD = (
    f"{'':<34}{'step':>9}{'of floor':>10}{'peak':>9}{'tokens/s':>10}{'ceiling':>9}{'first s':>9}{'loss':>9}{'norm':>8}"
)
"""Over the rows: MiB over imports, that over the floor, MiB resident, speed, its share of the ceiling, seconds."""


def line(name: str, row: Figures, floor: float) -> str:
    """A contender's row, or why there is none."""
    if row.get("fault"):
        return f"{name:<34}failed: {row['fault']}"
    over, share = over_imports(row), "-" if row["of_ceiling"] is None else f"{row['of_ceiling']:.0%}"
    return (
        f"{name:<34}{over:>9.1f}{over / floor:>10.2f}{resident(row):>9.1f}{row['tokens_per_s']:>10}{share:>9}"
        f"{row['first_step_s']:>9}{row['losses'][-1]:>9}{row['norms'][-1]:>8}"
    )


def show_phases(rows: dict[str, Figures]) -> None:
    """Every phase of every contender, also of those that failed in a later one."""
    print(f"\n{'MiB':<34}{'phase':<10}" + "".join(f"{column:>14}" for column in COLUMNS))
    for name, row in rows.items():
        for number, (phase, found) in enumerate(row.get("phases", {}).items()):
            cells = "".join(f"{_cell(found.get(column)):>14}" for column in COLUMNS)
            print(f"{name if not number else '':<34}{phase:<10}{cells}", flush=True)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def measure_limits(session: Session, given: argparse.Namespace, what: Case, rows: dict[str, Figures]) -> Figures:
    """Every part of benchmarks.limits, by name."""
    found: Figures = {}
    for name, _, part in limits_of(given, what):
        folder = given.out / what.name / name.replace(": ", "-").replace(" ", "-")
        told = session.measure(f"{what.name}: {name}", lambda: part(what, rows, folder), code=OURS)  # noqa: B023
        kind, _, varied = name.partition(": ")
        if varied:
            found.setdefault(kind, {})[varied] = told
        else:
            found[kind] = told
            print(f"{name:<10}{told}", flush=True)
    return found


def plot(figures: dict[str, Any], path: Path) -> None:
    """Anonymous memory of a step over imports, by model and contender, with the floor; nothing without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        say(f"no {path}: matplotlib is not installed")
        return
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    models = figures["models"]
    rows = [(name, row) for found in models.values() for name, row in found["runs"].items()]
    names = list(dict.fromkeys(name for name, row in rows if "step" in row.get("phases", {})))
    chart, axes = plt.subplots(figsize=(9, 4.5))
    width = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        for place, found in enumerate(models.values()):
            row = found["runs"].get(name, {})
            if "step" in row.get("phases", {}):
                label = name if not place else None
                axes.bar(place + number * width, over_imports(row), width, color=f"C{number}", label=label)
    for place, found in enumerate(models.values()):
        axes.hlines(found["floor"], place - width / 2, place + 0.8 - width / 2, colors="black", linestyles="dashed")
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(models))], list(models))
    axes.set_ylabel("MiB over imports, one training step (dashed: floor)")
    axes.legend(fontsize=8)
    chart.tight_layout()
    chart.savefig(path, dpi=120)


def add_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Arguments of `case`."""
    add_state_option(parser)
    parser.add_argument("--gguf", type=Path, help="the default base model's file, for the peers [fetched into --out]")
    add_run_options(parser, out)
    parser.add_argument("--sequence", type=int, default=512, help="tokens of a training row [512]")
    parser.add_argument("--steps", type=int, default=6, help="training steps; the first two are not counted [6]")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def options() -> argparse.Namespace:
    """The command line, parsed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "memory-run")
    parser.add_argument("--models", nargs="+", choices=list(CHECKED), default=None, help="default: the three smallest")
    parser.add_argument("--quick", action="store_true", help=f"{SMOLLM2} alone, nothing beyond one step")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="rows and parts whose names have one of these texts")
    given = parser.parse_args()
    given.models = given.models or ((SMOLLM2,) if given.quick else DEFAULT_MODELS)
    return given


def asked(given: argparse.Namespace, *more: str) -> Figures:
    """Conditions of every part: settings, machine, versions."""
    return {"sequence": given.sequence, "steps": given.steps, "device": given.device, **machine(*more)}


def main() -> int:
    """Every model, everyone in turn."""
    given = options()
    prepared_home(given)
    with Session("benchmarks.memory", given, asked(given, "trl")) as session:
        say("benchmarks.memory: first, how fast large products are here, and in which format (10 s)")
        cases = [case(given, name) for name in given.models]
        (given.out / "models").mkdir(exist_ok=True)
        widths = sorted({CHECKED[name].hidden_size for name in given.models})
        found = lambda: ceiling.measured(given.out / "models", given.sequence, widths, given.device)  # noqa: E731
        kept = session.is_kept(Part("ceiling", 10, {"widths": widths}))
        top = session.measure("ceiling", found, widths=widths)
        if kept and not all(map(session.is_kept, plan(given, cases, top["dtype"]))):
            # A row that is measured now is compared with what the machine can do now; kept rows have their own share.
            top = session.measure("ceiling", found, anew=True, widths=widths)
        for dtype, rates in top.get("gflops", {}).items():
            print(f"ceiling in {dtype}, {top['threads']} threads, GFLOP/s: {rates}", flush=True)
        parts = plan(given, cases, top.get("dtype", cases[0].dtype))
        session.announce(parts, "each contender trains in turn, watched phase by phase")
        figures: Figures = {"models": {}, "ceiling": top, **machine("trl")}
        for what in cases:
            figures["models"][what.name] = measure(session, given, what, top)
        for what in cases:
            if found := measure_limits(session, given, what, figures["models"][what.name]["runs"]):
                figures["models"][what.name]["limits"] = found
        if given.device == "cpu":
            for name, bars in of_memory(figures).items():
                print(f"\n{name}\n{table(bars)}")
        if given.keep:
            plot(figures, given.keep.with_suffix(".png"))
        return session.end(figures)


if __name__ == "__main__":
    sys.exit(run(main))
