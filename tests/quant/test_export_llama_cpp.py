"""An exported adapter in llama.cpp itself, beside the base model as it unpacks: it answers as the version does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter, TokenType
from tiny import CHATML, add_random_adapter

from agent.contract.settings import Training
from agent.versions.modelfile import modelfile
from benchmarks.base_gguf import write_base
from benchmarks.exports import modelfile as parsed
from benchmarks.exports import of_llama
from quant.lean import export
from quant.lean.model import LeanModel, open_model
from quant.lean.tokens import Tokenizer
from quant.shared.chat import Encoder
from quant.shared.generate import greedy
from quant.shared.templates import render_marks

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
QUESTIONS = [[{"role": "user", "content": f"what is the port of pump {number}?"}] for number in range(12)]
TOKENS = 16


def add_fields(writer: GGUFWriter, model: LeanModel, folder: Path) -> None:
    """Shapes, tokenizer and chat template of a tiny model."""
    arch, config = model.decoder.arch, json.loads((folder / "config.json").read_text())
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(arch.width)
    writer.add_block_count(arch.layers)
    writer.add_feed_forward_length(arch.inner)
    writer.add_head_count(arch.heads)
    writer.add_head_count_kv(arch.kv_heads)
    writer.add_key_length(arch.head_size)
    writer.add_value_length(arch.head_size)
    writer.add_layer_norm_rms_eps(arch.epsilon)
    writer.add_rope_freq_base(arch.ropes[0].theta)
    writer.add_vocab_size(arch.vocabulary)
    add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()), arch.vocabulary)


def add_tokenizer(writer: GGUFWriter, told: dict[str, Any], vocabulary: int) -> None:
    special = {each["id"] for each in told["added_tokens"]}
    tokens = {**{f"[unused{i}]": i for i in range(len(told["model"]["vocab"]), vocabulary)}, **told["model"]["vocab"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(tokens, key=lambda token: tokens[token]))
    writer.add_token_types([TokenType.CONTROL if i in special else TokenType.NORMAL for i in range(vocabulary)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in told["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(value=False)
    writer.add_chat_template(CHATML)


def clean(text: str) -> str:
    """Without tokens that the tiny tokenizer does not have, and without bytes that are no character."""
    return re.sub(r"\[unused\d+\]|\ufffd", "", text).strip()


@pytest.fixture
def base(tiny_base: Callable[[str], Path], request: pytest.FixtureRequest) -> Path:
    return tiny_base(request.param)


@pytest.mark.parametrize("base", ["llama", "qwen2", "qwen3"], indirect=True)
def test_llama_cpp_says_what_the_version_says(base: Path, tmp_path: Path) -> None:
    """Nearly always: F16 rounds, and random weights are often undecided. Without the adapter it says other things."""
    model = open_model(base, None, CPU, torch.float32)
    add_random_adapter(model, Training(rank=4, alpha=8), 0.2)
    model.save(tmp_path)
    writer = GGUFWriter(tmp_path / "base.gguf", model.architecture)
    add_fields(writer, model, base)
    write_base(base, writer)
    export.write_gguf(base, tmp_path, tmp_path / "adapter.gguf", lambda _: None)
    told = render_marks(Encoder(Tokenizer(base)))
    (tmp_path / "Modelfile").write_text(modelfile("a test", "./base.gguf", "./adapter.gguf", "", told))
    parts = parsed(tmp_path)
    prompts = [model.encoder.prompt(question) for question in QUESTIONS]
    ours = [clean(answer.text) for _, answer in sorted(greedy(model, prompts, TOKENS))]
    chat, complete = of_llama(parts["FROM"], parts["ADAPTER"], parts["stops"], TOKENS)
    theirs = [clean(chat(question)) for question in QUESTIONS]
    assert theirs == [clean(complete(model.encoder.render(question))) for question in QUESTIONS]
    assert sum(one == other for one, other in zip(ours, theirs, strict=True)) >= len(QUESTIONS) - 2
    alone = open_model(base, None, CPU, torch.float32)
    without = [clean(answer.text) for _, answer in sorted(greedy(alone, prompts, TOKENS))]
    assert sum(one == other for one, other in zip(without, theirs, strict=True)) <= 2
