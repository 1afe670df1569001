"""Where everything of one agent lives: the state folder and the names in it."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from agent.contract.errors import BaseModelError
from agent.contract.os_errors import os_fault

REMADE = "remade.jsonl"
"""In a run's folder and in its version's: the job's rows with the accepted rewrites in place."""


@dataclass(frozen=True)
class Home:
    """The state folder. Paths only, except for `create`."""

    path: Path

    @classmethod
    def find(cls, given: str | None) -> Home:
        """`--state`, else $NSLORA_STATE, else the XDG state folder."""
        xdg = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111  never raises
        return cls(Path(given or os.environ.get("NSLORA_STATE") or Path(xdg) / "nslora").absolute())

    def create(self) -> Home:
        """Make the folders that are missing, readable by their owner alone; raises StateError or StorageError."""
        try:
            for folder in (self.path, self.spool, self.runs, self.versions, self.models):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as fault:
            raise os_fault(self.path, fault, "choose another state folder with --state DIR") from fault
        return self

    @property
    def config(self) -> Path:
        """Settings of this box."""
        return self.path / "config.toml"

    @property
    def database(self) -> Path:
        """Jobs, their history and the promotions."""
        return self.path / "jobs.db"

    @property
    def cache(self) -> Path:
        """Answers of the remote LLM, what they cost, and how it stands; written by the offload worker alone."""
        return self.path / "cache.db"

    @property
    def spool(self) -> Path:
        """Accepted training files, normalised."""
        return self.path / "spool"

    @property
    def runs(self) -> Path:
        """One folder for each job: events, logs, checkpoints."""
        return self.path / "runs"

    @property
    def versions(self) -> Path:
        """Finished adapters by number."""
        return self.path / "versions"

    @property
    def models(self) -> Path:
        """Prepared base models by id."""
        return self.path / "models"

    @property
    def daemon_lock(self) -> Path:
        """Held by the one daemon of this state folder."""
        return self.path / "daemon.lock"

    @property
    def device_lock(self) -> Path:
        """Held by the running job, and by whoever answers while a model is loaded."""
        return self.path / "device.lock"

    @property
    def models_lock(self) -> Path:
        """Held by whoever makes or deletes something in `models`."""
        return self.models / ".lock"

    def run(self, job: int) -> Path:
        """The folder of one job."""
        return self.runs / str(job)

    def model(self, source: str) -> Path:
        """The prepared copy of the base model named `source` in config.toml."""
        return self.models / model_id(source)

    def require_model(self, source: str) -> Path:
        """The folder of `model`; raises BaseModelError if there is none."""
        model = self.model(source)
        if not model.exists():
            raise BaseModelError(f"the base model {source} is not prepared: run `nslora-agent init`, then try again")
        return model


def is_local(source: str) -> bool:
    """True if a base model's name is a path: it starts like one or ends in .gguf."""
    return source.startswith(("/", "./", "../", "~")) or source.endswith(".gguf")


def resolve(source: str, folder: Path) -> str:
    """A base model's name as it means the same in every process: a path is taken from `folder` and made absolute."""
    return os.path.abspath(folder / os.path.expanduser(source)) if is_local(source) else source  # noqa: PTH100, PTH111


def model_id(source: str) -> str:
    """A folder name for a resolved base model; two paths or hub ids never share one."""
    slug = re.sub(r"[^a-z0-9.]+", "-", Path(source).name.lower()).strip("-.") or "model"
    if source == slug and not is_local(source):
        return slug
    return f"{slug}-{hashlib.sha256(os.fsencode(source)).hexdigest()[:8]}"
