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
import random
from collections import Counter
from dataclasses import replace
from typing import Any

from agent.contract.atomic_io import folder_fault
from agent.contract.errors import CacheMiss, RemoteRefused
from agent.contract.lines import quantity
from agent.decide.classifier import prior
from agent.decide.decision_store import Round
from agent.decide.monitor import Monitor, Phase, Work
from agent.queue.jobs import Job
from agent.runner import explain, numeric_phase, rewriting, symbolic_phase
from agent.runner.job_context import Ended
from agent.runner.learning import Learning
from agent.runner.model_session import training_figures
from agent.runner.parking import park
from agent.runner.progress import PROGRESS, Progress
from agent.runner.rewritten_data import Rewrite, lineage, write_rewritten_rows
from agent.runner.rows import OWN_ANSWER, Row
from agent.scoring.evaluation import Evaluation
from agent.scoring.gate import judge
from agent.system.paths import REMADE


def run(learning: Learning) -> Ended:
    """Do what is left of the job; returns how it ended, and the version that was made, if any. Raises Parked."""
    job, publisher = learning.job, learning.job.publisher
    made = publisher.published
    if made is None:
        job.start()
        job.model.plan()
        before = publisher.measure_parent()
        progress = learn(learning)
        write_rewritten(learning, progress)
        if not progress.step:
            return f"No version was made: {progress.why}.", None
        made = publish(learning, before, progress)
    return f"{publisher.promote(made)} {publisher.registry.get(made).about['figures']['rewrites']}", made


def learn(learning: Learning) -> Progress:
    """All rounds that are left; returns the state after the last. Raises Parked."""
    progress = resume(learning) or begin(learning)
    while True:
        if progress.phase is None or progress.finished:
            progress = next_round(learning, progress)
        if progress.phase is Phase.STOP:
            return progress
        phase = numeric_phase.tune if progress.phase is Phase.NUMERIC else symbolic_phase.rewrite
        progress = finish_round(learning, phase(learning, progress))


def begin(learning: Learning) -> Progress:
    """Every row as the model does on it before anything is done, and what earlier jobs have taught."""
    classifier = prior()
    for outcome in learning.decisions.earlier_outcomes():
        classifier = outcome.teach(classifier)
    rows = {example.id: Row(example, example.reference) for example in learning.job.data.train}
    learning.job.publisher.load_for_training()
    return learning.save(numeric_phase.probe(learning, Progress(rows=rows, classifier=classifier), set()))


def resume(learning: Learning) -> Progress | None:
    """The state that an earlier attempt wrote down, None if there is none or its checkpoint is damaged."""
    attempt = learning.job.attempt
    path = attempt.run / PROGRESS
    if not path.exists():
        return None
    progress = wake(Progress.load(path, learning.job.data.train))
    fault = folder_fault(attempt.run / progress.checkpoint) if progress.checkpoint else None
    if fault:
        attempt.events.add("note", text=f"starting over: the checkpoint is damaged ({fault})")
        return None
    numeric_phase.restore(learning, progress)
    return progress


def wake(progress: Progress) -> Progress:
    """A job that was parked, free to ask the remote again; a round in which that answered nothing does not count."""
    if not progress.finished or not any(row.waits for row in progress.rows.values()):
        return progress
    rows = {name: replace(row, waits=False) for name, row in progress.rows.items()}
    in_vain = progress.phase is Phase.SYMBOLIC and not progress.outcomes
    return replace(progress, rows=rows, phase=None, round=progress.round - in_vain)


# ---- a round ----


def next_round(learning: Learning, progress: Progress) -> Progress:
    """Choose for every row, then what to do in the next round. Raises Parked if only the remote can go on."""
    attempt, rows, number = learning.job.attempt, progress.rows, progress.round + 1
    choices = {name: learning.router.choose(row, progress.classifier) for name, row in rows.items()}
    flagged = [name for name, choice in choices.items() if choice.wants_rewrite and learning.may_rewrite(rows[name])]
    flagged = [] if progress.spent else flagged
    rewrites = [name for name in flagged if not rows[name].waits]
    # What a row's reference teaches before it is rewritten would have to be unlearned.
    waiting = set(flagged) if Phase.SYMBOLIC not in progress.flat else set()
    tunes = [
        name
        for name, choice in choices.items()
        if choice.wants_tuning and name not in waiting and rows[name].is_learnable
    ]
    chosen = (
        explain.record(row, choices[name], waits=name in waiting, flagged=name in learning.flagged)
        for name, row in rows.items()
    )
    learning.decisions.choose(attempt.token, number, chosen)
    gain = math.fsum(choices[name].weights.expected for name in tunes)
    # Tuning that gains less than the probe of all rows costs, which follows it, is no work.
    pays = gain > learning.router.costs.weights * len(rows)
    numeric = Work(len(tunes), gain) if pays else Work(0, 0.0)
    symbolic = Work(len(rewrites), sum(choices[name].rewrite.expected for name in rewrites))
    phase, why = next_phase(learning, progress, numeric, symbolic)
    if phase is Phase.STOP:
        still_waiting = sum(rows[name].waits for name in flagged)
        back = Work(still_waiting, float(still_waiting))
        if progress.deferred and next_phase(learning, wake(progress), Work(0, 0.0), back)[0] is Phase.SYMBOLIC:
            park(progress.deferred, still_waiting)
        learning.decisions.finish(attempt.token, Round(number, phase.value, why, "", {}), ())
    by_gain = sorted(rewrites, key=lambda name: -choices[name].rewrite.hoped)
    members = with_rehearsal(learning, progress, tunes) if phase is Phase.NUMERIC else by_gain
    states = Counter(choice.state for choice in choices.values())
    attempt.events.add("round", round=number, phase=phase.value, why=why, states=states)
    attempt.beat(round=number)
    begun = replace(progress, round=number, phase=phase, why=why, monitor=Monitor(phase), members=tuple(members))
    fresh = replace(begun, outcomes=(), ended="", finished=False, cut="")
    fresh = replace(fresh, first=progress.step, requests_before=progress.requests, reward_before=progress.reward)
    start_tokens = progress.tokens - progress.undone
    return learning.save(replace(fresh, start=progress.checkpoint, start_tokens=start_tokens))


def next_phase(learning: Learning, progress: Progress, numeric: Work, symbolic: Work) -> tuple[Phase, str]:
    """Choose between tuning, rewriting and stopping, within the budgets, and say why."""
    budget = learning.decision
    if progress.round >= budget.rounds:
        return Phase.STOP, f"the budget of {budget.rounds} rounds is used up"
    if budget.minutes and progress.seconds >= 60 * budget.minutes:
        return Phase.STOP, f"the budget of {budget.minutes:g} minutes is used up"
    if progress.step >= learning.steps_left_by(progress):
        numeric = Work(0, 0.0)
        # A rewrite that is not learned changes no answer.
        if progress.step >= learning.total_steps:
            return Phase.STOP, f"the budget of {learning.total_steps} steps is used up"
    return learning.schedule.next_phase(progress.phase, numeric, symbolic, frozenset(progress.flat))


def with_rehearsal(learning: Learning, progress: Progress, tunes: list[str]) -> list[str]:
    """The rows to tune on and, after the first numeric phase, as many that are right by now, in the file's order.

    Tuning on what is still wrong alone unlearns what was right (docs/lab-log.md).
    """
    if not progress.step:
        return tunes
    right = [name for name, row in progress.rows.items() if row.is_right]
    draw = random.Random(f"{learning.job.model.settings.seed}/{progress.round}")
    chosen = {*tunes, *draw.sample(right, min(len(right), len(tunes)))}
    return [name for name in progress.rows if name in chosen]


def finish_round(learning: Learning, progress: Progress) -> Progress:
    """A round that is over: kept for `explain`, and what came of it taught to the classifier."""
    numeric = progress.phase is Phase.NUMERIC
    classifier = progress.classifier
    for outcome in progress.outcomes if numeric else ():
        classifier = outcome.teach(classifier)
    # What rewriting gained is in the references; of tuning in the answers, what was unlearned off.
    gained = (
        (progress.reward - progress.reward_before) * len(progress.rows)
        if numeric
        else math.fsum(outcome.gain for outcome in progress.outcomes)
    )
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
    attempt = learning.job.attempt
    phase = progress.phase.value if progress.phase else ""
    done = Round(progress.round, phase, progress.why, progress.ended, figures)
    learning.decisions.finish(attempt.token, done, progress.outcomes)
    attempt.events.add("round over", round=done.number, ended=done.ended, **figures)
    flat = flat_sides(learning, progress, gained)
    progress = learning.save(replace(progress, classifier=classifier, flat=flat, finished=True))
    numeric_phase.sweep_checkpoints(learning, progress)
    return progress


def flat_sides(learning: Learning, progress: Progress, gained: float) -> tuple[Phase, ...]:
    """The sides that gain nothing: less than they cost. What reopens one is a gain of the other."""
    costs = {"weights": learning.router.costs.weights, "rewrite": learning.router.costs.rewrite}
    if gained > sum(costs[outcome.action] for outcome in progress.outcomes):
        return ()
    if progress.cut or progress.phase is None:
        return progress.flat
    return tuple({*progress.flat, progress.phase})


# ---- the version ----


def write_rewritten(learning: Learning, progress: Progress) -> None:
    """Write remade.jsonl: every row with the reference that it has now, and where that comes from."""
    data, attempt = learning.job.data, learning.job.attempt
    changed = {name: _lineage(attempt.job, row) for name, row in progress.rows.items() if row.source}
    write_rewritten_rows(attempt.run, data.train, data.held_out, changed)


def _lineage(job: Job, row: Row) -> Rewrite:
    reward = {"reward_before": row.reward_of(row.origin.reference), "reward_after": row.reward_of(row.reference)}
    if row.source == OWN_ANSWER or row.rewrite is None:
        told = {"job": job.id, "file": job.file, "model": OWN_ANSWER, "calls": 0, "cost": 0.0}
    else:
        told = lineage(job, row.source, row.rewrite)
    return Rewrite(row.reference, "reference", {**told, **reward})


def publish(learning: Learning, before: Evaluation, progress: Progress) -> int:
    """Measure, judge and publish what the last checkpoint holds."""
    run = learning.job.attempt.run
    after, prompt = best_prompt(learning, progress)
    with learning.job.publisher.draft(before, after, _figures(learning, progress, prompt)) as draft:
        learning.job.model.save(draft.folder)
        (draft.folder / "system_prompt.txt").write_text(prompt)
        (draft.folder / REMADE).write_bytes((run / REMADE).read_bytes())
    return draft.number


def best_prompt(learning: Learning, progress: Progress) -> tuple[Evaluation, str]:
    """Held-out results without a system prompt or, only if it pays by more than its noise, with one."""
    publisher = learning.job.publisher
    best, prompt = publisher.measure("after", ""), ""
    proposed = propose_prompt(learning, progress) if learning.proposes_prompt else ""
    for candidate in dict.fromkeys(filter(None, (publisher.parent_prompt, proposed))):
        tried = publisher.measure("after with prompt", candidate)
        verdict = judge(best.measurement, tried.measurement, learning.decision.max_slice_drop)
        learning.job.attempt.events.add("prompt", pays=verdict.promote, gain=verdict.gain)
        if verdict.promote:
            best, prompt = tried, candidate
    return best, prompt


def propose_prompt(learning: Learning, progress: Progress) -> str:
    """A system prompt by the remote LLM, from what the references lacked as they came; "" if it gives none."""
    if not progress.requests:
        return ""
    attempt = learning.job.attempt
    flags = ((row.origin, rewriting.flag(row.origin, learning.offload)) for row in progress.rows.values())
    cases = rewriting.failing_cases((example, flag) for example, flag in flags if flag is not None)
    if not cases:
        return ""
    try:
        told = rewriting.improve_prompt(attempt.job.id, learning.job.publisher.parent_prompt, cases, learning.ask)
    except (CacheMiss, RemoteRefused) as fault:
        attempt.events.add("note", text=f"no system prompt was proposed: {fault}")
        return ""
    attempt.events.add("rewrite", **told.to_json())
    return told.text


def _figures(learning: Learning, progress: Progress, prompt: str) -> dict[str, Any]:
    own = sum(row.source == OWN_ANSWER for row in progress.rows.values())
    rewritten = sum(bool(row.source) for row in progress.rows.values()) - own
    offered = quantity(sum(row.rewrite is not None for row in progress.rows.values()), "example")
    return {
        "rounds": progress.round - 1,
        **training_figures(
            steps=progress.step,
            tokens=progress.tokens,
            seconds=progress.train_seconds,
            peak_rss_mb=progress.peak_rss_mb,
            peak_cuda_mb=progress.peak_cuda_mb,
        ),
        "system_prompt": bool(prompt),
        "requests": progress.requests,
        "remade": rewritten,
        "own_answers": own,
        "rewrites": f"{offered} offered for a rewrite, {rewritten} rewritten; {own} mended by the model itself.",
        **learning.job.attempt.remote_usage,
    }
