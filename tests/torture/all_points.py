"""`make torture`: every kill point of a whole job, or as many as asked for, each tried once.

python tests/torture/all_points.py --most 5000 --seed 0
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
LONGER = ("--steps", "16")
"""Twice the steps of the job that CI kills, and so more checkpoints and more points."""
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "end_to_end")]


def main() -> int:
    """Print each violation as it is found, then how many points of each process were tried."""
    from harness import Harness
    from test_kill_points import job_in, tried, without_kill
    from tiny import write_model

    from quant.prepare import prepare

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=5000, help="kill points to try [5000]")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder, started = Path(work), time.monotonic()
        prepare(write_model(folder / "source"), folder / "base")
        template = job_in(folder / "template", folder / "base", *LONGER)
        harness = Harness(template, folder / "runs")
        wanted = without_kill(harness)
        points = harness.points() if harness.strace else harness.moments(given.most, given.seed)
        chosen = random.Random(given.seed).sample(points, min(given.most, len(points)))
        faults = tried(harness, chosen, wanted)
        for fault in faults:
            print(fault)
        counts = Counter(point.process for point in chosen)
        seconds = time.monotonic() - started
        print(f"{len(chosen)} of {len(points)} kill points, {len(faults)} violations, {seconds:.0f} s: {dict(counts)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
