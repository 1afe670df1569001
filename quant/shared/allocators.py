"""The allocator of this process; must be settled before torch is imported. Standard library only.

Freed memory goes back to the system at once: what is used again in every step lies in an arena of our own
(quant/lean/arena.py), so that this costs no speed. MKL keeps the few megabytes that it packs matrices into; without
them (MKL_DISABLE_FAST_MM) a step takes half as long again (docs/lab-log.md). What a person has set in the
environment stays.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

ARENA_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -8, -3, -1
"""Numbers of mallopt(3)."""
SETTINGS = {ARENA_MAX: 1, MMAP_THRESHOLD: 128 << 10, TRIM_THRESHOLD: 128 << 10}
PAGE, MADV_DONTNEED = os.sysconf("SC_PAGE_SIZE"), 4
TEGRA = Path("/etc/nv_tegra_release")


def configure() -> None:
    """Set up malloc and CUDA's allocator."""
    if not any(name.startswith("MALLOC_") for name in os.environ):
        with suppress(OSError, AttributeError):  # another C library than glibc
            mallopt = ctypes.CDLL(None).mallopt
            for number, value in SETTINGS.items():
                mallopt(number, value)
    if not TEGRA.exists():
        # On Tegra the driver cannot map memory so.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def trim() -> None:
    """Give back what lies free between pieces in use: reading a tokenizer leaves 14 MB so."""
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def unmap(address: int, size: int) -> None:
    """Take the pages of a mapped file out of this process; they stay in the system's cache.

    For a mapped file alone: memory of one's own would lose what it holds.
    """
    start = -(-address // PAGE) * PAGE
    length = (address + size) // PAGE * PAGE - start
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_DONTNEED)
