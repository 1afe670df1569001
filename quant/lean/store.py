"""The file of a prepared base model, mapped: what is read lies in the page cache, which the system may take back.

It is the safetensors file that transformers writes for a bitsandbytes model (and reads), so the same file serves the
lean path and the generic one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from quant.lean.nf4 import Packed

WEIGHTS = "model.safetensors"
STATE = "quant_state.bitsandbytes__nf4"


class Store:
    """Tensors of a prepared base model by name."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        self._path = folder / WEIGHTS
        self._file: Any = safe_open(self._path, framework="pt", device=str(device))
        self.names = set(self._file.keys())

    def forget(self) -> None:
        """Let the system drop the file from its cache: on a box whose GPU shares memory it would be there twice."""
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def is_mapped(self, tensor: torch.Tensor) -> bool:
        """True if a tensor lies in the file, and not in a copy of it."""
        if self.device.type != "cpu":
            return False
        at, inode = tensor.data_ptr(), str(self._path.stat().st_ino)
        lines = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
        ranges = [line[0].split("-") for line in lines if line[4] == inode]
        return any(int(start, 16) <= at < int(end, 16) for start, end in ranges)

    def matrix(self, name: str) -> Packed:
        """A matrix in NF4."""
        state = json.loads(bytes(self.tensor(f"{name}.{STATE}").cpu().tolist()))
        rows, columns = state["shape"]
        return Packed(
            shape=(rows, columns),
            codes=self.tensor(name).view(-1),
            scales=self.tensor(f"{name}.absmax"),
            scale_map=self.tensor(f"{name}.nested_quant_map"),
            nested=self.tensor(f"{name}.nested_absmax"),
            offset=float(state["nested_offset"]),
        )

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor as it is stored."""
        found: torch.Tensor = self._file.get_tensor(name)
        return found

    def vector(self, name: str) -> torch.Tensor | None:
        """A small tensor in float32; None if the model has none of that name."""
        return self.tensor(name).float() if name in self.names else None
