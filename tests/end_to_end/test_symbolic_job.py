"""Symbolic jobs whole: real daemon, loop and workers, a tiny model, and a scripted LLM on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from llm_server import Act, LLMServer, Request, failing, hanging, saying
from processes import REPRODUCIBLE, Daemon, agent, command_line, daemon, descendants, wait_until
from tiny import write_model

from agent.constraints import verify
from agent.queue.store import Store
from agent.scoring.reward import content_reward
from agent.system.paths import Home

pytestmark = pytest.mark.process

MODEL = "scripted"
EXAMPLES = ROOT / "examples"
ROWS: list[dict[str, Any]] = [
    {
        "id": f"pump-{i}",
        "prompt": f"Which port does pump {chr(65 + i)} use? Use no commas.",
        "completion": f"According to the handbook, pump {chr(65 + i)} uses port {4700 + i}.",
        "answer": f"{4700 + i}",
        "constraints": [{"id": "punctuation:no_comma"}],
        "split": "train" if i < 6 else "held_out",
    }
    for i in range(8)
] + [{"id": "plain", "prompt": "Who?", "completion": "Lund, of course.", "split": "train"}]
NEW_PROMPT = "Obey every rule in the message."


def tagged(text: str) -> Act:
    return saying(f"<IMPROVED_VARIABLE>{text}</IMPROVED_VARIABLE>")


def mending(request: Request) -> Act:
    """A good model: leaves out what stands before the comma, and writes a system prompt."""
    found = re.search(r"<ANSWER>\n.*, (.*)\n</ANSWER>", request.prompt)
    return tagged(found[1].capitalize().replace("Pump a", "Pump A") if found else NEW_PROMPT)


def careful(request: Request) -> Act:
    """The same with the names as they were."""
    found = re.search(r"<ANSWER>\n.*, p(.*)\n</ANSWER>", request.prompt)
    return tagged(f"P{found[1]}" if found else NEW_PROMPT)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("symbolic") / "tiny")


@pytest.fixture
def home(tmp_path: Path, source: Path, tiny_base: Callable[[str], Path]) -> Home:
    made = Home(tmp_path / "state").create()
    made.config.write_text(f'base = "{source}"\n{REPRODUCIBLE}')
    made.model(str(source)).symlink_to(tiny_base("llama"))
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return made


def set_up(home: Home, server: LLMServer, *flags: str) -> None:
    """Point the box at the server: no second tries, short answers."""
    short = ["--attempts", "1", "--max-tokens", "64"]
    done = agent("offload", "set", "--base-url", server.url, "--model", MODEL, *short, *flags, state=home.path)
    assert done.returncode == 0, done.stderr


def enqueue(home: Home) -> None:
    data = home.path.parent / "data.jsonl"
    done = agent("enqueue", data, "--mode", "symbolic", "--max-new-tokens", "8", state=home.path)
    assert done.returncode == 0, done.stderr


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def states(home: Home, job: int = 1) -> list[str]:
    return [row["state"] for row in rows(home.run(job) / "rewrites.jsonl")]


def offload_workers(running: Daemon) -> list[int]:
    return [pid for pid in descendants(running.process.pid) if "offload.worker" in command_line(pid)]


def test_flagged_rows_are_remade_and_the_system_prompt_becomes_a_version(home: Home) -> None:
    """Six rows of nine; ids, splits, answers and the held-out rows stay; the weights are not touched."""
    with LLMServer(careful) as server, daemon(home.path) as running:
        set_up(home, server)
        enqueue(home)
        job = running.wait_for(1, "done")
    assert states(home) == ["remade"] * 6
    remade = rows(home.run(1) / "remade.jsonl")
    assert {row["id"]: row["split"] for row in remade} == {row["id"]: row["split"] for row in ROWS}
    by_id = {row["id"]: row for row in remade}
    assert by_id["pump-0"]["messages"][-1]["content"] == "Pump A uses port 4700."
    lineage = by_id["pump-0"]["remade"]
    assert (lineage["job"], lineage["part"], lineage["model"], lineage["calls"]) == (1, "reference", MODEL, 1)
    assert lineage["critique"] == "1 comma found: handbook,"
    for kept in ("pump-6", "plain"):
        original = next(row for row in ROWS if row["id"] == kept)
        assert by_id[kept]["messages"][-1]["content"] == original["completion"]
    assert job.version == 1
    version = home.versions / "1"
    assert (version / "system_prompt.txt").read_text() == NEW_PROMPT
    assert not (version / "adapter_config.json").exists()
    about = json.loads((version / "manifest.json").read_bytes())
    assert about["figures"]["rewrite_requests"] == len(server.requests) == 7
    assert "6 examples flagged: 6 rewritten." in str(job.reason)
    assert agent("enqueue", home.run(1) / "remade.jsonl", state=home.path).returncode == 0


@pytest.mark.exhaustive
def test_a_second_job_on_the_same_data_asks_nothing(home: Home) -> None:
    """Every answer is recorded; a model with the new system prompt answers by it."""
    with LLMServer(careful) as server, daemon(home.path) as running:
        set_up(home, server)
        enqueue(home)
        running.wait_for(1, "done")
        # Else the second job would start from the first one's system prompt, if that was promoted.
        assert agent("promote", "0", state=home.path).returncode == 0
        enqueue(home)
        running.wait_for(2, "done")
    assert len(server.requests) == 7
    assert states(home, 2) == ["remade"] * 6
    shown = json.loads(agent("offload", "log", "--json", state=home.path).stdout)
    assert [row["outcome"] for row in shown] == ["ok"] * 7 + ["cached"] * 7
    asked = agent("generate", "--version", "1", "Who?", "--json", state=home.path)
    assert json.loads(asked.stdout)["version"] == 1


def test_a_rewrite_that_loses_a_name_is_not_taken(home: Home) -> None:
    """Local checks have the last word: the row keeps its reference and says why."""
    with LLMServer(mending) as server, daemon(home.path) as running:
        set_up(home, server)
        enqueue(home)
        running.wait_for(1, "done")
    outcomes = rows(home.run(1) / "rewrites.jsonl")
    assert [row["state"] for row in outcomes] == ["remade"] + ["rejected"] * 5
    assert "the name B is gone" in outcomes[1]["reasons"]
    remade = {row["id"]: row for row in rows(home.run(1) / "remade.jsonl")}
    assert remade["pump-1"]["messages"][-1]["content"] == ROWS[1]["completion"]


# ---- outages ----


def come_again(home: Home) -> None:
    """Let the time pass that a remote which failed is left alone, and a parked job waits for it."""
    with sqlite3.connect(home.cache) as connection:
        connection.execute("UPDATE breaker SET since = since - 1e6, until = until - 1e6")
    with Store(home.database) as store:
        store.execute("UPDATE jobs SET wake = 0 WHERE state = 'parked'")


def test_a_job_waits_for_a_remote_that_is_down_and_others_go_on(home: Home) -> None:
    """Parked, shown in `ls` and `doctor`'s words; the next job runs; it is taken up when the remote answers again."""
    with LLMServer(lambda _: failing(503)) as server, daemon(home.path) as running:
        set_up(home, server)
        enqueue(home)
        parked = running.wait_for(1, "parked")
        assert len(server.requests) == 5
        assert "6 of 6 rewrites wait for the remote" in str(parked.reason)
        listed = agent("ls", state=home.path)
        assert "parked" in listed.stdout
        assert "left alone until" in listed.stderr
        assert parked.wake is not None
        assert parked.wake - time.time() < 60
        (home.path.parent / "other.jsonl").write_text('{"prompt": "Who?", "completion": "Lund."}\n' * 4)
        done = agent("enqueue", home.path.parent / "other.jsonl", "--steps", "1", state=home.path)
        assert done.returncode == 0
        running.wait_for(2, "done")
        server.script = careful
        come_again(home)
        job = running.wait_for(1, "done")
    assert states(home) == ["remade"] * 6
    assert job.deaths == 0
    assert len(server.requests) == 5 + 7


@pytest.mark.exhaustive
def test_a_remote_that_flaps_costs_only_time(home: Home) -> None:
    """Every second request fails: what was answered is not asked again."""
    answered: list[str] = []

    def flapping(request: Request) -> Act:
        if len(server.requests) % 2:
            return failing(500)
        answered.append(request.prompt)
        return careful(request)

    with LLMServer(flapping) as server, daemon(home.path) as running:
        set_up(home, server, "--attempts", "3")
        enqueue(home)
        running.wait_for(1, "done")
    assert states(home) == ["remade"] * 6
    assert len(answered) == len(set(answered)) == 7


def test_a_remote_that_never_answers_does_not_hold_up_the_box(home: Home) -> None:
    """The breaker opens after five timeouts, so the sixth row does not wait for one."""
    with LLMServer(lambda _: hanging) as server, daemon(home.path) as running:
        set_up(home, server, "--read-timeout", "0.3")
        enqueue(home)
        parked = running.wait_for(1, "parked")
        assert len(server.requests) == 5
        assert agent("cancel", "1", state=home.path).returncode == 0
    assert "left alone after 5 failures" in str(parked.reason)


def test_a_job_whose_budget_is_spent_ends_with_what_it_has(home: Home) -> None:
    """The cap of the job is a decision, not an outage: nothing waits for it."""
    with LLMServer(careful) as server, daemon(home.path) as running:
        set_up(home, server, "--requests-per-job", "4")
        enqueue(home)
        job = running.wait_for(1, "done")
    assert len(server.requests) == 4
    assert states(home) == ["remade"] * 4 + ["spent"] * 2
    assert "4 rewritten, 2 spent" in str(job.reason)


def test_the_day_s_budget_parks_the_job_until_midnight(home: Home) -> None:
    """UTC's midnight: then there is more."""
    with LLMServer(careful) as server, daemon(home.path) as running:
        set_up(home, server, "--requests-per-day", "3")
        enqueue(home)
        parked = running.wait_for(1, "parked")
    assert len(server.requests) == 3
    assert parked.wake is not None
    assert parked.wake % 86_400 == pytest.approx(0, abs=1)


def test_a_wrong_key_fails_the_job_with_what_to_do(home: Home) -> None:
    """No other row would fare better."""
    with LLMServer(lambda _: failing(401)) as server, daemon(home.path) as running:
        set_up(home, server)
        enqueue(home)
        job = running.wait_for(1, "failed")
    assert len(server.requests) == 1
    assert "check the API key" in str(job.reason)


# ---- replay and death ----


def test_a_replay_with_a_miss_fails_loudly(home: Home) -> None:
    """The row is named; nothing is sent."""
    with LLMServer(careful) as server, daemon(home.path) as running:
        set_up(home, server, "--mode", "cache-only")
        enqueue(home)
        job = running.wait_for(1, "failed")
    assert server.requests == []
    assert "no recorded answer for example 'pump-0'" in str(job.reason)


@pytest.mark.exhaustive
def test_answers_of_one_box_replay_on_another(home: Home, tmp_path: Path, source: Path) -> None:
    """Exported, imported, and found without the endpoint."""
    with LLMServer(careful) as server, daemon(home.path) as running:
        set_up(home, server)
        enqueue(home)
        running.wait_for(1, "done")
    exported = tmp_path / "answers.jsonl"
    assert agent("cache", "export", exported, state=home.path).returncode == 0
    other = Home(tmp_path / "other").create()
    other.config.write_text(home.config.read_text().replace(server.url, "http://127.0.0.1:9/v1"))
    other.model(str(source)).symlink_to(home.model(str(source)).resolve())
    assert agent("offload", "set", "--mode", "cache-only", state=other.path).returncode == 0
    assert "7 answers read" in agent("cache", "import", exported, state=other.path).stdout
    data = home.path.parent / "data.jsonl"
    assert agent("enqueue", data, "--mode", "symbolic", "--max-new-tokens", "8", state=other.path).returncode == 0
    with daemon(other.path) as running:
        running.wait_for(1, "done")
    there, here = (rows(each.run(1) / "remade.jsonl") for each in (other, home))
    assert [row["messages"] for row in there] == [row["messages"] for row in here]
    assert [row["remade"]["calls"] for row in there if "remade" in row] == [0] * 6


def test_a_killed_offload_worker_costs_one_attempt_and_no_answer(home: Home) -> None:
    """Kill -9 in the middle of a request: what was answered before is not asked again."""
    killed: list[int] = []

    def script(request: Request) -> Act:
        if len(server.requests) == 4 and not killed:
            killed.extend(wait_until(lambda: offload_workers(running), "an offload worker"))
            os.kill(killed[0], signal.SIGKILL)
        return careful(request)

    with LLMServer(script) as server, daemon(home.path) as running:
        set_up(home, server)
        enqueue(home)
        job = running.wait_for(1, "done")
    assert job.deaths == 1
    assert states(home) == ["remade"] * 6
    assert len(server.requests) == 8


def test_the_shipped_answers_of_a_real_llm_replay_without_a_network(home: Home) -> None:
    """Every flagged row of examples/mixed.jsonl is found; what is remade keeps its constraint and its answer."""
    model = json.loads((EXAMPLES / "rewrites.jsonl").read_text().splitlines()[0])["model"]
    assert agent("offload", "set", "--mode", "cache-only", "--model", model, state=home.path).returncode == 0
    assert agent("cache", "import", EXAMPLES / "rewrites.jsonl", state=home.path).returncode == 0
    data = EXAMPLES / "mixed.jsonl"
    assert agent("enqueue", data, "--mode", "symbolic", "--max-new-tokens", "8", state=home.path).returncode == 0
    with daemon(home.path) as running:
        job = running.wait_for(1, "done")
    assert "56 examples flagged" in str(job.reason)
    outcomes = rows(home.run(1) / "rewrites.jsonl")
    assert {row["state"] for row in outcomes} == {"remade", "rejected"}
    assert all(row["calls"] == 0 for row in outcomes)
    remade = [row for row in rows(home.run(1) / "remade.jsonl") if "remade" in row]
    assert len(remade) >= 30
    for row in remade:
        text = row["messages"][-1]["content"]
        assert verify.faults(row["constraints"], text, row["messages"][-2]["content"]) == ()
        assert content_reward(text, "", row["answer"]) == 1.0
