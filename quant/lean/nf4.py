"""NF4 matrices with double quantisation (QLoRA, arXiv 2305.14314), mapped from the file and unpacked into scratch.

The numbers are bitsandbytes', called as `quant.shared.blockwise` says.
"""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass
from typing import Any

import torch

from quant.shared.blockwise import NESTED_BLOCK, c_function, c_pointer

BLOCK = 64
"""Weights that share a scale."""

CODE = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)
"""The sixteen numbers of NF4 (QLoRA, appendix E)."""

_KINDS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Packed:
    """One matrix of `shape` (outputs, inputs) at 4.127 bits a number.

    Attributes:
        codes: (outputs x inputs / 2,) uint8, two numbers each.
        scales: (outputs x inputs / 64,) uint8, indices into `scale_map`.
        scale_map: (256,) float32.
        nested: (ceil(len(scales) / 256),) float32, what scale_map is multiplied by.
        offset: what is added to every scale.
    """

    shape: tuple[int, int]
    codes: torch.Tensor
    scales: torch.Tensor
    scale_map: torch.Tensor
    nested: torch.Tensor
    offset: float

    def unpack(self, out: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """The matrix into `out`, float32 or bfloat16; `scales` is scratch, float32, one for each 64 numbers."""
        unpack = _unpack_cpu if out.device.type == "cpu" else _unpack_cuda
        unpack(self, out, scales)
        return out


def _unpack_cpu(packed: Packed, out: torch.Tensor, scales: torch.Tensor) -> None:
    count = ctypes.c_longlong(packed.scales.numel())
    blockwise = c_function("cdequantize_blockwise_cpu_fp32")
    of_scales = map(c_pointer, (packed.scale_map, packed.scales, packed.nested, scales))
    blockwise(*of_scales, ctypes.c_longlong(NESTED_BLOCK), count)
    scales.add_(packed.offset)
    nf4 = c_function(f"cdequantize_blockwise_cpu_nf4_{_KINDS[out.dtype]}")
    rows, columns = map(ctypes.c_longlong, packed.shape)
    nf4(c_pointer(packed.codes), c_pointer(scales), c_pointer(out), ctypes.c_longlong(BLOCK), rows, columns)


def _unpack_cuda(packed: Packed, out: torch.Tensor, scales: torch.Tensor) -> None:
    functional: Any = importlib.import_module("bitsandbytes.functional")
    nested = functional.QuantState(
        absmax=packed.nested, code=packed.scale_map, blocksize=NESTED_BLOCK, dtype=torch.float32
    )
    functional.dequantize_blockwise(packed.scales, nested, out=scales)
    scales.add_(packed.offset)
    functional.dequantize_4bit(packed.codes.view(-1, 1), absmax=scales, out=out, blocksize=BLOCK, quant_type="nf4")
