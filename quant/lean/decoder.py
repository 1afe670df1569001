"""A decoder of the lean path: blocks over one mapped file, trained block by block, one packed row at a time.

Training keeps the input of every block and of as many blocks as memory allows what their backward pass needs; the
others compute that again (gradient checkpointing, arXiv 1604.06174).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from quant.lean.adapter import Adapter
from quant.lean.architecture import Architecture, Rope
from quant.lean.arena import Arena
from quant.lean.block import Block, Remembered, Rows
from quant.lean.head import Head
from quant.lean.layers import Attention, Norm, Rotation
from quant.lean.linear import Linear
from quant.lean.memory import Plan
from quant.lean.prefix import PrefixCache
from quant.lean.store import Store
from quant.shared import allocators
from quant.shared.packing import PackedRow


@dataclass
class Decoder:
    """The whole network; `adapter` is None for the base model alone, `remembered` counts blocks kept whole.

    With a `prefix` cache, what the blocks below the adapter make of an example is computed once.
    """

    arch: Architecture
    embedding: torch.Tensor
    blocks: list[Block]
    head: Head
    frequencies: dict[Rope, torch.Tensor]
    arena: Arena
    device: torch.device
    dtype: torch.dtype
    adapter: Adapter | None = None
    remembered: int = 0
    prefix: PrefixCache | None = None

    def attach(self, adapter: Adapter | None) -> None:
        """Put an adapter on the linear layers, in the place of the one before."""
        self.adapter = adapter
        if self.prefix:
            self.prefix.close()
            self.prefix = None
        for number, block in enumerate(self.blocks):
            for name, linear in block.linears.items():
                linear.lora = adapter.loras.get((number, name)) if adapter else None

    @property
    def bytes_unpacked(self) -> int:
        """Bytes of matrices that are kept unpacked."""
        linears = (linear for block in self.blocks for linear in block.linears.values())
        return sum(linear.unpacked.nbytes for linear in linears if linear.unpacked is not None)

    def apply(self, plan: Plan) -> None:
        """Remember and keep unpacked what the plan says, from the last block on; nothing may be under way."""
        self.arena.release()
        self.remembered = plan.remembered
        self.head.is_sparing = plan.unpacked < len(self.blocks)
        for number, block in enumerate(self.blocks):
            for linear in block.linears.values():
                linear.keep_unpacked(keep=number >= len(self.blocks) - plan.unpacked)

    @torch.no_grad()
    def losses(self, row: PackedRow) -> torch.Tensor:
        """Loss of each target of a packed row in nats, (N,) float32."""
        with self.arena.frame():
            hidden = self.embed(row.ids[0])
            for block, rows in zip(self.blocks, self.rows(row), strict=True):
                block.forward(hidden, rows)
            return self.head.losses(hidden.index_select(0, row.predict_at), row.targets)

    def learn(self, row: PackedRow, shares: torch.Tensor) -> torch.Tensor:
        """The same; adds the gradients of their sum, each times its share (N,), to the adapter's."""
        if self.adapter is None:
            raise ValueError("there is no adapter to learn")
        first = self.adapter.layers[0]
        top = len(self.blocks) - self.remembered
        inputs: dict[int, torch.Tensor] = {}
        kept: dict[int, Remembered] = {}
        with self.arena.frame(), torch.no_grad():
            rows = self.rows(row)
            # The blocks below `first` have no adapter and need no gradient.
            hidden = self._below(row, first)
            for number in range(first, len(self.blocks)):
                inputs[number] = self.arena.take(*hidden.shape).copy_(hidden)
                if number >= top:
                    kept[number] = self.blocks[number].remember(inputs[number], rows[number], whole=True)
                    self.blocks[number].output(kept[number], hidden)
                else:
                    self.blocks[number].forward(hidden, rows[number])
            predicting = hidden.index_select(0, row.predict_at)
            grads = torch.empty_like(predicting)
            losses = self.head.learn(predicting, row.targets, shares, grads)
            grad = hidden.zero_().index_copy_(0, row.predict_at, grads)
            for number in reversed(range(first, len(self.blocks))):
                block = self.blocks[number]
                with self.arena.frame():
                    found = kept.pop(number, None) or block.remember(inputs[number], rows[number], whole=False)
                    block.backward(found, grad, rows[number])
                allocators.trim()  # what autograd took for attention; takes a third of a millisecond
        return losses

    def _below(self, row: PackedRow, first: int) -> torch.Tensor:
        """The input of block `first`, (T, width): embeddings, or what the frozen blocks make of them."""
        lengths, ids = list(row.lengths), row.ids[0]
        if not first or self.prefix is None:
            return self._through(ids, row.positions[0], lengths, first)
        hidden = self.arena.take(len(ids), self.arch.width)
        parts = list(zip(ids.split(lengths), hidden.split(lengths), strict=True))
        missing = [number for number, (tokens, out) in enumerate(parts) if not self.prefix.read(tokens, out)]
        if missing:
            with self.arena.frame():
                tokens = torch.cat([parts[number][0] for number in missing])
                positions = torch.cat([row.positions[0].split(lengths)[number] for number in missing])
                some = [lengths[number] for number in missing]
                found = self._through(tokens, positions, some, first).split(some)
                for number, each in zip(missing, found, strict=True):
                    parts[number][1].copy_(each)
                    self.prefix.add(parts[number][0], each)
        return hidden

    def _through(self, ids: torch.Tensor, positions: torch.Tensor, lengths: list[int], first: int) -> torch.Tensor:
        """Embed tokens (T,) and pass them through the blocks before `first`."""
        hidden = self.embed(ids)
        for block, rotation in zip(self.blocks[:first], self.rotations(positions), strict=False):
            block.forward(hidden, Rows(lengths, rotation))
        return hidden

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """The embeddings of some tokens (T,), float32 (T, width)."""
        rows = self.arena.take(len(ids), self.arch.width).copy_(self.embedding.index_select(0, ids))
        if self.arch.is_gemma:
            # The model was trained with this factor in bfloat16.
            rows.mul_(float(torch.tensor(self.arch.width**0.5, dtype=torch.bfloat16)))
        return rows

    def rows(self, row: PackedRow) -> list[Rows]:
        """The positions and masks of a packed row, for every block."""
        rotations = self.rotations(row.positions[0])
        return [Rows(row.lengths, rotation) for rotation in rotations]

    def rotations(self, positions: torch.Tensor) -> list[Rotation]:
        """The rotary positions of each block; blocks of the same kind share them."""
        made = {rope: Rotation(frequencies, positions) for rope, frequencies in self.frequencies.items()}
        return [made[rope] for rope in self.arch.ropes]


def open_decoder(folder: Path, arch: Architecture, device: torch.device, dtype: torch.dtype) -> Decoder:
    """Map a prepared base model; nothing is read until it is used."""
    store, arena = Store(folder, device), Arena(device)
    blocks = [_block(store, arch, number, arena, dtype) for number in range(arch.layers)]
    embedding = store.tensor("model.embed_tokens.weight")
    output = embedding if arch.tied else store.tensor("lm_head.weight")
    last = _norm(store, arch, "model.norm", arena)
    if last is None:
        raise KeyError("model.norm.weight")
    head = Head(last, output, dtype, arena, store.is_mapped(output))
    frequencies = {rope: torch.tensor(rope.frequencies(arch.head_size), device=device) for rope in set(arch.ropes)}
    if device.type == "cuda":
        store.forget()
    return Decoder(arch, embedding, blocks, head, frequencies, arena, device, dtype)


def _block(store: Store, arch: Architecture, number: int, arena: Arena, dtype: torch.dtype) -> Block:
    prefix = f"model.layers.{number}"

    def norm(name: str) -> Norm | None:
        return _norm(store, arch, f"{prefix}.{name}", arena)

    def linear(name: str) -> Linear:
        at = f"{prefix}.{name}"
        return Linear(store.matrix(f"{at}.weight"), store.vector(f"{at}.bias"), arena, dtype)

    names = ("pre_feedforward_layernorm", "post_attention_layernorm", "post_feedforward_layernorm")
    before_mlp, after_attention, after_mlp = names if arch.is_gemma else (names[1], "", "")
    before_attention, before = norm("input_layernorm"), norm(before_mlp)
    if before_attention is None or before is None:
        raise KeyError(f"{prefix} has no norms")
    return Block(
        linears={name: linear(name) for name in arch.linears},
        before_attention=before_attention,
        before_mlp=before,
        after_attention=norm(after_attention),
        after_mlp=norm(after_mlp),
        of_queries=norm("self_attn.q_norm"),
        of_keys=norm("self_attn.k_norm"),
        attention=Attention(arch.attention_scale, arch.windows[number]),
        activation=arch.activation,
        head_size=arch.head_size,
        arena=arena,
    )


def _norm(store: Store, arch: Architecture, name: str, arena: Arena) -> Norm | None:
    weight = store.vector(f"{name}.weight")
    if weight is None:
        return None
    return Norm(weight + 1 if arch.is_gemma else weight, arch.epsilon, arena)
