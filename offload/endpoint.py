"""Where the remote LLM is and how long to wait for it; which URLs are safe to send a box's own text to."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

import httpx

from agent.contract.errors import ConfigError

EXAMPLE = "base_url must look like https://api.example.com/v1"
HOST = re.compile(r"[A-Za-z0-9._:-]+")
"""A name or an address (of IPv6 without its brackets); anything else, which httpx would escape, is a slip."""


@dataclass(frozen=True)
class Endpoint:
    """One OpenAI-compatible server and the limits of one call; times in seconds.

    Attributes:
        base_url: up to and with the version, such as https://api.example.com/v1.
        model: the server's name of the model.
        connect_timeout: until a connection stands, TLS included.
        read_timeout: without a byte moving in either direction.
        total_timeout: one try as a whole.
        attempts: tries of one call, the first included.
        max_response_bytes: of a completion's body; a longer one is given up.
        allow_http: whether text and key may travel unencrypted to another machine.
    """

    base_url: str
    model: str
    connect_timeout: float
    read_timeout: float
    total_timeout: float
    attempts: int
    max_response_bytes: int
    allow_http: bool = False


def completions_url(endpoint: Endpoint) -> httpx.URL:
    """The URL to post to. Raises ConfigError for a base URL that is malformed, unencrypted or holds a password."""
    try:
        url = httpx.URL(endpoint.base_url)
        host = url.raw_host.decode("ascii")
        # The socket layer encodes the name once more and would fail on an empty or overlong label.
        host.encode("idna")
    except (httpx.InvalidURL, UnicodeError):
        raise ConfigError(EXAMPLE) from None
    # The URL itself is not shown: what is wrong about it may be a password.
    if url.userinfo or url.query or url.fragment:
        raise ConfigError(f"{EXAMPLE}, without a user, password, query or fragment; the API key has a file of its own")
    if url.scheme not in {"https", "http"} or not HOST.fullmatch(host) or (url.port or 0) >= 1 << 16:
        raise ConfigError(EXAMPLE)
    if url.scheme == "http" and not endpoint.allow_http and not _is_loopback(url.host):
        raise ConfigError(f"base_url sends text and key to {url.host} unencrypted; use https or set allow_http = true")
    return url.copy_with(path=f"{url.path.rstrip('/')}/chat/completions")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
