"""Whoever writes to jobs.db holds up every other process that wants to: nothing slow is done in between."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT, python_files

pytestmark = pytest.mark.process

LIFE = Path(__file__).with_name("writing_life.py")
BEGINNINGS = {"transaction", "attempt"}
"""Methods that begin a write transaction."""


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was done in the transactions of a box's life, and which functions ran."""
    state = tmp_path_factory.mktemp("life") / "state"
    done = subprocess.run([sys.executable, LIFE, state], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_nothing_slow_is_done_in_a_write_transaction(life: dict[str, Any]) -> None:
    """No file is read or written, no tree deleted, no process started, no sleep, no import: the hook sees them all."""
    assert life["slow"] == []


def writers() -> set[tuple[str, str]]:
    """File and name of every function that begins a transaction."""
    trees = {path.name: ast.parse(path.read_text()) for path in python_files("agent")}
    functions = [(file, f) for file, tree in trees.items() for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)]
    return {(file, function.name) for file, function in functions if begins(function)}


def begins(function: ast.FunctionDef) -> bool:
    items = [item for node in ast.walk(function) if isinstance(node, ast.With) for item in node.items]
    calls = [node for item in items for node in ast.walk(item.context_expr) if isinstance(node, ast.Call)]
    return any(isinstance(call.func, ast.Attribute) and call.func.attr in BEGINNINGS for call in calls)


def test_that_life_leaves_no_writer_out(life: dict[str, Any]) -> None:
    """A new function with a transaction has to be lived through too."""
    found = writers()
    assert {("registry.py", "promote"), ("decision_store.py", "choose"), ("store.py", "beat")} <= found
    assert found - set(map(tuple, life["ran"])) == set()
