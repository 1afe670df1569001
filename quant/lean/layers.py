"""The parts of a block besides its linear layers, forward and backward, in place where that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from quant.lean.arena import Arena
from quant.lean.cache import LayerCache, Pair

ops = torch.ops.aten


@dataclass(frozen=True)
class Norm:
    """RMS norm (arXiv 1910.07467) with a frozen weight (n,) float32, over the last axis."""

    weight: torch.Tensor
    epsilon: float
    arena: Arena

    def forward(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Norm `x` (..., n) into `out`, which may be x."""
        with self.arena.frame():
            return torch.mul(x, self._rate(x), out=out).mul_(self.weight)

    def backward(self, x: torch.Tensor, grad: torch.Tensor, total: torch.Tensor, *, fresh: bool) -> None:
        """Write (`fresh`) or add the gradient of x to `total`; overwrites `grad`. `total` may be grad if fresh."""
        with self.arena.frame():
            rate = self._rate(x)
            grad.mul_(self.weight)
            product = torch.mul(grad, x, out=self.arena.take(*x.shape))
            along = torch.mean(product, -1, keepdim=True, out=self.arena.take(*x.shape[:-1], 1))
            along.mul_(rate).mul_(rate)
            grad.sub_(torch.mul(x, along, out=product)).mul_(rate)
            if fresh:
                total.copy_(grad)
            else:
                total.add_(grad)

    def _rate(self, x: torch.Tensor) -> torch.Tensor:
        """One over the root mean square, (..., 1)."""
        rate = self.arena.take(*x.shape[:-1], 1)
        with self.arena.frame():
            squared = torch.mul(x, x, out=self.arena.take(*x.shape))
            torch.mean(squared, -1, keepdim=True, out=rate)
        return rate.add_(self.epsilon).rsqrt_()


class Rotation:
    """Rotary positions for some rows: pairs of a head's halves are turned by position x frequency."""

    def __init__(self, frequencies: torch.Tensor, positions: torch.Tensor) -> None:
        """`frequencies` (size / 2,) as Rope has them, `positions` (T,)."""
        angles = positions.float()[:, None] * frequencies
        self._cos, self._sin = angles.cos()[:, None], angles.sin()[:, None]

    def turn(self, x: torch.Tensor, arena: Arena, *, back: bool = False) -> None:
        """Turn `x` (T, heads, size) in place; `back` is the gradient's way."""
        left, right = x.chunk(2, dim=-1)
        sin = -self._sin if back else self._sin
        with arena.frame():
            turned = torch.mul(left, self._cos, out=arena.take(*left.shape)).addcmul_(right, sin, value=-1)
            right.mul_(self._cos).addcmul_(left, sin)
            left.copy_(turned)


@dataclass(frozen=True)
class Attention:
    """Scaled dot products, causal, within the examples of a row; `window` is how far back a token sees, None: all."""

    scale: float
    window: int | None

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        lengths: Sequence[int],
        out: torch.Tensor,
        begun: Pair | None = None,
    ) -> list[tuple[torch.Tensor, ...]]:
        """Attend: q (T, heads, size), k and v (T, kv_heads, size) into `out` (T, heads, size).

        With `begun`, keys and values (tokens, kv_heads, size), every example goes on from those. Returns what
        `backward` needs, if gradients are enabled: for each example its inputs and its output.
        """
        kept = []
        parts = (each.split(list(lengths)) for each in (q, k, v, out))
        for qs, *pair, target in zip(*parts, strict=True):
            ks, vs = [torch.cat(two) for two in zip(begun, pair, strict=True)] if begun else pair
            leaves = [x.transpose(0, 1)[None].detach().requires_grad_(torch.is_grad_enabled()) for x in (qs, ks, vs)]
            found = self._attend(*leaves)
            target.copy_(found.detach()[0].transpose(0, 1))
            kept.append((*leaves, found))
        return kept

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        length, room, mask = q.shape[2], k.shape[2], None
        window = room if self.window is None else self.window
        if length < room or window < room:
            places = torch.arange(room, device=q.device)
            distance = places[room - length :, None] - places
            mask = (distance >= 0) & (distance < window)
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale, enable_gqa=q.shape[1] != k.shape[1]
        )

    def look_back(self, q: torch.Tensor, cache: LayerCache) -> torch.Tensor:
        """Attend from the newest token of each prompt, q (prompts, heads, size), to all that its cache has."""
        k, v, seen = cache.so_far(self.window)
        # The queries that share a key head are laid out as if they were tokens: one pass without copies of the keys.
        grouped = q.view(len(q), k.shape[1], -1, q.shape[2])
        found = functional.scaled_dot_product_attention(grouped, k, v, attn_mask=seen, scale=self.scale)
        return found.reshape(q.shape)

    @staticmethod
    def backward(
        kept: list[tuple[torch.Tensor, ...]], grad: torch.Tensor, into: Sequence[torch.Tensor], lengths: Sequence[int]
    ) -> None:
        """Gradients of q, k and v `into` three tensors of their shapes, from `grad` (T, heads, size)."""
        parts = (each.split(list(lengths)) for each in (grad, *into))
        for (*leaves, found), (wanted, *targets) in zip(kept, zip(*parts, strict=True), strict=True):
            # A scalar, because a gradient that is passed in makes torch import sympy: 35 MB.
            with torch.enable_grad():
                scalar = torch.sum(found * wanted.transpose(0, 1)[None])
            for target, got in zip(targets, torch.autograd.grad(scalar, leaves), strict=True):
                target.copy_(got[0].transpose(0, 1))


def activate(kind: str, gate: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """SiLU, or GELU by its tanh approximation, of `gate` into `out`."""
    if kind == "silu":
        return ops.silu.out(gate, out=out)
    return ops.gelu.out(gate, approximate="tanh", out=out)


def activate_backward(kind: str, grad: torch.Tensor, gate: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Gradient of `gate` into `out`."""
    if kind == "silu":
        return ops.silu_backward.grad_input(grad, gate, grad_input=out)
    return ops.gelu_backward.grad_input(grad, gate, approximate="tanh", grad_input=out)
