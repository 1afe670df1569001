"""The decoder family of the lean path, read from a model's config.json: Llama, Mistral, Qwen2, Qwen3, Gemma 3."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]

GEMMA = "gemma3_text"
KINDS = {"llama", "mistral", "qwen2", "qwen3", GEMMA}
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}
UNKNOWN = ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")
"""Settings that change the arithmetic and that the lean path has not."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions (arXiv 2104.09864): the base of the frequencies, and how they are stretched."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def frequencies(self, head_size: int) -> list[float]:
        """Angle per position of each of the head_size / 2 pairs."""
        plain = [self.theta ** (-2 * i / head_size) for i in range(head_size // 2)]
        if self.kind == "linear":
            return [each / self.factor for each in plain]
        return [self._llama3(each) for each in plain] if self.kind == "llama3" else plain

    def _llama3(self, frequency: float) -> float:
        """Llama 3.1's stretching: long waves by the factor, short ones not at all, those between smoothly."""
        turns = self.original * frequency / (2 * math.pi)
        if turns > self.high:
            return frequency
        if turns < self.low:
            return frequency / self.factor
        smooth = (turns - self.low) / (self.high - self.low)
        return (1 - smooth) * frequency / self.factor + smooth * frequency


@dataclass(frozen=True)
class Architecture:
    """Shapes and variants of a decoder; `ropes` and `windows` are by layer, a window of None sees everything."""

    kind: str
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    epsilon: float
    tied: bool
    activation: str
    attention_scale: float
    ropes: tuple[Rope, ...]
    windows: tuple[int | None, ...]

    @property
    def is_gemma(self) -> bool:
        """True if norms weigh by 1 + w and follow each half of a block too, and embeddings are scaled by √width."""
        return self.kind == GEMMA

    @property
    def queries(self) -> int:
        """Width of all heads' queries."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of all heads' keys, and of the values."""
        return self.kv_heads * self.head_size

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Name in a layer → (outputs, inputs) of each linear layer, in the order they are used."""
        return {
            "self_attn.q_proj": (self.queries, self.width),
            "self_attn.k_proj": (self.keys, self.width),
            "self_attn.v_proj": (self.keys, self.width),
            "self_attn.o_proj": (self.width, self.queries),
            "mlp.gate_proj": (self.inner, self.width),
            "mlp.up_proj": (self.inner, self.width),
            "mlp.down_proj": (self.width, self.inner),
        }


def architecture(config: Config) -> Architecture | None:
    """The architecture that a config.json describes; None if the lean path does not cover it."""
    activation = ACTIVATIONS.get(config.get("hidden_activation") or config.get("hidden_act") or "")
    if config.get("model_type") not in KINDS or activation is None or any(config.get(name) for name in UNKNOWN):
        return None
    layers = config["num_hidden_layers"]
    kinds = _layer_kinds(config, layers)
    ropes = {kind: _rope(config, kind) for kind in set(kinds)}
    if any(rope is None for rope in ropes.values()) or config.get("partial_rotary_factor", 1.0) != 1.0:
        return None
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    return Architecture(
        kind=config["model_type"],
        layers=layers,
        width=config["hidden_size"],
        inner=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=head_size,
        vocabulary=config["vocab_size"],
        epsilon=config["rms_norm_eps"],
        tied=config.get("tie_word_embeddings", config["model_type"] == GEMMA),
        activation=activation,
        attention_scale=float(config.get("query_pre_attn_scalar") or head_size) ** -0.5,
        ropes=tuple(rope for kind in kinds if (rope := ropes[kind]) is not None),
        windows=tuple(config["sliding_window"] if kind == "sliding_attention" else None for kind in kinds),
    )


def _layer_kinds(config: Config, layers: int) -> list[str]:
    """Sliding or full attention, by layer, as transformers reads the same file."""
    if config.get("layer_types"):
        return list(config["layer_types"])
    if not config.get("sliding_window") or config["model_type"] in {"llama", "qwen2", "qwen3"}:
        return ["full_attention"] * layers
    pattern = config.get("sliding_window_pattern", 6) if config["model_type"] == GEMMA else 0
    return ["full_attention" if pattern and (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)]


def _rope(config: Config, layer_kind: str) -> Rope | None:
    """The rotary positions of one kind of layer; None for a stretching that is not covered."""
    told = config.get("rope_parameters") or {}
    told = told.get(layer_kind, told) or {}
    scaling = told or config.get("rope_scaling") or {}
    theta = told.get("rope_theta") or config.get("rope_theta", 10000.0)
    if not told and config["model_type"] == GEMMA and layer_kind == "sliding_attention":
        theta, scaling = config.get("rope_local_base_freq", 10000.0), {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in {"default", "linear", "llama3"}:
        return None
    return Rope(
        theta=theta,
        kind=kind,
        factor=scaling.get("factor", 1.0),
        low=scaling.get("low_freq_factor", 1.0),
        high=scaling.get("high_freq_factor", 4.0),
        original=scaling.get("original_max_position_embeddings", 8192),
    )
