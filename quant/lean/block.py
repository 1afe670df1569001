"""One decoder block, forward and backward by hand: x + attention(norm(x)), then x + mlp(norm(x)).

Gemma norms the outcome of each half too, before it is added; Qwen3 and Gemma norm queries and keys. All intermediate
values lie in the arena: those of a block that is remembered until its backward pass, those of others no longer than
they are used. `grad` always enters as the gradient of the block's output and leaves as that of its input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from quant.lean.arena import Arena
from quant.lean.cache import LayerCache, Pair
from quant.lean.layers import Attention, Norm, Rotation, activate, activate_backward
from quant.lean.linear import Linear

Keep = Callable[[torch.Tensor, torch.Tensor], None]
"""Takes keys and values (T, kv_heads, size), which it must copy."""
ROWS = 64
"""Tokens at a time where something is needed but for a moment."""


@dataclass
class Rows:
    """A packed row as a pass needs it, besides its tokens."""

    lengths: Sequence[int]
    rotation: Rotation


@dataclass
class Heads:
    """Queries, keys and values (T, heads, size) as attention takes them, and before their norm where they have one."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    raw_q: torch.Tensor
    raw_k: torch.Tensor
    attended: torch.Tensor
    kept: list[tuple[torch.Tensor, ...]]


@dataclass
class Remembered:
    """The tensors that the backward pass of a block takes from its forward pass; (T, ...) float32.

    Attributes:
        x: the block's input.
        added: what attention adds to it, before Gemma's norm; without that norm it is gone.
        middle: x and that, the input of the second half.
        gate, up: the two halves of the MLP's middle.
        down: what the MLP adds, before Gemma's norm.
    """

    x: torch.Tensor
    heads: Heads
    added: torch.Tensor
    middle: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor | None


@dataclass
class Block:
    """The linear layers, norms and attention of one block; norms that its architecture lacks are None."""

    linears: dict[str, Linear]
    before_attention: Norm
    before_mlp: Norm
    after_attention: Norm | None
    after_mlp: Norm | None
    of_queries: Norm | None
    of_keys: Norm | None
    attention: Attention
    activation: str
    head_size: int
    arena: Arena

    # ---- forward ----

    def forward(self, x: torch.Tensor, rows: Rows, keep: Keep | None = None, begun: Pair | None = None) -> None:
        """Map `x` (T, width) in place, remembering nothing; `keep` is told the keys and values.

        With `begun` all examples go on from these keys and values.
        """
        with self.arena.frame(), torch.no_grad():
            heads = self._heads(x, rows, begun)
            if keep is not None:
                keep(heads.k, heads.v)
            self._finish(x, heads.attended)

    def step(self, x: torch.Tensor, rotation: Rotation, cache: LayerCache) -> None:
        """Map one new token of each prompt, `x` (prompts, width), in place; their keys and values join the cache."""
        with self.arena.frame(), torch.no_grad():
            q, k, v, _, _ = self._project(x, rotation)
            cache.append(k, v)
            self._finish(x, self.attention.look_back(q, cache))

    def _finish(self, x: torch.Tensor, attended: torch.Tensor) -> None:
        """The rest of a block after attention, in place."""
        take = self.arena.take
        with self.arena.frame():
            added = self._linear("self_attn.o_proj").forward(attended.flatten(1), take(*x.shape))
            x.add_(self._post_norm(self.after_attention, added, added))
        with self.arena.frame():
            gate, up = self._gate_and_up(x)
            inner = activate(self.activation, gate, gate).mul_(up)
            down = self._linear("mlp.down_proj").forward(inner, take(*x.shape))
            x.add_(self._post_norm(self.after_mlp, down, down))

    def remember(self, x: torch.Tensor, rows: Rows, *, whole: bool) -> Remembered:
        """Keep what `backward` needs of `x`, which stays as it is; with `whole` the output is in `middle` + `down`."""
        take = self.arena.take
        middle = take(*x.shape)
        added = take(*x.shape) if self.after_attention else middle
        gate, up = (take(len(x), self._linear("mlp.gate_proj").packed.shape[0]) for _ in range(2))
        down = take(*x.shape) if whole or self.after_mlp else None
        with torch.enable_grad():
            heads = self._heads(x, rows)
        with torch.no_grad():
            self._linear("self_attn.o_proj").forward(heads.attended.flatten(1), added)
            middle.copy_(self._post_norm(self.after_attention, added, middle)).add_(x)
            self._gate_and_up(middle, gate, up)
            if down is not None:
                with self.arena.frame():
                    inner = activate(self.activation, gate, take(*gate.shape)).mul_(up)
                    self._linear("mlp.down_proj").forward(inner, down)
        return Remembered(x, heads, added, middle, gate, up, down)

    def output(self, kept: Remembered, out: torch.Tensor) -> None:
        """The block's output from what was remembered of it whole; `out` (T, width)."""
        if kept.down is None:
            raise ValueError("the block was not remembered whole")
        out.copy_(self._post_norm(self.after_mlp, kept.down, out)).add_(kept.middle)

    def _heads(self, x: torch.Tensor, rows: Rows, begun: Pair | None = None) -> Heads:
        attended = self.arena.take(
            len(x), self._linear("self_attn.q_proj").packed.shape[0] // self.head_size, self.head_size
        )
        with torch.no_grad():
            q, k, v, raw_q, raw_k = self._project(x, rows.rotation)
        kept = self.attention.forward(q, k, v, rows.lengths, attended, begun)
        return Heads(q, k, v, raw_q, raw_k, attended, kept)

    def _project(self, x: torch.Tensor, rotation: Rotation) -> tuple[torch.Tensor, ...]:
        """Queries, keys, values (T, heads, size), and queries and keys before their norm."""
        take, size = self.arena.take, self.head_size
        raw = [take(len(x), linear.packed.shape[0] // size, size) for linear in self._attention_inputs()]
        with self.arena.frame():
            normed = self.before_attention.forward(x, take(*x.shape))
            for linear, out in zip(self._attention_inputs(), raw, strict=True):
                linear.forward(normed, out.flatten(1))
        q, k, v = raw
        if self.of_queries and self.of_keys:
            q, k = self.of_queries.forward(q, take(*q.shape)), self.of_keys.forward(k, take(*k.shape))
        rotation.turn(q, self.arena)
        rotation.turn(k, self.arena)
        return q, k, v, raw[0], raw[1]

    def _gate_and_up(
        self, x: torch.Tensor, gate: torch.Tensor | None = None, up: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inner = self._linear("mlp.gate_proj").packed.shape[0]
        gate = self.arena.take(len(x), inner) if gate is None else gate
        up = self.arena.take(len(x), inner) if up is None else up
        with self.arena.frame():
            normed = self.before_mlp.forward(x, self.arena.take(*x.shape))
            self._linear("mlp.gate_proj").forward(normed, gate)
            self._linear("mlp.up_proj").forward(normed, up)
        return gate, up

    # ---- backward ----

    def backward(self, kept: Remembered, grad: torch.Tensor, rows: Rows) -> None:
        """Turn the gradient of the output into that of the input, in place, and add to the adapters' gradients."""
        with torch.no_grad():
            with self.arena.frame():
                self._mlp_backward(kept, grad)
            with self.arena.frame():
                self._attention_backward(kept, grad, rows)

    def _mlp_backward(self, kept: Remembered, grad: torch.Tensor) -> None:
        take, linear = self.arena.take, self._linear
        through = self._post_norm_backward(self.after_mlp, kept.down, grad)
        with self.arena.frame():
            inner = activate(self.activation, kept.gate, take(*kept.gate.shape)).mul_(kept.up)
            linear("mlp.down_proj").backward(inner, through, inner, fresh=True)
            grad_gate, grad_up = self._activation_backward(kept.gate, kept.up, inner)
        normed = self.before_mlp.forward(kept.middle, take(*grad.shape))
        grad_normed = take(*grad.shape)
        linear("mlp.gate_proj").backward(normed, grad_gate, grad_normed, fresh=True)
        linear("mlp.up_proj").backward(normed, grad_up, grad_normed, fresh=False)
        self.before_mlp.backward(kept.middle, grad_normed, grad, fresh=False)

    def _activation_backward(
        self, gate: torch.Tensor, up: torch.Tensor, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradients of gate and up, in each other's memory: neither is needed again."""
        for some_gate, some_up, some in zip(*(x.split(ROWS) for x in (gate, up, grad)), strict=True):
            with self.arena.frame():
                grad_up = activate(self.activation, some_gate, self.arena.take(*some.shape)).mul_(some)
                activate_backward(self.activation, some.mul_(some_up), some_gate, some_up)
                some_gate.copy_(grad_up)
        return up, gate

    def _attention_backward(self, kept: Remembered, grad: torch.Tensor, rows: Rows) -> None:
        take, heads = self.arena.take, kept.heads
        through = self._post_norm_backward(self.after_attention, kept.added, grad)
        grad_attended = take(*heads.attended.shape)
        attended = heads.attended.flatten(1)
        self._linear("self_attn.o_proj").backward(attended, through, grad_attended.flatten(1), fresh=True)
        # Their memory can take the gradients only once attention is through with them.
        grads = [take(*each.shape) for each in (heads.q, heads.k, heads.v)]
        self.attention.backward(heads.kept, grad_attended, grads, rows.lengths)
        for each, norm, raw in zip(grads, (self.of_queries, self.of_keys), (heads.raw_q, heads.raw_k), strict=False):
            rows.rotation.turn(each, self.arena, back=True)
            if norm:
                norm.backward(raw, each, each, fresh=True)
        normed = self.before_attention.forward(kept.x, take(*grad.shape))
        grad_normed = take(*grad.shape)
        for number, (linear, each) in enumerate(zip(self._attention_inputs(), grads, strict=True)):
            linear.backward(normed, each.flatten(1), grad_normed, fresh=number == 0)
        self.before_attention.backward(kept.x, grad_normed, grad, fresh=False)

    def _post_norm_backward(self, norm: Norm | None, before: torch.Tensor | None, grad: torch.Tensor) -> torch.Tensor:
        """The gradient before Gemma's norm of a half's outcome; `grad` itself where there is no such norm."""
        if norm is None or before is None:
            return grad
        copied = self.arena.take(*grad.shape).copy_(grad)
        norm.backward(before, copied, copied, fresh=True)
        return copied

    @staticmethod
    def _post_norm(norm: Norm | None, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return x if norm is None else norm.forward(x, out)

    def _attention_inputs(self) -> list[Linear]:
        return [self._linear(f"self_attn.{name}_proj") for name in "qkv"]

    def _linear(self, name: str) -> Linear:
        return self.linears[name]
