"""What every kind of job does with its data and its versions: split, load, measure, publish, promote.

Every stage leaves its result in the run's folder, so that a new attempt goes on where the last one died.
"""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from agent.contract.atomic_io import read_manifest, write_json
from agent.contract.errors import AgentError
from agent.contract.lines import read_json_lines, write_json_lines
from agent.contract.protocol import Generate, Load, Loaded, Peaks, Plan, Score
from agent.contract.settings import Decision, Training, part_of
from agent.data.dataset import split
from agent.data.formats import Example, Message
from agent.data.spool import load_spool
from agent.runner.attempt import Attempt
from agent.runner.memory_fallbacks import differences
from agent.runner.memory_plan import Rung, fitting
from agent.runner.rows import rewards
from agent.scoring import gate
from agent.scoring.evaluation import Evaluation, model_card
from agent.scoring.gate import Verdict
from agent.scoring.reward import joint
from agent.scoring.stylometry import Stylometry
from agent.system.software import libraries, version_string
from agent.versions.registry import Registry

EARLIER_ROWS = 40
"""Held-out rows of earlier jobs that a new version is measured on, at most half of them of one job."""


class Stages:
    """The stages of one job; `parent` is the version that was active when the job first started."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt, self.home, self.job, self.run = attempt, attempt.home, attempt.job, attempt.run
        self.folder = self.run / f"attempt-{self.job.attempt}"
        self.given = part_of(Training, self.job.settings)
        self.settings = Rung.of(self.run).settings(self.given)
        """What the job works with: as given or, where memory is short, less."""
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

    def plan(self) -> None:
        """Predict what the job will take, and lower its settings until that fits. Raises OutOfMemory."""
        self.attempt.phase("plan")
        self.settings, peaks = fitting(self.run, self.given, self._peaks)
        changed = differences(self.given, self.settings)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.attempt.beat(planned_mb=peaks.highest[0])
        self.attempt.events.add("plan", changed=changed, **dataclasses.asdict(peaks))

    def _peaks(self, settings: Training) -> Peaks:
        answer = self.attempt.ask(Plan(str(self.base()), settings))
        if not isinstance(answer, Peaks):
            raise TypeError(answer)
        return answer

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
        adapter = self.registry.adapter(version)
        answer = self.attempt.ask(
            Load(str(self.base()), str(adapter) if adapter else None, self.settings.device, self.settings.dtype)
        )
        if isinstance(answer, Loaded):
            self.attempt.events.add("loaded", version=version, **dataclasses.asdict(answer))

    def base(self) -> Path:
        """The prepared base model's folder. Raises BaseModelError if there is none."""
        return self.home.prepared(self.job.base)

    def load_for_training(self) -> None:
        """Load what training starts from: the parent's adapter if it has the shape that the settings ask for."""
        self.load(self.parent if self._continues_parent() else 0)

    def _continues_parent(self) -> bool:
        adapter = self.registry.adapter(self.parent)
        if adapter is None:
            return False
        shape = json.loads((adapter / "adapter_config.json").read_bytes())
        same = (shape["r"], shape["lora_alpha"]) == (self.settings.rank, self.settings.alpha)
        if not same:
            text = f"version {self.parent} has another rank or alpha: starting a fresh adapter"
            self.attempt.events.add("note", text=text)
        return same

    def measure(self, phase: str, system_prompt: str) -> Evaluation:
        """Losses and greedy answers on the held-out rows with the model as it is loaded."""
        self.attempt.phase(phase)
        held_out = self.examples[1]
        if not held_out:
            return Evaluation([], [], [], [])
        losses = self.losses(phase, held_out, system_prompt)
        answers = self.answers(phase, held_out, system_prompt, self.most_tokens(losses))
        answered = [e for e in held_out if e.id in answers]
        both = [rewards(e, answers[e.id]) for e in answered]
        evaluation = Evaluation(
            content=[content for content, _ in both],
            style=[style for _, style in both],
            losses=[losses[e.id]["loss"] for e in held_out if e.id in losses],
            answers=[{"id": e.id, "text": answers[e.id]} for e in answered],
            kinds=[[str(constraint["id"]) for constraint in e.constraints] for e in answered],
            likeness=[self.styled.likeness(answers[e.id]) for e in answered],
            earlier=self._earlier(phase, system_prompt),
        )
        self.attempt.events.add("evaluated", phase=phase, **evaluation.means)
        return evaluation

    @cached_property
    def styled(self) -> Stylometry:
        """The style of the references to learn from, as they came."""
        return Stylometry.of(example.reference for example in self.examples[0])

    @cached_property
    def earlier(self) -> dict[str, list[Example]]:
        """Held-out rows of the jobs that made the parent and its parents: what must not be forgotten."""
        found: dict[str, list[Example]] = {}
        version = self.parent
        while version and sum(map(len, found.values())) < EARLIER_ROWS:
            try:
                about = self.registry.get(version).about
            except AgentError as fault:
                self.attempt.events.add("note", text=f"earlier jobs than that of version {version}: {fault}")
                break
            rows = self._held_out_of(about["job"])
            if rows:
                found[f"held-out rows of job {about['job']}"] = rows
            version = about["parent"]
        return found

    def _held_out_of(self, number: int) -> list[Example]:
        """Some held-out rows of an earlier job, the same ones each time; none if its data is gone."""
        job = self.attempt.store.get(number)
        path = self.home.spool / f"{job.spool}.jsonl"
        if number == self.job.id or not path.exists():
            return []
        settings = part_of(Training, job.settings)
        asked = [example for example in split(load_spool(path), settings.held_out, settings.seed)[1] if example.prompt]
        return random.Random(number).sample(asked, min(EARLIER_ROWS // 2, len(asked)))

    def _earlier(self, phase: str, system_prompt: str) -> dict[str, list[float]]:
        """Joint rewards on the held-out rows of earlier jobs."""
        found = {}
        for place, (name, examples) in enumerate(self.earlier.items()):
            answers = self.answers(f"{phase}-earlier-{place}", examples, system_prompt, self.settings.max_new_tokens)
            found[name] = [joint(*rewards(example, answers[example.id])) for example in examples]
        return found

    def judge(self, before: Evaluation, after: Evaluation) -> Verdict:
        """The gate's verdict, recorded."""
        verdict = gate.judge(before.measured, after.measured, part_of(Decision, self.job.settings).most_fall)
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
        if verdict.promote and not self.attempt.store.was_promoted(version):
            self.registry.promote(version, self.job.id, self.attempt.token)
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
            "libraries": libraries(),
            "settings": self.job.settings,
            "verdict": dataclasses.asdict(verdict),
            "figures": {"before": before.means, "after": after.means, **rows, **figures},
        }

    @property
    def spent(self) -> dict[str, Any]:
        """What all attempts at this job asked of the remote LLM."""
        remote = self.attempt.remote
        names = ("requests", "tokens", "money")
        return {f"rewrite_{name}": getattr(remote, f"{name}_job") if remote else 0 for name in names}

    def write_rows(self, name: str, examples: Iterable[Example], system_prompt: str, *, asked: bool = False) -> Path:
        """A file for the training worker, with the system prompt in front of rows that have none of their own.

        With `asked` the prompts alone, for answers. Plain writes: each attempt writes these files again.
        """

        def row(example: Example) -> dict[str, Any]:
            whole = with_system(example.prompt if asked else example.messages, system_prompt)
            messages = [dataclasses.asdict(message) for message in whole]
            return {"id": example.id, "messages": messages, "value": example.answer}

        path = self.folder / name
        write_json_lines(path, map(row, examples))
        return path

    def losses(self, name: str, examples: Iterable[Example], system_prompt: str) -> dict[str, dict[str, Any]]:
        """Losses of references by row id, as the protocol's `Score` says; rows without a token to learn are missing."""
        data, out = self.write_rows(f"{name}-rows.jsonl", examples, system_prompt), self.folder / f"{name}-losses.jsonl"
        self.attempt.ask(Score(str(data), str(out), self.settings.sequence_length))
        return {row["id"]: row for row in read_json_lines(out)}

    def answers(self, name: str, examples: Iterable[Example], system_prompt: str, most_tokens: int) -> dict[str, str]:
        """Greedy answers by row id; rows of plain text ask nothing and are missing."""
        asked = (example for example in examples if example.prompt)
        data = self.write_rows(f"{name}-prompts.jsonl", asked, system_prompt, asked=True)
        out = self.folder / f"{name}-answers.jsonl"
        self.attempt.ask(Generate(str(data), str(out), most_tokens, self.settings.memory_budget))
        return {row["id"]: row["text"] for row in read_json_lines(out)}

    def most_tokens(self, losses: dict[str, dict[str, Any]]) -> int:
        """Tokens that an answer may have: half as many again as the longest reference, and a few."""
        longest = max((row["tokens"] for row in losses.values()), default=0)
        return min(self.settings.max_new_tokens, longest * 3 // 2 + 8)


def with_system(messages: tuple[Message, ...], system_prompt: str) -> tuple[Message, ...]:
    """The conversation with a system prompt, unless it has its own or is plain text."""
    if not system_prompt or messages[0].role in {"system", "assistant"}:
        return messages
    return (Message("system", system_prompt), *messages)
