"""The deciders, costs and budgets that the numeric and symbolic phases of a neurosymbolic job share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from agent.contract.offload_messages import ImprovePrompt, RewriteExample, Rewritten
from agent.contract.settings import Decision, Offload, part_of
from agent.decide.classifier import Choice, Classifier, Costs
from agent.decide.decision_store import DecisionStore
from agent.decide.schedules import Alternating, Monitored
from agent.runner import rewriting
from agent.runner.job_context import JobContext
from agent.runner.progress import PROGRESS, Progress
from agent.runner.rewriting import Flag
from agent.runner.rows import Row
from agent.system.config import read_config

Ask = Callable[[RewriteExample | ImprovePrompt], Rewritten]


class Router:
    """Says which rows are tuned on and which are offered for a rewrite: the classifier, and the local checks.

    Attributes:
        takes_own_answers: whether the model's own answer, where it is right, may take a wrong reference's place.
    """

    takes_own_answers = True

    def __init__(self, costs: Costs, offload: Offload) -> None:
        self.costs, self.offload = costs, offload

    def choose(self, row: Row, classifier: Classifier) -> Choice:
        """The choice for one row that was probed."""
        return classifier.choose(row.standing, self.costs, seen=not self.offload.style)

    def flag(self, row: Row) -> Flag | None:
        """Say what is wrong with a row's reference, None if nothing is; a style alone is asked for once."""
        flag = rewriting.flag(row.example, self.offload)
        return None if flag and not flag.faults and row.tried else flag


@dataclass(frozen=True)
class Learning:
    """A neurosymbolic job: the router chooses for each row, the schedule changes sides, `ask` is one remote step."""

    job: JobContext
    decision: Decision
    offload: Offload
    decisions: DecisionStore
    router: Router
    schedule: Monitored | Alternating
    ask: Ask
    proposes_prompt: bool = True
    """Whether the remote LLM is asked for a system prompt at the end."""

    @property
    def total_steps(self) -> int:
        """The budget of optimizer steps: what the settings would take for all training rows."""
        return self.job.model.settings.steps or self.steps_for(len(self.job.data.train))

    def steps_for(self, rows: int) -> int:
        """Optimizer steps for `epochs` passes over some rows."""
        return math.ceil(self.job.model.settings.epochs * self.steps_a_pass(rows))

    def steps_a_pass(self, rows: int) -> int:
        """Optimizer steps for one pass over some rows."""
        settings = self.job.model.settings
        return math.ceil(rows / (settings.micro_batch * settings.gradient_accumulation_steps))

    def steps_left_by(self, progress: Progress) -> int:
        """The step up to which the numeric side may go: rows that wait for the remote are to be learned too."""
        waiting = sum(row.waits for row in progress.rows.values())
        return self.total_steps - min(self.total_steps // 2, self.steps_for(waiting))

    @cached_property
    def flagged(self) -> frozenset[str]:
        """Ids of the rows with something wrong in the reference that they came with."""
        return frozenset(e.id for e in self.job.data.train if rewriting.flag(e, self.offload) is not None)

    def may_rewrite(self, row: Row) -> bool:
        """True if there is a remote to ask, or its recorded answers, and something is wrong with the reference."""
        can_ask = self.offload.mode == "cache-only" or bool(self.offload.base_url and self.offload.model)
        return can_ask and self.router.flag(row) is not None

    def save(self, progress: Progress) -> Progress:
        """Write the progress down; returns it."""
        progress.save(self.job.attempt.run / PROGRESS)
        return progress


def monitored_learning(job: JobContext) -> Learning:
    """The classifier routes, the monitoring signal says when to change sides."""
    decision = part_of(Decision, job.attempt.job.settings)
    # Which part of a row is rewritten is a setting of symbolic jobs: what is learned here are references.
    offload = replace(read_config(job.attempt.home.config).offload, rewrite="reference")
    costs = Costs(decision.rewrite_cost, decision.weights_cost, decision.explore)
    decisions = DecisionStore(job.attempt.store, job.attempt.job.id)
    router = Router(costs, offload)
    return Learning(job, decision, offload, decisions, router, Monitored(), job.attempt.ask_remote)


def alternating_learning(job: JobContext) -> Learning:
    """The same with phases of fixed length in turns, whatever the monitoring signal says."""
    learning = monitored_learning(job)
    turns = max(1, learning.decision.rounds // 2)
    requests = -(-2 * len(learning.flagged) // turns)
    return replace(learning, schedule=Alternating(steps=-(-learning.total_steps // turns), requests=requests))
