"""The training loop: QLoRA on packed rows, checkpointed, resumable to the same losses.

A loop of our own because Trainer's checkpoints are pickles and its memory is what this project exists to save.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from agent.contract.atomic_io import sweep_temporaries
from agent.contract.errors import TrainingFailed
from agent.contract.protocol import Checkpointed, Note, Step, Trained
from agent.contract.settings import Training
from agent.contract.worker_server import Emit, rss_mb
from quant.shared import allocators, checkpoint
from quant.shared.chat import Encoded
from quant.shared.checkpoint import Progress
from quant.shared.corpus import Corpus
from quant.shared.devices import cuda_mb, cuda_reserved_mb
from quant.shared.flat_params import Flat
from quant.shared.model import Model
from quant.shared.optimizer import MOMENTS, AdamW
from quant.shared.packing import Row, Schedule, fill_rows, pack


def learning_rate(step: int, total: int, settings: Training) -> float:
    """Linear warm-up, then half a cosine down to zero; `step` counts from 0."""
    warm = max(1, round(settings.warmup_ratio * total))
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


@dataclass
class Run:
    """One training run: the model, its examples and the settings, advanced a step at a time."""

    model: Model
    examples: Sequence[Encoded]
    settings: Training
    schedule: Schedule
    tuned: Flat
    optimizer: AdamW
    done: Progress

    def rows(self, members: Sequence[int]) -> list[Row]:
        """The packed rows of one optimizer step."""
        chosen = [self.examples[i] for i in members]
        lengths = [len(e.ids) for e in chosen]
        groups = fill_rows(lengths, self.settings.micro_batch, self.settings.sequence_length)
        return [pack([chosen[i] for i in group], self.model.device) for group in groups]

    def step(self) -> Step:
        """One optimizer step; raises TrainingFailed if the loss or the gradient is not finite."""
        started = time.monotonic()
        index, total = self.done.step, self.schedule.total
        rate = learning_rate(index, total, self.settings)
        rows = self.rows(self.schedule.members(index))
        losses, norm = self._gradients(rows)
        self.optimizer.step(index + 1, rate)
        is_value = torch.cat([row.is_value for row in rows])
        tokens, seconds = sum(row.ids.numel() for row in rows), time.monotonic() - started
        self.done = Progress(index + 1, self.done.tokens + tokens, self.done.seconds + seconds)
        return Step(
            step=index + 1,
            steps=total,
            epoch=round((index + 1 - self.schedule.first) / self.schedule.per_epoch, 3),
            loss=float(losses.mean()),
            value_loss=_mean(losses[is_value]),
            form_loss=_mean(losses[~is_value]),
            grad_norm=norm,
            learning_rate=rate,
            tokens=tokens,
            target_tokens=sum(row.targets.numel() for row in rows),
            tokens_per_s=round(tokens / seconds, 1),
            rss_mb=rss_mb(),
            cuda_mb=cuda_mb(self.model.device),
        )

    def _gradients(self, rows: Sequence[Row]) -> tuple[torch.Tensor, float]:
        """Accumulate gradients of the weighted mean loss over all N targets; returns losses (N,) and the norm."""
        weights = [1.0 + (self.settings.value_weight - 1.0) * row.is_value for row in rows]
        whole = torch.stack([each.sum() for each in weights]).sum()
        shares = (each / whole for each in weights)
        losses = torch.cat([self.model.learn(row, share) for row, share in zip(rows, shares, strict=True)])
        norm = self.tuned.clip(self.settings.max_grad_norm or math.inf)
        if not math.isfinite(loss := float(losses.mean())) or not math.isfinite(norm):
            raise TrainingFailed(
                f"loss {loss} and gradient norm {norm} at step {self.done.step + 1} are not finite: "
                "lower learning_rate or look for broken rows in the data"
            )
        return losses, norm


def _mean(losses: torch.Tensor) -> float | None:
    return float(losses.mean()) if losses.numel() else None


def usable(examples: Iterable[Encoded], folder: Path, emit: Emit) -> Corpus:
    """The examples that have a token to learn, kept on the disk of `folder`; says how many were cut or left out.

    Raises TrainingFailed if none has.
    """
    kept, cut, lost = Corpus(folder), 0, 0
    for example in examples:
        if example.targets:
            kept.add(example)
            cut += example.cut
        else:
            lost += 1
    if not kept:
        kept.close()
        raise TrainingFailed("no example has an answer within sequence_length tokens: raise sequence_length")
    if cut:
        emit(Note(f"{cut} of {len(kept) + lost} examples are longer than sequence_length and were cut"))
    if lost:
        emit(Note(f"{lost} examples were left out: their question alone fills sequence_length"))
    return kept.finish()


def start(model: Model, examples: Sequence[Encoded], settings: Training, resume: Path | None, first: int = 0) -> Run:
    """A run ready for its next step, from the beginning or from the checkpoint in `resume`.

    `first` is the step after which these examples took over from others.
    """
    if model.tuned is None:
        model.add_adapter(settings)
    tuned: Flat = model.tuned  # type: ignore[assignment]  # just added
    per_step = settings.micro_batch * settings.gradient_accumulation_steps
    epochs, steps = settings.epochs, settings.steps
    schedule = Schedule.plan(len(examples), per_step, settings.seed, epochs=epochs, steps=steps, first=first)
    moments = MOMENTS[settings.optimizer](tuned.values)
    optimizer = AdamW(tuned.values, tuned.grads, settings.weight_decay, moments)
    run = Run(model, examples, settings, schedule, tuned, optimizer, Progress(0, 0, 0.0))
    if resume is not None:
        run.done = checkpoint.restore(resume, tuned, optimizer)
    return run


def train(run: Run, checkpoints: Path, emit: Emit, stopping: Callable[[], bool], until: int = 0) -> Trained:
    """Step until the schedule ends, step `until` or `stopping()`; the last thing on the disk is a checkpoint."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(checkpoints)
    run.model.prepare_training(run.settings, checkpoints)
    allocators.trim()
    saved, end = run.done.step, until or run.schedule.total
    while run.done.step < end and not stopping():
        emit(run.step())
        if run.done.step - saved >= run.settings.checkpoint_every:
            saved = _checkpoint(run, checkpoints, emit)
    if run.done.step > saved:
        _checkpoint(run, checkpoints, emit)
    run.model.end_training()
    return Trained(
        finished=run.done.step >= end,
        step=run.done.step,
        checkpoint=str(checkpoint.path(checkpoints, run.done.step)),
        tokens=run.done.tokens,
        seconds=round(run.done.seconds, 2),
        peak_rss_mb=peak_rss_mb(),
        peak_cuda_mb=cuda_mb(run.model.device),
        peak_cuda_reserved_mb=cuda_reserved_mb(run.model.device),
    )


def _checkpoint(run: Run, folder: Path, emit: Emit) -> int:
    path = checkpoint.save(folder, run.tuned, run.optimizer, run.done)
    emit(Checkpointed(run.done.step, str(path)))
    return run.done.step


def peak_rss_mb() -> float:
    """Highest resident memory of this process so far in MB (10^6 bytes)."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return round(int(line.split()[1]) * 1024 / 1e6, 1)
