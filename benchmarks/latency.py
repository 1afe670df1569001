"""Speed of the worker: probing, training the top layers, working beside others: `python -m benchmarks.latency`.

    probe      64 prompts of 24 new tokens: ours in batches, transformers' generate one by one on the 4-bit model
    top        epochs after the first: all blocks, the top quarter, the top quarter over the cached prefix
    recipe     the same by Trainer with bfloat16 as compute type, as the documents elsewhere recommend
    busy       training steps beside n busy processes, ours and Trainer (benchmarks.busy)

Run it with nothing else going on. --state is a folder with a prepared base model (`nslora-agent init`). Results are
kept in --out by part: the same command goes on after an interruption. Prints every bar of benchmarks.bars that it can
tell, and ends with one JSON line; --keep FILE also writes it.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent.contract.protocol import Load, Step
from agent.contract.settings import Training
from benchmarks import busy
from benchmarks.bars import BOUNDED, of_latency, table
from benchmarks.boxes import machine
from benchmarks.contenders import Case, generated, messages, peer, prompts, train, watched
from benchmarks.memory import OURS, add_options, asked, case, make, preparing
from benchmarks.models import SMOLLM2, TINY
from benchmarks.peers import WARM_UP
from benchmarks.running import Part, Session, clean, prepared_home, run

PROMPTS = 64
SETTINGS = Training(
    rank=8, alpha=16, learning_rate=5e-5, micro_batch=1, sequence_length=512, epochs=3.0, checkpoint_every=1_000_000
)
BUDGETS = {"ours, least memory": 1, BOUNDED: 300, "ours": 0}
STOCK = "one by one"
GROUPS = ("probe", "top", "recipe", "busy")
TRAINED = 8
"""Rows that are trained on."""
TOP = {
    "all blocks": {},
    "top quarter": {"top_layers": 0.25, "prefix_cache": 0},
    "top quarter, cached": {"top_layers": 0.25},
}


def probe_ours(what: Case, folder: Path, budget: int) -> dict[str, Any]:
    """Tokens a second and peak memory of our worker, with a memory_budget in MB."""
    clean(folder)
    with watched(folder / "log") as (worker, watch):
        worker.ask(Load(str(what.prepared), None, what.device, what.dtype))
        watch.phase("generate")
        rate = generated(worker, prompts(what.data, folder, PROMPTS), folder, budget)
    return {"tokens_per_s": rate, **watch.phases["generate"]}


def probe_stock(what: Case, folder: Path) -> dict[str, Any]:
    """The same by transformers' generate, one prompt after the other."""
    run = peer(what, "generate", what.dtype, {}, folder / "log", prompts=PROMPTS)
    if run.fault:
        return {"fault": run.fault}
    return {"tokens_per_s": run.figures["generated_per_s"], **run.phases["generate"]}


def trained(what: Case, folder: Path, settings: Training) -> list[Step]:
    """The steps of a run on a few texts."""
    clean(folder)
    steps: list[tuple[float, Step]] = []
    with watched(folder / "log") as (worker, watch):
        worker.ask(Load(str(what.prepared), None, what.device, what.dtype))
        watch.phase("step")
        train(worker, messages(what.data, folder, TRAINED), folder, settings, steps)
    return [step for _, step in steps]


def rate(steps: list[Step]) -> float:
    """Median tokens/s of the epochs after the first."""
    return round(statistics.median(step.tokens_per_s for step in steps[TRAINED:]), 1)


def top(what: Case, folder: Path, changed: dict[str, Any]) -> dict[str, Any]:
    """Speed of one way to train, and its losses."""
    steps = trained(what, folder, dataclasses.replace(SETTINGS, dtype=what.dtype, device=what.device, **changed))
    return {"tokens_per_s": rate(steps), "losses": [step.loss for step in steps]}


def of_top(found: dict[str, Any]) -> dict[str, Any]:
    """The speeds by name, of those that did not fail, and whether the cache changed a loss."""
    told = {name: each["tokens_per_s"] for name, each in found.items() if not each.get("fault")}
    losses = [found[f"top quarter{which}"].get("losses") for which in (", cached", "")]
    if all(losses):
        told["largest difference of a loss"] = max(abs(one - other) for one, other in zip(*losses, strict=True))
    return told


def recipe(what: Case, folder: Path) -> dict[str, Any]:
    """Trainer's tokens/s with bfloat16 as compute type, and whether the CPU has that natively."""
    run = peer(dataclasses.replace(what, steps=WARM_UP + 1), "trainer", "bfloat16", {}, folder / "log")
    native = "bf16" in Path("/proc/cpuinfo").read_text()
    return {"tokens_per_s": run.figures.get("tokens_per_s"), "native": native, "fault": run.fault}


def work(what: Case, folder: Path) -> Iterator[tuple[str, str, float, Callable[[], dict[str, Any]]]]:
    """Every part but those beside busy processes: its group, its name in that, its seconds, and what measures it."""
    for name, budget in BUDGETS.items():
        seconds = {1: 90, 300: 35, 0: 30}[budget]
        yield "probe", name, seconds, lambda budget=budget: probe_ours(what, folder / "probe", budget)  # type: ignore[misc]
    yield "probe", STOCK, 340, lambda: probe_stock(what, folder / "probe")
    for name, changed in TOP.items():
        place = folder / name.replace(", ", "-").replace(" ", "-")
        yield "top", name, 70, lambda changed=changed, place=place: top(what, place, changed)  # type: ignore[misc]
    yield "recipe", "", 300, lambda: recipe(what, folder / "recipe")


def options() -> argparse.Namespace:
    """The command line, parsed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "latency-run")
    parser.add_argument("--model", choices=(SMOLLM2, TINY), default=SMOLLM2, help="tiny: try the benchmark itself")
    counts = list(dict.fromkeys((busy.cores(), 15)))
    shown = " ".join(map(str, counts))
    parser.add_argument("--busy", type=int, nargs="*", default=counts, help=f"numbers of busy processes [{shown}]")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="parts to measure [all]")
    return parser.parse_args()


def main() -> int:
    """All of it."""
    given = options()
    prepared_home(given)
    question = {**asked(given), "model": given.model}
    with Session("benchmarks.latency", given, question) as session:
        what, folder = case(given, given.model), given.out / given.model
        chosen = [each for each in work(what, folder) if each[0] in given.only]
        counts = given.busy if "busy" in given.only else []
        parts = [Part(preparing(what), 25, {"code": OURS})]
        parts += [Part(_title(group, name), took, _question(group, name)) for group, name, took, _ in chosen]
        parts += busy.parts(counts, {"code": OURS}) if counts else []
        session.announce(parts, "how fast probes and top layers are, and training beside others")
        figures: dict[str, Any] = {"probe": {}, "top": {}, "recipe": {}, **machine()}
        made = make(session, given, what)
        if made.get("fault"):
            return session.end(figures)
        for group, name, _, part in chosen:
            found = session.measure(_title(group, name), part, **_question(group, name))
            figures[group] = {**figures[group], name: found} if name else found
            shown = {key: value for key, value in found.items() if key != "losses"}
            print(f"{_title(group, name):<28}{shown}", flush=True)
        figures["top"] = of_top(figures["top"]) if figures["top"] else {}
        if counts:
            figures["busy"] = busy.measure(session, what, folder / "busy", counts, {"code": OURS})
        print(f"\n{table(of_latency(figures))}")
        return session.end(figures)


def _title(group: str, name: str) -> str:
    return f"{group}: {name}" if name else group


def _question(group: str, name: str) -> dict[str, Any]:
    """Peers do not depend on our code."""
    return {} if group == "recipe" or name == STOCK else {"code": OURS}


if __name__ == "__main__":
    sys.exit(run(main))
