"""One call of the client against a server that follows a script."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from llm_server import LLMServer, Script

from agent.contract.errors import RemoteRefused
from offload.client import Client, Reply
from offload.endpoint import Endpoint
from offload.retries import RemoteUnavailable

KEY = "sk-Secret-0123456789"
ATTEMPTS = 3
TIMEOUT = 600.0
"""Seconds: more than any answer here takes on a busy machine; tests of time set their own."""
CAP = 20_000
HI = [{"role": "user", "content": "hi"}]


def endpoint(url: str, **changes: Any) -> Endpoint:
    return replace(Endpoint(url, "asked-model", TIMEOUT, TIMEOUT, TIMEOUT, ATTEMPTS, CAP), **changes)


@dataclass
class Call:
    """What became of one call."""

    outcome: Reply | Exception
    waits: list[float]
    requests: int


def call(script: Script, *, rng: float = 1.0, **changes: Any) -> Call:
    """One call, with waits noted instead of waited."""
    waits: list[float] = []
    with LLMServer(script) as server, client_of(server, waits, rng, **changes) as client:
        try:
            outcome: Reply | Exception = client.complete(HI, {"temperature": 0})
        except (RemoteUnavailable, RemoteRefused) as fault:
            outcome = fault
        return Call(outcome, waits, len(server.requests))


def client_of(server: LLMServer, waits: list[float], rng: float = 1.0, **changes: Any) -> Client:
    return Client(endpoint(server.url, **changes), KEY, sleep=waits.append, rng=lambda: rng)
