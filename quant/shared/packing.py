"""Examples to rows without padding: several short examples share a row, kept apart by their positions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quant.shared.chat import Encoded


@dataclass(frozen=True)
class PackedRow:
    """Packed examples for one forward pass over a (1, T) batch; N tokens in it are to be predicted.

    Attributes:
        ids: (1, T) int64 token ids.
        positions: (1, T) int64; restarts at 0 with each example, which is what keeps attention inside it.
        predict_at: (N,) int64 indices into T of the tokens whose successor is a target.
        targets: (N,) int64 token ids to predict.
        is_value: (N,) bool: whether a target is part of its example's value.
        owners: (N,) int64: which of the row's examples a target belongs to.
        lengths: tokens of each example, in order; they add up to T.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    predict_at: torch.Tensor
    targets: torch.Tensor
    is_value: torch.Tensor
    owners: torch.Tensor
    lengths: tuple[int, ...]


def pack(examples: Sequence[Encoded], device: torch.device) -> PackedRow:
    """Lay examples end to end in one row."""
    ids: list[int] = []
    positions: list[int] = []
    predict_at, targets, is_value, owners = [], [], [], []
    for owner, example in enumerate(examples):
        start = len(ids)
        for i in (i for i, is_target in enumerate(example.target) if is_target):
            predict_at.append(start + i - 1)
            targets.append(example.ids[i])
            is_value.append(example.value[i])
            owners.append(owner)
        ids += example.ids
        positions += range(len(example.ids))
    columns = (ids, positions, predict_at, targets, is_value, owners)
    whole = [torch.tensor(values, device=device) for values in columns]
    lengths = tuple(len(each.ids) for each in examples)
    return PackedRow(whole[0][None], whole[1][None], whole[2], whole[3], whole[4], whole[5], lengths)


def fill_rows(lengths: Sequence[int], most_examples: int, most_tokens: int) -> list[list[int]]:
    """Group indices, in order, into rows of at most `most_examples` examples and `most_tokens` tokens."""
    rows: list[list[int]] = []
    tokens = 0
    for index, length in enumerate(lengths):
        if not rows or len(rows[-1]) == most_examples or tokens + length > most_tokens:
            rows.append([])
            tokens = 0
        rows[-1].append(index)
        tokens += length
    return rows


@dataclass(frozen=True)
class Schedule:
    """Which examples each optimizer step sees: a pure function of its fields, so a resumed run sees the same.

    `first` is the step at which these examples took over from others; `total` counts all steps of the run.
    """

    examples: int
    per_step: int
    seed: int
    total: int
    first: int = 0

    @classmethod
    def plan(cls, examples: int, per_step: int, seed: int, *, epochs: float, steps: int, first: int = 0) -> Schedule:
        """Steps for `epochs` passes over the data, or exactly `steps` if that is set."""
        per_epoch = math.ceil(examples / per_step)
        return cls(examples, per_step, seed, steps or max(1, math.ceil(epochs * per_epoch)), first)

    @property
    def per_epoch(self) -> int:
        """Optimizer steps in one pass over the data."""
        return math.ceil(self.examples / self.per_step)

    def members(self, step: int) -> list[int]:
        """Example indices of one step (counted from 0); each pass has its own shuffle."""
        epoch, position = divmod(step - self.first, self.per_epoch)
        key = f"{self.seed}/{epoch}" + f"/{self.first}" * (self.first > 0)
        places = range(position * self.per_step, min((position + 1) * self.per_step, self.examples))
        return [_permute(place, self.examples, key) for place in places]


def _permute(place: int, count: int, key: str) -> int:
    """The number at a place of a shuffle of range(count): a Feistel network, so that no shuffle is ever held whole.

    A network over 4^n numbers is a bijection; numbers outside the range are sent through it again until they are in it.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(4):
            digest = hashlib.blake2b(f"{key}/{turn}/{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        place = left << half | right
        if place < count:
            return place
