"""Adapters, base models and chat templates of strangers: refused in one line, run nowhere."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_model

from agent.contract.errors import AgentError, BaseModelError
from agent.contract.settings import Training
from quant.load import load
from quant.prepare import prepare
from quant.shared.model import Model

TOUCHED = "touched"


class Bomb:
    """What a pickle can do to whoever reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.fixture
def base(tiny_base: Callable[[str], Path]) -> Path:
    return tiny_base("llama")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """A good one."""
    model = load(base, None, "cpu", "float32")
    model.add_adapter(Training(rank=4))
    model.save(tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(base: Path, adapter: Path) -> str:
    with pytest.raises(BaseModelError) as fault:
        load(base, adapter, "cpu", "float32")
    assert "\n" not in str(fault.value)
    return str(fault.value)


def header(claimed: int) -> bytes:
    return struct.pack("<Q", claimed) + b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'


def test_pickles_and_archives_that_pose_as_adapters_are_refused_unread(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """Neither what torch.save writes nor a plain pickle is opened as such."""
    bomb = Bomb(tmp_path / TOUCHED)
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(pickle.dumps(bomb))
    refused(base, adapter)
    torch.save({"a": bomb}, weights)
    refused(base, adapter)
    with zipfile.ZipFile(weights, "w") as archive:
        archive.writestr("../../out", "x")
    refused(base, adapter)
    weights.rename(adapter / "adapter_model.bin")
    refused(base, adapter)
    assert not (tmp_path / TOUCHED).exists()


@pytest.mark.parametrize("claimed", [0, 7, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_headers_that_claim_another_size_are_refused(base: Path, adapter: Path, claimed: int) -> None:
    """Before anything of that size is made."""
    (adapter / "adapter_model.safetensors").write_bytes(header(claimed))
    refused(base, adapter)


@pytest.mark.parametrize(
    "changed",
    [
        {"r": 10**12},
        {"r": -1},
        {"r": "four"},
        {"r": 5},
        {"layers_to_transform": [10**9]},
        {"layers_to_transform": [-1]},
        {"layers_to_transform": "all"},
        {"lora_alpha": None},
    ],
)
def test_an_adapter_that_claims_another_shape_is_refused(base: Path, adapter: Path, changed: dict[str, object]) -> None:
    """No memory is taken for what the file does not hold."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    refused(base, adapter)


def test_an_adapter_without_some_of_its_matrices_is_refused(base: Path, adapter: Path) -> None:
    """Or with one of another shape."""
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    *_, last = sorted(tensors)
    save_file({**tensors, last: torch.zeros(2, 2)}, path)
    assert "does not fit" in refused(base, adapter)
    del tensors[last]
    save_file(tensors, path)
    assert "does not fit" in refused(base, adapter)


# ---- base models ----


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 100, header(1 << 40), b"[" * 100_000])
def test_a_folder_with_a_broken_file_is_refused_in_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    """And nothing half-made stays."""
    source = write_model(tmp_path / "source")
    (source / name).write_bytes(data)
    with pytest.raises(AgentError) as fault:
        _prepared_and_loaded(source, tmp_path / "base")
    assert "\n" not in str(fault.value)
    assert not list(tmp_path.glob(".tmp-*"))


def _prepared_and_loaded(source: Path, base: Path) -> Model:
    prepare(source, base)
    return load(base, None, "cpu", "float32")


def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    """Whatever is there."""
    source = write_model(tmp_path / "source")
    (source / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match="outside of its folder"):
        prepare(source, tmp_path / "base")


# ---- chat templates ----


def with_template(base: Path, folder: Path, template: str) -> Model:
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").write_text(template)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        manifest["files"].setdefault(name, {"sha256": ""})["bytes"] = (folder / name).stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return load(folder, None, "cpu", "float32")


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ self.__init__.__globals__.__builtins__.open('touched', 'w') }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 'x' * 10**12 }}",
        "{{ messages[10**9] }}{{ 1/0 }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('no') }}",
        "{% if %}",
    ],
)
def test_a_template_with_code_is_refused(base: Path, tmp_path: Path, template: str) -> None:
    """It runs in a sandbox: no attribute of Python's, no file, no endless loop; it is the base model's fault."""
    with pytest.raises(BaseModelError, match="chat template refuses"):
        with_template(base, tmp_path / "base", template)


def test_a_template_that_refuses_a_role_says_which_conversation(base: Path, tmp_path: Path) -> None:
    """Some models know no system prompt."""
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    model = with_template(base, tmp_path / "base", template)
    with pytest.raises(BaseModelError, match="refuses a conversation of system, user: no system"):
        model.encoder.prompt([{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}])
