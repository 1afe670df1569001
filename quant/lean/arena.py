"""Scratch memory with the discipline of a stack: what a layer needs is there again for the next one.

Fresh allocations of this size are returned to the system and faulted in again, page by page, at every layer; kept ones
pile up. An arena touches each page once and holds the deepest stack of a step, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

ALIGNMENT = 64
"""Bytes: a cache line, and what vector instructions like best."""
CHUNK = 1 << 30
"""Bytes of address space taken at a time on a CPU; pages that are never written take no memory."""


class Arena:
    """Hands out tensors that stay valid until the frame they were taken in is left.

    On a CUDA device torch's own caching allocator does this already, so tensors are simply allocated.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._chunks: list[torch.Tensor] = []
        self._at = (0, 0)

    def take(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """An uninitialised tensor."""
        if self.device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=self.device)
        size = dtype.itemsize
        for each in shape:
            size *= each
        chunk, start = self._at
        while chunk < len(self._chunks) and start + size > len(self._chunks[chunk]):
            chunk, start = chunk + 1, 0
        if chunk == len(self._chunks):
            self._chunks.append(torch.empty(max(size, CHUNK), dtype=torch.uint8))
        self._at = (chunk, -(-(start + size) // ALIGNMENT) * ALIGNMENT)
        # .data: a version counter of its own, or autograd would take a write elsewhere for a write to this one.
        return self._chunks[chunk][start : start + size].view(dtype).view(shape).data

    def release(self) -> None:
        """Give back all of it that is in no tensor's hands; for when what follows needs less, or something else."""
        self._chunks, self._at = [], (0, 0)

    @contextmanager
    def frame(self) -> Iterator[None]:
        """Everything taken inside is given back at the end."""
        before = self._at
        try:
            yield
        finally:
            self._at = before
