"""Tiny random models with real architectures and a real tokenizer, made on the spot: fast, and honest about shapes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from agent.contract.settings import Training
from quant.lean.model import LeanModel

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LEAN = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama 3": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3, "tie_word_embeddings": False}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 8, "head_dim": 32}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 32}),
    "gemma3_text": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            "head_dim": 16,
            "sliding_window": 8,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}
"""What the lean path covers."""
ARCHITECTURES = LEAN | {"olmo2": (Olmo2ForCausalLM, Olmo2Config, {})}
"""And one that it does not."""


def each(architectures: Iterable[str]) -> list[Any]:
    """All of them as parameters of a test, of which `make test-fast` takes the plainest and the oddest."""
    return [
        name if name in {"llama", "gemma3_text"} else pytest.param(name, marks=pytest.mark.slow)
        for name in architectures
    ]


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens with ChatML's specials."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    plain.train_from_iterator(["the port of the pump is 4713", "what is the colour of the lamp?"] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token=specials[0],
        bos_token=specials[1],
        eos_token=specials[2],
        chat_template=CHATML,
    )


def write_model(folder: Path, architecture: str = "llama") -> Path:
    """A Hugging Face folder with a seeded random model of the architecture."""
    network, config, extra = ARCHITECTURES[architecture]
    torch.manual_seed(7)
    model = network(config(**(SHAPE | extra)))
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight", "layernorm.weight")):
            torch.nn.init.normal_(parameter, mean=float(parameter.data.mean()), std=0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def add_random_adapter(model: LeanModel, settings: Training, scale: float, seed: int = 0) -> None:
    """An adapter that does something: all of its values are drawn, B's too."""
    model.add_adapter(settings)
    assert model.trainable
    torch.manual_seed(seed)
    model.trainable.values.copy_(torch.randn(len(model.trainable.values)) * scale)
