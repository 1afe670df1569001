"""What TAB offers: asked through bash's own function, and typed at real shells on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import sqlite3
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from needs import needs
from processes import AGENT, PATIENCE

from agent import api
from agent.queue.jobs import State
from agent.queue.store import Store, newest_jobs
from agent.versions.registry import Registry

ASK = """
eval "$(nslora-agent completion bash)"
for COMP_LINE in "$@"; do
  COMP_POINT=${#COMP_LINE} COMP_TYPE=9 COMPREPLY=()
  _python_argcomplete nslora-agent
  (IFS=,; echo "${COMPREPLY[*]}")
done
"""
"""What bash does with the script when somebody presses TAB at the end of each line."""


def environment(state: Path) -> dict[str, str]:
    """A home of one's own, and the program in the path."""
    path = f"{Path(AGENT).parent}:/usr/bin:/bin"
    return {"PATH": path, "HOME": str(state.parent), "TERM": "xterm", "LANG": "C.UTF-8", "NSLORA_STATE": str(state)}


def asked(state: Path, *lines: str) -> list[set[str]]:
    """What is offered at the end of each line, the words of the program left out; nothing may be said on stderr."""
    done = subprocess.run(
        [needs("bash", "bash"), "--norc", "-c", ASK, "bash", *(f"nslora-agent {line}" for line in lines)],
        cwd=state.parent, env=environment(state), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return [set(line.replace(" ", "").split(",")) - {""} for line in done.stdout.splitlines()]


@pytest.fixture
def box(state: Path, data: Path) -> Path:
    """Job 1 is done, 2 cancelled, 3 queued; there is a version besides the base model."""
    for _ in range(3):
        api.enqueue(data, state=state)
    with Store(state / "jobs.db") as store:
        claimed = store.claim("boot", 1)
        assert claimed is not None
        store.finish(claimed.id, str(claimed.token), State.DONE, "because")
        store.cancel(2, "because")
        with Registry(state, store).draft({"job": 1}) as draft:
            (draft.folder / "x").touch()
    (state.parent / "a folder").mkdir()
    return state


@pytest.mark.process
def test_what_is_offered(box: Path) -> None:
    """Commands, flags, choices, files, and what the state folder has; jobs only where the command can take them."""
    offered = {
        "ca": {"cancel", "cache"},
        "config ": {"show", "check"},
        "--": {"--help", "--version"},
        "enqueue --mic": {"--micro-batch"},
        "enqueue --mode s": {"symbolic"},
        "enqueue --optimizer ": {"adamw", "adamw8bit"},
        "enqueue --rank ": set(),
        "enqueue ": {"data.jsonl", "a\\folder/", "state/"},
        "validate state/sp": {"state/spool/"},
        "ls --state ": {"a\\folder/", "state/"},
        "config show metrics": {"metrics.textfile"},
        "show ": {"1", "2", "3"},
        "show --state nowhere ": set(),
        "cancel ": {"3"},
        "retry ": {"2"},
        "promote ": {"0", "1"},
        "completion ": {"bash", "zsh", "fish"},
        "init --base ": {"smollm2-135m-instruct", "a\\folder/", "state/"},
        "generate ": set(),
        "show 1 ": set(),
    }
    assert dict(zip(offered, asked(box, *offered), strict=True)) == offered


@pytest.mark.process
def test_a_fault_is_silent_and_changes_nothing(box: Path) -> None:
    """A folder that is not there, a database that is locked or none, a version without a manifest."""
    (box / "versions" / "1" / "manifest.json").unlink()
    with sqlite3.connect(box / "jobs.db", isolation_level=None) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        assert asked(box, "show ") == [set()]
    (box / "jobs.db").write_bytes(b"no database" * 1000)
    assert asked(box, "cancel ", "promote ") == [set(), {"0", "1"}]
    assert not (box.parent / "nowhere").exists()


def test_who_presses_tab_does_not_wait_as_a_command_would(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of a command's patience with a locked database."""
    waits: list[float] = []
    connect = sqlite3.connect

    def noted(*where: Any, timeout: float, **how: Any) -> sqlite3.Connection:
        waits.append(timeout)
        return connect(*where, timeout=timeout, **how)

    monkeypatch.setattr(sqlite3, "connect", noted)
    assert [number for number, _, _ in newest_jobs(box / "jobs.db", 50)] == [3, 2, 1]
    Store(box / "jobs.db").close()
    tab, command = waits
    assert tab <= command / 100


@pytest.mark.process
def test_only_a_shell_that_asks_pays_for_it(box: Path) -> None:
    """A command imports no argcomplete."""
    code = "import sys; from agent.cli.main import main; main(['ls']); print('argcomplete' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(box), capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("False\n")


# ---- shells on a terminal ----


class Terminal:
    """A shell that believes a person types."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._shown = ""

    def type(self, keys: str) -> None:
        """Press keys; what was on the screen is forgotten."""
        self._shown = ""
        os.write(self._descriptor, keys.encode())

    def shows(self, pattern: str) -> None:
        """Wait until the screen shows something; escape sequences are left out."""
        while not re.search(pattern, re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z]|\(B|\][^\x07]*\x07)|\r", "", self._shown)):
            assert select.select([self._descriptor], [], [], PATIENCE)[0], f"{pattern!r} not in {self._shown!r}"
            self._shown += os.read(self._descriptor, 65536).decode(errors="replace")


@contextmanager
def terminal(state: Path, *command: str) -> Iterator[Terminal]:
    child, descriptor = pty.fork()
    if child == 0:
        os.chdir(state.parent)
        os.execvpe(command[0], command, environment(state))  # noqa: S606  a shell is what it becomes
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    try:
        yield Terminal(descriptor)
    finally:
        os.close(descriptor)  # hangs up
        os.waitpid(child, 0)


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(nslora-agent completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -U compinit; compinit -D; eval "$(nslora-agent completion zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "nslora-agent completion fish | source"),
}


@pytest.mark.process
@pytest.mark.parametrize("shell", SHELLS)
def test_a_person_at_a_shell_finishes_words_with_tab(box: Path, shell: str) -> None:
    """A command, a file that is then read, and the list of jobs, with what they are where the shell shows it."""
    needs(shell, shell)
    command, set_up = SHELLS[shell]
    with terminal(box, *command) as screen:
        screen.type(f'{set_up}; echo set-"up"\n')
        screen.shows(r"set-up\s")
        screen.type("nslora-agent vali\tda\t\n")
        screen.shows("3 good rows of shape completion")
        bash = shell == "bash"  # lists numbers alone, at the second TAB
        screen.type("nslora-agent show \t" + "\t" * bash)
        screen.shows(r"1 +2 +3" if bash else r"(?s)1 .*done, data\.jsonl")
