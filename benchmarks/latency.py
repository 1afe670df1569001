"""How fast the worker probes and trains the top layers: `python -m benchmarks.latency --state DIR`.

    probe      64 prompts of 24 new tokens: ours in batches, transformers' generate one by one on the 4-bit model
    top        epochs after the first: all blocks, the top quarter, the top quarter over the cached prefix
    recipe     on a CPU without native bfloat16: tokens/s in float32 and in the bfloat16 that recipes recommend

Run it with nothing else going on. Ends with one JSON line; --keep FILE also writes it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from agent.config import DEFAULT_BASE
from agent.home import Home
from agent.protocol import Generate, Load, Step, Train
from agent.settings import Training
from agent.workers import Worker
from benchmarks.boxes import machine
from benchmarks.memory import WORDS, write_texts
from benchmarks.watching import Group, Watch

PROMPTS = 64
NEW_TOKENS = 24
SETTINGS = Training(
    rank=8, alpha=16, learning_rate=5e-5, micro_batch=1, sequence_length=512, epochs=3.0, checkpoint_every=1000
)
ROWS = 8
TOP = {
    "all blocks": {},
    "top quarter": {"top_layers": 0.25, "prefix_cache": 0},
    "top quarter, cached": {"top_layers": 0.25},
}


def probe_ours(base: Path, folder: Path, budget: int) -> dict[str, Any]:
    """Tokens a second and peak memory of our worker, with a memory_budget in MB."""
    data = folder / "prompts.jsonl"
    rows = ({"id": str(n), "messages": [{"role": "user", "content": prompt(n)}]} for n in range(PROMPTS))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Worker("quant.worker", folder / "log") as worker:
        worker.ask(Load(str(base), None, "cpu", "float32"))
        watch = Watch(worker.process.pid, Group())
        watch.phase("generate")
        started = time.monotonic()
        told = worker.ask(Generate(str(data), str(folder / "answers.jsonl"), NEW_TOKENS, budget))
        seconds = time.monotonic() - started
        phases = watch.close()
    return {"tokens_per_s": round(told.tokens / seconds, 1), **phases["generate"]}  # type: ignore[union-attr]


def prompt(number: int) -> str:
    """A question like any other."""
    return f"Describe the {WORDS[number % len(WORDS)]} of ship {number} in a long paragraph."


def probe_stock(base: Path) -> dict[str, Any]:
    """The same by transformers' generate, one prompt after the other, in this process."""
    import torch  # noqa: PLC0415

    from quant.stock import open_model  # noqa: PLC0415

    model = open_model(base, None, torch.device("cpu"), torch.float32)
    started, tokens = time.monotonic(), 0
    for number in range(PROMPTS):
        ids = model.encoder.prompt([{"role": "user", "content": prompt(number)}])
        ((_, answer),) = model.answers([ids], NEW_TOKENS)
        tokens += len(answer)
    return {"tokens_per_s": round(tokens / (time.monotonic() - started), 1)}


def trained(base: Path, folder: Path, settings: Training, dtype: str = "float32") -> list[Step]:
    """The steps of a run on a few texts."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = write_texts(folder / "texts.jsonl", 1024).read_text().splitlines()[:ROWS]
    lines = (
        {"id": str(n), "messages": [{"role": "assistant", "content": json.loads(text)["text"]}]}
        for n, text in enumerate(texts)
    )
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps: list[Step] = []
    with Worker("quant.worker", folder / "log") as worker:
        worker.ask(Load(str(base), None, "cpu", dtype))
        request = Train(str(folder / "data.jsonl"), str(folder / "checkpoints"), settings)
        worker.ask(request, lambda event: steps.append(event) if isinstance(event, Step) else None)
    return steps


def rate(steps: list[Step], first: int = 2) -> float:
    """Median tokens a second."""
    return round(statistics.median(step.tokens_per_s for step in steps[first:]), 1)


def top(base: Path, folder: Path) -> dict[str, Any]:
    """Epochs after the first, and whether the cache changed a loss."""
    runs = {
        name: trained(base, folder / name.replace(" ", "-"), dataclasses.replace(SETTINGS, **changed))
        for name, changed in TOP.items()
    }
    found: dict[str, Any] = {name: rate(steps, ROWS) for name, steps in runs.items()}
    cached, uncached = (runs[f"top quarter{which}"] for which in (", cached", ""))
    gaps = (abs(one.loss - other.loss) for one, other in zip(cached, uncached, strict=True))
    return {**found, "largest difference of a loss": max(gaps)}


def recipe(base: Path, folder: Path) -> dict[str, Any]:
    """Our float32 against bfloat16 as compute type, on this CPU."""
    settings = dataclasses.replace(SETTINGS, steps=4)
    return {dtype: rate(trained(base, folder / dtype, settings, dtype)) for dtype in ("float32", "bfloat16")}


def main() -> int:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="folder with the prepared default base model")
    parser.add_argument("--out", type=Path, default=Path("latency-run"), help="folder for what is written")
    parser.add_argument("--keep", type=Path, help="file to write the figures to")
    given = parser.parse_args()
    base, out = Home(given.state).model(DEFAULT_BASE), given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    probes = {"ours, least memory": probe_ours(base, out, 1), "ours": probe_ours(base, out, 0)}
    figures: dict[str, Any] = {"probe": {**probes, "one by one": probe_stock(base)}}
    print(json.dumps(figures["probe"]), flush=True)
    figures["top"] = top(base, out)
    print(json.dumps(figures["top"]), flush=True)
    figures["recipe"] = recipe(base, out)
    figures |= machine()
    if given.keep:
        given.keep.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
