from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import Any

import pytest
from processes import PATIENCE

from agent.system.output import age, clock, hint, print_json, print_table, remote_in_words, say

TABLE = """
from agent.system.output import print_table
print_table(("job", "state"), [(1, "done"), (2, "failed"), (3, None)])
"""


def on_a_terminal(code: str) -> str:
    """What a program writes to a terminal of 60 columns."""
    parent, child = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "COLUMNS": "60", "LANG": "C.UTF-8"}
    subprocess.run([sys.executable, "-I", "-c", code], stdout=child, env=environment, check=True, timeout=PATIENCE)
    os.close(child)
    shown = b""
    try:
        while piece := os.read(parent, 4096):
            shown += piece
    except OSError:  # the terminal's end
        pass
    os.close(parent)
    return shown.decode()


@pytest.mark.process
def test_a_terminal_gets_a_table_with_colours_and_a_rule() -> None:
    """Cells that are a word with a style of its own carry it, others do not."""
    shown = on_a_terminal(TABLE)
    assert "\x1b[32mdone" in shown
    assert "\x1b[31mfailed" in shown
    assert "─" in shown
    assert "1" in shown


def test_off_a_terminal_there_are_columns_and_no_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """A script can cut them; None is an empty cell and nothing trails."""
    print_table(("job", "state", "x"), [(1, "done", None), (22, "failed", "y")])
    assert capsys.readouterr().out == "job  state   x\n1    done\n22   failed  y\n"


@pytest.mark.process
def test_off_a_terminal_rich_is_not_even_imported() -> None:
    """It costs 80 ms that a script should not pay."""
    code = f"{TABLE}\nimport sys\nassert 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-I", "-c", code], stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE)


def test_an_empty_table_is_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    """No rows are no error."""
    print_table(("job", "state"), [])
    assert capsys.readouterr().out == "job  state\n"


def test_json_is_one_line_and_keeps_every_script(capsys: pytest.CaptureFixture[str]) -> None:
    """One value a line, readable as it is."""
    print_json({"text": "größer → 日本\n2", "n": None})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "größer → 日本" in out
    assert json.loads(out) == {"text": "größer → 日本\n2", "n": None}


def test_results_go_to_stdout_and_advice_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe gets results alone."""
    say("result")
    hint("advice")
    assert tuple(capsys.readouterr()) == ("result\n", "advice\n")


@pytest.mark.parametrize(
    ("seconds", "words"), [(-5, "0s"), (0, "0s"), (59, "59s"), (60, "1m"), (7000, "2h"), (90_000, "1d")]
)
def test_an_age_is_told_in_its_largest_unit(seconds: float, words: str) -> None:
    """A clock that went backwards is no reason for a minus sign."""
    assert age(seconds) == words


def test_a_time_is_told_by_the_wall_clock() -> None:
    """Year to second, sortable."""
    assert len(clock(0)) == 19
    assert clock(1_700_000_000) > clock(1_600_000_000)


@pytest.mark.parametrize(
    ("breaker", "said"),
    [
        ({"breaker": "closed"}, "answered when last asked"),
        ({"breaker": "open", "retry_at": 60.0}, "left alone until"),
        ({"breaker": "half-open", "retry_at": None}, "left alone for now after 5 failures in a row: it was silent"),
    ],
    ids=["closed", "open", "half-open"],
)
def test_the_remote_s_standing_is_told_in_words(breaker: dict[str, Any], said: str) -> None:
    """For `ls` and `doctor`."""
    remote = {"at": 0.0, "failures": 5, "reason": "it was silent", "requests_today": 1, "tokens_today": 2, **breaker}
    assert said in remote_in_words(remote)
