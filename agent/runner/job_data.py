"""The rows of a job: how they are split, and the files of rows that its training worker reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from agent.contract.lines import write_json_lines
from agent.contract.settings import Training, part_of
from agent.data.dataset import split
from agent.data.formats import Example, Message
from agent.data.spool import load_spool
from agent.queue.jobs import Job
from agent.scoring.stylometry import Stylometry
from agent.system.paths import Home


class JobData:
    """The rows of one job; `folder` takes the files that this attempt writes."""

    def __init__(self, home: Home, job: Job, folder: Path) -> None:
        self.folder = folder
        self._home, self._job = home, job

    @property
    def train(self) -> list[Example]:
        """The rows to learn from, in the order of the file."""
        return self._split[0]

    @property
    def held_out(self) -> list[Example]:
        """The rows that are only measured, in the order of the file."""
        return self._split[1]

    @cached_property
    def _split(self) -> tuple[list[Example], list[Example]]:
        return split_of(self._home, self._job)

    @cached_property
    def style(self) -> Stylometry:
        """The style of the references to learn from, as they came."""
        return Stylometry.of(example.reference for example in self.train)

    def write(self, name: str, examples: Iterable[Example], system_prompt: str, *, asked: bool = False) -> Path:
        """Write rows for the training worker, the system prompt in front of those that have none of their own.

        With `asked` the prompts alone, for answers. Plain writes: each attempt writes these files again.
        """

        def row(example: Example) -> dict[str, Any]:
            whole = with_system(example.prompt if asked else example.messages, system_prompt)
            messages = [dataclasses.asdict(message) for message in whole]
            return {"id": example.id, "messages": messages, "value": example.answer}

        path = self.folder / name
        write_json_lines(path, map(row, examples))
        return path


def split_of(home: Home, job: Job) -> tuple[list[Example], list[Example]]:
    """The spooled rows of a job: those to learn from, and those held out."""
    settings = part_of(Training, job.settings)
    return split(load_spool(home.spool / f"{job.spool}.jsonl"), settings.held_out, settings.seed)


def with_system(messages: tuple[Message, ...], system_prompt: str) -> tuple[Message, ...]:
    """The conversation with a system prompt, unless it has its own or is plain text."""
    if not system_prompt or messages[0].role in {"system", "assistant"}:
        return messages
    return (Message("system", system_prompt), *messages)
