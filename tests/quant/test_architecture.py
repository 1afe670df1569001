"""What a config.json says of a model, in the words of old and new versions of transformers."""

from __future__ import annotations

from typing import Any

import pytest

from quant.lean.architecture import Rope, architecture

LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "num_hidden_layers": 7,
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_attention_heads": 6,
    "vocab_size": 320,
    "rms_norm_eps": 1e-5,
}
GEMMA = {
    **LLAMA,
    "model_type": "gemma3_text",
    "hidden_act": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 512,
    "rope_theta": 1e6,
    "rope_local_base_freq": 20_000.0,
    "query_pre_attn_scalar": 64,
    "head_dim": 32,
    "num_key_value_heads": 2,
}


def test_what_is_not_said_follows_from_the_rest() -> None:
    """As many key heads as heads, which share the width; one base of frequencies, no windows, an output of its own."""
    arch = architecture(LLAMA)
    assert arch
    assert (arch.layers, arch.width, arch.inner, arch.vocabulary, arch.epsilon) == (7, 96, 200, 320, 1e-5)
    assert (arch.heads, arch.kv_heads, arch.head_size, arch.queries, arch.keys) == (6, 6, 16, 96, 96)
    assert (arch.tied, arch.activation, arch.attention_scale, arch.is_gemma) == (False, "silu", 0.25, False)
    assert arch.ropes == (Rope(10_000.0, "default", 1.0, 1.0, 4.0, 8192),) * 7
    assert arch.windows == (None,) * 7


def test_gemma_says_where_its_windows_are() -> None:
    """Every sixth layer, or another, sees everything; the others have a window and frequencies of their own."""
    arch, closer = architecture(GEMMA), architecture({**GEMMA, "sliding_window_pattern": 3})
    assert arch
    assert closer
    assert arch.windows == (*[512] * 5, None, 512)
    assert [rope.theta for rope in arch.ropes] == [20_000.0] * 5 + [1e6, 20_000.0]
    assert closer.windows == (512, 512, None) * 2 + (512,)
    assert (arch.tied, arch.activation, arch.attention_scale, arch.is_gemma) == (True, "gelu", 0.125, True)
    assert (arch.head_size, arch.kv_heads, arch.queries, arch.keys) == (32, 2, 192, 64)


def test_only_gemmas_full_layers_are_stretched_by_the_old_words() -> None:
    """Its sliding ones never were; the new words say it by kind of layer."""
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = architecture({**GEMMA, "rope_scaling": scaling})
    by_kind = {
        "full_attention": {"rope_theta": 1e6, **scaling},
        "sliding_attention": {"rope_theta": 20_000.0, "rope_type": "default"},
    }
    kinds = [*["sliding_attention"] * 5, "full_attention", "sliding_attention"]
    new = architecture({**GEMMA, "rope_theta": 5.0, "rope_parameters": by_kind, "layer_types": kinds})
    assert old
    assert new
    assert old.ropes == new.ropes
    assert old.ropes[5] == Rope(1e6, "linear", 8.0)
    assert old.windows == new.windows


@pytest.mark.parametrize("kind", ["rope_type", "type"])
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_llama_3_stretches_frequencies(kind: str, place: str) -> None:
    """By its own numbers."""
    told = {kind: "llama3", "factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 5.0}
    told["original_max_position_embeddings"] = 4096
    theta = {"rope_theta": 5e5}
    more = {place: {**told, **theta}} if place == "rope_parameters" else {place: told, **theta}
    arch = architecture({**LLAMA, **more})
    assert arch
    assert arch.ropes[0] == Rope(5e5, "llama3", 32.0, 2.0, 5.0, 4096)


def test_frequencies_by_hand() -> None:
    """Two pairs turn by 1 and 0.1 at each position, or by a fourth of it."""
    assert Rope(100.0).frequencies(4) == pytest.approx([1.0, 0.1])
    assert Rope(100.0, "linear", 4.0).frequencies(4) == pytest.approx([0.25, 0.025])
    # 1 turns 62.8 / 2 pi = 10 times in the original length, 0.1 once, 0.31 three times: 2 / 3 of the way from 1 to 4.
    stretched = Rope(100.0, "llama3", 4.0, 1.0, 4.0, 63).frequencies(8)
    plain = [1.0, 100**-0.25, 0.1, 100**-0.75]
    share = (63 * plain[1] / 6.283185307 - 1) / 3
    smooth = (1 - share) * plain[1] / 4 + share * plain[1]
    least = (63 * plain[2] / 6.283185307 - 1) / 3
    assert stretched == pytest.approx(
        [1.0, smooth, (1 - least) * plain[2] / 4 + least * plain[2], plain[3] / 4], rel=1e-6
    )


@pytest.mark.parametrize(("model", "windows"), [("mistral", (64,) * 7), ("qwen2", (None,) * 7), ("llama", (None,) * 7)])
def test_a_window_counts_where_the_family_has_one(model: str, windows: tuple[int | None, ...]) -> None:
    """Qwen writes one down that it does not use."""
    arch = architecture({**LLAMA, "model_type": model, "sliding_window": 64})
    assert arch
    assert arch.windows == windows


@pytest.mark.parametrize(
    "more",
    [
        {"model_type": "olmo2"},
        {"hidden_act": "relu"},
        {"hidden_act": None},
        {"attn_logit_softcapping": 50.0},
        {"final_logit_softcapping": 30.0},
        {"use_bidirectional_attention": True},
        {"partial_rotary_factor": 0.5},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    ],
)
def test_what_the_lean_path_does_not_compute_is_none_of_it(more: dict[str, Any]) -> None:
    """Rather than almost the right numbers."""
    assert architecture({**LLAMA, "partial_rotary_factor": 1.0}) is not None
    assert architecture({**LLAMA, **more}) is None
