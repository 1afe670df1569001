"""NF4 matrices with double quantisation (QLoRA, arXiv 2305.14314), mapped from the file and unpacked into scratch.

The numbers are bitsandbytes': on a CPU its C functions are called directly, because importing the library calls
torch.compile, which costs seconds and 114 MB; on CUDA its Python API.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agent.contract.errors import BaseModelError

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale, and scales that share one."""

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


@functools.cache
def _library() -> ctypes.CDLL:
    """Bitsandbytes' CPU functions, without its Python; raises BaseModelError if this wheel has none."""
    spec = importlib.util.find_spec("bitsandbytes")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / "libbitsandbytes_cpu.so"
        if path.exists():
            return ctypes.CDLL(str(path))
    raise BaseModelError("bitsandbytes has no CPU library here: install bitsandbytes for this machine")


@functools.cache
def _function(name: str) -> Callable[..., None]:
    try:
        function = getattr(_library(), name)
    except AttributeError as fault:
        raise BaseModelError(f"this bitsandbytes lacks {name}: install the version in constraints.txt") from fault
    function.restype = None
    return function


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _unpack_cpu(packed: Packed, out: torch.Tensor, scales: torch.Tensor) -> None:
    count = ctypes.c_longlong(packed.scales.numel())
    blockwise = _function("cdequantize_blockwise_cpu_fp32")
    of_scales = map(_pointer, (packed.scale_map, packed.scales, packed.nested, scales))
    blockwise(*of_scales, ctypes.c_longlong(NESTED_BLOCK), count)
    scales.add_(packed.offset)
    nf4 = _function(f"cdequantize_blockwise_cpu_nf4_{_KINDS[out.dtype]}")
    rows, columns = map(ctypes.c_longlong, packed.shape)
    nf4(_pointer(packed.codes), _pointer(scales), _pointer(out), ctypes.c_longlong(BLOCK), rows, columns)


def _unpack_cuda(packed: Packed, out: torch.Tensor, scales: torch.Tensor) -> None:
    functional: Any = importlib.import_module("bitsandbytes.functional")
    nested = functional.QuantState(
        absmax=packed.nested, code=packed.scale_map, blocksize=NESTED_BLOCK, dtype=torch.float32
    )
    functional.dequantize_blockwise(packed.scales, nested, out=scales)
    scales.add_(packed.offset)
    functional.dequantize_4bit(packed.codes.view(-1, 1), absmax=scales, out=out, blocksize=BLOCK, quant_type="nf4")


@functools.cache
def dynamic_map(*, signed: bool = True) -> torch.Tensor:
    """The 256 numbers of the dynamic 8-bit type (arXiv 1511.04561), ascending, float32."""
    found = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, (1 if signed else 2) * 2**exponent + 1)
        middles = ((edges[:-1] + edges[1:]) / 2 * 10 ** (exponent - 6)).tolist()
        found += middles + [-each for each in middles] * signed
    return torch.tensor(sorted(found + [0.0] * (256 - len(found))))


def quantise_blockwise(values: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices into `numbers` (256,), uint8, and the scale of each block of 256, float32, for a flat float32 tensor."""
    if values.device.type != "cpu":
        functional: Any = importlib.import_module("bitsandbytes.functional")
        indices, state = functional.quantize_blockwise(values, code=numbers, blocksize=NESTED_BLOCK)
        return indices, state.absmax
    indices = torch.empty(len(values), dtype=torch.uint8)
    scales = torch.empty(-(-len(values) // NESTED_BLOCK))
    blockwise = _function("cquantize_blockwise_cpu_fp32")
    sizes = map(ctypes.c_longlong, (NESTED_BLOCK, len(values)))
    blockwise(_pointer(numbers), _pointer(values), _pointer(scales), _pointer(indices), *sizes)
    return indices, scales
