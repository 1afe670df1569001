"""The symbolic side of a neurosymbolic job: offer flagged rows for a rewrite, one after the other, window by window."""

from __future__ import annotations

import time
from dataclasses import replace

from agent.contract.lines import quantity
from agent.decide.classifier import Choice
from agent.decide.decision_store import Outcome
from agent.decide.monitor import REQUESTS_A_WINDOW, Window
from agent.runner import rewriting
from agent.runner.learning import Learning
from agent.runner.progress import Progress
from agent.runner.rows import Row


def rewrite(learning: Learning, progress: Progress) -> Progress:
    """A symbolic phase on `Progress.members`, from where it stands; each outcome teaches before the next row."""
    attempt = learning.job.attempt
    attempt.phase("rewrite")
    while not progress.ended:
        started, before = time.monotonic(), progress
        while progress.members and progress.requests - before.requests < REQUESTS_A_WINDOW:
            done = len(progress.outcomes)
            attempt.beat(done=done, flagged=done + len(progress.members))
            progress = offer_first(learning, progress)
        requests = progress.requests - before.requests
        gained = sum(outcome.gain for outcome in progress.outcomes[len(before.outcomes) :])
        state, verdict = learning.schedule.advance(progress.monitor, Window(gained / max(requests, 1)))
        attempt.events.add("window", phase="symbolic", reason=verdict.reason, requests=requests, gained=gained)
        all_done = "" if progress.members else progress.cut or "every flagged example was offered"
        ended = verdict.reason if verdict.over else all_done
        seconds = progress.seconds + time.monotonic() - started
        progress = learning.save(replace(progress, monitor=state, ended=ended, seconds=seconds))
    attempt.end_offload()
    return progress


def offer_first(learning: Learning, progress: Progress) -> Progress:
    """Offer the first row that is left for a rewrite, if what was learned meanwhile still speaks for it."""
    name, *left = progress.members
    progress = replace(progress, members=tuple(left))
    row = progress.rows[name]
    choice, flag = learning.router.choose(row, progress.classifier), learning.router.flag(row)
    if not choice.wants_rewrite or flag is None:
        return progress
    request = rewriting.first_request(learning.job.attempt.job.id, row.example, flag, "reference")
    told = rewriting.rewrite(row.example, flag, request, learning.ask)
    learning.job.attempt.events.add("rewrite", **told.to_json())
    progress = replace(progress, requests=progress.requests + rewriting.requests(flag, told))
    if told.state in {"deferred", "spent"}:
        # The same would happen to the other rows, and each try of them costs seconds.
        return _postpone(progress, (name, *left), told)
    now = row.after_rewrite(told, learning.offload.model)
    outcome = _outcome(row, now, choice, told)
    classifier = outcome.teach(progress.classifier)
    rows, outcomes = {**progress.rows, name: now}, (*progress.outcomes, outcome)
    return replace(progress, rows=rows, outcomes=outcomes, classifier=classifier)


def _postpone(progress: Progress, names: tuple[str, ...], told: rewriting.RewriteOutcome) -> Progress:
    """After a rewrite that the remote or the budget did not allow: what is left waits, or is given up."""
    progress = replace(progress, members=(), cut="; ".join(told.reasons))
    if told.state == "spent":
        return replace(progress, spent=True)
    waiting = {name: replace(progress.rows[name], waits=True) for name in names}
    return replace(progress, rows={**progress.rows, **waiting}, deferred=told)


def _outcome(old: Row, now: Row, choice: Choice, told: rewriting.RewriteOutcome) -> Outcome:
    """The gain of a rewrite: a better reference than the row had, and than the model's own answer."""
    gain = now.standing.reference_reward - max(old.standing.reward, old.standing.reference_reward)
    accepted = told.state == "remade"
    reasons = f": {'; '.join(told.reasons)}" if told.reasons else ""
    words = f"{told.word} after {quantity(told.steps, 'step')}{reasons}"
    expected = choice.rewrite.expected
    return Outcome(old.origin.id, "rewrite", choice.features, old.kinds, expected, gain * accepted, words)
