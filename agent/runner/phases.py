"""What the numeric and the symbolic phases of a neurosymbolic job share: budgets, costs, and the choice for a row."""

from __future__ import annotations

import math
from dataclasses import replace

from agent.contract.settings import Decision, part_of
from agent.decide.classifier import Choice, Classifier, Costs
from agent.decide.decision_store import DecisionStore
from agent.decide.schedules import Alternating, Monitored
from agent.runner.attempt import Attempt
from agent.runner.progress import PROGRESS, Progress
from agent.runner.rows import Row
from agent.runner.stages import Stages
from agent.system.config import read_config


class Phases(Stages):
    """The job's settings; `schedule` says when it changes sides."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self.decision = part_of(Decision, self.job.settings)
        # Which part of a row is rewritten is a setting of symbolic jobs: what is learned here are references.
        self.offload = replace(read_config(self.home.config).offload, rewrite="reference")
        self.decisions = DecisionStore(attempt.store, self.job.id)
        self.schedule: Monitored | Alternating = Monitored()
        self.costs = Costs(self.decision.rewrite_cost, self.decision.weights_cost, self.decision.explore)

    @property
    def total_steps(self) -> int:
        """The budget of optimizer steps: what the settings would take for all training rows."""
        return self.settings.steps or self.steps_for(len(self.examples[0]))

    def steps_for(self, rows: int) -> int:
        """Optimizer steps for `epochs` passes over some rows."""
        return math.ceil(self.settings.epochs * self.steps_a_pass(rows))

    def steps_a_pass(self, rows: int) -> int:
        """Optimizer steps for one pass over some rows."""
        return math.ceil(rows / (self.settings.micro_batch * self.settings.accumulation))

    def steps_left_by(self, progress: Progress) -> int:
        """The step up to which the numeric side may go: rows that wait for the remote are to be learned too."""
        waiting = sum(row.waits for row in progress.rows.values())
        return self.total_steps - min(self.total_steps // 2, self.steps_for(waiting))

    @property
    def can_rewrite(self) -> bool:
        """Whether there is a remote LLM, or its recorded answers, to ask."""
        return self.offload.mode == "cache-only" or bool(self.offload.base_url and self.offload.model)

    def choose(self, row: Row, classifier: Classifier) -> Choice:
        """The choice for one row that was probed."""
        return classifier.choose(row.standing, self.costs, seen=not self.offload.style)

    def saved(self, progress: Progress) -> Progress:
        """The progress, after it was written down."""
        progress.save(self.run / PROGRESS)
        return progress
