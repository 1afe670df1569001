"""Where, in which number format and with how many threads to compute, decided in this one place.

On a CPU a probe of a second decides and is kept beside the base models: flags say what a CPU can do, not how fast
(bfloat16 without hardware takes 13 to 30 times as long as float32; two threads of one core may be slower than one).
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agent.contract.atomic_io import write_json
from agent.contract.errors import ConfigError

PROBE = "probe.json"
ROWS, WIDTH, INNER = 256, 576, 1536
"""A training row and a layer of the default base model."""
ENOUGH = 0.12
"""Seconds that each way is tried."""
NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED",
)
"""The last is what torch's allocator trips over on Tegra, whose NVML knows nothing of memory."""
QUIET = 0.1
"""Of a core: what others may take meanwhile for a probe to be kept for good."""
AGAIN = 3600.0
"""Seconds for which another is kept."""
BETTER = 1.15
"""How many times as fast as float32 on all cores another way must be: less exact, or fewer cores, only if it pays."""


@dataclass(frozen=True)
class Compute:
    """The choice of device, format and threads, and why in a few words; `threads` is 0 where the device decides."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    why: str

    def apply(self) -> None:
        """Make this process compute so."""
        if self.threads:
            torch.set_num_threads(self.threads)


def choose_device(name: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`; raises ConfigError if CUDA is asked for and does not answer."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError('device is "cuda" but PyTorch sees no CUDA device: set it to "auto" or install a CUDA build')
    return torch.device("cpu" if name == "cpu" or not torch.cuda.is_available() else "cuda")


def choose(device_name: str, dtype_name: str, models: Path | None) -> Compute:
    """Choose device, format and threads; `models` is the folder where the probe of a CPU is kept, None: not at all.

    Raises ConfigError if CUDA is asked for and does not answer.
    """
    device = choose_device(device_name)
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device)[0] >= 8
        dtype = torch.bfloat16 if native else torch.float32
        why = "bfloat16 is native" if native else "bfloat16 is not native before compute capability 8"
        return Compute(device, dtype if dtype_name == "auto" else getattr(torch, dtype_name), 0, why)
    dtype, threads, why = _choose_for_cpu(_rates(models))
    return Compute(device, dtype if dtype_name == "auto" else getattr(torch, dtype_name), threads, why)


def _choose_for_cpu(rates: dict[str, float]) -> tuple[torch.dtype, int, str]:
    """Format and threads by the probe's GFLOP/s; float32 on all cores unless another way is well ahead."""
    usual = f"float32, {max(_threads())} threads"
    best = max(rates, key=lambda way: rates[way])
    chosen = best if rates[best] > BETTER * rates[usual] else usual
    name, threads = chosen.removesuffix(" threads").split(", ")
    # Threads that were set from outside stay.
    count = 0 if "OMP_NUM_THREADS" in os.environ else int(threads)
    seen = ", ".join(f"{way} {rate:.0f}" for way, rate in rates.items())
    return getattr(torch, name), count, f"GFLOP/s of a layer forward and back: {seen}"


def _threads() -> list[int]:
    """All cores that this process may use, and half of them."""
    cores = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else len(os.sched_getaffinity(0))
    return sorted({max(1, cores // 2), cores})


def _rates(models: Path | None) -> dict[str, float]:
    """The probe's rates, measured if they were not on this machine with this torch."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith(("model name", "Model"))), "")
    key = {"machine": cpu, "torch": str(torch.__version__), "threads": _threads()}
    kept = models / PROBE if models else None
    if kept and kept.exists():
        told: dict[str, Any] = json.loads(kept.read_text())
        is_recent = time.time() - kept.stat().st_mtime < AGAIN
        if told.get("key") == key and (told.get("quiet") or is_recent):
            return dict(told["rates"])
    began, others = time.monotonic(), _busy() - time.process_time()
    rates = _measure_rates()
    others = _busy() - time.process_time() - others
    # Beside somebody busy more threads are slower, which is right for now and wrong once the box is quiet.
    quiet = others < QUIET * (time.monotonic() - began)
    if kept:
        write_json(kept, {"key": key, "quiet": quiet, "rates": rates})
    return rates


def _busy() -> float:
    """CPU seconds that everybody's work has taken on this machine since it booted."""
    # user, nice, system, idle, iowait, irq, softirq, steal: see proc_stat(5).
    ticks = list(map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]))
    return (sum(ticks) - sum(ticks[3:5])) / os.sysconf("SC_CLK_TCK")


def _measure_rates() -> dict[str, float]:
    """GFLOP/s of a matrix product and of the one that its backward pass takes, by format and threads."""
    before, rates = torch.get_num_threads(), {}
    for threads in _threads():
        torch.set_num_threads(threads)
        for dtype in (torch.float32, torch.bfloat16):
            x, weight = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(INNER, WIDTH, dtype=dtype)
            rounds, seconds = -1, 0.0  # the first round is not counted
            while seconds < ENOUGH:
                started = time.perf_counter()
                (x @ weight.t()) @ weight
                rounds += 1
                seconds += (time.perf_counter() - started) if rounds else 0.0
            rate = rounds * 4 * ROWS * WIDTH * INNER / seconds / 1e9
            rates[f"{name_of(dtype)}, {threads} threads"] = round(rate, 1)
    torch.set_num_threads(before)
    return rates


def device_title(device: torch.device) -> str:
    """The name of the device, for people."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else "the CPU"


def name_of(dtype: torch.dtype) -> str:
    """A number format as settings have it."""
    return str(dtype).removeprefix("torch.")


def cuda_mb(device: torch.device) -> float:
    """Peak CUDA memory allocated by this process in MB; 0 on a CPU."""
    return round(torch.cuda.max_memory_allocated(device) / 1e6, 1) if device.type == "cuda" else 0.0


def cuda_reserved_mb(device: torch.device) -> float:
    """Peak CUDA memory that this process took from the device in MB, used or not; 0 on a CPU."""
    return round(torch.cuda.max_memory_reserved(device) / 1e6, 1) if device.type == "cuda" else 0.0


def is_out_of_memory(fault: BaseException) -> bool:
    """True if an exception says that memory ran out: Python's, torch's, CUDA's or, on Tegra, NVML's words."""
    return isinstance(fault, MemoryError) or any(words in str(fault) for words in NO_MEMORY)
