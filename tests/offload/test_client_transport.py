"""What no server on loopback can do to a client: the wire is swapped for one that says so."""

from __future__ import annotations

import json

import httpx
import pytest
from calls import ATTEMPTS, HI, endpoint
from llm_server import completion

from offload.client import Client
from offload.retries import RemoteUnavailable

URL = "https://llm.example.com/v1"


def client_over(fault: type[httpx.TransportError], message: str, times: int) -> tuple[Client, list[float]]:
    """A client whose first `times` tries end in `fault`."""
    waits: list[float] = []
    left = [fault(message)] * times

    def handler(_: httpx.Request) -> httpx.Response:
        if left:
            raise left.pop()
        body = json.dumps(completion("hello")).encode()
        return httpx.Response(200, headers={"Content-Type": "application/json"}, stream=httpx.ByteStream(body))

    client = Client(endpoint(URL), transport=httpx.MockTransport(handler), sleep=waits.append, rng=lambda: 0.5)
    return client, waits


FAULTS = [
    (httpx.ConnectError, "[Errno -2] Name or service not known", False),
    (httpx.ConnectError, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", False),
    (httpx.ConnectTimeout, "", False),
    (httpx.WriteTimeout, "", True),
    (httpx.RemoteProtocolError, "peer closed connection", True),
]


@pytest.mark.parametrize(("fault", "message", "billed"), FAULTS, ids=[f"{f.__name__} {m[:12]}" for f, m, _ in FAULTS])
def test_a_fault_of_the_network_is_tried_again_and_says_whether_it_may_be_billed(
    fault: type[httpx.TransportError], message: str, *, billed: bool
) -> None:
    """As often as allowed; only a request that was on its way counts against the caps."""
    client, waits = client_over(fault, message, ATTEMPTS)
    with pytest.raises(RemoteUnavailable, match=r"the remote LLM at llm\.example\.com ") as found:
        client.complete(HI, {})
    assert (len(waits), found.value.billed) == (ATTEMPTS - 1, billed)


@pytest.mark.parametrize("fault", [fault for fault, _, _ in FAULTS])
def test_a_fault_that_passes_is_forgotten(fault: type[httpx.TransportError]) -> None:
    """The second try brings the answer."""
    client, waits = client_over(fault, "for a moment", 1)
    reply = client.complete(HI, {})
    assert (reply.text, reply.tries, len(waits)) == ("hello", 2, 1)
