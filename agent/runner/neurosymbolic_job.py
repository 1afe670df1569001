"""A neurosymbolic job: probe, classify, then tune or rewrite, whichever the monitor says, until neither gains.

    probe      the model answers every training row: rewards and losses
    classify   each row → satisfied, weights, rewrite, both or neither; the reason is stored
    numeric    the weights are tuned on rows that need them and whose reference need not be rewritten first
    symbolic   the remote LLM rewrites the references of flagged rows; local checks accept or refuse
    gate       the held-out rewards decide, as for any job

After "Neurosymbolic LoRA: Why and When to Tune Weights vs. Rewrite Prompts" (arXiv 2601.12711). Every window of steps
or requests leaves the whole state on the disk; with the same seed and the same recorded answers a job repeats itself.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.contract.atomic_io import folder_fault
from agent.contract.errors import CacheMiss, RemoteRefused
from agent.contract.protocol import Save
from agent.decide.classifier import prior
from agent.decide.decision_store import Round
from agent.decide.monitor import Monitor, Phase, Work
from agent.decide.schedules import Alternating
from agent.runner import explain, rewriting
from agent.runner.attempt import Attempt
from agent.runner.numeric_phase import NumericPhases
from agent.runner.parking import park
from agent.runner.progress import PROGRESS, Progress
from agent.runner.rewritten_data import REMADE, Remade, lineage, write_remade
from agent.runner.rows import OWN_ANSWER, Row
from agent.runner.symbolic_phase import SymbolicPhases
from agent.scoring.evaluation import Evaluation
from agent.scoring.gate import judge


class NeurosymbolicJob(NumericPhases, SymbolicPhases):
    """Decides for each example between tuning weights, rewriting, both, or neither."""

    def work(self) -> tuple[str, int | None]:
        """Do what is left of the job; returns how it ended, and the version that was made, if any. Raises Parked."""
        made = self.registry.find_by_job(self.job.id)
        if made is None:
            self.start()
            self.plan()
            before = self.before()
            progress = self.learn()
            self._write_remade(progress)
            if not progress.step:
                return f"No version was made: {progress.why}.", None
            made = self._make(before, progress)
        return f"{self.promote(made)} {self.registry.get(made).about['figures']['rewrites']}", made

    def learn(self) -> Progress:
        """All rounds that are left; returns the state after the last. Raises Parked."""
        progress = self._resumed() or self._begun()
        while True:
            if progress.phase is None or progress.finished:
                progress = self._next(progress)
            if progress.phase is Phase.STOP:
                return progress
            progress = self.tuned(progress) if progress.phase is Phase.NUMERIC else self.rewritten(progress)
            progress = self._finished(progress)

    def _begun(self) -> Progress:
        """Every row as the model does on it before anything is done, and what earlier jobs have taught."""
        classifier = prior()
        for outcome in self.decisions.learned_before():
            classifier = outcome.taught(classifier)
        rows = {example.id: Row(example, example.reference) for example in self.examples[0]}
        self.attempt.phase("load")
        self.load_for_training()
        return self.saved(self.probed(Progress(rows=rows, classifier=classifier), set()))

    def _resumed(self) -> Progress | None:
        """The state that an earlier attempt wrote down, None if there is none or its checkpoint is damaged."""
        path = self.run / PROGRESS
        if not path.exists():
            return None
        progress = _woken(Progress.load(path, self.examples[0]))
        fault = folder_fault(self.run / progress.checkpoint) if progress.checkpoint else None
        if fault:
            self.attempt.events.add("note", text=f"starting over: the checkpoint is damaged ({fault})")
            return None
        self.attempt.phase("load")
        self.load_for_training()
        self.restore(progress)
        return progress

    def _next(self, progress: Progress) -> Progress:
        """Choose for every row, then what to do in the next round. Raises Parked if only the remote can go on."""
        number = progress.round + 1
        rows = progress.rows
        choices = {name: self.choose(row, progress.classifier) for name, row in rows.items()}
        flagged = [name for name, choice in choices.items() if choice.remake and self.may_rewrite(rows[name])]
        flagged = [] if progress.spent else flagged
        rewrites = [name for name in flagged if not rows[name].waits]
        # What a row's reference teaches before it is rewritten would have to be unlearned.
        waiting = set(flagged) if Phase.SYMBOLIC not in progress.flat else set()
        tunes = [
            name for name, choice in choices.items() if choice.tune and name not in waiting and rows[name].is_learnable
        ]
        chosen = (
            explain.chosen(row, choices[name], waits=name in waiting, flagged=name in self.flagged)
            for name, row in rows.items()
        )
        self.decisions.choose(self.attempt.token, number, chosen)
        numeric = self.numeric_work([choices[name].weights.expected for name in tunes], len(rows))
        symbolic = Work(len(rewrites), sum(choices[name].rewrite.expected for name in rewrites))
        phase, why = self._phase(progress, numeric, symbolic)
        if phase is Phase.STOP:
            self._park_if_worth_it(progress, sum(rows[name].waits for name in flagged))
            self.decisions.finish(self.attempt.token, Round(number, phase.value, why, "", {}), ())
        by_gain = sorted(rewrites, key=lambda name: -choices[name].rewrite.hoped)
        members = self.with_rehearsal(progress, tunes) if phase is Phase.NUMERIC else by_gain
        states = Counter(choice.state for choice in choices.values())
        self.attempt.events.add("round", round=number, phase=phase.value, why=why, states=states)
        self.attempt.beat(round=number)
        begun = replace(progress, round=number, phase=phase, why=why, monitor=Monitor(phase), members=tuple(members))
        fresh = replace(begun, outcomes=(), ended="", finished=False, cut="")
        fresh = replace(fresh, first=progress.step, requests_before=progress.requests, reward_before=progress.reward)
        start_tokens = progress.tokens - progress.undone
        return self.saved(replace(fresh, start=progress.checkpoint, start_tokens=start_tokens))

    def _park_if_worth_it(self, progress: Progress, waiting: int) -> None:
        """Raise Parked if rows wait for the remote and could be offered when it is back."""
        back = Work(waiting, float(waiting))
        if progress.deferred and self._phase(_woken(progress), Work(0, 0.0), back)[0] is Phase.SYMBOLIC:
            park(progress.deferred, waiting)

    def _phase(self, progress: Progress, numeric: Work, symbolic: Work) -> tuple[Phase, str]:
        """What to do next, within the budgets."""
        budget = self.decision
        if progress.round >= budget.rounds:
            return Phase.STOP, f"the budget of {budget.rounds} rounds is used up"
        if budget.minutes and progress.seconds >= 60 * budget.minutes:
            return Phase.STOP, f"the budget of {budget.minutes:g} minutes is used up"
        if progress.step >= self.steps_left_by(progress):
            numeric = Work(0, 0.0)
            # A rewrite that is not learned changes no answer.
            if progress.step >= self.total_steps:
                return Phase.STOP, f"the budget of {self.total_steps} steps is used up"
        return self.schedule.next_phase(progress.phase, numeric, symbolic, frozenset(progress.flat))

    def _finished(self, progress: Progress) -> Progress:
        """A round that is over: kept for `explain`, and what came of it taught to the classifier."""
        classifier = progress.classifier
        if progress.phase is Phase.NUMERIC:
            for outcome in progress.outcomes:
                classifier = outcome.taught(classifier)
        gained = self._gained(progress)
        figures = {
            "examples": len(progress.outcomes),
            "gained": round(gained, 4),
            "reward": round(progress.reward, 4),
            "steps": progress.step - progress.first,
            "tokens": progress.tokens,
            "requests": progress.requests,
            "requests_here": progress.requests - progress.requests_before,
            "seconds": round(progress.seconds, 1),
        }
        phase = progress.phase.value if progress.phase else ""
        done = Round(progress.round, phase, progress.why, progress.ended, figures)
        self.decisions.finish(self.attempt.token, done, progress.outcomes)
        self.attempt.events.add("round over", round=done.number, ended=done.ended, **figures)
        flat = self._flat(progress, gained)
        saved = self.saved(replace(progress, classifier=classifier, flat=flat, finished=True))
        self.sweep_checkpoints(saved)
        return saved

    def _gained(self, progress: Progress) -> float:
        """The reward that a phase gained: of rewriting in references, of tuning in answers, what was unlearned off."""
        if progress.phase is Phase.NUMERIC:
            return (progress.reward - progress.reward_before) * len(progress.rows)
        return math.fsum(outcome.gain for outcome in progress.outcomes)

    def _flat(self, progress: Progress, gained: float) -> tuple[Phase, ...]:
        """The sides that gain nothing: less than they cost. What reopens one is a gain of the other."""
        costs = {"weights": self.costs.weights, "rewrite": self.costs.rewrite}
        if gained > sum(costs[outcome.action] for outcome in progress.outcomes):
            return ()
        if progress.cut or progress.phase is None:
            return progress.flat
        return tuple({*progress.flat, progress.phase})

    # ---- the version ----

    def _write_remade(self, progress: Progress) -> None:
        changed = {name: self._lineage(row) for name, row in progress.rows.items() if row.source}
        write_remade(self.run, *self.examples, changed)

    def _lineage(self, row: Row) -> Remade:
        reward = {"reward_before": row.reward_of(row.origin.reference), "reward_after": row.reward_of(row.reference)}
        if row.source == OWN_ANSWER or row.rewrite is None:
            told = {"job": self.job.id, "file": self.job.file, "model": OWN_ANSWER, "calls": 0, "cost": 0.0}
        else:
            told = lineage(self.job, row.source, row.rewrite)
        return Remade(row.reference, "reference", {**told, **reward})

    def _make(self, before: Evaluation, progress: Progress) -> int:
        """Measure, judge and publish what the last checkpoint holds."""
        after, prompt = self._best_prompt(progress)
        verdict = self.judge(before, after)
        about = self.about(verdict, before, after, self._figures(progress, prompt))

        def fill(folder: Path) -> None:
            self.attempt.ask(Save(str(folder)))
            (folder / "system_prompt.txt").write_text(prompt)
            (folder / REMADE).write_bytes((self.run / REMADE).read_bytes())

        return self.publish(about, {"before": before, "after": after}, fill)

    def _best_prompt(self, progress: Progress) -> tuple[Evaluation, str]:
        """Held-out results without a system prompt or, only if it pays by more than its noise, with one."""
        best, prompt = self.measure("after", ""), ""
        for candidate in dict.fromkeys(filter(None, (self.parent_prompt, self.proposed_prompt(progress)))):
            tried = self.measure("after with prompt", candidate)
            verdict = judge(best.measured, tried.measured, self.decision.most_fall)
            self.attempt.events.add("prompt", pays=verdict.promote, gain=verdict.gain)
            if verdict.promote:
                best, prompt = tried, candidate
        return best, prompt

    def proposed_prompt(self, progress: Progress) -> str:
        """A system prompt by the remote LLM, from what the references lacked as they came; "" if it gives none."""
        if not progress.requests:
            return ""
        flags = ((row.origin, rewriting.flag(row.origin, self.offload)) for row in progress.rows.values())
        cases = rewriting.failing_cases((example, flag) for example, flag in flags if flag is not None)
        if not cases:
            return ""
        try:
            told = rewriting.improve_prompt(self.job.id, self.parent_prompt, cases, self.ask)
        except (CacheMiss, RemoteRefused) as fault:
            self.attempt.events.add("note", text=f"no system prompt was proposed: {fault}")
            return ""
        self.attempt.events.add("rewrite", **told.to_json())
        return told.text

    def _figures(self, progress: Progress, prompt: str) -> dict[str, Any]:
        own = sum(row.source == OWN_ANSWER for row in progress.rows.values())
        remade = sum(bool(row.source) for row in progress.rows.values()) - own
        offered = sum(row.rewrite is not None for row in progress.rows.values())
        return {
            "rounds": progress.round - 1,
            "steps": progress.step,
            "tokens": progress.tokens,
            "train_seconds": progress.train_seconds,
            "tokens_per_s": round(progress.tokens / max(progress.train_seconds, 1e-9), 1),
            "peak_rss_mb": progress.peak_rss_mb,
            "peak_cuda_mb": progress.peak_cuda_mb,
            "system_prompt": bool(prompt),
            "requests": progress.requests,
            "remade": remade,
            "own_answers": own,
            "rewrites": f"{offered} examples offered for a rewrite, {remade} remade; {own} mended by the model itself.",
            **self.spent,
        }


def _woken(progress: Progress) -> Progress:
    """A job that was parked, free to ask the remote again; a round in which that answered nothing does not count."""
    if not progress.finished or not any(row.waits for row in progress.rows.values()):
        return progress
    rows = {name: replace(row, waits=False) for name, row in progress.rows.items()}
    in_vain = progress.phase is Phase.SYMBOLIC and not progress.outcomes
    return replace(progress, rows=rows, phase=None, round=progress.round - in_vain)


class AlternatingJob(NeurosymbolicJob):
    """The same with phases of fixed length in turns, whatever the monitoring signal says."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        turns = max(1, self.decision.rounds // 2)
        requests = -(-2 * len(self.flagged) // turns)
        self.schedule = Alternating(steps=-(-self.total_steps // turns), requests=requests)
