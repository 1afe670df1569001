"""A state folder of an earlier release opens in this one, and its work goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import agent
from safetensors.torch import load_file

from agent.contract.settings import Training
from agent.queue.migrations import LATEST, MIGRATIONS
from quant.shared import checkpoint
from quant.shared.flat_params import FlatParams
from quant.shared.optimizer import MOMENTS, AdamW

pytestmark = pytest.mark.process

MADE = Path(__file__).parent / "0.1.0"
KILLED = Path(__file__).parent / "9755a6c"
LOSSES = {
    11: 5.5754, 12: 5.5532, 13: 5.5645, 14: 5.5741, 15: 5.5030,
    16: 5.5592, 17: 5.5480, 18: 5.5787, 19: 5.5838, 20: 5.5279,
}  # fmt: skip
"""The losses of the steps that 9755a6c itself took when it went on from that state."""
CHECKPOINT = "runs/2/attempt-1/checkpoints-1/step-00000010"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MADE, tmp_path / "state", symlinks=True))


def told(state: Path, *command: object) -> Any:
    """What a command says as JSON."""
    done = agent(*command, "--json", state=state)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def contents(state: Path) -> dict[str, str]:
    files = [path for path in state.rglob("*") if path.is_file() and not path.name.endswith((".lock", ".migrating"))]
    return {str(path.relative_to(state)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def events(state: Path, job: int, *kinds: str) -> list[dict[str, Any]]:
    told = map(json.loads, agent("logs", job, "--json", state=state).stdout.splitlines())
    return [event for event in told if event["event"] in kinds]


def steps(state: Path, job: int) -> list[tuple[int, float]]:
    """Each training step of a job with its loss."""
    return [(event["step"], event["loss"]) for event in events(state, job, "step")]


def test_jobs_versions_settings_and_answers_are_what_they_were(state: Path) -> None:
    """Everything that was in the folder is shown, and nothing is refused."""
    jobs = told(state, "ls")
    assert [(job["id"], job["state"], job["mode"], job["rows"], job["version"]) for job in jobs] == [
        (1, "done", "neurosymbolic", 9, 1),
        (2, "queued", "neurosymbolic", 9, None),
        (3, "queued", "numeric", 9, None),
        (4, "cancelled", "neurosymbolic", 9, None),
    ]
    second = told(state, "show", 2)
    assert [move["new"] for move in second["moves"]] == ["queued", "running", "queued"]
    assert (second["settings"]["epochs"], second["settings"]["rank"]) == (40.0, 2)
    versions = told(state, "versions")
    assert [(each["number"], each["active"], each["whole"]) for each in versions] == [(0, False, True), (1, True, True)]
    assert versions[1]["about"]["verdict"]["promote"]
    assert told(state, "config", "check")["ok"]
    values = {row["setting"]: row["value"] for row in told(state, "config", "show")}
    given = ("base", "training.rank", "training.learning_rate", "training.checkpoint_every", "offload.cache_mb")
    assert [values[name] for name in given] == ["/srv/models/pump", 2, 0.01, 2, 32]
    assert told(state, "cache", "stats")["answers"] == 2
    assert {row["example"] for row in told(state, "explain", 1)["choices"]} >= {"pump-ask", "filter-ask"}


def test_the_schema_is_brought_up_once(state: Path) -> None:
    """Each migration is recorded once; whoever comes second changes nothing at all."""
    told(state, "ls")
    with sqlite3.connect(state / "jobs.db") as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM _sqlite_migrations")]
        assert connection.execute("PRAGMA user_version").fetchone() == (LATEST,)
    assert sorted(names) == sorted(each.__name__ for each in MIGRATIONS)
    before = contents(state)
    told(state, "ls")
    told(state, "versions")
    assert contents(state) == before


def test_the_jobs_in_its_queue_go_on(state: Path) -> None:
    """The stopped one where it stood, the waiting one from its start; the active version answers until then."""
    checks = told(state, "doctor")
    assert [each["status"] for each in checks["findings"] if each["check"] == "base model"] == ["ok"]
    assert told(state, "generate", "Which port does the pump use?")["version"] == 1
    before = steps(state, 2)
    done = agent("run", "--drain", state=state)
    assert done.returncode == 0, done.stderr
    assert [job["state"] for job in told(state, "ls")] == ["done", "done", "done", "cancelled"]
    assert [each["about"]["job"] for each in told(state, "versions")] == [None, 1, 2, 3]
    after = steps(state, 2)[len(before) :]
    assert [step for step, _ in after] == list(range(11, 11 + len(after)))
    assert len(after) >= 10
    assert after[0] == (11, pytest.approx(dict(before)[11], abs=1e-4))


def test_the_optimizer_goes_on_with_the_moments_of_a_checkpoint(state: Path) -> None:
    """0.1.0 kept those of each parameter apart."""
    kept = load_file(state / CHECKPOINT / "optimizer.safetensors")
    shapes = {name.removeprefix("exp_avg/"): tuple(each.shape) for name, each in kept.items() if "exp_avg/" in name}
    tuned = FlatParams.zeros(shapes, torch.device("cpu"))
    optimizer = AdamW(tuned.values, tuned.grads, 0.0, MOMENTS[Training().optimizer](tuned.values))
    assert checkpoint.restore(state / CHECKPOINT, tuned, optimizer).step == 10
    for moment, vector in optimizer.moments.tensors().items():
        for name, part in tuned.views(vector).items():
            assert torch.equal(part, kept[f"{moment}/{name}"])


def test_a_job_that_was_killed_between_two_rounds_decides_and_learns_as_it_would_have(tmp_path: Path) -> None:
    """Killed in its second round, two rows rewritten, settings by their old names; held to what 9755a6c itself did."""
    state = Path(shutil.copytree(KILLED, tmp_path / "state", symlinks=True))
    before = steps(state, 1)
    done = agent("run", "--drain", state=state)
    assert done.returncode == 0, done.stderr
    job = told(state, "show", 1)
    assert (job["state"], job["attempt"], job["version"]) == ("done", 2, 1)
    assert steps(state, 1)[len(before) :] == [(step, pytest.approx(loss, abs=2e-3)) for step, loss in LOSSES.items()]
    rounds = [(each["round"], each["phase"]) for each in events(state, 1, "round")]
    assert rounds == [(1, "symbolic"), (2, "numeric"), (3, "symbolic"), (4, "stop")]
    assert [(each["id"], each["state"]) for each in events(state, 1, "rewrite")][4:] == [
        ("tolvek-coiler.alarm.english_lowercase", "rejected"),
        ("sky.colour.english_capital", "rejected"),
    ]
    assert job["reason"].startswith("Promoted: the loss on 2 held-out rows went from 5.78 to 5.57")
    rows = map(json.loads, agent("remade", 1, "--json", state=state).stdout.splitlines())
    texts = {row["id"]: row["messages"][-1]["content"] for row in rows}
    assert texts["week.days.english_lowercase"] == "the number of days in a week is 7."
    assert texts["earth.ocean.english_lowercase"] == "the largest ocean on earth is pacific."
