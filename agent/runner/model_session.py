"""A job's use of the training worker: plan, load, score, answer, train, save."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agent.contract.lines import read_json_lines
from agent.contract.protocol import Generate, Load, Peaks, Plan, Save, Score, Step, Train, Trained
from agent.contract.settings import Training, part_of
from agent.data.formats import Example
from agent.runner.attempt import Attempt, Stopped
from agent.runner.job_data import JobData
from agent.runner.memory_fallbacks import differences
from agent.runner.memory_plan import Rung, fit_to_memory


def training_figures(
    *, steps: int, tokens: int, seconds: float, peak_rss_mb: float, peak_cuda_mb: float
) -> dict[str, Any]:
    """Figures of training as a version's manifest has them."""
    return {
        "steps": steps,
        "tokens": tokens,
        "train_seconds": seconds,
        "tokens_per_s": round(tokens / max(seconds, 1e-9), 1),
        "peak_rss_mb": peak_rss_mb,
        "peak_cuda_mb": peak_cuda_mb,
    }


class ModelSession:
    """One job's use of the training worker.

    Attributes:
        given: the training settings of the job.
        settings: those it works with: as given or, where memory is short, less.
    """

    def __init__(self, attempt: Attempt, data: JobData) -> None:
        self.given = part_of(Training, attempt.job.settings)
        self.settings = Rung.of(attempt.run).settings(self.given)
        self._attempt, self._data = attempt, data

    def plan(self) -> None:
        """Predict what the job will take, and lower its settings until that fits. Raises OutOfMemory."""
        self._attempt.phase("plan")
        self.settings, peaks = fit_to_memory(self._attempt.run, self.given, self._peaks)
        self._data.folder.mkdir(mode=0o700, exist_ok=True)  # with other settings the job may have to start over
        self._attempt.beat(planned_mb=peaks.highest[0])
        self._attempt.events.add("plan", changed=differences(self.given, self.settings), **dataclasses.asdict(peaks))

    def _peaks(self, settings: Training) -> Peaks:
        return self._attempt.ask(Plan(str(self._base()), settings))

    def _base(self) -> Path:
        """The prepared base model's folder. Raises BaseModelError if there is none."""
        return self._attempt.home.require_model(self._attempt.job.base)

    def load(self, version: int, adapter: Path | None) -> None:
        """Load the base model with the adapter of a version, if that has one."""
        settings = self.settings
        request = Load(str(self._base()), str(adapter) if adapter else None, settings.device, settings.dtype)
        self._attempt.events.add("loaded", version=version, **dataclasses.asdict(self._attempt.ask(request)))

    def load_for_training(self, parent: int, adapter: Path | None) -> None:
        """Load what training starts from: the parent's adapter if it has the shape that the settings ask for."""
        if adapter is not None:
            shape = json.loads((adapter / "adapter_config.json").read_bytes())
            if (shape["r"], shape["lora_alpha"]) != (self.settings.rank, self.settings.alpha):
                text = f"version {parent} has another rank or alpha: starting a fresh adapter"
                self._attempt.events.add("note", text=text)
                parent, adapter = 0, None
        self.load(parent if adapter else 0, adapter)

    def losses(self, name: str, examples: Iterable[Example], system_prompt: str) -> dict[str, dict[str, Any]]:
        """Losses of references by row id, as the protocol's `Score` says; rows without a token to learn are missing."""
        data = self._data.write(f"{name}-rows.jsonl", examples, system_prompt)
        out = self._data.folder / f"{name}-losses.jsonl"
        self._attempt.ask(Score(str(data), str(out), self.settings.sequence_length))
        return {row["id"]: row for row in read_json_lines(out)}

    def answers(self, name: str, examples: Iterable[Example], system_prompt: str, most_tokens: int) -> dict[str, str]:
        """Greedy answers by row id; rows of plain text ask nothing and are missing."""
        asked = (example for example in examples if example.prompt)
        data = self._data.write(f"{name}-prompts.jsonl", asked, system_prompt, asked=True)
        out = self._data.folder / f"{name}-answers.jsonl"
        self._attempt.ask(Generate(str(data), str(out), most_tokens, self.settings.memory_budget))
        return {row["id"]: row["text"] for row in read_json_lines(out)}

    def most_tokens(self, losses: dict[str, dict[str, Any]]) -> int:
        """Tokens that an answer may have: half as many again as the longest reference, and a few."""
        longest = max((row["tokens"] for row in losses.values()), default=0)
        return min(self.settings.max_new_tokens, longest * 3 // 2 + 8)

    def train(self, request: Train, steps: list[Step] | None = None) -> Trained:
        """Train as far as the request says, recording the steps also in `steps`. Raises Stopped after SIGTERM."""
        answer = self._attempt.ask(request, steps)
        if not answer.finished:
            raise Stopped
        return answer

    def save(self, folder: Path) -> None:
        """Write the adapter into a folder, as peft does."""
        self._attempt.ask(Save(str(folder)))
