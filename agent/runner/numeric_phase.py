"""The numeric side of a neurosymbolic job: tune the weights window by window, then let the model answer every row."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.contract.atomic_io import remove_tree
from agent.contract.protocol import Step, Train, Trained
from agent.decide.decision_store import Outcome
from agent.decide.monitor import STEPS_A_WINDOW, numeric_window
from agent.runner.learning import Learning
from agent.runner.progress import Progress
from agent.runner.rows import Row


def tune(learning: Learning, progress: Progress) -> Progress:
    """A numeric phase on `Progress.members`, from where it stands, and the probe after it.

    A phase that lost more reward than it gained is undone: the adapter is what it was, what was learned of it stays.
    """
    attempt, settings = learning.job.attempt, learning.job.model.settings
    attempt.phase("train")
    rows = (progress.rows[name] for name in progress.members)
    # A rehearsed row names no value: where rows have values, the signal is of what is still to be learned.
    examples = (replace(row.example, answer=None) if row.is_right else row.example for row in rows)
    data = learning.job.data.write(f"round-{progress.round}.jsonl", examples, "")
    passes = progress.first + learning.steps_for(len(progress.members))
    budget = learning.steps_left_by(progress)
    window = learning.schedule.steps_a_window(learning.steps_a_pass(len(progress.members)))
    while not progress.ended:
        until = min(progress.step + window, budget, passes)
        started, steps = time.monotonic(), list[Step]()
        trained = train_until(learning, progress, data, until, steps)
        state, verdict = learning.schedule.advance(progress.monitor, numeric_window(steps))
        attempt.events.add("window", phase="numeric", reason=verdict.reason, **dataclasses.asdict(state.windows[-1]))
        spent = f"{settings.epochs:g} passes are over" if until == passes else ""
        spent = f"the budget of {until} steps is used up" if until == budget else spent
        progress = replace(
            progress,
            monitor=state,
            ended=verdict.reason if verdict.over else spent,
            step=trained.step,
            tokens=progress.undone + trained.tokens,
            peak_rss_mb=max(progress.peak_rss_mb, trained.peak_rss_mb),
            peak_cuda_mb=max(progress.peak_cuda_mb, trained.peak_cuda_mb),
            train_seconds=trained.seconds,
            checkpoint=str(Path(trained.checkpoint).relative_to(attempt.run)),
            seconds=progress.seconds + time.monotonic() - started,
        )
        learning.save(progress)
    probed = probe(learning, progress, set(progress.members))
    return probed if probed.reward >= progress.reward else undo(learning, progress, probed)


def train_until(
    learning: Learning, progress: Progress, data: Path, until: int, steps: list[Step] | None = None
) -> Trained:
    """Steps on the rows in `data` up to `until`, from the checkpoint that the progress names. Raises Stopped."""
    model, run = learning.job.model, learning.job.attempt.run
    resume = str(run / progress.checkpoint) if progress.checkpoint else None
    # A window's last checkpoint must not be swept by those within the next one: progress.json names it.
    every = max(STEPS_A_WINDOW, model.settings.checkpoint_every)
    settings = replace(model.settings, steps=learning.total_steps, checkpoint_every=every)
    # A folder for each round, so that none sweeps the checkpoint that a phase may have to go back to.
    folder = learning.job.data.folder / f"checkpoints-{progress.round}"
    return model.train(Train(str(data), str(folder), settings, resume, progress.first, until), steps)


def undo(learning: Learning, before: Progress, after: Progress) -> Progress:
    """The progress with the adapter from before the phase that led from `before` to `after`."""
    lost = f"undone, because the mean reward fell from {before.reward:.3f} to {after.reward:.3f}"
    learning.job.attempt.events.add("note", text=f"the phase is {lost}")
    undone = before.tokens - before.start_tokens
    back = replace(after, rows=before.rows, step=before.first, checkpoint=before.start, undone=undone)
    restore(learning, back)
    return replace(back, ended=f"{before.ended}; {lost}")


def restore(learning: Learning, progress: Progress) -> None:
    """Load what training starts from, and bring it to where the progress's checkpoint left it."""
    learning.job.publisher.load_for_training()
    if progress.checkpoint:
        learnable = next(row.example for row in progress.rows.values() if row.is_learnable)
        train_until(learning, progress, learning.job.data.write("restore.jsonl", [learnable], ""), progress.step)


def sweep_checkpoints(learning: Learning, progress: Progress) -> None:
    """Remove the checkpoints of rounds that nothing goes back to any more."""
    run = learning.job.attempt.run
    for folder in run.glob("attempt-*/checkpoints-*"):
        if folder != (run / progress.checkpoint).parent:
            remove_tree(folder)


def probe(learning: Learning, progress: Progress, trained: set[str]) -> Progress:
    """Every row after the model has answered it again, and what the training of some of them gained."""
    model, data, router = learning.job.model, learning.job.data, learning.router
    learning.job.attempt.phase("probe")
    started = time.monotonic()
    examples = [row.example for row in progress.rows.values()]
    losses = model.losses("probe", examples, "")
    answers = model.answers("probe", examples, "", model.most_tokens(losses))
    rows = {}
    for name, row in progress.rows.items():
        asked = row.after_probe(answers.get(name), _loss(losses.get(name)), data.style, trained=name in trained)
        rows[name] = asked.with_own_answer() if router.takes_own_answers else asked
    outcomes = tuple(_outcome(learning, progress, rows[name]) for name in progress.rows if name in trained)
    return replace(progress, rows=rows, outcomes=outcomes, seconds=progress.seconds + time.monotonic() - started)


def _outcome(learning: Learning, progress: Progress, now: Row) -> Outcome:
    """The gain of tuning on a row."""
    old = progress.rows[now.origin.id]
    choice = learning.router.choose(old, progress.classifier)
    was, is_ = old.standing.reward, now.standing.reward
    told = f"tuned on, reward {was:.2f} → {is_:.2f}"
    return Outcome(now.origin.id, "weights", choice.features, now.kinds, choice.weights.expected, is_ - was, told)


def _loss(scored: dict[str, Any] | None) -> float:
    """Loss of a row's value, or of all its targets where it has none; infinite where it has no token to learn."""
    if scored is None:
        return math.inf
    return float(scored["loss"] if scored["value_loss"] is None else scored["value_loss"])
