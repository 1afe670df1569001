"""The offload worker's answer to each request of the protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from agent.contract import offload_messages as m
from agent.contract.atomic_io import write_file
from agent.contract.errors import StateError
from agent.contract.imports import hide_modules
from agent.contract.lines import json_line
from agent.contract.os_errors import disk_faults
from agent.contract.protocol import Answer
from agent.contract.settings import Offload
from agent.contract.worker_server import Emit
from offload import prompts
from offload.database import open_database
from offload.redact import Redactor
from offload.remote import OnTry, Remote
from offload.rewrite import NotSent, Rewriter, first_messages

PING: list[dict[str, str]] = [{"role": "user", "content": "Answer with the word ready."}]


class Commands:
    """One method for each request, by its name; `Open` comes first."""

    def __init__(self) -> None:
        self._opened: tuple[Offload, Remote] | None = None

    def handle(self, request: Any, _emit: Emit) -> Answer:
        """Serve one request; raises AgentError."""
        handlers: dict[type[Any], Callable[[Any], Answer]] = {
            m.Open: self._open,
            m.RewriteExample: lambda request: Rewriter(self._remote, self._settings.patterns).example(request),
            m.ImprovePrompt: lambda request: Rewriter(self._remote, self._settings.patterns).system_prompt(request),
            m.Preview: self._preview,
            m.Ping: self._ping,
            m.ReadLog: lambda request: _write_lines(request.out, self._remote.budget.log(request.last)),
            m.CacheStats: lambda _: m.CacheFigures(**self._remote.cache.figures()),
            m.CacheExport: lambda request: _write_lines(request.out, self._remote.cache.rows()),
            m.CacheImport: self._import_cache,
            m.CachePrune: lambda request: m.Pruned(*self._remote.cache.prune(request.older_than)),
        }
        handler = handlers.get(type(request))
        if handler is None:
            raise StateError(f"the offload worker does not serve {type(request).__name__}; quant.worker may")
        return handler(request)

    def _open(self, request: m.Open) -> m.Opened:
        settings = request.settings
        Redactor(settings.patterns)  # a bad pattern is said before anything is sent
        remote = Remote(open_database(Path(request.cache)), settings, lambda on_try: _client(settings, on_try))
        self._opened = settings, remote
        return m.Opened(remote.status())

    @property
    def _settings(self) -> Offload:
        return self._both[0]

    @property
    def _remote(self) -> Remote:
        return self._both[1]

    @property
    def _both(self) -> tuple[Offload, Remote]:
        if self._opened is None:
            raise StateError("the offload worker was asked for something before it was opened")
        return self._opened

    def _preview(self, request: m.Preview) -> m.Previewed:
        redactor = Redactor(self._settings.patterns)
        try:
            messages = first_messages(request.request, redactor)
        except NotSent as fault:
            return m.Previewed([{"role": "not sent", "content": str(fault)}], {}, cached=False)
        known = self._remote.cache.has(self._remote.question(messages))
        return m.Previewed(messages, dict(redactor.counts), known)

    def _ping(self, _: m.Ping) -> m.Ponged:
        reply, money = self._remote.ping(PING)
        return m.Ponged(
            model=reply.model,
            seconds=round(reply.seconds, 3),
            prompt_tokens=reply.prompt_tokens or 0,
            completion_tokens=reply.completion_tokens or 0,
            cost=money,
            remote=self._remote.status(),
        )

    def _import_cache(self, request: m.CacheImport) -> m.Listed:
        path = Path(request.path)
        with disk_faults(path), path.open("rb") as lines:
            return m.Listed(*self._remote.cache.import_rows(lines, path, _is_step_of))


def _client(settings: Offload, on_try: OnTry) -> Any:
    # httpx is imported only to serve a miss, and without what it takes for a command line of its own.
    with hide_modules("rich"):
        from offload.client import Client  # noqa: PLC0415
        from offload.endpoint import Endpoint  # noqa: PLC0415
    from offload.keys import read_key  # noqa: PLC0415

    endpoint = Endpoint(
        base_url=settings.base_url,
        model=settings.model,
        allow_http=settings.allow_http,
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        total_timeout=settings.total_timeout,
        attempts=settings.attempts,
        max_response_bytes=settings.max_response_kb * 1000,
    )
    return Client(endpoint, read_key(settings.api_key_file), on_try=on_try)


def _is_step_of(answer: str, text: str | None) -> bool:
    """True if a recorded text is what TextGrad's step cuts out of the answer it was recorded with."""
    if text is None:
        return True
    try:
        return prompts.between_tags(answer) == text
    except prompts.Malformed:
        return False


def _write_lines(out: str, rows: Iterable[dict[str, Any]]) -> m.Listed:
    lines = [json_line(row) for row in rows]
    with disk_faults(Path(out)):
        write_file(Path(out), b"".join(lines))
    return m.Listed(len(lines))
