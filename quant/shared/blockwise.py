"""Blockwise 8-bit quantisation (arXiv 2110.02861): of the optimizer's moments, and of the scales of NF4.

The numbers are bitsandbytes': on a CPU its C functions are called directly, because importing the library calls
torch.compile, which costs seconds and 114 MB; on CUDA its Python API.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from agent.contract.errors import BaseModelError

NESTED_BLOCK = 256
"""Values that share a scale."""


@functools.cache
def library() -> ctypes.CDLL:
    """Bitsandbytes' CPU functions, without its Python; raises BaseModelError if this wheel has none."""
    spec = importlib.util.find_spec("bitsandbytes")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / "libbitsandbytes_cpu.so"
        if path.exists():
            return ctypes.CDLL(str(path))
    raise BaseModelError("bitsandbytes has no CPU library here: install bitsandbytes for this machine")


@functools.cache
def c_function(name: str) -> Callable[..., None]:
    """A C function of bitsandbytes' CPU library. Raises BaseModelError where it has none of that name."""
    try:
        function = getattr(library(), name)
    except AttributeError as fault:
        raise BaseModelError(f"this bitsandbytes lacks {name}: install the version in constraints.txt") from fault
    function.restype = None
    return function


def c_pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Where a tensor's first number is, for a C function."""
    return ctypes.c_void_p(tensor.data_ptr())


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
    blockwise = c_function("cquantize_blockwise_cpu_fp32")
    sizes = map(ctypes.c_longlong, (NESTED_BLOCK, len(values)))
    blockwise(c_pointer(numbers), c_pointer(values), c_pointer(scales), c_pointer(indices), *sizes)
    return indices, scales
