"""`serve`: OpenAI's chat completions on a Unix socket, by the active version; nothing listens on TCP."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from agent import chat_api
from agent.answering import Answering, Version
from agent.config import Config
from agent.errors import AgentError, Busy, DataError, OutOfMemory, StateError
from agent.home import Home
from agent.output import hint
from agent.protocol import MAX_LINE
from agent.voice import Heard, Turn, Voice

IDLE = 300.0
"""Seconds without a question after which the model's memory is given back."""
MOST_WAITING = 64
"""Questions that wait for their turn; more are told to come again."""
AGAIN = "10"
"""Seconds after which to come again."""
BACKLOG = 128
"""Connections that wait to be accepted."""


def serve(home: Home, config: Config, path: Path, ready: Callable[[Version], None], idle: float = IDLE) -> None:
    """Answer on a socket at `path` until SIGTERM or Ctrl-C; `ready` is told who answers.

    Raises Busy or StateError if the socket cannot be had, BaseModelError if there is no model to answer.
    """
    with tempfile.TemporaryDirectory() as work, Answering(home, config, Path(work) / "log") as answering:
        voice = Voice(home, config, answering)
        answering.model(voice.version)
        with _listening(path) as listener:
            try:
                voice.load()
            except (Busy, OutOfMemory) as fault:
                hint(f"questions are refused for now: {fault}")
            ready(voice.version)
            _run(app(voice, config.training.memory_budget, idle), listener)


def _run(application: Starlette, listener: socket.socket) -> None:
    server = uvicorn.Server(uvicorn.Config(application, log_config=None, access_log=False))
    # uvicorn comes to an end in good order, and then raises the signal again.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    asyncio.run(server.serve([listener]))


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A socket that its owner alone can connect to; what a killed server left there is taken away."""
    _make_free(path)
    before = os.umask(0o177)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(BACKLOG)
            yield listener
    except OSError as fault:
        raise StateError(f"cannot listen on {path}: {fault}; give another --socket PATH") from fault
    finally:
        os.umask(before)
        path.unlink(missing_ok=True)


def _make_free(path: Path) -> None:
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise StateError(f"{path} exists and is no socket: give another --socket PATH")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise Busy(f"somebody answers on {path} already: stop that server, or give another --socket PATH")


def app(voice: Voice, memory_budget: int, idle: float) -> Starlette:
    """The routes; closes the voice at its end."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        resting = asyncio.create_task(_rest(voice, idle))
        yield
        resting.cancel()
        voice.close()

    async def completions(request: Request) -> Response:
        asked = chat_api.parsed(await _body(request), memory_budget)
        if voice.waiting >= MOST_WAITING:
            raise Busy(f"{MOST_WAITING} questions are waiting: ask again later")
        turn = Turn(voice, asked.reply)
        return await (_streamed(turn, with_usage=asked.with_usage) if asked.stream else _whole(turn, request))

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": model_id(voice.version), "object": "model"}]})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "version": voice.version.number, "waiting": voice.waiting})

    routes = [
        Route("/v1/chat/completions", completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/health", health),
    ]
    handlers: Any = {AgentError: _refusal, HTTPException: _no_such_thing}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)


async def _rest(voice: Voice, idle: float) -> None:
    while True:
        await asyncio.sleep(idle / 10)
        voice.rest_after(idle)


async def _body(request: Request) -> bytes:
    found = b""
    async for piece in request.stream():
        found += piece
        if len(found) > MAX_LINE:
            raise DataError(f"the body is longer than {MAX_LINE >> 10} kB")
    return found


async def _whole(turn: Turn, request: Request) -> Response:
    try:
        while isinstance(heard := await turn.heard.get(), str):
            if await request.is_disconnected():
                return Response(status_code=499)
    finally:
        turn.end()
    if isinstance(heard, AgentError):
        raise heard
    return JSONResponse(chat_api.completion(_about(turn.version), heard))


async def _streamed(turn: Turn, *, with_usage: bool) -> Response:
    first = await turn.heard.get()  # a fault before the first word is still an HTTP error
    if isinstance(first, AgentError):
        raise first
    return StreamingResponse(_events(turn, first, with_usage=with_usage), media_type="text/event-stream")


async def _events(turn: Turn, heard: Heard, *, with_usage: bool) -> AsyncIterator[bytes]:
    about = _about(turn.version)
    yield chat_api.chunk(about, {"role": "assistant", "content": ""})
    try:
        while isinstance(heard, str):
            yield chat_api.chunk(about, {"content": heard})
            heard = await turn.heard.get()
        if isinstance(heard, AgentError):
            yield chat_api.event(chat_api.fault(str(heard), type(heard).__name__))
        else:
            yield chat_api.last_chunks(about, heard, with_usage=with_usage)
    finally:
        turn.end()


def model_id(version: Version) -> str:
    """How a version is called in answers."""
    return f"nslora-agent-{version.name.replace(' ', '-')}"


def _about(version: Version) -> chat_api.Body:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model_id(version)}


async def _refusal(_: Request, fault: AgentError) -> Response:
    if isinstance(fault, Busy | OutOfMemory):
        return JSONResponse(chat_api.fault(str(fault), type(fault).__name__), 503, {"Retry-After": AGAIN})
    status = 400 if isinstance(fault, DataError) else 500
    return JSONResponse(chat_api.fault(str(fault), type(fault).__name__), status)


async def _no_such_thing(_: Request, fault: HTTPException) -> Response:
    words = "POST /v1/chat/completions, GET /v1/models and GET /health are what is served"
    return JSONResponse(chat_api.fault(words, fault.detail), fault.status_code)
