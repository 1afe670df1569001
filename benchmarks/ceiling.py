"""Speed of this machine's products of large matrices, in the format that the probe chooses and in float32.

    python -m benchmarks.ceiling MODELS --parent PID --rows 512 --widths 576 896

Run by benchmarks.memory in a process of its own, with the threads and the environment of a training worker: the most
that a training step, which is products for the most part, could reach. A product of ROWS x width by width x 4 width and
one of 2048 x 2048 by 2048 x 2048, in both formats: GFLOP/s, the median of several. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from agent.contract.worker_server import die_with_parent
from agent.system.worker_client import child_environment
from benchmarks.running import ROOT

SQUARE = 2048
ROUNDS = 9
SECONDS = 2.0
"""After which no further round starts: bfloat16 without hardware takes long."""


def measured(models: Path, rows: int, widths: list[int], device: str) -> dict[str, Any]:
    """The format that a worker with a model in the folder `models` chooses, its threads, and the ceilings."""
    command = [sys.executable, "-m", "benchmarks.ceiling", str(models), "--rows", str(rows), "--device", device]
    command += ["--parent", str(os.getpid()), "--widths", *map(str, widths)]
    environment = {**child_environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def gflops(shape: tuple[int, int, int], dtype: Any, device: Any) -> float:
    """Median GFLOP/s of a product of (rows, inner, columns), after one that is not counted."""
    import torch  # noqa: PLC0415

    rows, inner, columns = shape
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    left, right = left.to(device, dtype), right.to(device, dtype)
    settle = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: list[float] = []
    began = time.perf_counter()
    while len(times) <= 1 or (len(times) <= ROUNDS and time.perf_counter() - began < SECONDS):
        started = time.perf_counter()
        left @ right
        settle()
        times.append(time.perf_counter() - started)
    return round(2 * rows * inner * columns / statistics.median(times[1:]) / 1e9, 1)


def main() -> int:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="folder of prepared models, where the probe is kept")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--widths", type=int, nargs="+", default=[576])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parent", type=int, required=True, help="process whose death ends this one")
    given = parser.parse_args()
    die_with_parent(given.parent)
    import torch  # noqa: PLC0415

    from quant.shared.devices import choose, name_of  # noqa: PLC0415

    compute = choose(given.device, "auto", given.models)
    compute.apply()
    found: dict[str, dict[str, float]] = {}
    for dtype in dict.fromkeys((torch.float32, compute.dtype)):
        shapes = {"square": (SQUARE,) * 3} | {str(width): (given.rows, width, 4 * width) for width in given.widths}
        found[name_of(dtype)] = {name: gflops(shape, dtype, compute.device) for name, shape in shapes.items()}
    told = {"dtype": name_of(compute.dtype), "threads": torch.get_num_threads(), "why": compute.why, "gflops": found}
    print(json.dumps(told))
    return 0


def of_model(ceiling: dict[str, Any], width: int, dtype: str) -> float:
    """GFLOP/s of the faster of the two products for a model of that width; KeyError if they were not measured."""
    found = ceiling["gflops"][dtype]
    return float(max(found["square"], found[str(width)]))


if __name__ == "__main__":
    sys.exit(main())
