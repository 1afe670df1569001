"""A numeric job: evaluate, train the adapter, evaluate again, judge, publish."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from agent.contract.atomic_io import folder_fault
from agent.contract.protocol import Save, Train, Trained
from agent.runner.attempt import Stopped
from agent.runner.stages import Stages


class NumericJob(Stages):
    """Tunes weights on the rows as they are."""

    def work(self) -> tuple[str, int | None]:
        """Do what is left of the job; returns the gate's reason and the version that was made."""
        made = self.registry.find_by_job(self.job.id)
        if made is None:
            made = self._make()
        return self.promote(made), made

    def _make(self) -> int:
        self.start()
        self.plan()
        before = self.before()
        self.attempt.phase("load")
        self.load_for_training()
        trained = self._train()
        after = self.measure("after", self.parent_prompt)
        verdict = self.judge(before, after)
        about = self.about(verdict, before, after, _figures(trained))

        def fill(folder: Path) -> None:
            self.attempt.ask(Save(str(folder)))
            (folder / "system_prompt.txt").write_text(self.parent_prompt)

        return self.publish(about, {"before": before, "after": after}, fill)

    def _train(self) -> Trained:
        self.attempt.phase("train")
        resume = self._last_checkpoint()
        if resume is not None:
            self.attempt.events.add("resume", checkpoint=str(resume.relative_to(self.run)))
        data = self.write_rows("train.jsonl", self.examples[0], self.parent_prompt)
        checkpoints = str(self.folder / "checkpoints")
        answer = self.attempt.ask(Train(str(data), checkpoints, self.settings, str(resume) if resume else None))
        if not isinstance(answer, Trained) or not answer.finished:
            raise Stopped
        self.attempt.events.add("trained", **dataclasses.asdict(answer))
        return answer

    def _last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint of any attempt; a damaged one is passed over."""
        found = sorted(self.run.glob("attempt-*/checkpoints/step-*"), key=lambda p: p.name, reverse=True)
        return next((path for path in found if folder_fault(path) is None), None)


def _figures(trained: Trained) -> dict[str, Any]:
    return {
        "steps": trained.step,
        "tokens": trained.tokens,
        "train_seconds": trained.seconds,
        "tokens_per_s": round(trained.tokens / max(trained.seconds, 1e-9), 1),
        "peak_rss_mb": trained.peak_rss_mb,
        "peak_cuda_mb": trained.peak_cuda_mb,
    }
