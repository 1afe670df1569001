"""Where and in which number format to compute, decided in this one place."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import torch

from agent.errors import ConfigError
from agent.protocol import Checked
from quant.lean.arena import Arena
from quant.lean.convert import nf4
from quant.lean.linear import Linear
from quant.lean.nf4 import Packed, dynamic_map, quantise_blockwise

CPU_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""CPU flags that mean bfloat16 arithmetic in hardware (x86, x86, ARM). Without them it is 13 to 30 times slower."""


def choose_device(name: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`; raises ConfigError if CUDA is asked for and does not answer."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError('device is "cuda" but PyTorch sees no CUDA device: set it to "auto" or install a CUDA build')
    return torch.device("cpu" if name == "cpu" or not torch.cuda.is_available() else "cuda")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware computes in it, else float32, unless the setting names one."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    return torch.bfloat16 if _native_bf16(device) else torch.float32


def _native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.get_device_capability(device)[0] >= 8)
    return bool(CPU_BF16_FLAGS & set(Path("/proc/cpuinfo").read_text().split()))


def check(device_name: str) -> Checked:
    """Quantise a matrix to NF4, multiply by it and take the gradient, as one training step does.

    An import is not enough: on some boxes the wheel imports and then fails at its first 4-bit kernel
    (bitsandbytes issues 1930 and 1941). Any failure comes back as `ok=False` with the library's words.
    """
    device = choose_device(device_name)
    dtype = choose_dtype("auto", device)
    try:
        error = _gradient_error(device, dtype)
    except Exception as fault:  # noqa: BLE001  whatever a driver or wheel raises is the finding
        return Checked(ok=False, device=device.type, dtype=_name(dtype), detail=_first_line(fault), versions=versions())
    ok = error < 0.05
    detail = f"4-bit quantise, matmul and backward on {device_title(device)}: relative gradient error {error:.1e}"
    return Checked(ok=ok, device=device.type, dtype=_name(dtype), detail=detail, versions=versions())


def _gradient_error(device: torch.device, dtype: torch.dtype) -> float:
    """Of a layer of the lean path against plain torch."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, 256, generator=generator) for rows in (256, 8))
    layer = Linear(_packed(weight, device), None, Arena(device), dtype)
    x = x.to(device)
    exact = layer.packed.unpack(torch.empty(256, 256, device=device), torch.empty(1024, device=device))
    out = layer.forward(x, torch.empty(8, 256, device=device))
    got = torch.empty_like(x)
    layer.backward(x, 2 * out, got, fresh=True)
    expected = 2 * (x @ exact.t()) @ exact
    return float((got - expected).norm() / expected.norm())


def _packed(weight: torch.Tensor, device: torch.device) -> Packed:
    codes, scales = nf4(weight)
    indices, nested = quantise_blockwise(scales - scales.mean(), dynamic_map())
    shape, offset = (len(weight), weight.shape[1]), float(scales.mean())
    return Packed(shape, codes.to(device), indices.to(device), dynamic_map().to(device), nested.to(device), offset)


def device_title(device: torch.device) -> str:
    """What a person calls the device."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else "the CPU"


def versions() -> dict[str, str]:
    """Versions of the libraries that decide the numbers."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "bitsandbytes")}


def cuda_mb(device: torch.device) -> float:
    """Peak CUDA memory allocated by this process in MB; 0 on a CPU."""
    return round(torch.cuda.max_memory_allocated(device) / 1e6, 1) if device.type == "cuda" else 0.0


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(fault: Exception) -> str:
    return f"{type(fault).__name__}: {str(fault).strip().splitlines()[0] if str(fault).strip() else 'no message'}"
