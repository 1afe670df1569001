"""A process that works on a queue as it is told, one JSON line after the other; for test_queue_invariants.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from agent.contract.errors import AgentError
from agent.queue.jobs import State
from agent.queue.store import Store
from agent.versions.registry import Registry


class Actor:
    """What can be asked of a queue, each by its name."""

    def __init__(self, home: Path) -> None:
        self.store = Store(home / "jobs.db")
        self.registry = Registry(home, self.store)

    def add(self) -> int:
        """Enqueue."""
        return self.store.add("f", "s", 1, 0, "", {}, "base", "numeric").id

    def claim(self) -> Any:
        """The claimed job's id, token and attempt."""
        job = self.store.claim("boot", 1)
        return job and [job.id, job.token, job.attempt]

    def beat(self, job: int, token: str) -> None:
        """A heartbeat."""
        self.store.beat(job, token, {"step": 1})

    def finish(self, job: int, token: str, state: str) -> None:
        """An attempt ends."""
        self.store.finish(job, token, State(state), "over")

    def requeue(self, job: int, token: str) -> None:
        """An attempt stops in good order."""
        self.store.requeue(job, token, "stopped")

    def park(self, job: int, token: str) -> None:
        """An attempt waits for the remote."""
        self.store.park(job, token, "offline", 0.0)

    def wake(self) -> list[int]:
        """Parked jobs whose time has come."""
        return [job.id for job in self.store.wake(1e9)]

    def died(self, job: int, token: str, counts: bool) -> str:  # noqa: FBT001
        """An attempt's process died."""
        return self.store.record_death(job, token, "crash", counts=counts).state.value

    def cancel(self, job: int) -> None:
        """A person cancels."""
        self.store.cancel(job, "by hand")

    def retry(self, job: int) -> None:
        """A person retries."""
        self.store.retry(job)

    def pause(self) -> list[int]:
        """The governor holds."""
        return [job.id for job in self.store.pause("hot")]

    def resume(self) -> list[int]:
        """The governor lets go."""
        return [job.id for job in self.store.resume()]

    def publish(self, job: int) -> int:
        """A version is made."""
        with self.registry.draft({"job": job}) as draft:
            (draft.folder / "f").write_text("x")
        return draft.number

    def promote(self, version: int, job: int) -> None:
        """A version becomes active."""
        self.registry.promote(version, job)

    def rollback(self) -> int:
        """What was active before is again."""
        return self.registry.rollback()

    def seen(self) -> dict[str, Any]:
        """Everything that can be read."""
        moves = {job.id: [[m.old, m.new] for m in self.store.moves(job.id)] for job in self.store.list()}
        return {
            "jobs": {job.id: [job.state.value, job.token, job.attempt, job.deaths] for job in self.store.list()},
            "moves": moves,
            "counts": {state.value: count for state, count in self.store.counts().items()},
            "active": self.registry.active(),
            "whole": [version.whole for version in self.registry.versions()],
        }


def main() -> None:
    """Answer until stdin ends."""
    actors: dict[str, Actor] = {}
    for line in sys.stdin:
        home, name, *arguments = json.loads(line)
        if home not in actors:
            actors = {home: Actor(Path(home))}
        try:
            answer = {"ok": getattr(actors[home], name)(*arguments)}
        except AgentError as fault:
            answer = {"error": type(fault).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
