"""Activations of the blocks below the adapter, kept on the disk: they never change, one pass is enough."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass(frozen=True)
class Kept:
    """Where an example's activations are in the file, and the checksum of their bytes."""

    at: int
    shape: tuple[int, int]
    checksum: int


@dataclass
class PrefixCache:
    """Activations (tokens, width) float32 by the tokens they belong to, in a file without a name.

    The file is gone with the process, whatever ends it. A full disk or the bound ends the writing, a damaged entry
    counts as none: both cost only time.
    """

    folder: Path
    most_bytes: int
    _kept: dict[bytes, Kept] = field(default_factory=dict)
    _end: int = 0
    full: bool = False

    def __post_init__(self) -> None:
        self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115  as long as the cache

    def close(self) -> None:
        """Give the file back to the disk."""
        self._file.close()

    def read(self, ids: torch.Tensor, out: torch.Tensor) -> bool:
        """Fill `out` with the activations of these tokens (T,); False if there are none."""
        kept = self._kept.get(_key(ids))
        if kept is None or kept.shape != tuple(out.shape):
            return False
        found = bytearray(os.pread(self._file.fileno(), 4 * out.numel(), kept.at))
        if zlib.crc32(found) != kept.checksum:
            del self._kept[_key(ids)]
            return False
        out.copy_(torch.frombuffer(found, dtype=torch.float32).view(out.shape))
        return True

    def add(self, ids: torch.Tensor, activations: torch.Tensor) -> None:
        """Keep the activations of these tokens, if there is room."""
        data = activations.cpu().contiguous().numpy().data.cast("B")
        if self.full or self._end + len(data) > self.most_bytes:
            self.full = True
            return
        try:
            written = os.pwrite(self._file.fileno(), data, self._end)
        except OSError:
            written = 0
        if written < len(data):
            self.full = True
            return
        shape = (activations.shape[0], activations.shape[1])
        self._kept[_key(ids)] = Kept(self._end, shape, zlib.crc32(data))
        self._end += len(data)


def _key(ids: torch.Tensor) -> bytes:
    return hashlib.blake2b(ids.cpu().numpy().tobytes(), digest_size=16).digest()
