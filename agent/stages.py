"""What every kind of job does with its data and its versions: split, load, measure, publish, promote.

Every stage leaves its result in the run's folder, so that a new attempt goes on where the last one died.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from agent import constraints, gate
from agent.attempt import Attempt
from agent.dataset import split
from agent.durable import read_manifest, write_json
from agent.errors import BaseModelError
from agent.evaluation import Evaluation, model_card
from agent.gate import Verdict
from agent.protocol import Generate, Load, Loaded, Score
from agent.registry import Registry
from agent.reward import content_reward, style_reward
from agent.settings import Training
from agent.shapes import Example, Message
from agent.spool import load_spool
from agent.version import version_string


class Stages:
    """The stages of one job; `parent` is the version that was active when the job first started."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt, self.home, self.job, self.run = attempt, attempt.home, attempt.job, attempt.run
        self.folder = self.run / f"attempt-{self.job.attempt}"
        self.settings = Training(**self.job.settings)
        self.registry = Registry(self.home.path, attempt.store)

    @cached_property
    def examples(self) -> tuple[list[Example], list[Example]]:
        """The rows to learn from and the held-out ones."""
        spooled = load_spool(self.home.spool / f"{self.job.spool}.jsonl")
        return split(spooled, self.settings.held_out, self.settings.seed)

    @cached_property
    def parent(self) -> int:
        """The version that was active when the job first started: what the gate compares with."""
        kept = self.run / "parent.json"
        if not kept.exists():
            active = self.registry.active()
            same_base = active and self.registry.get(active).about["base"] == self.job.base
            write_json(kept, {"version": active if same_base else 0})
        return int(json.loads(kept.read_bytes())["version"])

    @cached_property
    def parent_prompt(self) -> str:
        """The parent's system prompt, empty if it has none."""
        return self.registry.system_prompt(self.parent)

    def start(self) -> None:
        """Make this attempt's folder and say what there is to do."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        train, held_out = self.examples
        self.attempt.events.add("split", train=len(train), held_out=len(held_out))

    def before(self) -> Evaluation:
        """Held-out results of the parent, measured once."""
        kept = self.run / "before.json"
        if not kept.exists():
            self.attempt.phase("load")
            self.load(self.parent)
            write_json(kept, dataclasses.asdict(self.measure("before", self.parent_prompt)))
        return Evaluation(**json.loads(kept.read_bytes()))

    def load(self, version: int) -> None:
        """Load the base model with the adapter of a version, if that has one."""
        model = self.home.model(self.job.base)
        if not model.exists():
            raise BaseModelError(f"the base model {self.job.base} is not prepared: run `nslora-agent init`, then retry")
        adapter = self.registry.adapter(version)
        answer = self.attempt.ask(
            Load(str(model), str(adapter) if adapter else None, self.settings.device, self.settings.dtype)
        )
        if isinstance(answer, Loaded):
            self.attempt.events.add("loaded", version=version, **dataclasses.asdict(answer))

    def measure(self, phase: str, system_prompt: str) -> Evaluation:
        """Losses and greedy answers on the held-out rows with the model as it is loaded."""
        self.attempt.phase(phase)
        held_out = self.examples[1]
        if not held_out:
            return Evaluation([], [], [], [])
        losses = self._score(phase, system_prompt)
        longest = max((row["tokens"] for row in losses.values()), default=0)
        answers = self._answers(phase, system_prompt, min(self.settings.max_new_tokens, longest * 3 // 2 + 8))
        answered = [e for e in held_out if e.id in answers]
        evaluation = Evaluation(
            content=[content_reward(answers[e.id], e.reference, e.answer) for e in answered],
            style=[style_reward(self._faults(e, answers[e.id]), len(e.constraints)) for e in answered],
            losses=[losses[e.id]["loss"] for e in held_out if e.id in losses],
            answers=[{"id": e.id, "text": answers[e.id]} for e in answered],
        )
        self.attempt.events.add("evaluated", phase=phase, **evaluation.means)
        return evaluation

    def judge(self, before: Evaluation, after: Evaluation) -> Verdict:
        """The gate's verdict, recorded."""
        verdict = gate.judge(before.measured, after.measured)
        self.attempt.events.add("verdict", **dataclasses.asdict(verdict))
        return verdict

    def publish(self, about: dict[str, Any], evaluations: dict[str, Evaluation], fill: Callable[[Path], None]) -> int:
        """Make a version of what `fill` writes, with its model card and every held-out answer."""
        self.attempt.phase("publish")
        answers = {name: evaluation.answers for name, evaluation in evaluations.items()}

        def fill_all(folder: Path) -> None:
            fill(folder)
            (folder / "README.md").write_text(model_card(about))
            (folder / "answers.json").write_text(json.dumps(answers, indent=1))

        return self.registry.publish(fill_all, about)

    def promote(self, version: int) -> str:
        """Make the version active if the gate said so, unless it already was once; returns the gate's reason."""
        verdict = Verdict(**self.registry.get(version).about["verdict"])
        store = self.attempt.store
        if verdict.promote and not store.was_promoted(version):
            with store.attempt(self.job.id, self.attempt.token):
                self.registry.promote(version, job=self.job.id)
            self.attempt.events.add("promoted", version=version)
        return verdict.reason

    def about(self, verdict: Verdict, before: Evaluation, after: Evaluation, figures: dict[str, Any]) -> dict[str, Any]:
        """Everything a version's manifest and model card say; `figures` are those of this kind of job."""
        train, held_out = self.examples
        rows = {"train_rows": len(train), "held_out_rows": len(held_out)}
        base_manifest = read_manifest(self.home.model(self.job.base)) or {}
        return {
            "job": self.job.id,
            "mode": self.job.mode,
            "file": self.job.file,
            "parent": self.parent,
            "base": self.job.base,
            "base_files": base_manifest.get("files"),
            "created": time.time(),
            "software": version_string(),
            "settings": dataclasses.asdict(self.settings),
            "verdict": dataclasses.asdict(verdict),
            "figures": {"before": before.means, "after": after.means, **rows, **figures},
        }

    def write_messages(self, name: str, rows: Iterable[tuple[str, tuple[Message, ...]]], system_prompt: str) -> Path:
        """A file for the training worker, with the system prompt in front of rows that have none of their own.

        Plain writes: each attempt writes these files again.
        """
        path = self.folder / name
        with path.open("w") as stream:
            for row, messages in rows:
                whole = with_system(messages, system_prompt)
                stream.write(json.dumps({"id": row, "messages": [dataclasses.asdict(m) for m in whole]}) + "\n")
        return path

    def _faults(self, example: Example, answer: str) -> int:
        prompt = example.prompt[-1].content if example.prompt else ""
        return len(constraints.faults(example.constraints, answer, prompt))

    def _score(self, phase: str, system_prompt: str) -> dict[str, Any]:
        rows = ((e.id, e.messages) for e in self.examples[1])
        data, out = self.write_messages("held_out.jsonl", rows, system_prompt), self.folder / f"{phase}-losses.jsonl"
        self.attempt.ask(Score(str(data), str(out), self.settings.sequence_length))
        return {row["id"]: row for row in read_jsonl(out)}

    def _answers(self, phase: str, system_prompt: str, most_tokens: int) -> dict[str, str]:
        rows = ((e.id, e.prompt) for e in self.examples[1] if e.prompt)
        data, out = self.write_messages("prompts.jsonl", rows, system_prompt), self.folder / f"{phase}-answers.jsonl"
        self.attempt.ask(Generate(str(data), str(out), most_tokens))
        return {row["id"]: row["text"] for row in read_jsonl(out)}


def with_system(messages: tuple[Message, ...], system_prompt: str) -> tuple[Message, ...]:
    """The conversation with a system prompt, unless it has its own or is plain text."""
    if not system_prompt or messages[0].role in {"system", "assistant"}:
        return messages
    return (Message("system", system_prompt), *messages)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects in a JSON lines file of ours."""
    with path.open("rb") as stream:
        return [json.loads(line) for line in stream]
