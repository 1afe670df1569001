"""A base model to one NF4 file, tensor by tensor: memory for some rows of the largest, not for the model.

The file is the one that transformers and bitsandbytes write and read for a model in NF4 with double quantisation
(QLoRA, arXiv 2305.14314), number for number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import torch

from quant.lean.architecture import Architecture
from quant.lean.nf4 import BLOCK, CODE
from quant.lean.sources import Source
from quant.lean.store import STATE, WEIGHTS
from quant.shared.blockwise import NESTED_BLOCK, dynamic_map, quantise_blockwise
from quant.shared.writer import Entry, write_header, write_tensor

ROWS_BYTES = 8 << 20
"""About how much of a matrix is worked on at a time, as float32."""
STATE_BYTES = 256
"""Room for the JSON that tells how a matrix is packed; filled up with blanks."""


def convert(source: Source, arch: Architecture, folder: Path, told: Callable[[float], None]) -> int:
    """Write model.safetensors into `folder`; returns how many numbers the model has.

    `told` is called with the share of them that is done. Raises KeyError for a tensor that the source lacks.
    """
    matrices = [f"model.layers.{n}.{name}.weight" for n in range(arch.layers) for name in arch.linears]
    packed = set(matrices)
    plain = [name for name in source.shapes if name not in packed and not (arch.tied and "lm_head" in name)]
    entries = [entry for name in matrices for entry in _nf4_entries(name, source.shapes[name])]
    entries += [Entry(name, torch.bfloat16, source.shapes[name]) for name in plain]
    # Wide types first: every tensor then begins at a multiple of its type's size.
    entries.sort(key=lambda entry: -entry.dtype.itemsize)
    with (folder / WEIGHTS).open("wb") as file:
        places = write_header(file, entries)
        numbers, done = sum(_count(source.shapes[name]) for name in (*matrices, *plain)), 0
        for name in (*plain, *matrices):
            if name in packed:
                _write_nf4(file, places, source, name)
            else:
                place = places[name]
                for start, end in _slices(source.shapes[name]):
                    place = write_tensor(file, place, source.rows(name, start, end))
            done += _count(source.shapes[name])
            told(done / numbers)
        file.flush()
        os.fsync(file.fileno())
    return numbers


def _count(shape: tuple[int, ...]) -> int:
    return Entry("", torch.uint8, shape).size


def _nf4_entries(name: str, shape: tuple[int, ...]) -> Iterator[Entry]:
    numbers = _count(shape)
    scales = -(-numbers // BLOCK)
    yield Entry(name, torch.uint8, (-(-numbers // 2), 1))
    yield Entry(f"{name}.absmax", torch.uint8, (scales,))
    yield Entry(f"{name}.quant_map", torch.float32, (len(CODE),))
    yield Entry(f"{name}.nested_absmax", torch.float32, (-(-scales // NESTED_BLOCK),))
    yield Entry(f"{name}.nested_quant_map", torch.float32, (256,))
    yield Entry(f"{name}.{STATE}", torch.uint8, (STATE_BYTES,))


def _slices(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about ROWS_BYTES, each a whole number of blocks."""
    width = _count(shape[1:])
    step = max(1, ROWS_BYTES // (4 * width))
    # Rows that are no multiple of a block: so many of them that they are one together.
    step = -(-step // BLOCK) * BLOCK if width % BLOCK else step
    yield from ((start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def _write_nf4(file: BinaryIO, places: dict[str, int], source: Source, name: str) -> None:
    shape, at, scales = source.shapes[name], places[name], []
    for start, end in _slices(shape):
        codes, found = nf4(source.rows(name, start, end))
        at = write_tensor(file, at, codes)
        scales.append(found)
    together = torch.cat(scales)
    offset = together.mean()
    indices, nested = quantise_blockwise(together - offset, dynamic_map())
    state = {
        "quant_type": "nf4",
        "blocksize": BLOCK,
        "dtype": "bfloat16",
        "shape": list(shape),
        "nested_blocksize": NESTED_BLOCK,
        "nested_dtype": "float32",
        "nested_offset": float(offset),
    }
    text = json.dumps(state).encode().ljust(STATE_BYTES)
    parts = {"absmax": indices, "quant_map": CODE, "nested_absmax": nested, "nested_quant_map": dynamic_map()}
    for part, tensor in {**parts, STATE: torch.frombuffer(bytearray(text), dtype=torch.uint8)}.items():
        write_tensor(file, places[f"{name}.{part}"], tensor)


def nf4(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, (n / 2,) uint8 with two numbers each, and the scale of each block of 64, (n / 64,) float32."""
    values = rows.reshape(-1).float()
    blocks = torch.nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    scaled = (blocks * (1.0 / scales.clamp(min=1e-38))[:, None]).clamp_(-1, 1).view(-1)[: len(values)]
    codes = torch.bucketize(scaled, (CODE[1:] + CODE[:-1]) / 2, out_int32=True).to(torch.uint8)
    codes = torch.nn.functional.pad(codes, (0, len(codes) % 2))
    return (codes[::2] << 4) | codes[1::2], scales
