"""A symbolic job: rewrite the flagged examples and the system prompt, and leave the weights as they are.

What it makes: runs/<job>/remade.jsonl, all rows with the accepted rewrites in place, ready for `enqueue`; and, where
the system prompt was improved, a version with it and the parent's adapter, which the gate judges as any other.
"""

from __future__ import annotations

import shutil
from collections import Counter

from agent.contract.atomic_io import write_file, write_json
from agent.contract.errors import DataError
from agent.contract.lines import json_line, quantity
from agent.contract.settings import Offload
from agent.data.formats import Example
from agent.runner import rewriting
from agent.runner.job_context import Ended, JobContext
from agent.runner.parking import park_if_deferred
from agent.runner.rewriting import Flag, RewriteOutcome
from agent.runner.rewritten_data import Rewrite, lineage, write_rewritten_rows
from agent.system.config import read_config
from agent.system.paths import REMADE

REWRITES = "rewrites.jsonl"


def run(job: JobContext) -> Ended:
    """Do what is left of the job. Raises Parked while rewrites wait for the remote."""
    publisher = job.publisher
    made = publisher.published
    if made is not None:
        return f"{publisher.registry.get(made).about['figures']['rewrites']} {publisher.promote(made)}", made
    job.start()
    offload = read_config(job.attempt.home.config).offload
    outcomes, prompt = rewrite_all(job, offload)
    said = _in_words(outcomes)
    if prompt.state != "remade":
        why = prompt.reasons[0] if prompt.reasons else "no case to learn from"
        return f"{said} The system prompt stays as it was: {why}.", None
    made = publish_prompt(job, said, outcomes, prompt.text)
    return f"{said} {publisher.promote(made)}", made


def rewrite_all(job: JobContext, offload: Offload) -> tuple[list[RewriteOutcome], RewriteOutcome]:
    """Offer every flagged example for a rewrite, then the system prompt. Raises Parked if some have to wait."""
    attempt = job.attempt
    flagged = flag_all(job.data.train, offload)
    attempt.phase("rewrite")
    outcomes: list[RewriteOutcome] = []
    for example, flag in flagged:
        attempt.beat(done=len(outcomes), flagged=len(flagged))
        request = rewriting.first_request(attempt.job.id, example, flag, offload.rewrite)
        outcomes.append(rewriting.rewrite(example, flag, request, attempt.ask_remote))
        attempt.events.add("rewrite", **outcomes[-1].to_json())
    write_outcomes(job, offload, outcomes)
    park_if_deferred(outcomes)
    prompt = RewriteOutcome("system prompt", "satisfied", "", (), ())
    if cases := rewriting.failing_cases(flagged):
        prompt = rewriting.improve_prompt(attempt.job.id, job.publisher.parent_prompt, cases, attempt.ask_remote)
        attempt.events.add("rewrite", **prompt.to_json())
    park_if_deferred([*outcomes, prompt])
    attempt.end_workers()
    return outcomes, prompt


def flag_all(examples: list[Example], offload: Offload) -> list[tuple[Example, Flag]]:
    """The examples that lack style or constraint. Raises DataError for a constraint that cannot be checked."""
    try:
        found = [(example, rewriting.flag(example, offload)) for example in examples]
    except ValueError as fault:
        raise DataError(f"{fault}; mend the row and enqueue the file again") from fault
    return [(example, flag) for example, flag in found if flag is not None]


def write_outcomes(job: JobContext, offload: Offload, outcomes: list[RewriteOutcome]) -> None:
    """Write down the outcomes, and all rows with the accepted rewrites in place."""
    remade = {
        outcome.id: Rewrite(outcome.text, offload.rewrite, lineage(job.attempt.job, offload.model, outcome))
        for outcome in outcomes
        if outcome.state == "remade"
    }
    run = job.attempt.run
    write_rewritten_rows(run, job.data.train, job.data.held_out, remade)
    write_file(run / REWRITES, b"".join(json_line(outcome.to_json()) for outcome in outcomes))


def publish_prompt(job: JobContext, said: str, outcomes: list[RewriteOutcome], prompt: str) -> int:
    """Make a version with the new system prompt and the parent's adapter."""
    publisher = job.publisher
    job.model.plan()
    before = publisher.measure_parent()
    publisher.load_parent()
    after = publisher.measure("after", prompt)
    adapter = publisher.parent_adapter
    figures = {"rewrites": said, "adapter": adapter is not None, **job.attempt.remote_usage}
    with publisher.draft(before, after, figures) as draft:
        for path in adapter.glob("adapter_*") if adapter else ():
            shutil.copyfile(path, draft.folder / path.name)
        (draft.folder / "system_prompt.txt").write_text(prompt)
        shutil.copyfile(job.attempt.run / REMADE, draft.folder / REMADE)
        write_json(draft.folder / "rewrites.json", [outcome.to_json() for outcome in outcomes])
    return draft.number


def _in_words(outcomes: list[RewriteOutcome]) -> str:
    """The outcomes of the rewrites, in a sentence for people."""
    if not outcomes:
        return "No example lacks style or constraint."
    counts = Counter(outcome.word for outcome in outcomes)
    told = ", ".join(f"{count} {word}" for word, count in counts.most_common())
    return f"{quantity(len(outcomes), 'example')} flagged: {told}."
