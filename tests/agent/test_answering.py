"""`generate` and `chat`: who answers, what is remembered, and that no running job loses the memory it was promised."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from answering_box import SYSTEM, make_box
from processes import AGENT, PATIENCE, agent, failed

from agent.cli.stream_output import without_controls
from agent.contract.atomic_io import hold_lock
from agent.contract.errors import Busy
from agent.contract.protocol import Load
from agent.contract.reply_messages import Replied, Reply, Said
from agent.contract.requests import Request
from agent.queue.store import Store
from agent.serve.inference import Answerer, find_version
from agent.system.config import read_config
from agent.system.paths import Home
from agent.system.worker_client import Worker

SHORT = ("--max-new-tokens", "8", "--json")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_base: Callable[[str], Path]) -> Home:
    return make_box(tmp_path_factory.mktemp("answers") / "state", tiny_base("llama"))


def asked(home: Home, *arguments: str, **options: Any) -> list[Any]:
    """What a command prints as JSON lines."""
    done = agent(*arguments, *SHORT, state=home.path, **options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.process
def test_the_active_version_answers_or_the_one_that_is_named(home: Home) -> None:
    """With its own system prompt, which costs tokens of the prompt."""
    ((base, active),) = asked(home, "generate", "port?", "--compare")
    ((second),) = asked(home, "generate", "port?", "--version", "2")
    assert [base["version"], active["version"], second["version"]] == [0, 1, 2]
    assert len({base["text"], active["text"], second["text"]}) == 3
    assert base["prompt_tokens"] == active["prompt_tokens"] < second["prompt_tokens"] - len(SYSTEM) / 4
    assert active["ended"] in {"length", "stop"}


@pytest.mark.process
def test_a_chat_remembers_what_was_said_until_a_new_one_begins(home: Home) -> None:
    """Off a terminal each line of stdin is a question; blank ones are none."""
    first, second, third = asked(home, "chat", input="port?\n\ncolour?\n/new\nport?\n/end\nnever asked\n")
    assert second["prompt_tokens"] > first["prompt_tokens"] + first["tokens"]
    assert {**third, "seconds": 0} == {**first, "seconds": 0}


@pytest.mark.process
def test_people_see_who_says_what(home: Home) -> None:
    """Names stand above the answers where there are several, nothing else does."""
    done = agent("generate", "port?", "--compare", "--max-new-tokens", 8, state=home.path)
    ((base, active),) = asked(home, "generate", "port?", "--compare")
    assert done.stdout == f"base:\n{base['text']}\n\nversion 1:\n{active['text']}\n"


@pytest.mark.process
def test_the_base_model_is_not_compared_with_itself(home: Home) -> None:
    """Where it is what would answer."""
    failed(agent("chat", "--compare", "--version", "base", state=home.path), 66, "nothing to compare")


def test_an_answer_can_do_nothing_to_a_terminal() -> None:
    """Control characters are left out; line ends stay, and so does what other languages write with."""
    assert without_controls("a\x1b]0;title\x07b\nc\td\x9b31m\u202e") == "a]0;titleb\nc\td31m"
    assert without_controls("12\u202f000 €, क\u200dष") == "12\u202f000 €, क\u200dष"


@pytest.mark.process
def test_what_does_not_fit_the_model_is_refused(home: Home) -> None:
    """The tiny model was made for 512 tokens."""
    failed(agent("generate", "port? " * 600, state=home.path), 65, "512", "begin a new conversation")
    long = "x" * (1 << 20)
    failed(agent("generate", "-", state=home.path, input=long), 65, "too long")


# ---- beside a job ----


def running_job(home: Home, **planned: float) -> None:
    """A job that trains, and was promised that much."""
    with Store(home.database) as store:
        store.add("data.jsonl", "s", 1, 0, "", {}, "tiny", "numeric")
        job = store.claim("boot", os.getpid())
        assert job
        assert job.token
        store.beat(job.id, job.token, {"rss_mb": 100.0, **planned})


@pytest.fixture
def box(tmp_path: Path, tiny_base: Callable[[str], Path]) -> Home:
    return make_box(tmp_path / "state", tiny_base("llama"))


@pytest.mark.process
def test_a_job_that_trains_keeps_the_memory_it_was_promised(box: Home) -> None:
    """What does not fit beside it is told to come again."""
    running_job(box, planned_mb=1e9)
    with hold_lock(box.device_lock, "the test"):
        failed(agent("generate", "hi", state=box.path), 75, "a job is using the device", "are to spare beside it")


@pytest.mark.process
def test_a_job_that_has_not_planned_yet_may_take_everything(box: Home) -> None:
    """So nobody loads a model beside it."""
    running_job(box)
    with hold_lock(box.device_lock, "the test"):
        failed(agent("generate", "hi", state=box.path), 75, "a job is using the device")


@pytest.mark.process
def test_where_there_is_room_a_question_is_answered_beside_a_job(box: Home) -> None:
    """The lock alone refuses nobody."""
    running_job(box, planned_mb=200.0)
    with hold_lock(box.device_lock, "the test"):
        assert asked(box, "generate", "hi")[0]["version"] == 1


@pytest.mark.process
def test_nobody_else_gets_the_device_while_a_model_is_loaded(
    box: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that starts then plans with what is left; once the model is there it may start."""
    free: list[tuple[str, bool]] = []
    ask = Worker.ask

    def spy(worker: Worker, request: Request, *more: Any) -> Any:
        free.append((type(request).__name__, is_free(box)))
        return ask(worker, request, *more)

    monkeypatch.setattr(Worker, "ask", spy)
    config = read_config(box.config)
    with Answerer(box, config, tmp_path / "log") as answering:
        answering.load(find_version(None, box, config))
        answering.reply(Reply(({"role": "user", "content": "port?"},), 2))
    assert free == [("Plan", False), ("Load", False), ("Reply", True)]


def is_free(home: Home) -> bool:
    try:
        with hold_lock(home.device_lock, "the test"):
            return True
    except Busy:
        return False


# ---- ending an answer ----


@pytest.mark.process
def test_an_answer_can_be_broken_off_and_the_next_one_is_whole(home: Home, tmp_path: Path) -> None:
    """By SIGUSR1, at the next token."""
    request = Reply(({"role": "user", "content": "port?"},), 400, stops=("\x00",))
    with Worker("quant.worker", tmp_path / "log") as worker:
        worker.ask(Load(str(home.model("tiny")), str(home.versions / "1")))
        pieces: list[str] = []

        def hear(event: object) -> None:
            if isinstance(event, Said):
                pieces.append(event.text)
                worker.break_off()

        broken = worker.ask(request, hear)
        whole = worker.ask(request)
    assert isinstance(broken, Replied)
    assert isinstance(whole, Replied)
    assert broken.ended == "broken off"
    assert broken.text == "".join(pieces)
    assert whole.text.startswith(broken.text)
    assert whole.tokens > broken.tokens


@pytest.mark.process
def test_ctrl_c_ends_the_answer_not_the_chat(home: Home) -> None:
    """On a terminal, nor does what is refused; Ctrl-D at the prompt ends it in good order."""
    parent, child = pty.openpty()
    command = [AGENT, "chat", "--max-new-tokens", "450", "--state", str(home.path)]
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, start_new_session=True) as process:
        os.close(child)
        seen = read_until(parent, "> ")
        assert "/new begins a new conversation" in seen
        os.write(parent, b"port?\n")
        read_until(parent, "\n")
        assert os.read(parent, 1), "the answer begins"
        process.send_signal(2)
        read_until(parent, "> ")
        os.write(parent, b"port? " * 600 + b"\n")
        assert "begin a new conversation" in read_until(parent, "> ")
        os.write(parent, b"\x04")
        assert process.wait(PATIENCE) == 0
    os.close(parent)


def read_until(terminal: int, what: str) -> str:
    """What a terminal shows up to some words at its end."""
    seen = ""
    while not seen.endswith(what):
        assert select.select([terminal], [], [], PATIENCE)[0], seen
        seen += os.read(terminal, 4096).decode(errors="replace")
    return seen
