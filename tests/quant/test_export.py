"""Exports hold what was trained: the merged model's losses, and the adapter as llama.cpp's converter lays it out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from tiny import LEAN, add_random_adapter, each
from transformers import AutoModelForCausalLM

from agent.contract.errors import BaseModelError
from agent.contract.settings import Training
from quant.lean import export
from quant.lean.model import LeanModel, open_model
from quant.shared.chat import Encoded
from quant.shared.packing import pack

CPU = torch.device("cpu")
SETTINGS = Training(rank=4, alpha=8)


@pytest.fixture
def trained(tiny_base: Callable[[str], Path], tmp_path: Path) -> Callable[[str], tuple[LeanModel, Path, Path]]:
    """A model with an adapter whose B is not zero, and the folders of base and adapter."""

    def make(architecture: str) -> tuple[LeanModel, Path, Path]:
        base = tiny_base(architecture)
        model = open_model(base, None, CPU, torch.float32)
        add_random_adapter(model, SETTINGS, 0.05)
        model.save(tmp_path / "adapter")
        return model, base, tmp_path / "adapter"

    return make


@pytest.mark.parametrize("architecture", each(LEAN))
def test_a_merged_model_answers_as_the_adapter_does(
    trained: Callable[[str], tuple[LeanModel, Path, Path]], architecture: str, tmp_path: Path
) -> None:
    """In transformers, without peft or bitsandbytes; rounded to bfloat16."""
    model, base, adapter = trained(architecture)
    target = tmp_path / "merged"
    target.mkdir()
    shares: list[float] = []
    export.write_merged(base, adapter, target, shares.append)
    config = json.loads((target / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert shares[-1] == 1.0
    merged = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    base_alone = open_model(base, None, CPU, torch.float32)
    ids = torch.randint(3, 320, (24,), generator=torch.Generator().manual_seed(1))
    row = pack([Encoded("x", ids.tolist(), [False] + [True] * 23, [False] * 24, cut=False)], CPU)
    with torch.no_grad():
        theirs = torch.nn.functional.cross_entropy(merged(ids[None]).logits[0, :-1], ids[1:], reduction="none")
    ours, before = model.losses(row), base_alone.losses(row)
    assert torch.allclose(ours, theirs, atol=0.1)
    assert (ours - theirs).abs().mean() < 0.1 * (ours - before).abs().mean()


def test_a_large_model_is_written_in_shards(
    trained: Callable[[str], tuple[LeanModel, Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each below the limit, with an index that transformers reads."""
    monkeypatch.setattr(export, "SHARD", 20_000)
    _, base, adapter = trained("llama")
    target = tmp_path / "merged"
    target.mkdir()
    export.write_merged(base, adapter, target, lambda _: None)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in target.glob("model-*.safetensors"))
    assert len(files) > 3
    assert set(index["weight_map"].values()) == set(files)
    assert AutoModelForCausalLM.from_pretrained(target)


@pytest.mark.parametrize("architecture", each(LEAN))
def test_an_adapter_for_llama_cpp_holds_the_same_update(
    trained: Callable[[str], tuple[LeanModel, Path, Path]], architecture: str, tmp_path: Path
) -> None:
    """Names, alpha and shapes as its converter writes them; queries and keys of Llama with their halves interleaved."""
    model, base, adapter = trained(architecture)
    export.write_gguf(base, adapter, tmp_path / "adapter.gguf", lambda _: None)
    reader = GGUFReader(tmp_path / "adapter.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == SETTINGS.alpha
    assert fields["general.architecture"] == export.GGUF_ARCHITECTURES[model.architecture]
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert model.adapter
    assert len(tensors) == 2 * len(model.adapter.loras)
    arch = model.decoder.arch
    lora = model.adapter.loras[1, "self_attn.q_proj"]
    a, b = (tensors[f"blk.1.attn_q.weight.lora_{name}"] for name in "ab")
    assert np.array_equal(a, lora.a.numpy())
    expected = lora.b.numpy()
    if model.architecture in {"llama", "mistral"}:
        halves = expected.reshape(arch.heads, 2, expected.shape[0] // arch.heads // 2, -1)
        expected = halves.swapaxes(1, 2).reshape(expected.shape)
    assert np.array_equal(b, expected)
    down = model.adapter.loras[0, "mlp.down_proj"]
    assert np.array_equal(tensors["blk.0.ffn_down.weight.lora_b"], down.b.numpy())


def test_a_model_of_another_family_says_what_to_take(tiny_base: Callable[[str], Path]) -> None:
    """Peft's own form is always there."""
    with pytest.raises(BaseModelError, match="take --to peft"):
        export.open_base(tiny_base("olmo2"))
