"""From a trained model to a promoted version: measure, judge, publish, promote.

Every step leaves its result on the disk, so that a new attempt goes on where the last one died.
"""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from agent.contract.atomic_io import read_manifest, write_json
from agent.contract.errors import AgentError
from agent.contract.settings import Decision, part_of
from agent.data.formats import Example
from agent.runner.attempt import Attempt
from agent.runner.job_data import JobData, split_of
from agent.runner.model_session import ModelSession
from agent.runner.rows import rewards
from agent.scoring.evaluation import Evaluation, model_card
from agent.scoring.gate import Verdict, judge
from agent.scoring.reward import joint
from agent.system.software import libraries, version_string
from agent.versions.registry import Draft, Registry

EARLIER_ROWS = 40
"""Held-out rows of earlier jobs that a new version is measured on, at most half of them of one job."""


class Publisher:
    """The versions as one job sees them: the one it starts from, and the one it makes."""

    def __init__(self, attempt: Attempt, data: JobData, model: ModelSession) -> None:
        self.registry = Registry(attempt.home.path, attempt.store)
        self._attempt, self._data, self._model = attempt, data, model

    @cached_property
    def parent(self) -> int:
        """The version that was active when the job first started: what the gate compares with."""
        kept = self._attempt.run / "parent.json"
        if not kept.exists():
            active = self.registry.active()
            same_base = active and self.registry.get(active).about["base"] == self._attempt.job.base
            write_json(kept, {"version": active if same_base else 0})
        return int(json.loads(kept.read_bytes())["version"])

    @cached_property
    def parent_prompt(self) -> str:
        """The parent's system prompt, empty if it has none."""
        return self.registry.system_prompt(self.parent)

    @property
    def parent_adapter(self) -> Path | None:
        """The folder of the parent's adapter, None if it has none."""
        return self.registry.adapter(self.parent)

    def load_parent(self) -> None:
        """Load the base model with the parent's adapter."""
        self._attempt.phase("load")
        self._model.load(self.parent, self.parent_adapter)

    def load_for_training(self) -> None:
        """Load what training starts from."""
        self._attempt.phase("load")
        self._model.load_for_training(self.parent, self.parent_adapter)

    def measure_parent(self) -> Evaluation:
        """Held-out results of the parent, measured once."""
        kept = self._attempt.run / "before.json"
        if not kept.exists():
            self.load_parent()
            write_json(kept, dataclasses.asdict(self.measure("before", self.parent_prompt)))
        return Evaluation(**json.loads(kept.read_bytes()))

    def measure(self, phase: str, system_prompt: str) -> Evaluation:
        """Losses and greedy answers on the held-out rows with the model as it is loaded."""
        self._attempt.phase(phase)
        held_out = self._data.held_out
        if not held_out:
            return Evaluation([], [], [], [])
        losses = self._model.losses(phase, held_out, system_prompt)
        answers = self._model.answers(phase, held_out, system_prompt, self._model.most_tokens(losses))
        answered = [e for e in held_out if e.id in answers]
        both = [rewards(e, answers[e.id]) for e in answered]
        evaluation = Evaluation(
            content=[content for content, _ in both],
            style=[style for _, style in both],
            losses=[losses[e.id]["loss"] for e in held_out if e.id in losses],
            answers=[{"id": e.id, "text": answers[e.id]} for e in answered],
            kinds=[[str(constraint["id"]) for constraint in e.constraints] for e in answered],
            likeness=[self._data.style.likeness(answers[e.id]) for e in answered],
            earlier=self._measure_earlier(phase, system_prompt),
        )
        self._attempt.events.add("evaluated", phase=phase, **evaluation.means)
        return evaluation

    def _measure_earlier(self, phase: str, system_prompt: str) -> dict[str, list[float]]:
        """Joint rewards on the held-out rows of earlier jobs."""
        most = self._model.settings.max_new_tokens
        found = {}
        for place, (name, examples) in enumerate(self.earlier.items()):
            answers = self._model.answers(f"{phase}-earlier-{place}", examples, system_prompt, most)
            found[name] = [joint(*rewards(example, answers[example.id])) for example in examples]
        return found

    @cached_property
    def earlier(self) -> dict[str, list[Example]]:
        """Held-out rows of the jobs that made the parent and its parents: what must not be forgotten."""
        found: dict[str, list[Example]] = {}
        version = self.parent
        while version and sum(map(len, found.values())) < EARLIER_ROWS:
            try:
                about = self.registry.get(version).about
            except AgentError as fault:
                self._attempt.events.add("note", text=f"earlier jobs than that of version {version}: {fault}")
                break
            rows = self._held_out_rows(about["job"])
            if rows:
                found[f"held-out rows of job {about['job']}"] = rows
            version = about["parent"]
        return found

    def _held_out_rows(self, number: int) -> list[Example]:
        """Some held-out rows of an earlier job, the same ones each time; none if its data is gone."""
        home, job = self._attempt.home, self._attempt.store.get(number)
        if number == self._attempt.job.id or not (home.spool / f"{job.spool}.jsonl").exists():
            return []
        asked = [example for example in split_of(home, job)[1] if example.prompt]
        return random.Random(number).sample(asked, min(EARLIER_ROWS // 2, len(asked)))

    def judge(self, before: Evaluation, after: Evaluation) -> Verdict:
        """The gate's verdict, recorded."""
        max_slice_drop = part_of(Decision, self._attempt.job.settings).max_slice_drop
        verdict = judge(before.measurement, after.measurement, max_slice_drop)
        self._attempt.events.add("verdict", **dataclasses.asdict(verdict))
        return verdict

    @contextmanager
    def draft(self, before: Evaluation, after: Evaluation, figures: dict[str, Any]) -> Iterator[Draft]:
        """Judge, and publish what the block writes as a version, with its model card and every held-out answer."""
        about = self._manifest(self.judge(before, after), before, after, figures)
        self._attempt.phase("publish")
        with self.registry.draft(about) as draft:
            yield draft
            (draft.folder / "README.md").write_text(model_card(about))
            answers = {"before": before.answers, "after": after.answers}
            (draft.folder / "answers.json").write_text(json.dumps(answers, indent=1))

    def _manifest(
        self, verdict: Verdict, before: Evaluation, after: Evaluation, figures: dict[str, Any]
    ) -> dict[str, Any]:
        """Everything a version's manifest and model card say; `figures` are those of this kind of job."""
        job = self._attempt.job
        rows = {"train_rows": len(self._data.train), "held_out_rows": len(self._data.held_out)}
        base_manifest = read_manifest(self._attempt.home.model(job.base)) or {}
        return {
            "job": job.id,
            "mode": job.mode,
            "file": job.file,
            "parent": self.parent,
            "base": job.base,
            "base_files": base_manifest.get("files"),
            "created": time.time(),
            "software": version_string(),
            "libraries": libraries(),
            "settings": job.settings,
            "verdict": dataclasses.asdict(verdict),
            "figures": {"before": before.means, "after": after.means, **rows, **figures},
        }

    def promote(self, version: int) -> str:
        """Make the version active if the gate said so, unless it already was once; returns the gate's reason."""
        verdict = Verdict(**self.registry.get(version).about["verdict"])
        if verdict.promote and not self._attempt.store.was_promoted(version):
            self.registry.promote(version, self._attempt.job.id, self._attempt.token)
            self._attempt.events.add("promoted", version=version)
        return verdict.reason

    @property
    def published(self) -> int | None:
        """The version that an earlier attempt at this job made, None if there is none."""
        return self.registry.find_by_job(self._attempt.job.id)
