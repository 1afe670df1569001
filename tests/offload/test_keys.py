from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.contract.errors import ConfigError
from offload.keys import CREDENTIAL, read_key

KEY = "sk-Secret-0123456789"


@pytest.fixture(autouse=True)
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that systemd names, empty."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    return folder


def written(path: Path, data: bytes = KEY.encode(), mode: int = 0o600) -> str:
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_is_read_without_its_newline(tmp_path: Path, end: str, mode: int) -> None:
    """As editors and echo leave it."""
    assert read_key(written(tmp_path / "key", (KEY + end).encode(), mode)) == KEY


def test_there_may_be_no_key(credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server on the same machine wants none."""
    assert read_key("") is None
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert read_key("") is None
    assert credentials.exists()


def test_a_credential_of_systemd_is_taken_where_no_file_is_given(tmp_path: Path, credentials: Path) -> None:
    """Whatever its mode looks like, which an ACL changes; a file that is given wins."""
    written(credentials / CREDENTIAL, b"sk-credential\n", 0o440)
    assert read_key("") == "sk-credential"
    assert read_key(written(tmp_path / "key")) == KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666])
def test_a_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    """The message says what to do; reading as well as replacing the key is others' business neither."""
    with pytest.raises(ConfigError, match="chmod 600"):
        read_key(written(tmp_path / "key", mode=mode))


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b" \n", b"a b", b" a", b"a ", b"a\n\n", b"a\nb", b"a\tb", b"a\0b", b"a\x7f", b"\xef\xbb\xbfa",
     "ä".encode(), b"\xff", "a\u00a0".encode(), b"a" * 4097],
)  # fmt: skip
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, data: bytes) -> None:
    """What could not travel in a header, or was never one; it is not shown."""
    with pytest.raises(ConfigError, match="nothing else, on one line") as caught:
        read_key(written(tmp_path / "key", data))
    assert repr(data) not in str(caught.value)


def test_a_key_may_be_long(tmp_path: Path) -> None:
    """Up to 4096 characters and a newline."""
    assert read_key(written(tmp_path / "key", b"a" * 4096 + b"\r\n")) == "a" * 4096


def test_what_cannot_be_read_is_refused_by_its_name(tmp_path: Path) -> None:
    """A missing file, a folder, a pipe that nobody writes to, an impossible name."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, reason in {
        tmp_path / "none": "No such file",
        tmp_path: "directory|regular",
        tmp_path / "pipe": "regular",
        tmp_path / "key\0": "null",
    }.items():
        with pytest.raises(ConfigError, match=reason):
            read_key(str(path))
