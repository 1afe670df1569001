"""Progress of a command: a bar on a terminal, lines off it, JSON lines when asked for; never on stdout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import agent
from tiny import write_model

from agent.cli import progress_bar as module
from agent.cli.progress_bar import show_progress
from agent.contract.protocol import Alive, Share


def test_off_a_terminal_there_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one for each event."""
    with show_progress("quantising", as_json=False) as told:
        told(Share(0.1))
        told(Alive(1.0))
        monkeypatch.setattr(module, "EVERY", 0.0)
        told(Share(0.55))
    found = capsys.readouterr()
    assert found.err.splitlines() == ["quantising", "quantising: 55%"]
    assert found.out == ""


def test_with_json_each_event_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr: stdout has the result."""
    with show_progress("quantising", as_json=True) as told:
        told(Share(0.5))
    found = capsys.readouterr()
    line = json.loads(found.err)
    assert (line["event"], line["what"], line["done"]) == ("progress", "quantising", 0.5)
    assert found.out == ""


@pytest.mark.process
def test_init_tells_how_far_it_is(tmp_path: Path) -> None:
    """From the worker that quantises, tensor by tensor, up to all of it."""
    source = write_model(tmp_path / "source")
    done = agent("init", "--base", source, "--json", state=tmp_path / "state")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["architecture"] == "llama"
    told = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    shares = [line["done"] for line in told if line["what"].startswith("quantising")]
    assert shares == sorted(shares)
    assert len(shares) > 10
    assert shares[-1] == 1.0
