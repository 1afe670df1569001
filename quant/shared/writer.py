"""A safetensors file written tensor by tensor: memory for one of them, whatever the file's size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8"}


@dataclass(frozen=True)
class Entry:
    """A tensor in the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        size = self.dtype.itemsize
        for each in self.shape:
            size *= each
        return size


def write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a whole file; memory for a copy of one tensor at most."""
    with path.open("wb") as file:
        places = write_header(file, [Entry(name, each.dtype, tuple(each.shape)) for name, each in tensors.items()])
        for name, each in tensors.items():
            write_tensor(file, places[name], each.cpu())


def write_header(file: BinaryIO, entries: list[Entry]) -> dict[str, int]:
    """Write the header of a safetensors file; returns where each tensor begins in it."""
    about: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places, at = {}, 0
    for entry in entries:
        places[entry.name] = at
        about[entry.name] = {
            "dtype": TYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.size],
        }
        at += entry.size
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(8 + len(text) + at)
    return {name: 8 + len(text) + place for name, place in places.items()}


def write_tensor(file: BinaryIO, place: int, tensor: torch.Tensor) -> int:
    """Write a tensor at a place; returns the place behind it."""
    file.seek(place)
    file.write(tensor.contiguous().view(torch.uint8).numpy())
    return file.tell()
