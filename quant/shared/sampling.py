"""Drawing tokens: the Gumbel-max trick, which needs no probabilities and so works on pieces of a vocabulary."""

from __future__ import annotations

import torch


class Sampler:
    """Noise for logits, such that the highest sum is a draw from their softmax at a temperature above 0."""

    def __init__(self, temperature: float, seed: int, device: torch.device) -> None:
        self._temperature = temperature
        self._generator = torch.Generator(device).manual_seed(seed)

    def add_noise(self, logits: torch.Tensor) -> torch.Tensor:
        """Add Gumbel noise times the temperature to some logits, in place: -ln of an exponential draw is Gumbel."""
        noise = torch.empty_like(logits).exponential_(generator=self._generator).log_()
        return logits.sub_(noise, alpha=self._temperature)
