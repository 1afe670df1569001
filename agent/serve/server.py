"""`serve`: OpenAI's chat completions on a Unix socket, by the active version; nothing listens on TCP."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from agent.contract.errors import AgentError, Busy, DataError, OutOfMemory, StateError
from agent.contract.protocol import MAX_LINE
from agent.serve import chat_api
from agent.serve.chat_service import ChatService, Piece, Turn
from agent.serve.inference import Answerer, ServedVersion
from agent.system.config import Config
from agent.system.output import hint
from agent.system.paths import Home

IDLE = 300.0
"""Seconds without a question after which the model's memory is given back."""
MOST_WAITING = 64
"""Questions that wait for their turn; more are told to come again."""
AGAIN = "10"
"""Seconds after which to come again."""
LOG = "serve.log"
"""What libraries say, in the state folder."""
GRACE = 60
"""Seconds that answers which are being given may take after SIGTERM."""
BACKLOG = 128
"""Connections that wait to be accepted."""


def serve(home: Home, config: Config, path: Path, ready: Callable[[ServedVersion], None], idle: float = IDLE) -> None:
    """Answer on a socket at `path` until SIGTERM or Ctrl-C; `ready` is told who answers.

    Raises Busy or StateError if the socket cannot be had, BaseModelError if there is no model to answer.
    """
    # uvicorn comes to an end in good order, and then raises the signal again.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Answerer(home, config, home.path / LOG) as answerer:
        service = ChatService(home, config, answerer)
        home.require_model(service.version.base)
        with _listen(path) as listener:
            try:
                service.load()
            except (Busy, OutOfMemory) as fault:
                hint(f"questions are refused for now: {fault}")
            ready(service.version)
            application = app(service, idle)
            about = uvicorn.Config(application, log_config=None, access_log=False, timeout_graceful_shutdown=GRACE)
            asyncio.run(uvicorn.Server(about).serve([listener]))


@contextmanager
def _listen(path: Path) -> Iterator[socket.socket]:
    """A socket that its owner alone can connect to; what a killed server left there is taken away."""
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            _remove_dead_socket(path)
            before = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            listener.listen(BACKLOG)
            inode = path.stat().st_ino
        except OSError as fault:
            raise StateError(f"cannot listen on {path}: {fault}; give another --socket PATH") from fault
        try:
            yield listener
        finally:
            # Another server may have taken the place while this one answered its last questions.
            with suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()


def _remove_dead_socket(path: Path) -> None:
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


def app(service: ChatService, idle: float) -> Starlette:
    """The routes; closes the service at its end."""
    begun = int(time.time())

    async def give_memory_back() -> None:
        while True:
            await asyncio.sleep(idle / 10)
            service.unload_after(idle)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(give_memory_back())
        yield
        task.cancel()
        service.close()

    async def completions(request: Request) -> Response:
        question = chat_api.parse(await _read_body(request))
        if service.queue_length >= MOST_WAITING:
            raise Busy(f"{MOST_WAITING} questions are waiting: ask again later")
        turn = Turn(service, question.reply)
        return await _answer(turn, question, request)

    async def models(_: Request) -> Response:
        about = {"id": model_id(service.version), "object": "model", "created": begun, "owned_by": "nslora-agent"}
        return JSONResponse({"object": "list", "data": [about]})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "version": service.version.number, "waiting": service.queue_length})

    routes = [
        Route("/v1/chat/completions", completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/health", health),
    ]
    gone: Any = dict.fromkeys((ClientDisconnect, ConnectionResetError), _client_gone)
    handlers: Any = {AgentError: _agent_error, HTTPException: _http_error, Exception: _internal_error, **gone}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)


async def _read_body(request: Request) -> bytes:
    found = b""
    async for piece in request.stream():
        found += piece
        if len(found) > MAX_LINE:
            raise DataError(f"the body is longer than {MAX_LINE >> 10} kB")
    return found


async def _answer(turn: Turn, question: chat_api.Question, request: Request) -> Response:
    piece = await turn.next(request.is_disconnected)
    if question.stream and not isinstance(piece, AgentError):  # before the first word a fault is still an HTTP error
        return StreamingResponse(_events(turn, piece, with_usage=question.with_usage), media_type="text/event-stream")
    while isinstance(piece, str):
        piece = await turn.next(request.is_disconnected)
    if isinstance(piece, AgentError):
        raise piece
    return JSONResponse(chat_api.completion(_about(turn.version), piece))


async def _events(turn: Turn, piece: Piece, *, with_usage: bool) -> AsyncIterator[bytes]:
    about = _about(turn.version)
    yield chat_api.chunk(about, {"role": "assistant", "content": ""})
    try:
        while isinstance(piece, str):
            yield chat_api.chunk(about, {"content": piece})
            piece = await turn.pieces.get()
        if isinstance(piece, AgentError):
            yield chat_api.event(chat_api.fault(str(piece), type(piece).__name__))
        else:
            yield chat_api.last_chunks(about, piece, with_usage=with_usage)
    finally:
        turn.end()


def model_id(version: ServedVersion) -> str:
    """The name of a version in answers."""
    return f"nslora-agent-{version.name.replace(' ', '-')}"


def _about(version: ServedVersion) -> chat_api.Body:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model_id(version)}


async def _agent_error(_: Request, fault: AgentError) -> Response:
    body = chat_api.fault(str(fault), type(fault).__name__)
    if isinstance(fault, Busy | OutOfMemory):
        return JSONResponse(body, 503, {"Retry-After": AGAIN})
    return JSONResponse(body, 400 if isinstance(fault, DataError) else 500)


async def _http_error(_: Request, fault: HTTPException) -> Response:
    words = "POST /v1/chat/completions, GET /v1/models and GET /health are what is served"
    return JSONResponse(chat_api.fault(words, fault.detail), fault.status_code)


async def _client_gone(_: Request, fault: Exception) -> Response:
    """To a client that is gone."""
    del fault
    return Response(status_code=499)


async def _internal_error(_: Request, fault: Exception) -> Response:
    return JSONResponse(chat_api.fault(f"{type(fault).__name__}: {fault}", "InternalError"), 500)
