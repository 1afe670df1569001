"""One job, from its spooled data to a version: evaluate, train, evaluate again, judge, publish.

Run by the daemon as `python -I -m agent.loop STATE JOB TOKEN PARENT_PID`; torch-free, the model lives in the worker it
starts. Every stage leaves its result in the run's folder, so that a new attempt goes on where the last one died.
SIGTERM checkpoints and puts the job back into the queue.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

from agent import gate
from agent.attempt import Attempt, Stopped, Stopping
from agent.dataset import split
from agent.durable import folder_fault, locked, read_manifest, remove_tree, write_json
from agent.errors import AgentError, BaseModelError, Busy, StaleAttempt, WorkerDied
from agent.evaluation import Evaluation, model_card
from agent.events import EventLog
from agent.gate import Verdict
from agent.home import Home
from agent.jobs import Job, State
from agent.protocol import Generate, Load, Loaded, Save, Score, Train, Trained
from agent.registry import Registry
from agent.reward import content_reward
from agent.serving import die_with_parent
from agent.settings import Training
from agent.shapes import Example, Message
from agent.spool import load_spool
from agent.store import Store
from agent.version import version_string
from agent.workers import Worker

KEPT = {"events.jsonl", "worker.log", "loop.log", "lock"}
"""What stays of a run when its version is published; everything else can be made again or is in the version."""
LOCK_POLL = 1.0
"""Seconds between tries to get a lock that somebody holds."""
NICENESS = 10
"""Training yields the processor to whatever else the box does, `nslora-agent ls` included."""


class JobLoop:
    """The stages of one job."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt, self.home, self.job, self.run = attempt, attempt.home, attempt.job, attempt.run
        self.folder = self.run / f"attempt-{self.job.attempt}"
        self.settings = Training(**self.job.settings)
        self.registry = Registry(self.home.path, attempt.store)

    def work(self) -> tuple[Verdict, int]:
        """Do what is left of the job; returns the gate's verdict and the version that was made."""
        made = self.registry.find_by_job(self.job.id)
        if made is None:
            made = self._make()
        verdict = Verdict(**self.registry.get(made).about["verdict"])
        self._promote(verdict, made)
        return verdict, made

    def _make(self) -> int:
        self._write_split()
        before = self._before()
        self.attempt.phase("load")
        self._load(self.parent if self._continues_parent() else 0)
        trained = self._train()
        after = self._measure("after")
        verdict = gate.judge(before.measured, after.measured)
        self.attempt.events.add("verdict", **dataclasses.asdict(verdict))
        self.attempt.phase("publish")
        return self._publish(verdict, trained, before, after)

    def _before(self) -> Evaluation:
        """Held-out results of what was active when the job first started; measured once."""
        kept = self.run / "before.json"
        if not kept.exists():
            self.attempt.phase("load")
            self._load(self.parent)
            write_json(kept, dataclasses.asdict(self._measure("before")))
        return Evaluation(**json.loads(kept.read_bytes()))

    def _train(self) -> Trained:
        self.attempt.phase("train")
        resume = self._last_checkpoint()
        if resume is not None:
            self.attempt.events.add("resume", checkpoint=str(resume.relative_to(self.run)))
        checkpoints = str(self.folder / "checkpoints")
        request = Train(str(self.folder / "train.jsonl"), checkpoints, self.settings, str(resume) if resume else None)
        answer = self.attempt.ask(request)
        if not isinstance(answer, Trained) or not answer.finished:
            raise Stopped
        self.attempt.events.add("trained", **dataclasses.asdict(answer))
        return answer

    def _measure(self, phase: str) -> Evaluation:
        """Loss and greedy answers on the held-out rows with the model as it is loaded."""
        self.attempt.phase(phase)
        held_out = self._split[1]
        if not held_out:
            return Evaluation([], [], [])
        losses = self._score(phase)
        longest = max((row["tokens"] for row in losses.values()), default=0)
        answers = self._answers(phase, min(self.settings.max_new_tokens, longest * 3 // 2 + 8))
        evaluation = Evaluation(
            rewards=[content_reward(answers[e.id], e.reference, e.answer) for e in held_out if e.id in answers],
            losses=[losses[e.id]["loss"] for e in held_out if e.id in losses],
            answers=[{"id": e.id, "text": answers[e.id]} for e in held_out if e.id in answers],
        )
        self.attempt.events.add("evaluated", phase=phase, **evaluation.means)
        return evaluation

    def _score(self, phase: str) -> dict[str, Any]:
        out = self.folder / f"{phase}-losses.jsonl"
        self.attempt.ask(Score(str(self.folder / "held_out.jsonl"), str(out), self.settings.sequence_length))
        return {row["id"]: row for row in _read_jsonl(out)}

    def _answers(self, phase: str, most_tokens: int) -> dict[str, str]:
        out = self.folder / f"{phase}-answers.jsonl"
        self.attempt.ask(Generate(str(self.folder / "prompts.jsonl"), str(out), most_tokens))
        return {row["id"]: row["text"] for row in _read_jsonl(out)}

    def _publish(self, verdict: Verdict, trained: Trained, before: Evaluation, after: Evaluation) -> int:
        about = self._about(verdict, trained, before, after)
        answers = {"before": before.answers, "after": after.answers}

        def fill(folder: Path) -> None:
            self.attempt.ask(Save(str(folder)))
            (folder / "system_prompt.txt").write_text("")
            (folder / "README.md").write_text(model_card(about))
            (folder / "answers.json").write_text(json.dumps(answers, indent=1))

        return self.registry.publish(fill, about)

    def _promote(self, verdict: Verdict, version: int) -> None:
        """Make the version active if the gate says so, unless it already was once (a person may have gone back)."""
        store = self.attempt.store
        if verdict.promote and not store.was_promoted(version):
            with store.attempt(self.job.id, self.attempt.token):
                self.registry.promote(version, job=self.job.id)
            self.attempt.events.add("promoted", version=version)

    @cached_property
    def _split(self) -> tuple[list[Example], list[Example]]:
        return split(
            load_spool(self.home.spool / f"{self.job.spool}.jsonl"), self.settings.held_out, self.settings.seed
        )

    @cached_property
    def parent(self) -> int:
        """The version that was active when the job first started: what the gate compares with."""
        kept = self.run / "parent.json"
        if not kept.exists():
            active = self.registry.active()
            same_base = active and self.registry.get(active).about["base"] == self.job.base
            write_json(kept, {"version": active if same_base else 0})
        return int(json.loads(kept.read_bytes())["version"])

    def _continues_parent(self) -> bool:
        """Whether training goes on from the parent's adapter: only if it has the shape the settings ask for."""
        if not self.parent:
            return False
        shape = json.loads((self.registry.folder(self.parent) / "adapter_config.json").read_bytes())
        same = (shape["r"], shape["lora_alpha"]) == (self.settings.rank, self.settings.alpha)
        if not same:
            text = f"version {self.parent} has another rank or alpha: starting a fresh adapter"
            self.attempt.events.add("note", text=text)
        return same

    def _write_split(self) -> None:
        train, held_out = self._split
        self.folder.mkdir(mode=0o700, exist_ok=True)
        _write_messages(self.folder / "train.jsonl", ((e.id, e.messages) for e in train))
        _write_messages(self.folder / "held_out.jsonl", ((e.id, e.messages) for e in held_out))
        _write_messages(self.folder / "prompts.jsonl", ((e.id, e.prompt) for e in held_out if e.prompt))
        self.attempt.events.add("split", train=len(train), held_out=len(held_out))

    def _load(self, version: int) -> None:
        model = self.home.model(self.job.base)
        if not model.exists():
            raise BaseModelError(f"the base model {self.job.base} is not prepared: run `nslora-agent init`, then retry")
        adapter = str(self.registry.folder(version)) if version else None
        answer = self.attempt.ask(Load(str(model), adapter, self.settings.device, self.settings.dtype))
        if isinstance(answer, Loaded):
            self.attempt.events.add("loaded", version=version, **dataclasses.asdict(answer))

    def _last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint of any attempt; a damaged one is passed over."""
        found = sorted(self.run.glob("attempt-*/checkpoints/step-*"), key=lambda p: p.name, reverse=True)
        return next((path for path in found if folder_fault(path) is None), None)

    def _about(self, verdict: Verdict, trained: Trained, before: Evaluation, after: Evaluation) -> dict[str, Any]:
        """Everything a version's manifest and model card say."""
        figures = {
            "before": before.means,
            "after": after.means,
            "train_rows": len(self._split[0]),
            "held_out_rows": len(self._split[1]),
            "steps": trained.step,
            "tokens": trained.tokens,
            "train_seconds": trained.seconds,
            "tokens_per_s": round(trained.tokens / max(trained.seconds, 1e-9), 1),
            "peak_rss_mb": trained.peak_rss_mb,
            "peak_cuda_mb": trained.peak_cuda_mb,
        }
        base_manifest = read_manifest(self.home.model(self.job.base)) or {}
        return {
            "job": self.job.id,
            "file": self.job.file,
            "parent": self.parent,
            "base": self.job.base,
            "base_files": base_manifest.get("files"),
            "created": time.time(),
            "software": version_string(),
            "settings": dataclasses.asdict(self.settings),
            "verdict": dataclasses.asdict(verdict),
            "figures": figures,
        }


def _write_messages(path: Path, rows: Iterable[tuple[str, tuple[Message, ...]]]) -> None:
    """What the worker reads. Plain writes: each attempt writes these files again."""
    with path.open("w") as stream:
        for row, messages in rows:
            stream.write(json.dumps({"id": row, "messages": [dataclasses.asdict(m) for m in messages]}) + "\n")


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as stream:
        return [json.loads(line) for line in stream]


def run_job(home: Home, store: Store, job: Job, stopping: Stopping) -> int:
    """Work on a claimed job and record how it ended; returns the process's exit code.

    0: the job reached an end that is in its row (also failed). WorkerDied's code: a process died, the daemon
    decides on another attempt. StaleAttempt's code: the job is no longer ours, nothing was changed.
    """
    run, token = home.run(job.id), str(job.token)
    try:
        with ExitStack() as stack:
            locks = tuple(
                _lock_when_free(stack, path, store, job, stopping) for path in (run / "lock", home.device_lock)
            )
            worker = stack.enter_context(Worker("quant.worker", run / "worker.log", keep=locks))
            return _finish(Attempt(home, store, job, worker, stopping))
    except Stopped:
        store.requeue(job.id, token, "stopped in good order; goes on from its last checkpoint")
        return 0
    except (WorkerDied, StaleAttempt) as fault:
        print(fault, file=sys.stderr)  # noqa: T201  the daemon reads the last line of our log
        return fault.exit_code
    except (AgentError, OSError) as fault:
        reason = str(fault) if isinstance(fault, AgentError) else f"{fault.strerror}: {fault.filename}"
        EventLog(run / "events.jsonl").add("ended", state=State.FAILED, reason=reason)
        store.finish(job.id, token, State.FAILED, reason)
        return 0


def _finish(attempt: Attempt) -> int:
    verdict, version = JobLoop(attempt).work()
    # Before the state changes, because `logs -f` reads to the end of the events once the job has ended.
    attempt.events.add("ended", state=State.DONE, reason=verdict.reason)
    attempt.store.finish(attempt.job.id, attempt.token, State.DONE, verdict.reason, version)
    for path in attempt.run.iterdir():
        if path.name not in KEPT:
            remove_tree(path)
    return 0


def _lock_when_free(stack: ExitStack, path: Path, store: Store, job: Job, stopping: Stopping) -> int:
    """Take a lock, however long a dying earlier attempt or a `generate` holds it."""
    while not stopping.asked:
        try:
            return stack.enter_context(locked(path, "in use"))
        except Busy:  # noqa: PERF203  each turn of this loop sleeps
            store.beat(job.id, str(job.token), {"phase": "wait"})
            time.sleep(LOCK_POLL)
    raise Stopped


def main() -> int:
    """Entry point of the process."""
    state, job, token, parent = sys.argv[1:]
    stopping = Stopping()
    signal.signal(signal.SIGTERM, stopping.ask)
    die_with_parent(int(parent))
    os.nice(NICENESS)
    home = Home(Path(state))
    try:
        with Store(home.database, actor="loop") as store:
            return run_job(home, store, dataclasses.replace(store.get(int(job)), token=token), stopping)
    except AgentError as fault:
        print(fault, file=sys.stderr)  # noqa: T201  as above
        return fault.exit_code


if __name__ == "__main__":
    sys.exit(main())
