from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from tiny import ARCHITECTURES, each, write_model

from agent.contract.errors import BaseModelError
from benchmarks.base_gguf import write_base
from quant.hf.model import open_model
from quant.lean import export
from quant.lean.sources import Gguf
from quant.lean.store import STATE
from quant.load import load
from quant.prepare import prepare


@pytest.mark.parametrize("architecture", each(ARCHITECTURES))
def test_every_linear_layer_is_stored_in_four_bits_with_double_quantisation(
    tiny_base: Callable[[str], Path], architecture: str
) -> None:
    """The prepared file holds packed bytes and quantised block scales, not weights."""
    tensors = load_file(tiny_base(architecture) / "model.safetensors")
    packed = [n for n in tensors if n.endswith("_proj.weight")]
    assert len(packed) in {2 * 7, 3 * 7}
    assert all(tensors[n].dtype == torch.uint8 and f"{n}.nested_absmax" in tensors for n in packed)


def test_loading_takes_the_stored_bytes_and_quantises_nothing_again(tiny_base: Callable[[str], Path]) -> None:
    """What is in memory is what is in the file, bit for bit."""
    stored = load_file(tiny_base("llama") / "model.safetensors")
    network = open_model(tiny_base("llama"), None, torch.device("cpu"), torch.float32).network
    parameters = dict(network.named_parameters())
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(parameters[name].data.cpu(), stored[name])


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"])
def test_a_gguf_gives_the_tensors_it_was_written_from(
    tiny_base: Callable[[str], Path], architecture: str, tmp_path: Path
) -> None:
    """Under transformers' names, laid out as it has them; llama.cpp's own reading is test_export_llama_cpp.py's."""
    arch, store = export.open_base(tiny_base(architecture))
    path = tmp_path / "base.gguf"
    write_base(tiny_base(architecture), GGUFWriter(path, export.GGUF_ARCHITECTURES[arch.kind]))
    source = Gguf(path, arch)
    assert set(source.shapes) == {name for name in store.names if name.endswith((".weight", ".bias"))}
    for name, shape in source.shapes.items():
        is_packed = f"{name}.{STATE}" in store.names
        expected = export.unpack(store, name) if is_packed else store.tensor(name).float()
        found = torch.cat([source.rows(name, 0, 3), source.rows(name, 3, shape[0])])
        assert (found.dtype, found.shape) == (torch.bfloat16, expected.shape)
        assert torch.allclose(found.float(), expected, rtol=0.005, atol=0.001), name


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    """Pickled weights are never read."""
    source = write_model(tmp_path / "source")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match="safetensors"):
        prepare(source, tmp_path / "base")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_broken_gguf_is_refused_in_one_line(tmp_path: Path) -> None:
    """Half a download is an error message, not a traceback."""
    broken = tmp_path / "half.gguf"
    broken.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x00" * 40)
    with pytest.raises(BaseModelError) as fault:
        prepare(broken, tmp_path / "base")
    assert "\n" not in str(fault.value)


def test_a_base_that_lost_bytes_is_refused(tiny_base: Callable[[str], Path], tmp_path: Path) -> None:
    """A truncated file is found by its manifest before torch sees it."""
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_base("llama").iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-10])
    with pytest.raises(BaseModelError, match="init --again"):
        load(base, None, "cpu", "float32")
