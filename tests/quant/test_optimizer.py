"""AdamW on a flat vector, held to torch's and to what 8 bits can hold."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.functional import create_dynamic_map

from quant.shared.blockwise import dynamic_map, quantise_blockwise
from quant.shared.flat_params import FlatParams
from quant.shared.optimizer import MOMENTS, AdamW

COUNT = 300_001
"""More than one part, and no multiple of a block."""


def descent(kind: str, steps: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Where ours and torch's AdamW come to from the same start with the same gradients."""
    draw = torch.Generator().manual_seed(1)
    start = torch.randn(COUNT, generator=draw)
    mine, grads = start.clone(), torch.zeros(COUNT)
    theirs = torch.nn.Parameter(start.clone())
    ours = AdamW(mine, grads, 0.01, MOMENTS[kind](mine))
    peer = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.01)
    for number in range(1, steps + 1):
        noise = torch.randn(COUNT, generator=draw)
        grads.copy_(start.sign() + noise)
        theirs.grad = grads.clone()
        ours.step(number, 1e-2)
        peer.step()
        assert not grads.any()
    return mine - start, theirs.detach() - start


def test_steps_are_those_of_torch() -> None:
    """Weight decay, bias correction and all."""
    mine, theirs = descent("adamw")
    assert torch.allclose(mine, theirs, atol=1e-6)


@pytest.mark.slow
def test_eight_bits_go_the_same_way() -> None:
    """Rounded moments, not other ones."""
    mine, theirs = descent("adamw8bit")
    assert float((mine - theirs).norm() / theirs.norm()) < 0.05


def test_eight_bits_take_a_quarter() -> None:
    """Of the memory of both moments, scales included."""
    values = torch.zeros(COUNT)
    exact, rounded = (sum(t.nbytes for t in MOMENTS[kind](values).tensors().values()) for kind in MOMENTS)
    assert rounded < 0.26 * exact


@pytest.mark.parametrize("kind", list(MOMENTS))
def test_a_restored_optimizer_goes_on_as_if_nothing_had_been(kind: str) -> None:
    """What `tensors` holds is all there is."""
    grads = torch.linspace(-1, 1, 1000)
    first, second = torch.zeros(1000), torch.zeros(1000)
    one, other = (AdamW(values, grads.clone(), 0.0, MOMENTS[kind](values)) for values in (first, second))
    one.step(1, 1e-2)
    second.copy_(first)
    for name, tensor in one.moments.tensors().items():
        other.moments.tensors()[name].copy_(tensor)
    for optimizer in (one, other):
        optimizer.grads.copy_(grads.flip(0))
        optimizer.step(2, 1e-2)
    assert torch.equal(first, second)


@pytest.mark.parametrize("signed", [True, False])
def test_the_dynamic_type_is_that_of_bitsandbytes(signed: bool) -> None:  # noqa: FBT001
    """Number for number; what is packed comes back to the nearest."""
    numbers = dynamic_map(signed=signed)
    assert torch.equal(numbers, create_dynamic_map(signed=signed))
    values = torch.rand(1000, generator=torch.Generator().manual_seed(2))
    indices, scales = quantise_blockwise(values, numbers)
    back = numbers[indices.int()] * scales.repeat_interleave(256)[:1000]
    assert float((back - values).abs().max()) < 0.02


def test_clipping_scales_the_gradients_to_the_norm() -> None:
    """And tells the norm before."""
    flat = FlatParams.zeros({"a": (3,), "b": (2, 1)}, torch.device("cpu"))
    flat.grads.copy_(torch.tensor([3.0, 0.0, 0.0, 4.0, 0.0]))
    assert flat.clip(10.0) == 5.0
    assert flat.clip(1.0) == 5.0
    assert float(flat.grads.norm()) == pytest.approx(1.0, abs=1e-5)
    assert flat.views(flat.grads)["b"].shape == (2, 1)
