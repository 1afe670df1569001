"""A prepared base model as an F16 .gguf file, exactly as it unpacks: what an exported adapter was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, GGUFWriter

from quant.lean import export
from quant.lean.architecture import GEMMA, Architecture
from quant.lean.sources import GGUF_GEMMA, GGUF_NAMES
from quant.lean.store import STATE, Store

WRITTEN_BY_ITSELF = ("GGUF.", "general.architecture")
"""Fields that a writer adds on its own."""


def write_base(base: Path, writer: GGUFWriter) -> None:
    """Add the tensors of a prepared model and write the file; the fields must have been added before."""
    arch, store = export.open_base(base)
    for name in sorted(store.names):
        if name.endswith((".weight", ".bias")):
            values = _values(store, arch, name)
            writer.add_tensor(_name(arch, name), values.numpy().astype(np.float16 if values.ndim > 1 else np.float32))
    export.write_to_file(writer)


def copy_fields(like: Path, writer: GGUFWriter) -> None:
    """Everything that another .gguf file of the same model says of it: shapes, tokenizer, chat template."""
    for name, field in GGUFReader(like).fields.items():
        if name.startswith(WRITTEN_BY_ITSELF) or name in {"general.file_type", "general.quantization_version"}:
            continue
        kind, *inner = field.types
        writer.add_key_value(name, field.contents(), kind, inner[0] if inner else None)


def _values(store: Store, arch: Architecture, name: str) -> torch.Tensor:
    """A tensor as llama.cpp has it: Llama's queries and keys interleaved, Gemma's norms with their 1 added."""
    values = export.unpack(store, name) if f"{name}.{STATE}" in store.names else store.tensor(name).float()
    values = export.interleave_heads(values, arch, ".".join(name.split(".")[-3:-1]))
    return values + 1 if arch.kind == GEMMA and name.endswith("norm.weight") else values


def _name(arch: Architecture, name: str) -> str:
    names: dict[str, str] = {theirs: ours for ours, theirs in GGUF_NAMES.items()}
    names |= {theirs: ours for ours, theirs in GGUF_GEMMA.items()} if arch.is_gemma else {}
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{names[stem]}.{kind}"
    _, _, block, inner = stem.split(".", 3)
    return f"blk.{block}.{names[inner]}.{kind}"
