"""AdamW (arXiv 1711.05101) on one flat vector, with moments in float32 or in 8 bits (arXiv 2110.02861).

Our own because the first step of any torch.optim class imports the compiler: seconds, and 100 MB on a small box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from quant.shared.blockwise import NESTED_BLOCK, dynamic_map, quantise_blockwise

BETAS = (0.9, 0.999)
EPSILON = 1e-8
PART = 1 << 18
"""Parameters worked on at a time: what is temporary stays small."""


class Moments(Protocol):
    """The running means of the gradient and of its square."""

    def parts(self) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Each part of the vector with both means, to be changed in place."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a checkpoint must hold, by name; the tensors themselves, to be read or overwritten."""
        ...


class Exact:
    """Moments in float32."""

    def __init__(self, values: torch.Tensor) -> None:
        self._first, self._second = torch.zeros_like(values), torch.zeros_like(values)

    def parts(self) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Each part with both means."""
        for start in range(0, len(self._first), PART):
            part = slice(start, start + PART)
            yield part, self._first[part], self._second[part]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The means."""
        return {"exp_avg": self._first, "exp_avg_sq": self._second}


class EightBit:
    """Moments as indices into the dynamic 8-bit type, with a scale for each block of 256: a quarter of the memory."""

    def __init__(self, values: torch.Tensor) -> None:
        self._means = [_Blockwise(values, dynamic_map(signed=signed).to(values.device)) for signed in (True, False)]

    def parts(self) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Each part with both means, packed again once they have been changed."""
        for start in range(0, self._means[0].count, PART):
            part = slice(start, min(start + PART, self._means[0].count))
            first, second = (mean.unpack(part) for mean in self._means)
            yield part, first, second
            for mean, changed in zip(self._means, (first, second), strict=True):
                mean.pack(part, changed)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Indices and scales."""
        first, second = self._means
        return {
            "exp_avg_8bit": first.indices,
            "exp_avg_scales": first.scales,
            "exp_avg_sq_8bit": second.indices,
            "exp_avg_sq_scales": second.scales,
        }


class _Blockwise:
    """A vector of zeros in 8 bits; parts begin at multiples of a block."""

    def __init__(self, like: torch.Tensor, numbers: torch.Tensor) -> None:
        self.count, self._numbers = len(like), numbers
        zero = int(torch.argmin(numbers.abs()))
        self.indices = torch.full((len(like),), zero, dtype=torch.uint8, device=like.device)
        self.scales = torch.zeros(-(-len(like) // NESTED_BLOCK), device=like.device)

    def unpack(self, part: slice) -> torch.Tensor:
        scales = self.scales[self._blocks(part)].repeat_interleave(NESTED_BLOCK)[: part.stop - part.start]
        return self._numbers[self.indices[part].int()].mul_(scales)

    def pack(self, part: slice, values: torch.Tensor) -> None:
        indices, scales = quantise_blockwise(values, self._numbers)
        self.indices[part] = indices
        self.scales[self._blocks(part)] = scales

    def _blocks(self, part: slice) -> slice:
        return slice(part.start // NESTED_BLOCK, -(-part.stop // NESTED_BLOCK))


MOMENTS: dict[str, Callable[[torch.Tensor], Moments]] = {"adamw": Exact, "adamw8bit": EightBit}
"""By the name of the setting."""


@dataclass
class AdamW:
    """The optimizer of one vector of parameters."""

    values: torch.Tensor
    grads: torch.Tensor
    decay: float
    moments: Moments

    @torch.no_grad()
    def step(self, number: int, rate: float) -> None:
        """Step `number` (from 1) with learning rate `rate`; sets the gradients to zero."""
        first_beta, second_beta = BETAS
        root = (1 - second_beta**number) ** 0.5
        for part, first, second in self.moments.parts():
            values, grads = self.values[part], self.grads[part]
            values.mul_(1 - rate * self.decay)
            first.lerp_(grads, 1 - first_beta)
            second.mul_(second_beta).addcmul_(grads, grads, value=1 - second_beta)
            values.addcdiv_(first, second.sqrt().div_(root).add_(EPSILON), value=-rate / (1 - first_beta**number))
        self.grads.zero_()
