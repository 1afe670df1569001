"""A numeric job: measure, tune the weights on the rows as they are, measure again, publish."""

from __future__ import annotations

import dataclasses

from agent.contract.atomic_io import folder_fault
from agent.contract.protocol import Train, Trained
from agent.runner.job_context import Ended, JobContext
from agent.runner.model_session import training_figures


def run(job: JobContext) -> Ended:
    """Do what is left of the job; returns the gate's reason and the version that was made."""
    publisher = job.publisher
    made = publisher.published
    if made is None:
        job.start()
        job.model.plan()
        before = publisher.measure_parent()
        publisher.load_for_training()
        trained = train(job)
        after = publisher.measure("after", publisher.parent_prompt)
        figures = training_figures(
            steps=trained.step,
            tokens=trained.tokens,
            seconds=trained.seconds,
            peak_rss_mb=trained.peak_rss_mb,
            peak_cuda_mb=trained.peak_cuda_mb,
        )
        with publisher.draft(before, after, figures) as draft:
            job.model.save(draft.folder)
            (draft.folder / "system_prompt.txt").write_text(publisher.parent_prompt)
        made = draft.number
    return publisher.promote(made), made


def train(job: JobContext) -> Trained:
    """All steps that are left after the newest whole checkpoint of any attempt; a damaged one is passed over."""
    attempt = job.attempt
    attempt.phase("train")
    checkpoints = sorted(attempt.run.glob("attempt-*/checkpoints/step-*"), key=lambda path: path.name, reverse=True)
    resume = next((path for path in checkpoints if folder_fault(path) is None), None)
    if resume is not None:
        attempt.events.add("resume", checkpoint=str(resume.relative_to(attempt.run)))
    data = job.data.write("train.jsonl", job.data.train, job.publisher.parent_prompt)
    folder = str(job.data.folder / "checkpoints")
    trained = job.model.train(Train(str(data), folder, job.model.settings, str(resume) if resume else None))
    attempt.events.add("trained", **dataclasses.asdict(trained))
    return trained
