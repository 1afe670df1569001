"""A frozen 4-bit matrix with a LoRA adapter (arXiv 2106.09685) on it: y = x Wᵀ + b + s (x Aᵀ) Bᵀ, and its gradients.

Nothing but x is kept for the backward pass: W is unpacked again, x Aᵀ is computed again. Matrix products with W run in
the compute dtype, everything else in float32, as peft and bitsandbytes do it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quant.lean.arena import Arena
from quant.lean.nf4 import Packed


@dataclass
class Lora:
    """An adapter's matrices and where their gradients are summed up.

    Attributes:
        a: (rank, inputs) float32.
        b: (outputs, rank) float32.
        grad_a, grad_b: of the same shapes.
        scale: alpha / rank.
    """

    a: torch.Tensor
    b: torch.Tensor
    grad_a: torch.Tensor
    grad_b: torch.Tensor
    scale: float


@dataclass
class Linear:
    """One linear layer; `bias` is (outputs,) float32 or None, without `lora` it is the base model's own.

    `unpacked` is the matrix in the compute dtype where memory has room for it, else it is unpacked for each use.
    """

    packed: Packed
    bias: torch.Tensor | None
    arena: Arena
    dtype: torch.dtype
    lora: Lora | None = None
    unpacked: torch.Tensor | None = None

    def keep_unpacked(self, *, keep: bool) -> None:
        """Hold the matrix unpacked from now on, or no more."""
        if keep and self.unpacked is None:
            with self.arena.frame():
                scales = self.arena.take(self.packed.scales.numel())
                matrix = torch.empty(self.packed.shape, dtype=self.dtype, device=scales.device)
                self.unpacked = self.packed.unpack(matrix, scales)
        elif not keep:
            self.unpacked = None

    def forward(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Map `x` (T, inputs) to `out` (T, outputs), both float32."""
        with self.arena.frame():
            self._times(x, self._weight().t(), out)
            if self.bias is not None:
                out.add_(self.bias)
            if self.lora is not None:
                out.addmm_(self._down(x, self.lora), self.lora.b.t(), alpha=self.lora.scale)
        return out

    def backward(self, x: torch.Tensor, grad: torch.Tensor, grad_x: torch.Tensor | None, *, fresh: bool) -> None:
        """Add to the adapter's gradients; write (`fresh`) or add the gradient of `x` to `grad_x`, unless it is None.

        A fresh one may be written over `x` itself.
        """
        with self.arena.frame():
            lora, inner = self.lora, None
            if lora is not None:
                inner = torch.mm(grad, lora.b, out=self.arena.take(len(x), len(lora.a))).mul_(lora.scale)
                lora.grad_a.addmm_(inner.t(), x)
                lora.grad_b.addmm_(grad.t(), self._down(x, lora), alpha=lora.scale)
            if grad_x is None:
                return
            self._times(grad, self._weight(), grad_x, fresh=fresh)
            if lora is not None and inner is not None:
                grad_x.addmm_(inner, lora.a)

    def _weight(self) -> torch.Tensor:
        if self.unpacked is not None:
            return self.unpacked
        weight = self.arena.take(*self.packed.shape, dtype=self.dtype)
        with self.arena.frame():
            return self.packed.unpack(weight, self.arena.take(self.packed.scales.numel()))

    def _down(self, x: torch.Tensor, lora: Lora) -> torch.Tensor:
        return torch.mm(x, lora.a.t(), out=self.arena.take(len(x), len(lora.a)))

    def _times(self, x: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor, *, fresh: bool = True) -> None:
        """X @ matrix into `out`, or added to it; in the compute dtype."""
        if self.dtype == torch.float32:
            torch.addmm(out, x, matrix, beta=0 if fresh else 1, out=out)
            return
        with self.arena.frame():
            low = self.arena.take(*x.shape, dtype=self.dtype).copy_(x)
            product = torch.mm(low, matrix, out=self.arena.take(*out.shape, dtype=self.dtype))
            out.copy_(product) if fresh else out.add_(product)
