"""A prepared base model as an F16 .gguf file, exactly as it unpacks: what an exported adapter was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, GGUFWriter

from quant.lean.architecture import GEMMA, Architecture, architecture
from quant.lean.sources import GGUF_GEMMA, GGUF_NAMES
from quant.lean.store import STATE, Store

WRITTEN_BY_ITSELF = ("GGUF.", "general.architecture")
"""Fields that a writer adds on its own."""


def write_base(base: Path, writer: GGUFWriter) -> None:
    """Add the tensors of a prepared model and write the file; the fields must have been added before."""
    arch = architecture(json.loads((base / "config.json").read_text()))
    if arch is None:
        raise SystemExit(f"{base} is not of the lean path")
    store = Store(base, torch.device("cpu"))
    for name in sorted(store.names):
        if name.endswith((".weight", ".bias")):
            values = _values(store, arch, name)
            writer.add_tensor(_name(arch, name), values.numpy().astype(np.float16 if values.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def copy_fields(like: Path, writer: GGUFWriter) -> None:
    """Everything that another .gguf file of the same model says of it: shapes, tokenizer, chat template."""
    for name, field in GGUFReader(like).fields.items():
        if name.startswith(WRITTEN_BY_ITSELF) or name in {"general.file_type", "general.quantization_version"}:
            continue
        kind, *inner = field.types
        writer.add_key_value(name, field.contents(), kind, inner[0] if inner else None)


def _values(store: Store, arch: Architecture, name: str) -> torch.Tensor:
    """A tensor as llama.cpp has it: Llama's queries and keys interleaved, Gemma's norms with their 1 added."""
    if f"{name}.{STATE}" in store.names:
        packed = store.packed(name)
        values = packed.unpack(torch.empty(packed.shape), torch.empty(packed.scales.numel()))
    else:
        values = store.plain(name).float()
    heads = {"q_proj": arch.heads, "k_proj": arch.kv_heads}.get(name.split(".")[-2])
    if heads and arch.kind in {"llama", "mistral"}:
        return values.view(heads, 2, -1, *values.shape[1:]).transpose(1, 2).reshape(values.shape)
    return values + 1 if arch.kind == GEMMA and name.endswith("norm.weight") else values


def _name(arch: Architecture, name: str) -> str:
    names: dict[str, str] = {theirs: ours for ours, theirs in GGUF_NAMES.items()}
    names |= {theirs: ours for ours, theirs in GGUF_GEMMA.items()} if arch.is_gemma else {}
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{names[stem]}.{kind}"
    _, _, block, inner = stem.split(".", 3)
    return f"blk.{block}.{names[inner]}.{kind}"


def open_writer(target: Path, architecture_name: str) -> Any:
    """A writer of a .gguf file."""
    return GGUFWriter(target, architecture_name)
