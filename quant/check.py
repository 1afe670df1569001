"""The worker's part of `doctor`: does 4-bit training work on this device?"""

from __future__ import annotations

import importlib.metadata

import torch

from agent.contract.confinement import is_confined
from agent.contract.protocol import Checked
from quant.lean.arena import Arena
from quant.lean.convert import nf4
from quant.lean.linear import Linear
from quant.lean.nf4 import Packed
from quant.shared.blockwise import dynamic_map, quantise_blockwise
from quant.shared.devices import Compute, choose, choose_device, device_title, name_of

SIZE = 256


def check(device_name: str) -> Checked:
    """Quantise a matrix to NF4, multiply by it and take the gradient, as one training step does.

    An import is not enough: on some boxes the wheel imports and then fails at its first 4-bit kernel
    (bitsandbytes issues 1930 and 1941). Any failure comes back as `ok=False` with the library's words.
    """
    device = choose_device(device_name)
    try:
        compute = choose(device_name, "auto", None)
        error = gradient_error(compute)
    except Exception as fault:  # noqa: BLE001  whatever a driver or wheel raises is the finding
        lines = str(fault).strip().splitlines() or ["no message"]
        detail = f"{type(fault).__name__}: {lines[0]}"
        return Checked(ok=False, device=device.type, dtype="", detail=detail, versions=versions())
    detail = f"4-bit quantise, matmul and backward on {device_title(device)}: relative gradient error {error:.1e}"
    dtype = f"{name_of(compute.dtype)}: {compute.why}"
    right, confined = error < 0.05, is_confined()
    return Checked(right, device.type, dtype, detail, versions(), confined)


def gradient_error(compute: Compute) -> float:
    """Of a layer as training computes it, against plain torch in float32."""
    device, generator = compute.device, torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, SIZE, generator=generator) for rows in (SIZE, 8))
    layer = Linear(_quantise(weight, device), None, Arena(device), compute.dtype)
    x = x.to(device)
    exact = layer.packed.unpack(*(torch.empty(shape, device=device) for shape in ((SIZE, SIZE), (SIZE * SIZE // 64,))))
    out, got = layer.forward(x, torch.empty(8, SIZE, device=device)), torch.empty_like(x)
    layer.backward(x, 2 * out, got, fresh=True)
    expected = 2 * (x @ exact.t()) @ exact
    return float((got - expected).norm() / expected.norm())


def _quantise(weight: torch.Tensor, device: torch.device) -> Packed:
    """A matrix (outputs, inputs) in NF4 with double quantisation, as `quant.lean.convert` writes it."""
    codes, scales = nf4(weight)
    offset = float(scales.mean())
    indices, nested = quantise_blockwise(scales - offset, dynamic_map())
    parts = [each.to(device) for each in (codes, indices, dynamic_map(), nested)]
    return Packed((len(weight), weight.shape[1]), parts[0], parts[1], parts[2], parts[3], offset)


def versions() -> dict[str, str]:
    """Versions of the libraries that decide the numbers."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "bitsandbytes")}
