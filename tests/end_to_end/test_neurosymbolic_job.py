"""Neurosymbolic jobs whole: real daemon, loop and workers, a tiny model, and a scripted LLM on loopback."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llm_server import LLMServer, failing
from processes import Daemon, agent, command_line, daemon, descendants, wait_until
from test_symbolic_job import careful, come_again, rows, set_up
from whole_job import FLAGGED, enqueue, make_home

from agent.decide.decision_store import DecisionStore
from agent.queue.store import Store
from agent.system.events import read_events
from agent.system.paths import Home

pytestmark = pytest.mark.process


@pytest.fixture
def home(tmp_path: Path, source: Path, tiny_base: Callable[[str], Path]) -> Home:
    return make_home(tmp_path, source, tiny_base("llama"))


def explained(home: Home, *example: str) -> dict[str, Any]:
    done = agent("explain", "1", *example, "--json", state=home.path)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def story(home: Home) -> list[Any]:
    """All that was decided and what came of it, times left out; losses rounded as the processor's threads allow."""
    with Store(home.database) as store:
        decisions = DecisionStore(store, 1)
        rounds, outcomes = decisions.rounds(), decisions.outcomes()
    told = [(each.number, each.phase, each.why, each.ended, each.figures.get("steps")) for each in rounds]
    return [told, [(each["round"], each["example"], each["action"], round(each["gain"], 3)) for each in outcomes]]


def test_a_job_rewrites_flagged_rows_tunes_the_weights_and_makes_a_version(uninterrupted: Home) -> None:
    """Both sides had their turn, each for the rows it was chosen for, and the offload saw flagged rows only."""
    told = explained(uninterrupted)
    phases = [each["phase"] for each in told["rounds"]]
    assert {"numeric", "symbolic"} <= set(phases)
    offered = {each["example"] for each in told["outcomes"] if each["action"] == "rewrite"}
    assert offered <= FLAGGED
    asked = json.loads((uninterrupted.path / "asked").read_text())
    assert not any("pump X" in prompt or "Who?" in prompt for prompt in asked)
    assert all(each["reason"] for each in told["choices"])
    about = json.loads((uninterrupted.versions / "1" / "manifest.json").read_bytes())
    assert about["mode"] == "neurosymbolic"
    assert about["figures"]["remade"] == len(offered) > 0


def test_a_version_names_exactly_what_made_it(uninterrupted: Home) -> None:
    """Manifest and card: this program and each library, to the last part of its version."""
    folder = uninterrupted.versions / "1"
    about, card = json.loads((folder / "manifest.json").read_bytes()), (folder / "README.md").read_text()
    assert set(about["libraries"]) == {"torch", "transformers", "peft", "bitsandbytes"}
    for name, number in {"nslora-agent": about["software"], **about["libraries"]}.items():
        assert number == importlib.metadata.version(name)
        assert f"{name} {number}" in card


def test_remade_rows_say_where_they_come_from(uninterrupted: Home, tmp_path: Path) -> None:
    """Source line, critique, model, cost, reward before and after; the file can be queued again."""
    out = tmp_path / "remade.jsonl"
    assert agent("remade", "1", "-o", out, state=uninterrupted.path).returncode == 0
    remade = {row["id"]: row for row in rows(out)}
    assert set(remade) <= FLAGGED
    row = remade["pump-0"]
    assert row["messages"][-1]["content"] == "Pump A uses port 4700."
    assert row["line"] == 1
    lineage = row["remade"]
    assert (lineage["job"], lineage["model"], lineage["part"]) == (1, "scripted", "reference")
    assert "comma" in lineage["critique"]
    assert (lineage["reward_before"], lineage["reward_after"]) == (0.5, 1.0)
    assert agent("validate", out, state=uninterrupted.path).returncode == 0


def test_an_example_s_story_can_be_read(uninterrupted: Home) -> None:
    """Rewards, features, expected gains, the choice, and what came of it."""
    told = explained(uninterrupted, "pump-0")
    first = told["choices"][0]
    assert first["state"] in {"rewrite", "both"}
    assert first["standing"]["reference_style"] == 0.0
    assert first["gains"]["features"]["reference_gap"] == 0.5
    assert {"expected", "hoped", "cost"} <= first["gains"]["rewrite"].keys()
    assert any(each["action"] == "rewrite" and each["gain"] == 0.5 for each in told["outcomes"])
    text = " ".join(agent("explain", "1", "pump-0", state=uninterrupted.path).stdout.split())
    for word in ("line 1", "reference_gap", "rewriting pays", "rewritten after 1 step"):
        assert word in text


def test_the_log_speaks_in_words(uninterrupted: Home) -> None:
    """No event of such a job is printed as raw JSON."""
    shown = agent("logs", "1", state=uninterrupted.path).stdout
    assert '{"' not in shown


def test_the_list_of_jobs_has_room_for_the_verdict(uninterrupted: Home) -> None:
    """Its line is cut short: first comes whether the version was promoted, then what became of the rewrites."""
    assert re.search(r"version 1: (P|Not p)romoted: the loss", agent("ls", state=uninterrupted.path).stdout)
    assert "examples offered for a rewrite" in agent("show", "1", state=uninterrupted.path).stdout


# ---- death ----


def pids_of(running: Daemon, module: str) -> list[int]:
    return [pid for pid in descendants(running.process.pid) if module in command_line(pid)]


def reached(home: Home, event: str, count: int) -> Callable[[], bool]:
    """Whether the job has told of something as often as that."""

    def found() -> bool:
        told = [each for each, _ in read_events(home.run(1) / "events.jsonl") if each["event"] == event]
        return len(told) >= count

    return found


@pytest.mark.parametrize(
    ("module", "event", "count"),
    [
        ("agent.runner.job_process", "rewrite", 2),
        pytest.param("agent.runner.job_process", "window", 2, marks=pytest.mark.exhaustive),
        pytest.param("quant.worker", "step", 13, marks=pytest.mark.exhaustive),
        pytest.param("agent.runner.job_process", "round over", 1, marks=pytest.mark.exhaustive),
        pytest.param("agent.runner.job_process", "round over", 2, marks=pytest.mark.exhaustive),
    ],
)
def test_a_killed_process_changes_nothing_but_the_time(
    home: Home, uninterrupted: Home, module: str, event: str, count: int
) -> None:
    """Kill -9 at any point: the same rounds, choices and gains, one version; only what was in flight is asked again."""
    with LLMServer(careful) as server, daemon(home.path) as running:
        set_up(home, server)
        enqueue(home)
        wait_until(reached(home, event, count), event)
        for pid in pids_of(running, module):
            os.kill(pid, signal.SIGKILL)
        job = running.wait_for(1, "done")
        asked = [request.prompt for request in server.requests]
    assert job.deaths == 1
    assert story(home) == story(uninterrupted)
    assert sorted(set(asked)) == sorted(set(json.loads((uninterrupted.path / "asked").read_text())))
    assert len(asked) <= len(set(asked)) + 1
    assert {path.name for path in home.versions.iterdir() if path.name.isdigit()} == {"0", "1"}


@pytest.mark.exhaustive
def test_a_stop_in_good_order_goes_on_later(home: Home, uninterrupted: Home) -> None:
    """SIGTERM to the daemon in the middle of a numeric phase, and another daemon."""
    with LLMServer(careful) as server:
        with daemon(home.path) as running:
            set_up(home, server)
            enqueue(home)
            wait_until(reached(home, "step", 5), "five steps")
            assert running.stop() == 0
        with daemon(home.path) as running:
            job = running.wait_for(1, "done")
    assert job.deaths == 0
    assert story(home) == story(uninterrupted)


@pytest.mark.exhaustive
def test_a_damaged_checkpoint_costs_time_not_the_job(home: Home) -> None:
    """The job starts over and says so."""
    with LLMServer(careful) as server:
        with daemon(home.path) as running:
            set_up(home, server)
            enqueue(home)
            wait_until(reached(home, "step", 15), "fifteen steps")
        for path in home.run(1).glob("attempt-*/checkpoints-*/step-*/adapter.safetensors"):
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        with daemon(home.path) as running:
            job = running.wait_for(1, "done")
    assert job.version == 1
    assert "starting over" in agent("logs", "1", state=home.path).stdout


# ---- the remote ----


def test_a_box_without_a_remote_tunes_only_and_says_what_it_left(home: Home) -> None:
    """No request, no failure."""
    with daemon(home.path) as running:
        enqueue(home)
        job = running.wait_for(1, "done")
    assert job.version == 1
    assert {each["phase"] for each in explained(home)["rounds"]} == {"numeric", "stop"}


@pytest.mark.exhaustive
def test_an_outage_defers_rewrites_and_the_numeric_side_goes_on(home: Home) -> None:
    """Parked only when nothing else is left; taken up when the remote answers again."""
    with LLMServer(lambda _: failing(503)) as server, daemon(home.path) as running:
        set_up(home, server)
        enqueue(home)
        parked = running.wait_for(1, "parked")
        assert "wait for the remote" in str(parked.reason)
        assert "numeric" in {each["phase"] for each in explained(home)["rounds"]}
        server.script = careful
        come_again(home)
        job = running.wait_for(1, "done")
    assert job.deaths == 0
    assert rows(home.run(1) / "remade.jsonl")
    assert any("remade" in row for row in rows(home.run(1) / "remade.jsonl"))


@pytest.mark.exhaustive
def test_a_spent_budget_ends_the_rewriting_and_not_the_job(home: Home) -> None:
    """The cap on requests is kept, and what was accepted by then is learned."""
    with LLMServer(careful) as server, daemon(home.path) as running:
        set_up(home, server, "--requests-per-job", "3")
        enqueue(home)
        job = running.wait_for(1, "done")
    assert len(server.requests) == 3
    assert job.version == 1
    assert sum("remade" in row for row in rows(home.run(1) / "remade.jsonl")) == 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--rounds", "1"), "1 rounds"),
        pytest.param(("--minutes", "0.001"), "minutes", marks=pytest.mark.exhaustive),
        pytest.param((), "steps", marks=pytest.mark.exhaustive),
    ],
)
def test_budgets_end_a_job(home: Home, flags: tuple[str, ...], words: str) -> None:
    """Rounds, minutes and steps; the reason says which."""
    with LLMServer(careful) as server, daemon(home.path) as running:
        set_up(home, server)
        enqueue(home, *flags)
        running.wait_for(1, "done")
    shown = agent("logs", "1", state=home.path).stdout
    assert f"the budget of {words}" in shown or words in shown


@pytest.mark.exhaustive
def test_alternating_phases_have_fixed_lengths(home: Home) -> None:
    """`--mode alternate`: symbolic and numeric in turns, whatever the signal says."""
    with LLMServer(careful) as server, daemon(home.path) as running:
        set_up(home, server)
        enqueue(home, "--mode", "alternate")
        running.wait_for(1, "done")
    assert [each["phase"] for each in explained(home)["rounds"]][:2] == ["symbolic", "numeric"]


def test_the_same_seed_and_the_same_answers_give_the_same_job(home: Home, uninterrupted: Home) -> None:
    """On another box, from exported answers, with nothing listening."""
    exported = home.path / "answers.jsonl"
    assert agent("cache", "export", exported, state=uninterrupted.path).returncode == 0
    set_cache_only = ("offload", "set", "--mode", "cache-only", "--model", "scripted", "--max-tokens", "64")
    url = json.loads(agent("offload", "set", "--json", state=uninterrupted.path).stdout)["base_url"]
    assert agent(*set_cache_only, "--base-url", url, state=home.path).returncode == 0
    assert agent("cache", "import", exported, state=home.path).returncode == 0
    with daemon(home.path) as running:
        enqueue(home)
        running.wait_for(1, "done")
    assert story(home) == story(uninterrupted)
