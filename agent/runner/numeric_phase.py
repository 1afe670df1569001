"""The numeric side of a neurosymbolic job: tune the weights window by window, then let the model answer every row."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.contract.atomic_io import remove_tree
from agent.contract.protocol import Step, Train, Trained
from agent.decide.decision_store import Outcome
from agent.decide.monitor import STEPS_A_WINDOW, Work, numeric_window
from agent.runner.attempt import Stopped
from agent.runner.phases import Phases
from agent.runner.progress import Progress
from agent.runner.rows import Row


class NumericPhases(Phases):
    """Numeric phases, on rows as `Progress.members` names them."""

    def tuned(self, progress: Progress) -> Progress:
        """A numeric phase, from where it stands, and the probe after it."""
        self.attempt.phase("train")
        rows = (progress.rows[name] for name in progress.members)
        # A rehearsed row names no value: where rows have values, the signal is of what is still to be learned.
        examples = (replace(row.example, answer=None) if row.is_right else row.example for row in rows)
        data = self.write_rows(f"round-{progress.round}.jsonl", examples, "")
        while not progress.ended:
            progress = self.saved(self._numeric_window(progress, data))
        probed = self.probed(progress, set(progress.members))
        return probed if probed.reward >= progress.reward else self._undone(progress, probed)

    def _undone(self, before: Progress, after: Progress) -> Progress:
        """The progress with the adapter from before a phase that lost more than it gained; what it taught stays."""
        lost = f"undone, because the mean reward fell from {before.reward:.3f} to {after.reward:.3f}"
        self.attempt.events.add("note", text=f"the phase is {lost}")
        undone = before.tokens - before.start_tokens
        back = replace(after, rows=before.rows, step=before.first, checkpoint=before.start, undone=undone)
        self.load_for_training()
        self.restore(back)
        return replace(back, ended=f"{before.ended}; {lost}")

    def restore(self, progress: Progress) -> None:
        """Bring the adapter that was loaded for training to where a checkpoint left it."""
        if progress.checkpoint:
            learnable = next(row.example for row in progress.rows.values() if row.is_learnable)
            self.train_until(progress, self.write_rows("restore.jsonl", [learnable], ""), progress.step)

    def sweep_checkpoints(self, progress: Progress) -> None:
        """Remove the checkpoints of rounds that nothing goes back to any more."""
        for folder in self.run.glob("attempt-*/checkpoints-*"):
            if folder != (self.run / progress.checkpoint).parent:
                remove_tree(folder)

    def numeric_work(self, gains: list[float], rows: int) -> Work:
        """What tuning would do, unless that is not worth the probe of all rows which follows."""
        gain = math.fsum(gains)
        return Work(len(gains), gain) if gain > self.costs.weights * rows else Work(0, 0.0)

    def with_rehearsal(self, progress: Progress, tunes: list[str]) -> list[str]:
        """The rows to tune on and, after the first numeric phase, as many that are right by now, in the file's order.

        Tuning on what is still wrong alone unlearns what was right (docs/decisions.md).
        """
        if not progress.step:
            return tunes
        right = [name for name, row in progress.rows.items() if row.is_right]
        drawn = random.Random(f"{self.settings.seed}/{progress.round}").sample(right, min(len(right), len(tunes)))
        chosen = {*tunes, *drawn}
        return [name for name in progress.rows if name in chosen]

    def _numeric_window(self, progress: Progress, data: Path) -> Progress:
        passes = progress.first + self.steps_for(len(progress.members))
        budget = self.steps_left_by(progress)
        window = self.schedule.steps_a_window(self.steps_a_pass(len(progress.members)))
        until = min(progress.step + window, budget, passes)
        started, steps = time.monotonic(), list[Step]()
        trained = self.train_until(progress, data, until, steps)
        state, verdict = self.schedule.advance(progress.monitor, numeric_window(steps))
        measured = dataclasses.asdict(state.windows[-1])
        self.attempt.events.add("window", phase="numeric", reason=verdict.reason, **measured)
        spent = f"{self.settings.epochs:g} passes are over" if until == passes else ""
        spent = f"the budget of {until} steps is used up" if until == budget else spent
        return replace(
            progress,
            monitor=state,
            ended=verdict.reason if verdict.over else spent,
            step=trained.step,
            tokens=progress.undone + trained.tokens,
            peak_rss_mb=max(progress.peak_rss_mb, trained.peak_rss_mb),
            peak_cuda_mb=max(progress.peak_cuda_mb, trained.peak_cuda_mb),
            train_seconds=trained.seconds,
            checkpoint=str(Path(trained.checkpoint).relative_to(self.run)),
            seconds=progress.seconds + time.monotonic() - started,
        )

    def train_until(self, progress: Progress, data: Path, until: int, steps: list[Step] | None = None) -> Trained:
        """Steps on the rows in `data` up to `until`, from the checkpoint that the progress names. Raises Stopped."""
        resume = str(self.run / progress.checkpoint) if progress.checkpoint else None
        # A window's last checkpoint must not be swept by those within the next one: progress.json names it.
        every = max(STEPS_A_WINDOW, self.settings.checkpoint_every)
        settings = replace(self.settings, steps=self.total_steps, checkpoint_every=every)
        # A folder for each round, so that none sweeps the checkpoint that a phase may have to go back to.
        folder = self.folder / f"checkpoints-{progress.round}"
        request = Train(str(data), str(folder), settings, resume, progress.first, until)
        answer = self.attempt.ask(request, steps)
        if not isinstance(answer, Trained) or not answer.finished:
            raise Stopped
        return answer

    def probed(self, progress: Progress, trained: set[str]) -> Progress:
        """Every row after the model has answered it again, and what the training of some of them gained."""
        self.attempt.phase("probe")
        started = time.monotonic()
        examples = [row.example for row in progress.rows.values()]
        losses = self.losses("probe", examples, "")
        answers = self.answers("probe", examples, "", self.most_tokens(losses))
        rows = {
            name: row.after_probe(answers.get(name), _loss(losses.get(name)), self.styled, trained=name in trained)
            for name, row in progress.rows.items()
        }
        outcomes = tuple(self._outcome(progress, rows[name]) for name in progress.rows if name in trained)
        return replace(progress, rows=rows, outcomes=outcomes, seconds=progress.seconds + time.monotonic() - started)

    def _outcome(self, progress: Progress, now: Row) -> Outcome:
        """What tuning on a row gained."""
        old = progress.rows[now.origin.id]
        choice = self.choose(old, progress.classifier)
        was, is_ = old.standing.reward, now.standing.reward
        told = f"tuned on, reward {was:.2f} → {is_:.2f}"
        return Outcome(now.origin.id, "weights", choice.features, now.kinds, choice.weights.expected, is_ - was, told)


def _loss(scored: dict[str, Any] | None) -> float:
    """Loss of a row's value, or of all its targets where it has none; infinite where it has no token to learn."""
    if scored is None:
        return math.inf
    return float(scored["loss"] if scored["value_loss"] is None else scored["value_loss"])
