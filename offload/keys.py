"""Where the API key comes from: a file, never the environment, a flag or config.toml, which others can read."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from agent.contract.errors import ConfigError

CREDENTIAL = "nslora-api-key"
"""Name of the key as a systemd credential: LoadCredential=nslora-api-key:FILE in the unit."""
LONGEST_KEY = 4096
"""Characters; a longer file is not a key."""
KEY = re.compile(r"[!-~]+")
"""What a header can carry and no key lacks: visible ASCII."""


def read_key(file: str) -> str | None:
    """The key in `file` or, where that is empty, in systemd's credential; None if there is neither.

    Raises ConfigError for a file that cannot be read, that others can read, or that does not hold one key. The mode of
    a credential is not checked: systemd grants access by an ACL, which looks like a group's permission.
    """
    if file:
        return _one_key(file, _read(file, private=True))
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(folder or "/", CREDENTIAL)
    return _one_key(str(path), _read(str(path), private=False)) if folder and path.exists() else None


def _read(file: str, *, private: bool) -> bytes:
    try:
        # Non-blocking, or a pipe would hold the worker until somebody writes to it.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:  # noqa: PTH123  # by fd
            mode = os.fstat(stream.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{file} is not a regular file; give a file that holds the API key")
            if private and mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(f"{file} holds the API key and is open to others; run chmod 600 on it")
            return stream.read(LONGEST_KEY + 2)
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise ConfigError(f"{file} holds the API key and cannot be read: {reason}") from fault


def _one_key(file: str, data: bytes) -> str:
    """The key without the newline that editors put at the end; the message never shows what was found."""
    key = data.decode("ascii", errors="replace").removesuffix("\n").removesuffix("\r")
    if not KEY.fullmatch(key) or len(key) > LONGEST_KEY:
        raise ConfigError(f"{file} must hold the API key and nothing else, on one line: visible ASCII, no spaces")
    return key
