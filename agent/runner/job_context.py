"""One attempt at a job, and who does what for it."""

from __future__ import annotations

from dataclasses import dataclass

from agent.runner.attempt import Attempt
from agent.runner.job_data import JobData
from agent.runner.model_session import ModelSession
from agent.runner.publisher import Publisher

Ended = tuple[str, int | None]
"""How a job ended, in words, and the version that it made, if any."""


@dataclass(frozen=True)
class JobContext:
    """The collaborators of every kind of job."""

    attempt: Attempt
    data: JobData
    model: ModelSession
    publisher: Publisher

    @classmethod
    def of(cls, attempt: Attempt) -> JobContext:
        """The collaborators of one attempt."""
        data = JobData(attempt.home, attempt.job, attempt.run / f"attempt-{attempt.job.attempt}")
        model = ModelSession(attempt, data)
        return cls(attempt, data, model, Publisher(attempt, data, model))

    def start(self) -> None:
        """Make this attempt's folder and say what there is to do."""
        self.data.folder.mkdir(mode=0o700, exist_ok=True)
        self.attempt.events.add("split", train=len(self.data.train), held_out=len(self.data.held_out))
