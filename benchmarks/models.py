"""Models for the memory and latency benchmarks: SmolLM2-135M with its weights, others with random ones at real shapes.

Speed and memory do not depend on what the weights are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes, by the names of transformers' configurations."""

    kind: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool = True

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of a block's seven linear layers."""
        width, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return [
            (queries, width),
            (keys, width),
            (keys, width),
            (width, queries),
            (inner, width),
            (inner, width),
            (width, inner),
        ]


SMOLLM2 = "SmolLM2-135M"
SHAPES = {
    SMOLLM2: Shape("llama", 30, 576, 1536, 9, 3, 64, 49152),
    "Qwen2.5-0.5B": Shape("qwen2", 24, 896, 4864, 14, 2, 64, 151936),
    "Llama-3.2-1B": Shape("llama", 16, 2048, 8192, 32, 8, 64, 128256),
    "Llama-3.1-8B": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256, tie_word_embeddings=False),
}
TINY = "tiny"
CHECKED = {**SHAPES, TINY: Shape("llama", 2, 64, 128, 4, 2, 16, 49152)}
"""With a tiny one, on which the benchmarks themselves are tried in seconds."""


def write_random(name: str, folder: Path, tokenizer: Path) -> None:
    """A Hugging Face folder in bfloat16 with random weights; the tokenizer is that of another folder."""
    import torch  # noqa: PLC0415  the benchmark's parent stays small
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    fields: dict[str, Any] = dict(CHECKED[name].__dict__)
    config = AutoConfig.for_model(fields.pop("kind"), **fields, max_position_embeddings=32768)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def step_gflop(shape: Shape, tokens: int, rank: int) -> float:
    """Useful GFLOP of a training step on one row in which every token is learned, by its matrix products alone.

    A multiplication and an addition are 2 FLOP. With T tokens:

    - products with the N numbers of the frozen 4-bit matrices: forward 2·N·T and, for the gradient of their inputs, the
      same again (the weights have no gradient);
    - logits, forward and backward: 4·V·width·T;
    - attention: T·(T+1)/2 causal pairs, forward scores and mix (2 products), backward 4: 12·pairs·heads·head size;
    - LoRA on each matrix: r·(inputs + outputs) numbers, forward, inputs and weights: 6 for each number and token.

    Not counted, because it is work but of no use: the forward pass of blocks that are computed again, unpacking 4-bit
    weights, and the half of the attention that the causal mask throws away. Norms, activations, softmax and the
    optimizer are no products. The same figure serves every contender, whatever it computes again.
    """
    frozen = shape.num_hidden_layers * sum(outputs * inputs for outputs, inputs in shape.linears)
    lora = shape.num_hidden_layers * sum(rank * (outputs + inputs) for outputs, inputs in shape.linears)
    pairs = tokens * (tokens + 1) / 2
    attention = 12 * pairs * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim
    head = 4 * shape.vocab_size * shape.hidden_size * tokens
    return (4 * frozen * tokens + head + attention + 6 * lora * tokens) / 1e9


def floor_mib(shape: Shape, tokens: int, rank: int) -> float:
    """Anonymous memory that a training step on a CPU cannot do without, in float32 with float32 moments.

    Adapter, gradient and two moments; the input of every block in bfloat16; one block's intermediate values; one matrix
    unpacked; one chunk of 2048 logits and of the embedding.
    """
    width, inner = shape.hidden_size, shape.intermediate_size
    keys = shape.num_key_value_heads * shape.head_dim
    adapter = shape.num_hidden_layers * sum(rank * (outputs + inputs) for outputs, inputs in shape.linears)
    inputs_of_blocks = 2 * shape.num_hidden_layers * tokens * width
    block = 4 * tokens * (8 * width + 2 * keys + 5 * inner)
    matrix = 4 * max(outputs * inputs for outputs, inputs in shape.linears)
    logits = 4 * 2048 * (tokens + width)
    return round((16 * adapter + inputs_of_blocks + block + matrix + logits) / 2**20, 1)
