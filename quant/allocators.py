"""How this process asks for memory; must be settled before torch is imported. Standard library only.

Freed memory goes back to the system at once: what is used again in every step lies in an arena of our own
(quant/lean/arena.py), so that this costs no speed. What a person has set in the environment stays.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

ARENA_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -8, -3, -1
"""Numbers of mallopt(3)."""
SETTINGS = {ARENA_MAX: 1, MMAP_THRESHOLD: 128 << 10, TRIM_THRESHOLD: 128 << 10}
TEGRA = Path("/etc/nv_tegra_release")


def settle() -> None:
    """Set up malloc, MKL's buffers and CUDA's allocator."""
    if not any(name.startswith("MALLOC_") for name in os.environ):
        _mallopt()
    # MKL keeps what it packs matrices into, for each thread.
    os.environ.setdefault("MKL_DISABLE_FAST_MM", "1")
    if not TEGRA.exists():
        # On Tegra the driver cannot map memory so.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def _mallopt() -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return
    for number, value in SETTINGS.items():
        mallopt(number, value)
