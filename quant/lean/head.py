"""The loss and its gradient without logits: the vocabulary passes by in chunks, as the keys do in flash attention.

With z = h Eᵀ the loss of a target t is log Σ exp z - z_t, its gradient Σ softmax(z) E - E_t. Both sums are kept
relative to the highest logit so far and rescaled when it rises (online softmax, arXiv 1805.02867), so that one pass
over the chunks of E yields loss and gradient, and E, bfloat16 in the file, is never upcast whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quant.lean.arena import Arena
from quant.lean.layers import Norm
from quant.shared import allocators
from quant.shared.sampling import Sampler

CHUNK = 2048
"""Words of the vocabulary at a time."""


@dataclass
class Head:
    """The last norm and the output embedding: `weight` (vocabulary, width) as stored, computed with in `dtype`.

    Where `weight` lies in a mapped file, a head that `is_sparing` lets go of its pages once they are read: a tenth
    of a second for each GB and pass, for memory that a group's limit or an operator would see.
    """

    norm: Norm
    weight: torch.Tensor
    dtype: torch.dtype
    arena: Arena
    is_mapped: bool = False
    is_sparing: bool = False

    def losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss of each target in nats, (N,) float32, from the last block's output `hidden` (N, width)."""
        with self.arena.frame():
            normed = self.norm.forward(hidden, self.arena.take(*hidden.shape))
            return self._pass(normed, targets, None)

    def learn(
        self, hidden: torch.Tensor, targets: torch.Tensor, shares: torch.Tensor, grad: torch.Tensor
    ) -> torch.Tensor:
        """The same; writes the gradient of their sum, each times its share (N,), by `hidden` into `grad`."""
        with self.arena.frame():
            normed = self.norm.forward(hidden, self.arena.take(*hidden.shape))
            losses = self._pass(normed, targets, grad)
            rows = torch.index_select(self.weight, 0, targets)
            grad.sub_(rows).mul_(shares[:, None])
            self.norm.backward(hidden, grad, grad, fresh=True)
        return losses

    def next_tokens(self, hidden: torch.Tensor, sampler: Sampler | None = None) -> torch.Tensor:
        """The token that is most likely to follow each row of `hidden` (N, width), or a drawn one: (N,) int64."""
        with self.arena.frame():
            normed = self.norm.forward(hidden, self.arena.take(*hidden.shape))
            highest = normed.new_full((len(normed),), -torch.inf)
            tokens = torch.zeros(len(normed), dtype=torch.int64, device=normed.device)
            for start in range(0, len(self.weight), CHUNK):
                with self.arena.frame():
                    logits = self._chunk(normed, self._rows(start))
                    values, places = (sampler.add_noise(logits) if sampler else logits).max(1)
                    tokens = torch.where(values > highest, places + start, tokens)
                    highest = torch.maximum(highest, values)
        return tokens

    def _pass(self, normed: torch.Tensor, targets: torch.Tensor, grad: torch.Tensor | None) -> torch.Tensor:
        """Losses (N,); with `grad` (N, width) also Σ softmax(z) E into it."""
        highest = normed.new_full((len(normed), 1), -torch.inf)
        total, of_target = torch.zeros_like(highest), torch.zeros_like(highest)
        if grad is not None:
            grad.zero_()
        for start in range(0, len(self.weight), CHUNK):
            with self.arena.frame():
                rows = self._rows(start)
                logits = self._chunk(normed, rows)
                # The logit of each target that is in this chunk, without a host sync.
                places = targets - start
                inside = (places >= 0) & (places < len(rows))
                found = logits.gather(1, places.clamp(0, len(rows) - 1)[:, None])
                torch.where(inside[:, None], found, of_target, out=of_target)
                new = torch.maximum(highest, logits.amax(1, keepdim=True))
                shrunk = highest.sub_(new).exp_()
                logits.sub_(new).exp_()
                total.mul_(shrunk).add_(logits.sum(1, keepdim=True))
                if grad is not None:
                    self._add(grad.mul_(shrunk), logits, rows)
                highest = new
        if grad is not None:
            grad.div_(total)
        return (total.log() + highest - of_target)[:, 0]

    def _rows(self, start: int) -> torch.Tensor:
        """Some rows of the embedding in the compute dtype."""
        rows = self.weight[start : start + CHUNK]
        if rows.dtype == self.dtype:
            return rows
        found = self.arena.take(*rows.shape, dtype=self.dtype).copy_(rows)
        if self.is_mapped and self.is_sparing:
            allocators.unmap(rows.data_ptr(), rows.nbytes)
        return found

    def _chunk(self, normed: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Logits of some rows of the embedding, (N, rows) float32."""
        logits = self.arena.take(len(normed), len(rows))
        if self.dtype == torch.float32:
            return torch.mm(normed, rows.t(), out=logits)
        with self.arena.frame():
            low = self.arena.take(*logits.shape, dtype=self.dtype)
            return logits.copy_(torch.mm(self._low(normed), rows.t(), out=low))

    def _add(self, grad: torch.Tensor, shares: torch.Tensor, rows: torch.Tensor) -> None:
        """Grad += shares @ rows, the product in the compute dtype."""
        if self.dtype == torch.float32:
            grad.addmm_(shares, rows)
            return
        with self.arena.frame():
            low = self.arena.take(*grad.shape, dtype=self.dtype)
            grad.add_(torch.mm(self._low(shares), rows, out=low))

    def _low(self, x: torch.Tensor) -> torch.Tensor:
        return self.arena.take(*x.shape, dtype=self.dtype).copy_(x)
