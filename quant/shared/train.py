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
from quant.shared.flat_params import FlatParams
from quant.shared.model import Model
from quant.shared.optimizer import MOMENTS, AdamW
from quant.shared.packing import Schedule, fill_rows, pack


def learning_rate(step: int, total: int, settings: Training) -> float:
    """Linear warm-up, then half a cosine down to zero; `step` counts from 0."""
    warm = max(1, round(settings.warmup_ratio * total))
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


@dataclass
class Run:
    """The state of one training run; `train` advances it."""

    model: Model
    examples: Sequence[Encoded]
    settings: Training
    schedule: Schedule
    trainable: FlatParams
    optimizer: AdamW
    done: Progress


def build_corpus(examples: Iterable[Encoded], folder: Path, emit: Emit) -> Corpus:
    """Write the examples that have a token to learn to a corpus in `folder`; says how many were cut or left out.

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
    if model.trainable is None:
        model.add_adapter(settings)
    trainable: FlatParams = model.trainable  # type: ignore[assignment]  # just added
    per_step = settings.micro_batch * settings.gradient_accumulation_steps
    epochs, steps = settings.epochs, settings.steps
    schedule = Schedule.plan(len(examples), per_step, settings.seed, epochs=epochs, steps=steps, first=first)
    moments = MOMENTS[settings.optimizer](trainable.values)
    optimizer = AdamW(trainable.values, trainable.grads, settings.weight_decay, moments)
    run = Run(model, examples, settings, schedule, trainable, optimizer, Progress(0, 0, 0.0))
    if resume is not None:
        run.done = checkpoint.restore(resume, trainable, optimizer)
    return run


def train(run: Run, checkpoints: Path, emit: Emit, stopping: Callable[[], bool], until: int = 0) -> Trained:
    """Step until the schedule ends, step `until` or `stopping()`; the last thing on the disk is a checkpoint.

    Raises TrainingFailed if a loss or a gradient is not finite; the step is not made then.
    """
    model, settings, schedule = run.model, run.settings, run.schedule
    checkpoints.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(checkpoints)
    model.prepare_training(settings, checkpoints)
    allocators.trim()
    saved, end = run.done.step, until or schedule.total

    while run.done.step < end and not stopping():
        started = time.monotonic()
        step = run.done.step + 1
        examples = [run.examples[i] for i in schedule.members(run.done.step)]
        groups = fill_rows([len(e.ids) for e in examples], settings.micro_batch, settings.sequence_length)
        rows = [pack([examples[i] for i in group], model.device) for group in groups]

        # The loss of the step is a weighted mean over the targets of all its rows.
        weights = [1.0 + (settings.value_weight - 1.0) * row.is_value for row in rows]
        total_weight = torch.stack([each.sum() for each in weights]).sum()
        shares = (each / total_weight for each in weights)
        losses = torch.cat([model.learn(row, share) for row, share in zip(rows, shares, strict=True)])
        loss, grad_norm = float(losses.mean()), run.trainable.clip(settings.max_grad_norm or math.inf)
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            raise TrainingFailed(
                f"loss {loss} and gradient norm {grad_norm} at step {step} are not finite: "
                "lower learning_rate or look for broken rows in the data"
            )
        rate = learning_rate(run.done.step, schedule.total, settings)
        run.optimizer.step(step, rate)

        is_value = torch.cat([row.is_value for row in rows])
        tokens, seconds = sum(row.ids.numel() for row in rows), time.monotonic() - started
        run.done = Progress(step, run.done.tokens + tokens, run.done.seconds + seconds)
        emit(
            Step(
                step=step,
                steps=schedule.total,
                epoch=round((step - schedule.first) / schedule.per_epoch, 3),
                loss=loss,
                value_loss=float(losses[is_value].mean()) if is_value.any() else None,
                form_loss=None if is_value.all() else float(losses[~is_value].mean()),
                grad_norm=grad_norm,
                learning_rate=rate,
                tokens=tokens,
                target_tokens=sum(row.targets.numel() for row in rows),
                tokens_per_s=round(tokens / seconds, 1),
                rss_mb=rss_mb(),
                cuda_mb=cuda_mb(model.device),
            )
        )
        if step - saved >= settings.checkpoint_every:
            saved = _save_checkpoint(run, checkpoints, emit)

    if run.done.step > saved:
        _save_checkpoint(run, checkpoints, emit)
    model.end_training()
    return Trained(
        finished=run.done.step >= end,
        step=run.done.step,
        checkpoint=str(checkpoint.path(checkpoints, run.done.step)),
        tokens=run.done.tokens,
        seconds=round(run.done.seconds, 2),
        peak_rss_mb=peak_rss_mb(),
        peak_cuda_mb=cuda_mb(model.device),
        peak_cuda_reserved_mb=cuda_reserved_mb(model.device),
    )


def _save_checkpoint(run: Run, folder: Path, emit: Emit) -> int:
    path = checkpoint.save(folder, run.trainable, run.optimizer, run.done)
    emit(Checkpointed(run.done.step, str(path)))
    return run.done.step


def peak_rss_mb() -> float:
    """Highest resident memory of this process so far in MB (10^6 bytes)."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return round(int(line.split()[1]) * 1024 / 1e6, 1)
