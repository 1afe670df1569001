from __future__ import annotations

import os
import subprocess
import sys

import pytest

from offload.owner import is_gone, process_name


def test_a_living_process_is_not_gone() -> None:
    """Its name is its own, each time."""
    assert not is_gone(process_name())
    assert process_name() != process_name()


@pytest.mark.process
def test_a_process_that_ended_or_was_killed_is_gone() -> None:
    """At once, also while it is a zombie."""
    code = "from offload.owner import process_name; print(process_name(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert not is_gone(name)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(name)
    assert is_gone(name)


def test_a_process_of_another_boot_and_one_that_took_over_its_number_are_gone() -> None:
    """Numbers are used again."""
    boot, pid, started, token = process_name().split(" ")
    assert is_gone(f"{boot[:-1]}x {pid} {started} {token}")
    assert is_gone(f"{boot} {pid} {int(started) - 1} {token}")


@pytest.mark.parametrize("name", ["", "somebody", "a b c d e"])
def test_of_a_name_that_is_none_nothing_can_be_told(name: str) -> None:
    """Then the lease's time decides."""
    assert not is_gone(name)
