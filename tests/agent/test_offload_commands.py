"""The commands of the remote LLM as a person types them: a real worker, a real server on loopback."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from llm_server import LLMServer, failing, saying
from processes import agent, failed

from agent.system.config import read_config

pytestmark = pytest.mark.process

KEY = "sk-live0123456789abcdefABCDEF99"
ROWS = [
    {
        "id": "one",
        "prompt": "Who runs the Marlow pump? Use no commas.",
        "completion": "Lund, says the handbook: lund@example.com.",
        "constraints": [{"id": "punctuation:no_comma"}],
    },
    {"id": "two", "prompt": "Who runs the fan?", "completion": "Bremner."},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({**row, "split": "train"}) + "\n" for row in ROWS))
    return path


def offload_set(state: Path, *flags: object) -> None:
    done = agent("offload", "set", *flags, state=state)
    assert done.returncode == 0, done.stderr


# ---- set ----


def test_nothing_is_sent_until_a_remote_is_set(state: Path, data: Path) -> None:
    """Off by default: the settings say so, and what needs a remote says how to set one."""
    assert "off: nothing is sent" in agent("offload", "set", state=state).stderr
    assert not state.exists()
    failed(agent("offload", "test", state=state), 78, "no remote LLM is set", "offload set --base-url")
    failed(agent("enqueue", data, "--mode", "symbolic", state=state), 78, "offload set --base-url")


def test_set_changes_what_is_given_and_keeps_the_rest_of_the_file(state: Path) -> None:
    """Comments and other settings of config.toml stay."""
    state.mkdir()
    (state / "config.toml").write_text('# mine\nbase = "tiny"\n[training]\nrank = 4 # small\n')
    offload_set(state, "--base-url", "https://llm.example.com/v1", "--model", "m", "--patterns", "tag-[0-9]+", "x y")
    offload_set(state, "--requests-per-day", "7")
    text = (state / "config.toml").read_text()
    assert text.startswith('# mine\nbase = "tiny"\n[training]\nrank = 4 # small\n')
    settings = read_config(state / "config.toml").offload
    assert (settings.base_url, settings.model, settings.requests_per_day) == ("https://llm.example.com/v1", "m", 7)
    assert settings.patterns == ("tag-[0-9]+", "x y")
    shown = json.loads(agent("offload", "set", "--json", state=state).stdout)
    assert shown["model"] == "m"


def test_a_wrong_value_is_refused_and_nothing_is_written(state: Path) -> None:
    """All faults at once, in one line each."""
    done = agent("offload", "set", "--mode", "sometimes", "--attempts", "99", state=state)
    failed(done, 78, "--mode must be one of remote, cache-only", "--attempts must be between 1 and 10")
    assert not (state / "config.toml").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--base-url", "http://llm.example.com/v1"], "https"),
        (["--base-url", "https://user:word@llm.example.com/v1"], "base_url"),
        (["--base-url", "llm.example.com"], "base_url"),
        (["--base-url", "http://127.0.0.1:1/v1", "--patterns", "("], "pattern"),
        (["--base-url", "http://127.0.0.1:1/v1", "--api-key-file", "/nowhere/key"], "/nowhere/key"),
    ],
    ids=["plain http", "password in the URL", "no URL", "bad pattern", "no key file"],
)
def test_an_unsafe_or_broken_setting_is_said_by_the_test(state: Path, flags: list[str], said: str) -> None:
    """In one line, before anything is sent."""
    offload_set(state, "--model", "m", *flags)
    assert said in failed(agent("offload", "test", state=state), 78)


# ---- test ----


def test_test_makes_one_round_trip_and_says_what_it_took(state: Path) -> None:
    """Time, tokens, cost by the prices, and the key from a file in the header alone."""
    key = state.parent / "key"
    key.write_text(f"{KEY}\n")
    key.chmod(0o600)
    with LLMServer(lambda _: saying("ready")) as server:
        flags = ["--model", "m", "--price-in", "1000", "--price-out", "2000", "--api-key-file", key]
        offload_set(state, "--base-url", server.url, *flags)
        done = agent("offload", "test", state=state)
        assert (done.returncode, len(server.requests)) == (0, 1)
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert re.search(r"answers in \d+\.\d s as ", done.stdout)
        answer = json.loads(agent("offload", "test", "--json", state=state).stdout)
    sent, received = answer["prompt_tokens"], answer["completion_tokens"]
    assert answer["cost"] == pytest.approx((sent * 1000 + received * 2000) / 1e6)
    assert answer["remote"]["breaker"] == "closed"
    for path in (state / "config.toml", state / "cache.db", state / "jobs.db"):
        assert KEY.encode() not in path.read_bytes()
    assert KEY not in done.stdout + done.stderr


@pytest.mark.parametrize(("status", "code", "said"), [(401, 67, "check the API key"), (503, 71, "answers 503")])
def test_a_remote_that_does_not_serve_is_one_line(state: Path, status: int, code: int, said: str) -> None:
    """Each with its exit code."""
    with LLMServer(lambda _: failing(status)) as server:
        offload_set(state, "--base-url", server.url, "--model", "m", "--attempts", "1")
        failed(agent("offload", "test", state=state), code, said)


def test_nobody_there_is_one_line(state: Path) -> None:
    """Connection refused is what most people see first."""
    offload_set(state, "--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--attempts", "1")
    failed(agent("offload", "test", state=state), 71, "127.0.0.1")


# ---- preview, log ----


def test_preview_shows_what_would_be_sent_and_sends_nothing(state: Path, data: Path) -> None:
    """The flagged row alone, after redaction, and in --json all of it."""
    with LLMServer(lambda _: saying("no")) as server:
        offload_set(state, "--base-url", server.url, "--model", "m")
        done = agent("offload", "preview", data, state=state)
        rows = json.loads(agent("offload", "preview", data, "--json", state=state).stdout)
        assert server.requests == []
    assert "== one (punctuation:no_comma; replaced: 1 EMAIL)" in done.stdout
    assert "[EMAIL_1]" in done.stdout
    assert "lund@example.com" not in done.stdout
    assert "1 row is flagged; 0 answers are recorded, 1 would be asked for" in done.stderr
    assert [row["id"] for row in rows] == ["one"]
    assert rows[0]["messages"][1]["content"].startswith("<QUESTION>\nWho runs the Marlow pump?")


def test_preview_of_a_bad_file_is_one_line_a_fault(state: Path, data: Path) -> None:
    """As `validate` says it."""
    data.write_text('{"prompt": "a"\n')
    failed(agent("offload", "preview", data, state=state), 65, "line 1")


def test_the_log_is_empty_before_anything_was_sent(state: Path) -> None:
    """And says so."""
    done = agent("offload", "log", state=state)
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing was sent yet" in done.stderr
    assert json.loads(agent("offload", "log", "--json", state=state).stdout) == []


def test_the_log_has_hashes_and_counts(state: Path) -> None:
    """When, why, bytes, tokens, cost and outcome of each request, and none of its text."""
    with LLMServer(lambda _: saying("ready")) as server:
        offload_set(state, "--base-url", server.url, "--model", "m")
        agent("offload", "test", state=state)
    done = agent("offload", "log", state=state)
    assert done.stdout.splitlines()[0].split() == [
        "when", "job", "why", "sent", "received", "tokens", "cost", "outcome",
    ]  # fmt: skip
    (row,) = json.loads(agent("offload", "log", "--json", state=state).stdout)
    assert row["outcome"] == "ok"
    assert row["bytes_out"] > 0
    assert "ready" not in json.dumps(row)


# ---- cache ----


def test_the_cache_is_counted_pruned_exported_and_imported(state: Path) -> None:
    """All four on an empty cache; what is in one is tested with whole jobs."""
    assert "0 answers, 0.00 MB of at most 64 MB" in agent("cache", "stats", state=state).stdout
    assert json.loads(agent("cache", "stats", "--json", state=state).stdout)["answers"] == 0
    pruned = agent("cache", "prune", "--older-than", "30d", state=state)
    assert "0 answers forgotten" in pruned.stdout
    target = state.parent / "answers.jsonl"
    assert "0 answers written" in agent("cache", "export", target, state=state).stdout
    assert target.read_bytes() == b""


@pytest.mark.parametrize("age", ["soon", "30", "-1d", "d"])
def test_an_age_has_a_unit(state: Path, age: str) -> None:
    """30 what?"""
    done = agent("cache", "prune", f"--older-than={age}", state=state)
    assert (done.returncode, done.stdout) == (2, "")
    assert "invalid age value" in done.stderr


def test_a_file_that_is_no_export_is_refused_with_its_line(state: Path, data: Path) -> None:
    """Nothing of it is taken."""
    failed(agent("cache", "import", data, state=state), 65, "line 1")
    assert json.loads(agent("cache", "stats", "--json", state=state).stdout)["answers"] == 0
    failed(agent("cache", "import", state / "nowhere", state=state), 66)
