"""Jobs that several test files look at, each run once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from llm_server import LLMServer
from processes import daemon
from test_symbolic_job import careful, set_up
from tiny import write_model
from whole_job import enqueue, make_home

from agent.system.paths import Home


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as it came."""
    return write_model(tmp_path_factory.mktemp("neurosymbolic") / "tiny")


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, source: Path, tiny_base: Callable[[str], Path]) -> Home:
    """A box whose neurosymbolic job nobody disturbed."""
    made = make_home(tmp_path_factory.mktemp("uninterrupted"), source, tiny_base("llama"))
    with LLMServer(careful) as server, daemon(made.path) as running:
        set_up(made, server)
        enqueue(made)
        running.wait_for(1, "done")
        (made.path / "asked").write_text(json.dumps([request.prompt for request in server.requests]))
    return made
