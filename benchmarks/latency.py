"""How fast the worker probes and trains the top layers: `python -m benchmarks.latency --state DIR --gguf FILE`.

    probe      64 prompts of 24 new tokens: ours in batches, transformers' generate one by one on the 4-bit model
    top        epochs after the first: all blocks, the top quarter, the top quarter over the cached prefix
    recipe     the same by Trainer with bfloat16 as compute type, as the documents elsewhere recommend

Run it with nothing else going on. Prints every bar of benchmarks.bars that it can tell, and ends with one JSON line;
--keep FILE also writes it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from agent.protocol import Load, Step
from agent.settings import Training
from benchmarks.bars import BOUNDED, of_latency, table
from benchmarks.boxes import machine
from benchmarks.contenders import Case, generated, messages, peer, prompts, train, watched
from benchmarks.memory import add_options, case
from benchmarks.models import SMOLLM2
from benchmarks.peers import WARM_UP

PROMPTS = 64
SETTINGS = Training(
    rank=8, alpha=16, learning_rate=5e-5, micro_batch=1, sequence_length=512, epochs=3.0, checkpoint_every=1_000_000
)
TRAINED = 8
"""Rows that are trained on."""
TOP = {
    "all blocks": {},
    "top quarter": {"top_layers": 0.25, "prefix_cache": 0},
    "top quarter, cached": {"top_layers": 0.25},
}


def probe_ours(what: Case, folder: Path, budget: int) -> dict[str, Any]:
    """Tokens a second and peak memory of our worker, with a memory_budget in MB."""
    with watched(folder / "log") as (worker, watch):
        worker.ask(Load(str(what.prepared), None, what.device, what.dtype))
        watch.phase("generate")
        rate = generated(worker, prompts(what.data, folder, PROMPTS), folder, budget)
    return {"tokens_per_s": rate, **watch.phases["generate"]}


def probe_stock(what: Case, folder: Path) -> dict[str, Any]:
    """The same by transformers' generate, one prompt after the other."""
    run = peer(what, "generate", what.dtype, {}, folder / "log", prompts=PROMPTS)
    return {"tokens_per_s": run.figures["generated_per_s"], **run.phases["generate"]}


def trained(what: Case, folder: Path, settings: Training) -> list[Step]:
    """The steps of a run on a few texts."""
    folder.mkdir(parents=True, exist_ok=True)
    steps: list[tuple[float, Step]] = []
    with watched(folder / "log") as (worker, _):
        worker.ask(Load(str(what.prepared), None, what.device, what.dtype))
        train(worker, messages(what.data, folder, TRAINED), folder, settings, steps)
    return [step for _, step in steps]


def top(what: Case, folder: Path) -> dict[str, Any]:
    """Median tokens/s of the epochs after the first, and whether the cache changed a loss."""
    runs = {
        name: trained(what, folder / name.replace(" ", "-"), dataclasses.replace(SETTINGS, **changed))
        for name, changed in TOP.items()
    }
    found: dict[str, Any] = {
        name: round(statistics.median(step.tokens_per_s for step in steps[TRAINED:]), 1) for name, steps in runs.items()
    }
    cached, uncached = (runs[f"top quarter{which}"] for which in (", cached", ""))
    gaps = (abs(one.loss - other.loss) for one, other in zip(cached, uncached, strict=True))
    return {**found, "largest difference of a loss": max(gaps)}


def recipe(what: Case, folder: Path) -> dict[str, Any]:
    """Trainer's tokens/s with bfloat16 as compute type, and whether the CPU has that natively."""
    run = peer(dataclasses.replace(what, steps=WARM_UP + 1), "trainer", "bfloat16", {}, folder / "log")
    return {"tokens_per_s": run.figures["tokens_per_s"], "native": "bf16" in Path("/proc/cpuinfo").read_text()}


def main() -> int:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "latency-run")
    given = parser.parse_args()
    given.out = given.out.absolute()
    what = case(given, SMOLLM2)
    folder = what.data.parent
    budgets = {"ours, least memory": 1, BOUNDED: 300, "ours": 0}
    probes = {name: probe_ours(what, folder, budget) for name, budget in budgets.items()}
    figures: dict[str, Any] = {"probe": {**probes, "one by one": probe_stock(what, folder)}}
    for name, found in figures["probe"].items():
        print(f"{name:<20}{found}", flush=True)
    figures["top"] = top(what, folder)
    figures["recipe"] = recipe(what, folder)
    print(figures["top"], figures["recipe"])
    figures |= machine()
    print(f"\n{table(of_latency(figures))}")
    if given.keep:
        given.keep.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
