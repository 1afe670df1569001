"""All trainable parameters in one vector, which is clipped, stepped and saved as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class FlatParams:
    """Named float32 tensors that lie end to end in `values`, and their gradients in the same order in `grads`."""

    shapes: Mapping[str, Shape]
    values: torch.Tensor
    grads: torch.Tensor

    @classmethod
    def zeros(cls, shapes: Mapping[str, Shape], device: torch.device) -> FlatParams:
        """All zero."""
        count = sum(map(math.prod, shapes.values()))
        return cls(dict(shapes), torch.zeros(count, device=device), torch.zeros(count, device=device))

    def views(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors by name, as parts of a vector as long as `values`."""
        found, at = {}, 0
        for name, shape in self.shapes.items():
            found[name] = vector[at : at + math.prod(shape)].view(shape)
            at += math.prod(shape)
        return found

    def clip(self, most: float) -> float:
        """Scale the gradients so that their norm is at most `most`; returns the norm before."""
        norm = float(torch.linalg.vector_norm(self.grads))
        if norm > most:
            self.grads.mul_(most / (norm + 1e-6))
        return norm
