"""Arms of comparison for neurosymbolic training: other ways to route the same rows, over the same loop and budget."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest import mock

from agent.constraints import verify
from agent.contract.offload_messages import ImprovePrompt, RewriteExample, Rewritten
from agent.contract.settings import Offload
from agent.decide.classifier import Choice, Classifier, Costs
from agent.decide.monitor import Monitor, Phase, Verdict, Window, Work
from agent.decide.schedules import Alternating, Monitored
from agent.runner import neurosymbolic_job, rewriting
from agent.runner.job_context import Ended, JobContext
from agent.runner.learning import Learning, Router, alternating_learning, monitored_learning
from agent.runner.rewriting import STYLE, Flag
from agent.runner.rows import Row

Strategy = Callable[[JobContext], Learning]

PLAIN_STYLE = "A direct answer to the question in one plain, short sentence."
"""The style that rows are rewritten to where no constraint is broken, by those who rewrite everything."""


class Straight(Alternating):
    """Everything is rewritten that is to be, then the weights are tuned for all passes, then it is over."""

    def __init__(self) -> None:
        super().__init__(steps=0, requests=0)

    def advance(self, state: Monitor, window: Window) -> tuple[Monitor, Verdict]:
        """No phase ends before its work is done."""
        return Monitor(state.phase, (*state.windows, window)), Verdict(over=False, reason="")

    def next_phase(
        self, last: Phase | None, numeric: Work, symbolic: Work, flat: frozenset[Phase]
    ) -> tuple[Phase, str]:
        """Symbolic, numeric, stop."""
        del numeric, flat
        if last is None and symbolic.examples:
            return Phase.SYMBOLIC, "first"
        return (Phase.STOP, "done") if last is Phase.NUMERIC else (Phase.NUMERIC, "then")


# ---- who routes ----


class Routed(Router):
    """Two bits from somewhere else than the classifier; what that would expect is still recorded."""

    def __init__(self, costs: Costs, offload: Offload, seed: int) -> None:
        super().__init__(costs, offload)
        self.seed = seed

    def bits(self, row: Row) -> tuple[bool, bool]:
        """Two bits: tune on the row, rewrite it."""
        raise NotImplementedError

    def choose(self, row: Row, classifier: Classifier) -> Choice:
        """The choice that the bits make."""
        choice = super().choose(row, classifier)
        names = {(True, True): "both", (True, False): "weights", (False, True): "rewrite", (False, False): "neither"}
        return Choice(names[self.bits(row)], choice.features, choice.weights, choice.rewrite)


class NumericOnly(Routed):
    """Tune on every row as it came, for all passes: the model's own answers mend no reference either."""

    takes_own_answers = False

    def bits(self, row: Row) -> tuple[bool, bool]:
        """Always the weights."""
        del row
        return True, False


class RewriteEverything(Routed):
    """Offer every row for a rewrite, then tune on them all for all passes."""

    takes_own_answers = False

    def bits(self, row: Row) -> tuple[bool, bool]:
        """Both, each row once."""
        return True, row.tried == 0

    def flag(self, row: Row) -> Flag | None:
        """Something is to be mended in every row."""
        wanted = map(verify.describe, row.origin.constraints)
        return super().flag(row) or Flag((*wanted, PLAIN_STYLE), (), (STYLE,))


class RandomRouting(Routed):
    """A coin for each bit of each row, thrown once for each time that the row was worked on."""

    def bits(self, row: Row) -> tuple[bool, bool]:
        """Heads or tails, twice."""
        draw = random.Random(f"{self.seed}/{row.origin.id}/{row.trained}/{row.tried}")
        return draw.random() < 0.5, draw.random() < 0.5 and row.tried == 0


class ObviousRule(Routed):
    """A reference that fails a constraint is rewritten, every other row is tuned on."""

    def bits(self, row: Row) -> tuple[bool, bool]:
        """One or the other; a row that was rewritten, or offered in vain, is tuned on."""
        style = row.standing.reference_style
        fails = style is not None and style < 1 and row.tried == 0
        return not fails, fails


# ---- the arms ----


def neurosymbolic(job: JobContext) -> Learning:
    """The job of `enqueue`, but for the system prompt: it would be chosen on the rows that are reported."""
    return replace(monitored_learning(job), proposes_prompt=False)


def fixed_alternation(job: JobContext) -> Learning:
    """Our classifier, phases of fixed length."""
    return replace(alternating_learning(job), proposes_prompt=False)


def routed(job: JobContext, *, router: type[Routed], schedule: Monitored | Alternating | None = None) -> Learning:
    """Another router, and perhaps another schedule."""
    usual = neurosymbolic(job)
    other = router(usual.router.costs, usual.offload, job.model.settings.seed)
    return replace(usual, router=other, schedule=schedule or usual.schedule)


def misled(job: JobContext) -> Learning:
    """A tenth of the rewrites have another row's value in the place of their own."""
    usual = neurosymbolic(job)
    values = {example.id: str(example.answer) for example in job.data.train}
    flagged = [example.id for example in job.data.train if example.id in usual.flagged]
    draw = random.Random(f"wrong/{job.model.settings.seed}")
    wrong = set(draw.sample(flagged, round(len(flagged) / 10)))

    def ask(request: RewriteExample | ImprovePrompt) -> Rewritten:
        told = usual.ask(request)
        if not isinstance(request, RewriteExample) or not told.text or request.example not in wrong:
            return told
        own = values[request.example]
        other = next(value for value in values.values() if value != own and value.isdigit() == own.isdigit())
        return replace(told, text=re.sub(re.escape(own), other, told.text, flags=re.IGNORECASE))

    return replace(usual, ask=ask)


def run(strategy: Strategy, job: JobContext) -> Ended:
    """Run a job by a strategy."""
    return neurosymbolic_job.run(strategy(job))


def run_unchecked(strategy: Strategy, job: JobContext) -> Ended:
    """The same without the checks that a rewrite keeps what the reference says: constraints alone decide."""
    with mock.patch.object(rewriting, "objections", return_value=()):
        return run(strategy, job)


NUMERIC_ONLY = partial(run, partial(routed, router=NumericOnly, schedule=Straight()))
RANDOM_ROUTING = partial(run, partial(routed, router=RandomRouting))
ARMS: dict[str, Callable[[JobContext], Ended]] = {
    "numeric only": NUMERIC_ONLY,
    "rewrite everything": partial(run, partial(routed, router=RewriteEverything, schedule=Straight())),
    "fixed alternation": partial(run, fixed_alternation),
    "random routing": RANDOM_ROUTING,
    "obvious rule": partial(run, partial(routed, router=ObviousRule)),
    "neurosymbolic": partial(run, neurosymbolic),
    "a tenth wrong": partial(run, misled),
    "a tenth wrong, unchecked": partial(run_unchecked, misled),
}
"""The arms that train, by name."""
