"""The memory benchmark's own instruments, on processes whose memory is known."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from needs import lacks

from benchmarks.contenders import Run
from benchmarks.models import SHAPES, SMOLLM2, floor_mib
from benchmarks.watching import Group, Watch

BLOCK = 80
"""MiB that the process below takes in its second phase."""
PROCESS = f"""
import sys
sys.stdin.readline()
block = bytearray({BLOCK} << 20)
for place in range(0, len(block), 4096):
    block[place] = 1
print("taken", flush=True)
sys.stdin.readline()
del block
print("given back", flush=True)
sys.stdin.readline()
"""


def test_each_phase_has_its_own_highest_values() -> None:
    """What one phase took is not told of the next."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PROCESS], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        time.sleep(0.3)
        watch = Watch(process.pid, Group())
        for phase in ("before", "taken", "after"):
            watch.phase(phase)
            time.sleep(0.1)
            if phase != "after":
                process.stdin.write("\n")
                process.stdin.flush()
                process.stdout.readline()
            if phase == "before":
                continue
        found = watch.close()
        process.stdin.close()
    before, taken, after = (found[phase]["anonymous"] or 0 for phase in ("before", "taken", "after"))
    assert BLOCK <= max(before, taken) - after < BLOCK + 10
    assert (found["taken"]["resident"] or 0) >= BLOCK
    assert (found["taken"]["proportional"] or 0) > 0


def test_a_group_tells_its_peak_and_holds_its_limit() -> None:
    """A process that wants more than the limit is killed."""
    try:
        group = Group(BLOCK << 19)
    except OSError as fault:
        lacks(f"no control group can be made: {fault}")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PROCESS], stdin=pipe, stdout=pipe, text=True) as process:
        group.add(process.pid)
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        process.wait(30)
    assert process.returncode == -9
    peak = group.peak()
    assert peak is None or peak <= BLOCK / 2 + 1
    group.close()
    assert group.folder
    assert not Path(group.folder).exists()


def test_the_floor_is_the_sum_of_what_a_step_cannot_do_without() -> None:
    """SmolLM2, 512 tokens, rank 8: 91 MiB (docs/memory.md)."""
    assert floor_mib(SHAPES[SMOLLM2], 512, 8) == pytest.approx(91, abs=1)
    assert floor_mib(SHAPES["Qwen2.5-0.5B"], 512, 8) == pytest.approx(178, abs=1)


def test_a_run_is_told_over_its_imports() -> None:
    """Libraries differ by hundreds of MiB before any model."""
    phases = {"import": {"anonymous": 100.0}, "step": {"anonymous": 150.5}}
    assert Run("x", dict(phases)).over_imports == 50.5
