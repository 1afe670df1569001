"""The symbolic side of a neurosymbolic job: offer flagged rows for a rewrite, one after the other, window by window."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property

from agent.contract.offload_messages import ImprovePrompt, RewriteExample, Rewritten
from agent.decide.classifier import Choice
from agent.decide.decision_store import Outcome
from agent.decide.monitor import REQUESTS_A_WINDOW, Window
from agent.runner import rewriting
from agent.runner.phases import Phases
from agent.runner.progress import Progress
from agent.runner.rewriting import Flag
from agent.runner.rows import Row


class SymbolicPhases(Phases):
    """Symbolic phases, on rows as `Progress.members` names them; each outcome teaches before the next row."""

    def rewritten(self, progress: Progress) -> Progress:
        """A symbolic phase, from where it stands."""
        self.attempt.phase("rewrite")
        while not progress.ended:
            progress = self.saved(self._symbolic_window(progress))
        self.attempt.end_offload()
        return progress

    @cached_property
    def flagged(self) -> frozenset[str]:
        """Ids of the rows with something wrong in the reference that they came with."""
        return frozenset(e.id for e in self.examples[0] if rewriting.flag(e, self.offload) is not None)

    def may_rewrite(self, row: Row) -> bool:
        """Whether a row can be offered at all: there is a remote to ask, and something is wrong."""
        return self.can_rewrite and self.flag(row) is not None

    def flag(self, row: Row) -> Flag | None:
        """What is wrong with a row's reference, None if nothing is; a style alone is asked for once."""
        flag = rewriting.flag(row.example, self.offload)
        return None if flag and not flag.faults and row.tried else flag

    def ask(self, request: RewriteExample | ImprovePrompt) -> Rewritten:
        """One step by the remote LLM."""
        return self.attempt.ask_remote(request)

    def _symbolic_window(self, progress: Progress) -> Progress:
        started, before = time.monotonic(), progress
        while progress.members and progress.requests - before.requests < REQUESTS_A_WINDOW:
            done = len(progress.outcomes)
            self.attempt.beat(done=done, flagged=done + len(progress.members))
            progress = self._offer(progress)
        requests = progress.requests - before.requests
        gained = sum(outcome.gain for outcome in progress.outcomes[len(before.outcomes) :])
        state, verdict = self.schedule.advance(progress.monitor, Window(gained / max(requests, 1)))
        self.attempt.events.add("window", phase="symbolic", reason=verdict.reason, requests=requests, gained=gained)
        all_done = "" if progress.members else progress.cut or "every flagged example was offered"
        return replace(
            progress,
            monitor=state,
            ended=verdict.reason if verdict.over else all_done,
            seconds=progress.seconds + time.monotonic() - started,
        )

    def _offer(self, progress: Progress) -> Progress:
        """The first row that is left, offered for a rewrite if what was learned meanwhile still speaks for it."""
        name, *left = progress.members
        progress = replace(progress, members=tuple(left))
        row = progress.rows[name]
        choice, flag = self.choose(row, progress.classifier), self.flag(row)
        if not choice.remake or flag is None:
            return progress
        request = rewriting.first_request(self.job.id, row.example, flag, "reference")
        told = rewriting.rewrite(row.example, flag, request, self.ask)
        self.attempt.events.add("rewrite", **told.to_json())
        progress = replace(progress, requests=progress.requests + rewriting.requests(flag, told))
        if told.state in {"deferred", "spent"}:
            # The same would happen to the other rows, and each try of them costs seconds.
            return _put_off(progress, (name, *left), told)
        now = row.after_rewrite(told, self.offload.model)
        outcome = _outcome(row, now, choice, told)
        classifier = outcome.taught(progress.classifier)
        rows, outcomes = {**progress.rows, name: now}, (*progress.outcomes, outcome)
        return replace(progress, rows=rows, outcomes=outcomes, classifier=classifier)


def _put_off(progress: Progress, names: tuple[str, ...], told: rewriting.Outcome) -> Progress:
    """After a rewrite that the remote or the budget did not allow: what is left waits, or is given up."""
    progress = replace(progress, members=(), cut="; ".join(told.reasons))
    if told.state == "spent":
        return replace(progress, spent=True)
    waiting = {name: replace(progress.rows[name], waits=True) for name in names}
    return replace(progress, rows={**progress.rows, **waiting}, deferred=told)


def _outcome(old: Row, now: Row, choice: Choice, told: rewriting.Outcome) -> Outcome:
    """What a rewrite gained: a better reference than the row had, and than the model's own answer."""
    gain = now.standing.reference_reward - max(old.standing.reward, old.standing.reference_reward)
    accepted = told.state == "remade"
    reasons = f": {'; '.join(told.reasons)}" if told.reasons else ""
    words = f"{told.state} after {told.steps} step{'s' * (told.steps != 1)}{reasons}"
    kinds = old.kinds
    return Outcome(old.origin.id, "rewrite", choice.features, kinds, choice.rewrite.expected, gain * accepted, words)
