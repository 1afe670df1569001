"""Keys and values of the prompts that are being answered together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quant.lean.arena import Arena

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Lengths:
    """The tokens of each prompt so far, (prompts,) int64; one for all layers."""

    now: torch.Tensor
    longest: int
    """The most that any has, kept apart so that nobody must ask the device."""


@dataclass
class LayerCache:
    """One layer's keys and values, (prompts, kv_heads, room, size) each; a prompt's tokens begin at 0."""

    k: torch.Tensor
    v: torch.Tensor
    lengths: Lengths
    filled: int = 0
    """Prompts that were filled in already."""
    begun: Pair | None = None
    """What all prompts begin with: keys and values (tokens, kv_heads, size)."""

    def begin(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """Take over what all prompts begin with: k and v (tokens, kv_heads, size)."""
        for source, target in ((k, self.k), (v, self.v)):
            target[:, :, : len(k)] = source.transpose(0, 1)
        self.begun = (self.k[0, :, : len(k)].transpose(0, 1), self.v[0, :, : len(k)].transpose(0, 1))

    def fill(self, k: torch.Tensor, v: torch.Tensor, lengths: Sequence[int]) -> None:
        """Take over the prompts of a packed row, after what they begin with: k and v (T, kv_heads, size)."""
        first = len(self.begun[0]) if self.begun else 0
        for source, target in ((k, self.k), (v, self.v)):
            for number, part in enumerate(source.split(list(lengths))):
                target[self.filled + number, :, first : first + len(part)] = part.transpose(0, 1)
        self.filled += len(lengths)

    def append(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """Take over one token of each prompt: k and v (prompts, kv_heads, size)."""
        at = self.lengths.now[:, None, None, None].expand(-1, self.k.shape[1], 1, self.k.shape[3])
        self.k.scatter_(2, at, k[:, :, None])
        self.v.scatter_(2, at, v[:, :, None])

    def so_far(self, window: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys and values up to the newest token, and which of them each prompt sees: (prompts, 1, 1, room)."""
        room = self.lengths.longest + 1
        places = torch.arange(room, device=self.k.device)
        behind = self.lengths.now[:, None] - places
        seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        return self.k[:, :, :room], self.v[:, :, :room], seen[:, None, None]

    def keep(self, prompts: torch.Tensor) -> None:
        """Drop all prompts but these, (kept,) int64."""
        self.k[: len(prompts)] = self.k[prompts]
        self.v[: len(prompts)] = self.v[prompts]
        self.k, self.v = self.k[: len(prompts)], self.v[: len(prompts)]


def caches(
    layers: int, shape: tuple[int, int, int, int], lengths: Sequence[int], arena: Arena
) -> tuple[list[LayerCache], Lengths]:
    """Empty caches of shape (prompts, kv_heads, room, size) for prompts of some lengths."""
    known = Lengths(torch.tensor(list(lengths), device=arena.device), max(lengths))
    found = []
    for _ in range(layers):
        pair = [arena.take(*shape) for _ in range(2)]
        # A room that nobody has written to is masked, but zero times NaN would not be zero.
        found.append(LayerCache(pair[0].zero_(), pair[1].zero_(), known))
    return found, known
