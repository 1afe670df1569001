"""`serve`: what clients of OpenAI's protocol get over a Unix socket, while versions come and go."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from answering_box import make_box, publish
from needs import needs
from openai import OpenAI
from processes import AGENT, PATIENCE, agent, descendants, failed, internet_sockets, is_alive, wait_until

from agent.contract.atomic_io import hold_lock
from agent.contract.errors import StateError
from agent.contract.reply_messages import Replied, Reply
from agent.queue.store import Store
from agent.serve.chat_service import ChatService, Turn
from agent.serve.inference import Answerer
from agent.system.config import read_config
from agent.system.paths import Home
from agent.versions.registry import Registry

QUESTION: list[Any] = [{"role": "user", "content": "port?"}]
LONG = [{"role": "user", "content": "port? " * 600}]


@contextmanager
def serving(home: Home, path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [AGENT, "serve", "--socket", str(path), "--json", "--state", str(home.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert json.loads(process.stdout.readline())["socket"] == str(path)
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_base: Callable[[str], Path]) -> Home:
    return make_box(tmp_path_factory.mktemp("served") / "state", tiny_base("llama"))


@pytest.fixture(scope="module")
def server(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    path = tmp_path_factory.mktemp("socket") / "serve.sock"
    with serving(home, path) as process:
        yield process, path


def asking(path: Path) -> httpx.Client:
    """A client of the server behind a socket."""
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://box", timeout=PATIENCE)


@pytest.fixture
def http(server: tuple[subprocess.Popen[str], Path]) -> Iterator[httpx.Client]:
    with asking(server[1]) as client:
        yield client


@pytest.fixture
def openai(http: httpx.Client) -> OpenAI:
    return OpenAI(api_key="none", base_url="http://box/v1", http_client=http)


def said(home: Home, *flags: str) -> str:
    done = agent("generate", "port?", "--max-new-tokens", 12, "--json", *flags, state=home.path)
    return str(json.loads(done.stdout)["text"])


async def ask(service: ChatService) -> object:
    async def is_gone() -> bool:
        return False

    turn = Turn(service, Reply(tuple(QUESTION), 1))
    while isinstance(piece := await turn.next(is_gone), str):
        pass
    return piece


# ---- what clients get ----


@pytest.mark.process
def test_the_openai_client_gets_what_generate_says_whole_and_streamed(home: Home, openai: OpenAI) -> None:
    """The same tokens, the same end."""
    assert [model.id for model in openai.models.list()] == ["nslora-agent-version-1"]
    whole = openai.chat.completions.create(model="any", messages=QUESTION, max_tokens=12)
    pieces = list(
        openai.chat.completions.create(
            model="any", messages=QUESTION, max_tokens=12, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert whole.choices[0].message.content == text == said(home)
    assert whole.choices[0].finish_reason == pieces[-2].choices[0].finish_reason
    assert whole.usage == pieces[-1].usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 12


@pytest.mark.process
def test_curl_gets_an_answer(home: Home, server: tuple[subprocess.Popen[str], Path]) -> None:
    """As the documents show it."""
    curl = needs("curl", "curl")
    body = json.dumps({"messages": QUESTION, "max_tokens": 12})
    command = [curl, "-s", "--unix-socket", str(server[1]), "http://box/v1/chat/completions", "-d", body]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == said(home)


@pytest.mark.process
def test_drawn_answers_depend_on_the_seed_alone(http: httpx.Client) -> None:
    """The same again for the same seed, another for another."""

    def drawn(seed: int) -> str:
        body = {"messages": QUESTION, "max_tokens": 30, "temperature": 1.5, "seed": seed}
        return str(http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"])

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(5)}) > 1


@pytest.mark.process
def test_an_answer_ends_before_a_stop(http: httpx.Client) -> None:
    """Which is not part of it, whether it comes whole or in pieces."""
    body = {"messages": QUESTION, "max_tokens": 40}
    text = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    stop = text[len(text) // 2 :][:2]
    choice = http.post("/v1/chat/completions", json={**body, "stop": stop}).json()["choices"][0]
    assert choice["message"]["content"] == text[: text.index(stop)].rstrip()
    assert choice["finish_reason"] == "stop"


@pytest.mark.process
@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/v1/chat/completions", b"{", 400, "not JSON"),
        ("POST", "/v1/chat/completions", b'{"messages": []}', 400, "messages"),
        ("POST", "/v1/chat/completions", b" " * (2 << 20), 400, "longer than 1024 kB"),
        ("POST", "/v1/chat/completions", json.dumps({"messages": LONG}).encode(), 400, "the model takes 512"),
        ("POST", "/v1/completions", b"{}", 404, "are what is served"),
        ("GET", "/v1/chat/completions", b"", 405, "are what is served"),
    ],
)
def test_a_refusal_says_why(http: httpx.Client, method: str, path: str, body: bytes, status: int, words: str) -> None:
    """In the shape that clients know."""
    answer = http.request(method, path, content=body)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


@pytest.mark.process
def test_a_client_that_leaves_keeps_nobody_waiting(http: httpx.Client) -> None:
    """Its answer is broken off."""
    body = {"messages": QUESTION, "max_tokens": 450, "temperature": 1, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_lines())
    wait_until(lambda: http.get("/health").json()["waiting"] == 0 or None, "nobody waits")


# ---- versions come and go ----


@pytest.mark.process
def test_a_promotion_drops_no_question(home: Home, server: tuple[subprocess.Popen[str], Path]) -> None:
    """Four clients ask all the time; each answer is that of the version it names, the last ones the new one's."""
    expected = {f"nslora-agent-version-{n}": said(home, "--version", str(n)) for n in (1, 2)}
    got: list[tuple[str, str]] = []
    is_over = threading.Event()

    def ask() -> None:
        with asking(server[1]) as http:
            while not is_over.is_set():
                told = http.post("/v1/chat/completions", json={"messages": QUESTION, "max_tokens": 12}).json()
                got.append((told["model"], told["choices"][0]["message"]["content"]))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in ("2", "1", "2", "1"):
        count = len(got)
        wait_until(lambda seen=count: len(got) > seen + 8 or None, "answers")
        assert agent("promote", version, state=home.path).returncode == 0
    count = len(got)
    wait_until(lambda: len(got) > count + 8 or None, "answers")
    is_over.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert {text == expected[model] for model, text in got} == {True}
    assert {model for model, _ in got} == set(expected)
    assert got[-1][0] == "nslora-agent-version-1"


@pytest.mark.process
def test_a_version_that_cannot_be_loaded_takes_nobodys_place(
    home: Home, http: httpx.Client, tiny_base: Callable[[str], Path]
) -> None:
    """Whoever answered before goes on."""
    with Store(home.database) as store:
        registry = Registry(home.path, store)
        number = publish(registry, tiny_base("llama"), 3)
        registry.promote(number)
        path = home.versions / str(number) / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        told = http.post("/v1/chat/completions", json={"messages": QUESTION, "max_tokens": 2}).json()
        registry.promote(1)
    assert told["model"] == "nslora-agent-version-1"


@pytest.mark.process
def test_a_job_that_trains_refuses_questions_that_do_not_fit_beside_it(
    tmp_path: Path, tiny_base: Callable[[str], Path]
) -> None:
    """The server starts all the same, and answers once the job is over."""
    home = make_box(tmp_path / "state", tiny_base("llama"))
    with Store(home.database) as store:
        store.add("data.jsonl", "s", 1, 0, "", {}, "tiny", "numeric")
        job = store.claim("boot", os.getpid())
        assert job
        assert job.token
        store.beat(job.id, job.token, {"planned_mb": 1e9})
    path = tmp_path / "s"
    body = {"messages": QUESTION, "max_tokens": 2}
    with (
        hold_lock(home.device_lock, "the test") as lock,
        serving(home, path),
        asking(path) as http,
    ):
        refused = http.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        assert "a job is using the device" in refused.json()["error"]["message"]
        os.truncate(lock, 0)
        agent("cancel", 1, state=home.path)
        assert http.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.process
def test_an_idle_model_is_given_back_and_comes_again(home: Home, tmp_path: Path) -> None:
    """Its process is gone; the next question starts another."""
    config = read_config(home.config)
    with Answerer(home, config, tmp_path / "log") as answerer:
        service = ChatService(home, config, answerer)
        first = asyncio.run(ask(service))
        assert descendants(os.getpid())

        def is_given_back() -> bool:
            service.unload_after(
                0.0
            )  # again and again, as the server does: the first answer's task may not be over yet
            return answerer.loaded is None

        wait_until(is_given_back, "the model is given back")
        again = asyncio.run(ask(service))
        service.close()
    assert getattr(first, "text", first) == getattr(again, "text", again)


def test_whatever_goes_wrong_somebody_is_told(home: Home, tmp_path: Path) -> None:
    """A folder that is gone is no error of ours by name, and no reason to wait for ever."""
    config = read_config(home.config)
    with Answerer(home, config, tmp_path / "gone" / "log") as answerer:
        service = ChatService(home, config, answerer)
        told = asyncio.run(ask(service))
        service.close()
    assert isinstance(told, StateError)
    assert "FileNotFoundError" in str(told)


@pytest.mark.process
def test_a_worker_that_died_meanwhile_costs_no_question(home: Home, tmp_path: Path) -> None:
    """Another one is started."""
    config = read_config(home.config)
    with Answerer(home, config, tmp_path / "log") as answerer:
        service = ChatService(home, config, answerer)
        first = asyncio.run(ask(service))
        assert answerer._worker
        process = answerer._worker.process
        process.kill()
        wait_until(process.poll, "dead")
        again = asyncio.run(ask(service))
        service.close()
    assert isinstance(first, Replied)
    assert isinstance(again, Replied)
    assert first.text == again.text


# ---- the socket ----


@pytest.mark.process
def test_the_socket_is_its_owners_alone_and_nothing_listens_elsewhere(
    server: tuple[subprocess.Popen[str], Path], home: Home
) -> None:
    """No TCP, no UDP, in the server or in its worker; a second server is refused."""
    process, path = server
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for pid in (process.pid, *descendants(process.pid)):
        assert internet_sockets(pid) == set()
    failed(agent("serve", "--socket", path, state=home.path), 75, "somebody answers on")


@pytest.mark.process
def test_what_a_killed_server_left_is_taken_away(home: Home, tmp_path: Path) -> None:
    """And one that is told to end leaves nothing: no socket, no process."""
    path = tmp_path / "serve.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with serving(home, path) as process:
        below = descendants(process.pid)
        assert below
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert not path.exists()
        wait_until(lambda: not any(map(is_alive, below)) or None, "worker gone")


@pytest.mark.process
def test_a_server_that_ends_leaves_the_socket_of_its_successor(home: Home, tmp_path: Path) -> None:
    """It may still be answering when the next one takes its place."""
    path = tmp_path / "serve.sock"
    with serving(home, path) as old:
        path.unlink()
        with serving(home, path):
            old.send_signal(signal.SIGTERM)
            assert old.wait(PATIENCE) == 0
            with asking(path) as http:
                assert http.get("/health").json()["status"] == "ok"


@pytest.mark.process
def test_a_path_that_cannot_be_a_socket_is_refused(home: Home, tmp_path: Path) -> None:
    """A file of somebody else is never overwritten."""
    (tmp_path / "file").write_text("mine")
    failed(agent("serve", "--socket", tmp_path / "file", state=home.path), 73, "is no socket")
    assert (tmp_path / "file").read_text() == "mine"
    failed(agent("serve", "--socket", tmp_path / ("x" * 120), state=home.path), 73, "give another --socket")
    failed(agent("serve", "--socket", tmp_path / "no" / "s", state=home.path), 73, "give another --socket")


@pytest.mark.process
def test_without_a_model_the_server_says_what_to_do(state: Path) -> None:
    """At once, not at the first question."""
    failed(agent("serve", state=state), 68, "nslora-agent init")
