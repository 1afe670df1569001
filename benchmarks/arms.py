"""What neurosymbolic training is compared with: other ways to route the same rows, over the same loop and budget."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from unittest import mock

from agent.constraints import verify
from agent.contract.offload_messages import ImprovePrompt, RewriteExample, Rewritten
from agent.decide.classifier import Choice, Classifier
from agent.decide.monitor import Monitor, Phase, Verdict, Window, Work
from agent.decide.schedules import Alternating
from agent.runner import rewriting
from agent.runner.attempt import Attempt
from agent.runner.neurosymbolic_job import AlternatingJob, NeurosymbolicJob
from agent.runner.progress import Progress
from agent.runner.rewriting import STYLE, Flag
from agent.runner.rows import Row

PLAIN_STYLE = "A direct answer to the question in one plain, short sentence."
"""What rows are rewritten to where no constraint is broken, by those who rewrite everything."""


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


class Neurosymbolic(NeurosymbolicJob):
    """What `enqueue` does, but for the system prompt: it would be chosen on the rows that are reported."""

    def proposed_prompt(self, progress: Progress) -> str:
        """None."""
        del progress
        return ""


class FixedAlternation(Neurosymbolic, AlternatingJob):
    """Our classifier, phases of fixed length."""


class Routed(Neurosymbolic):
    """A loop whose two bits come from somewhere else; what the classifier would expect is still recorded."""

    def bits(self, row: Row) -> tuple[bool, bool]:
        """Whether to tune on the row, and whether to rewrite it."""
        raise NotImplementedError

    def choose(self, row: Row, classifier: Classifier) -> Choice:
        """The choice that the bits make."""
        choice = super().choose(row, classifier)
        names = {(True, True): "both", (True, False): "weights", (False, True): "rewrite", (False, False): "neither"}
        return Choice(names[self.bits(row)], choice.features, choice.weights, choice.rewrite)


class Pure(Routed):
    """One thing for every row, whatever the model can do: its own answers mend no reference either."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self.schedule = Straight()

    def probed(self, progress: Progress, trained: set[str]) -> Progress:
        """The rows as they are answered now, with the references that they had before."""
        found = super().probed(progress, trained)
        rows = {
            name: replace(row, reference=progress.rows[name].reference, source=progress.rows[name].source)
            for name, row in found.rows.items()
        }
        return replace(found, rows=rows)


class NumericOnly(Pure):
    """Tune on every row as it came, for all passes."""

    def bits(self, row: Row) -> tuple[bool, bool]:
        """Always the weights."""
        del row
        return True, False


class RewriteEverything(Pure):
    """Offer every row for a rewrite, then tune on them all for all passes."""

    def bits(self, row: Row) -> tuple[bool, bool]:
        """Both, each row once."""
        return True, row.tried == 0

    def flag(self, row: Row) -> Flag | None:
        """Something is to be mended in every row."""
        wanted = map(verify.described, row.origin.constraints)
        return super().flag(row) or Flag((*wanted, PLAIN_STYLE), (), (STYLE,))


class RandomRouting(Routed):
    """A coin for each bit of each row, thrown once for each time that the row was worked on."""

    def bits(self, row: Row) -> tuple[bool, bool]:
        """Heads or tails, twice."""
        draw = random.Random(f"{self.settings.seed}/{row.origin.id}/{row.trained}/{row.tried}")
        return draw.random() < 0.5, draw.random() < 0.5 and row.tried == 0


class ObviousRule(Routed):
    """A reference that fails a constraint is rewritten, every other row is tuned on."""

    def bits(self, row: Row) -> tuple[bool, bool]:
        """One or the other; a row that was rewritten, or offered in vain, is tuned on."""
        style = row.standing.reference_style
        fails = style is not None and style < 1 and row.tried == 0
        return not fails, fails


class Misled(Neurosymbolic):
    """A tenth of the rewrites have another row's value in the place of their own."""

    def ask(self, request: RewriteExample | ImprovePrompt) -> Rewritten:
        """The remote's answer, some of them wrong."""
        told = super().ask(request)
        if not isinstance(request, RewriteExample) or not told.text or not self._is_wrong(request.example):
            return told
        values = {example.id: str(example.answer) for example in self.examples[0]}
        own = values[request.example]
        other = next(value for value in values.values() if value != own and value.isdigit() == own.isdigit())
        return replace(told, text=re.sub(re.escape(own), other, told.text, flags=re.IGNORECASE))

    def _is_wrong(self, name: str) -> bool:
        flagged = [example.id for example in self.examples[0] if rewriting.flag(example, self.offload)]
        return name in random.Random(f"wrong/{self.settings.seed}").sample(flagged, round(len(flagged) / 10))


class MisledUnchecked(Misled):
    """The same without the checks that a rewrite keeps what the reference says: constraints alone decide."""

    def work(self) -> tuple[str, int | None]:
        """The job, its objections switched off."""
        with mock.patch.object(rewriting, "objections", return_value=()):
            return super().work()


ARMS: dict[str, type[NeurosymbolicJob]] = {
    "numeric only": NumericOnly,
    "rewrite everything": RewriteEverything,
    "fixed alternation": FixedAlternation,
    "random routing": RandomRouting,
    "obvious rule": ObviousRule,
    "neurosymbolic": Neurosymbolic,
    "a tenth wrong": Misled,
    "a tenth wrong, unchecked": MisledUnchecked,
}
"""The arms that train, by name."""
