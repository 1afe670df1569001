"""Sends chat completions to an OpenAI-compatible server, one at a time, and survives what servers and networks do.

Nothing of the environment is trusted (`trust_env=False`): a proxy variable or ~/.netrc that somebody set for another
program would send a box's own text, or another host's password, to where config.toml does not say. Redirects are not
followed for the same reason. Compressed answers are not asked for and not unpacked, so that a few bytes cannot become
gigabytes; cookies are not kept.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

from agent.contract.errors import RemoteRefused
from offload import retries
from offload.endpoint import Endpoint, completions_url
from offload.replies import Completion, error_message, one_line, parse
from offload.retries import RemoteUnavailable
from offload.wire import Wire

MAX_ERROR_BYTES = 1 << 16
"""Bytes read of a body that only explains an error."""
ADVICE = {
    401: "check the API key",
    402: "check the account's balance",
    403: "check the API key and what it may do",
    404: "check base_url and model",
    413: "send shorter texts",
}
"""What to do about a refusal, by status."""

OnTry = Callable[[int, RemoteUnavailable | None], None]
"""Called before each try with its number, from 1 on, and why the one before failed; what it raises ends the call."""


@dataclass(frozen=True)
class Reply(Completion):
    """A completion and what it cost: tries, bytes of HTTP both ways and seconds, failed tries and waits included."""

    bytes_out: int
    bytes_in: int
    tries: int
    seconds: float


class Client:
    """Talks to one endpoint over one connection; close it or use it as a context manager. Not for several threads.

    `transport` takes the place of the network, for what no server on loopback can do to a client. `sleep` and `rng` are
    what waits are made of: `rng` gives numbers in [0, 1). Raises ConfigError for a URL that does
    not do, see `completions_url`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        rng: Callable[[], float] = random.random,
        on_try: OnTry | None = None,
    ) -> None:
        self._url = completions_url(endpoint)
        self._name = f"the remote LLM at {self._url.host}"
        self._endpoint = endpoint
        self._key = key
        self._sleep = sleep
        self._rng = rng
        self._on_try = on_try
        self._wire = Wire(tls=self._url.scheme == "https")
        for name in ("httpx", "httpcore"):
            # They log every request and, at DEBUG, what the server sends.
            logging.getLogger(name).setLevel(logging.WARNING)
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": "nslora-agent",
        }
        if key:
            headers["Authorization"] = f"Bearer {key}"
        read = endpoint.read_timeout
        self._http = httpx.Client(
            transport=transport or self._wire,
            headers=headers,
            timeout=httpx.Timeout(connect=endpoint.connect_timeout, read=read, write=read, pool=read),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            follow_redirects=False,
            trust_env=False,
        )

    def __enter__(self) -> Client:  # typing.Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the client cannot be used afterwards."""
        self._http.close()

    def complete(self, messages: list[dict[str, str]], parameters: dict[str, Any]) -> Reply:
        """The server's answer to `messages`; `parameters` are further fields of the request, such as temperature.

        Raises RemoteRefused at once if the server wants no such request, and RemoteUnavailable after the last try, or
        at once if the server asks for a pause longer than `retries.LONGEST_RETRY_AFTER` or its answer is too big:
        asked again, it would be again.
        """
        request = {**parameters, "model": self._endpoint.model, "messages": messages}
        body = json.dumps(request, ensure_ascii=False, allow_nan=False).encode()
        started, sent, received = time.monotonic(), self._wire.sent, self._wire.received
        tries = 0
        failure: RemoteUnavailable | None = None
        while True:
            tries += 1
            if self._on_try:
                self._on_try(tries, failure)
            try:
                completion = self._post(body)
                break
            except RemoteUnavailable as fault:
                failure = fault
                wait = retries.wait_after(fault, tries, self._endpoint.attempts, self._rng)
                if wait is None:
                    raise
            self._sleep(wait)
        return Reply(
            **vars(completion),
            bytes_out=self._wire.sent - sent,
            bytes_in=self._wire.received - received,
            tries=tries,
            seconds=time.monotonic() - started,
        )

    def _post(self, body: bytes) -> Completion:
        # Causes are cut off below: they quote the server, which may quote the key, and a traceback would print them.
        self._wire.deadline = time.monotonic() + self._endpoint.total_timeout
        try:
            with self._http.stream("POST", self._url, content=body) as response:
                if 200 <= response.status_code < 300:
                    return self._read_completion(response)
                raise self._failure(response)
        except httpx.RequestError as fault:
            billed = not isinstance(fault, httpx.ConnectError | httpx.ConnectTimeout)
            raise RemoteUnavailable(f"{self._name} {self._describe(fault)}", billed=billed) from None

    def _read_completion(self, response: httpx.Response) -> Completion:
        limit = self._endpoint.max_response_bytes
        try:
            _check_form(response.headers)
            body = _read(response, limit)
            if len(body) <= limit:
                return parse(body)
        except ValueError as fault:
            what = f"{self._name} sent no answer to read: {self._clean(str(fault))}"
            raise RemoteUnavailable(what, billed=True) from None
        advice = "lower max_tokens or raise max_response_kb"
        raise RemoteUnavailable(f"{self._name} sent more than {limit} bytes; {advice}", again=False, billed=True)

    def _failure(self, response: httpx.Response) -> RemoteUnavailable | RemoteRefused:
        """The error that a status other than 2xx means."""
        status = response.status_code
        if 300 <= status < 400:
            target = self._clean(response.next_request.url.host) if response.next_request else "nowhere"
            return RemoteRefused(
                f"{self._name} answers {status}, a redirect to {target}; set base_url to the right host"
            )
        try:
            said = self._clean(error_message(_read(response, MAX_ERROR_BYTES)))
        except httpx.RequestError:
            said = ""  # it broke off; the status alone decides what to do
        what = f"{self._name} answers {status}" + (f": {said}" if said else "")
        if not retries.is_temporary(status):
            return retries.refusal(status)(f"{what}; {ADVICE.get(status, 'check what config.toml says about it')}")
        date = response.headers.get("Date")
        pause = retries.retry_after(response.headers.get("Retry-After"), date, time.time())
        if pause is not None:
            what += f"; it asks for a pause of {pause:.0f} s"
        return RemoteUnavailable(what, retry_after=pause)

    def _describe(self, fault: httpx.RequestError) -> str:
        """The end of a sentence about a network's failure."""
        end = self._endpoint
        if isinstance(fault, httpx.TimeoutException) and time.monotonic() >= self._wire.deadline:
            return f"gave no whole answer within {end.total_timeout:g} s"
        if isinstance(fault, httpx.ConnectTimeout):
            return f"took no connection within {end.connect_timeout:g} s"
        if isinstance(fault, httpx.TimeoutException):
            return f"was silent for {end.read_timeout:g} s"
        return f"cannot be talked to: {self._clean(str(fault)) or type(fault).__name__}"

    def _clean(self, text: str) -> str:
        return one_line(text, self._key)


def _check_form(headers: httpx.Headers) -> None:
    """Raise ValueError for a body that is not plain JSON: a login page of a hotel's network, a compressed answer."""
    media = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise ValueError(f"its type is {media or 'not given'}, not application/json")
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        raise ValueError(f"it is compressed ({encoding}), which was not asked for")


def _read(response: httpx.Response, limit: int) -> bytes:
    """The body as it came, or a beginning of it that is longer than `limit` bytes."""
    data = bytearray()
    for chunk in response.iter_raw():
        data += chunk
        if len(data) > limit:
            break
    return bytes(data)
