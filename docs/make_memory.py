"""Writes the tables of docs/memory.md from the formulas that the worker plans with: `make docs`.

`tests/test_docs.py` compares.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.models import SHAPES, Shape, floor_mib
from quant.lean import memory
from quant.lean.architecture import Architecture, Rope

TARGET = Path(__file__).parent / "memory.md"
MIB = 2**20
TOKENS, RANK = 512, 16
COLUMNS = (
    "4-bit matrices, mapped",
    "embeddings, mapped",
    "adapter and AdamW",
    "inputs of blocks",
    "scratch",
    "a step, all in all",
)


def architecture(shape: Shape) -> Architecture:
    """A shape as the lean path reads it from a config.json."""
    return Architecture(
        kind=shape.kind,
        layers=shape.num_hidden_layers,
        width=shape.hidden_size,
        inner=shape.intermediate_size,
        heads=shape.num_attention_heads,
        kv_heads=shape.num_key_value_heads,
        head_size=shape.head_dim,
        vocabulary=shape.vocab_size,
        epsilon=1e-6,
        tied=shape.tie_word_embeddings,
        activation="silu",
        attention_scale=1.0,
        ropes=(Rope(1e4),) * shape.num_hidden_layers,
        windows=(None,) * shape.num_hidden_layers,
    )


def mapped(arch: Architecture) -> tuple[float, float]:
    """MiB of the 4-bit matrices and of the embeddings in the file."""
    matrices = arch.layers * sum(outputs * inputs for outputs, inputs in arch.linears.values())
    return matrices * 4.127 / 8 / MIB, (1 if arch.tied else 2) * arch.vocabulary * arch.width * 2 / MIB


def step(
    arch: Architecture, *, tokens: int = TOKENS, rank: int = RANK, a_number: int = 16, layers: float = 1.0
) -> float:
    """MiB of anonymous memory that a step takes with everything computed again."""
    blocks = max(1, round(layers * arch.layers))
    inputs = blocks * memory.block_input(arch, tokens)
    return (
        a_number * memory.adapter_parameters(arch, rank, layers) + inputs + memory.scratch_bytes(arch, tokens)
    ) / MIB


def where() -> str:
    """Where every megabyte goes."""
    rows = [
        "| MiB | " + " | ".join(COLUMNS) + " |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, shape in SHAPES.items():
        arch = architecture(shape)
        inputs = arch.layers * memory.block_input(arch, TOKENS) / MIB
        cells = (
            *mapped(arch),
            16 * memory.adapter_parameters(arch, RANK, 1.0) / MIB,
            inputs,
            memory.scratch_bytes(arch, TOKENS) / MIB,
            step(arch),
        )
        rows.append(f"| {name} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |")
    return "\n".join(rows)


def levers() -> str:
    """Memory that each setting saves, and its price."""
    ways = {
        "as above": {},
        "`rank = 8`": {"rank": 8},
        '`optimizer = "adamw8bit"`': {"a_number": 10},
        "`sequence_length = 256`": {"tokens": 256},
        "`sequence_length = 1024`": {"tokens": 1024},
        "`top_layers = 0.25`": {"layers": 0.25},
        "all four that save": {"rank": 8, "a_number": 10, "tokens": 256, "layers": 0.25},
    }
    rows = ["| MiB of a step | " + " | ".join(SHAPES) + " |", "| --- |" + " --- |" * len(SHAPES)]
    for name, way in ways.items():
        cells = (step(architecture(shape), **way) for shape in SHAPES.values())
        rows.append(f"| {name} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |")
    each = (memory.activation_bytes(architecture(shape), TOKENS) / MIB for shape in SHAPES.values())
    rows.append("| each block that is not computed again | " + " | ".join(f"+{cell:.0f}" for cell in each) + " |")
    floors = (floor_mib(shape, TOKENS, RANK) for shape in SHAPES.values())
    rows.append("| floor, for the first row | " + " | ".join(f"{cell:.0f}" for cell in floors) + " |")
    return "\n".join(rows)


def boxes() -> str:
    """Memory that a box must have free, with everything computed again."""
    rows = [
        "| MiB | CPU: anonymous + mapped | GPU, bfloat16: its own memory | Jetson: shared memory |",
        "| --- | --- | --- | --- |",
    ]
    for name, shape in SHAPES.items():
        arch = architecture(shape)
        file = sum(mapped(arch))
        of_step = step(arch)
        weight = max(outputs * inputs for outputs, inputs in arch.linears.values())
        of_gpu = of_step - 2 * weight / MIB
        rows.append(f"| {name} | {of_step:.0f} + {file:.0f} | {of_gpu + file:.0f} | {of_gpu + file:.0f} |")
    return "\n".join(rows)


def page(text: str) -> str:
    """The page with its tables made anew."""
    for name, table in (("where", where()), ("levers", levers()), ("boxes", boxes())):
        text = re.sub(rf"(<!-- {name} -->\n\n).*?(\n\n<!-- end -->)", rf"\g<1>{table}\g<2>", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    TARGET.write_text(page(TARGET.read_text()))
