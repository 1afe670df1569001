"""A trained version in the forms that others serve: a merged model, or a LoRA adapter for llama.cpp.

Both are written tensor by tensor; the base is what was trained on, that is, the 4-bit matrices as they unpack.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from agent.contract.errors import BaseModelError
from quant.lean.adapter import Adapter, read
from quant.lean.architecture import GEMMA, Architecture, architecture
from quant.lean.sources import GGUF_NAMES
from quant.lean.store import STATE, Store
from quant.shared.writer import Entry, write_header, write_tensor

if TYPE_CHECKING:
    from gguf import GGUFWriter

SHARD = 2 << 30
"""Bytes of a shard of a merged model."""
DTYPE = torch.bfloat16
BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip
GGUF_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", GEMMA: "gemma3"}
"""Kinds of model by llama.cpp's names."""
Told = Callable[[float], None]
Cpu = torch.device("cpu")


def open_base(base: Path) -> tuple[Architecture, Store]:
    """A prepared base model; raises BaseModelError for one that the lean path does not know."""
    arch = architecture(json.loads((base / "config.json").read_text()))
    if arch is None:
        raise BaseModelError(f"{base}: only models of the lean path can be exported so; take --to peft")
    return arch, Store(base, Cpu)


def unpack(store: Store, name: str) -> torch.Tensor:
    """A packed matrix in float32."""
    packed = store.matrix(name)
    return packed.unpack(torch.empty(packed.shape), torch.empty(packed.scales.numel()))


# ---- merged ----


def write_merged(base: Path, adapter: Path, target: Path, told: Told) -> None:
    """Write a Hugging Face folder in bfloat16 whose matrices have the adapter in them, shard by shard."""
    arch, store = open_base(base)
    trained = read(arch, adapter, Cpu)
    entries = list(_entries(store))
    shards = _shards(entries)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else ["model.safetensors"]
    whole, done = sum(entry.size for entry in entries), 0
    for name, shard in zip(names, shards, strict=True):
        with (target / name).open("wb") as file:
            places = write_header(file, shard)
            for entry in shard:
                write_tensor(file, places[entry.name], _merge(store, trained, entry.name))
                done += entry.size
                told(done / whole)
    if len(shards) > 1:
        of = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        index = {"metadata": {"total_size": whole}, "weight_map": of}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for name in BESIDE:
        if (base / name).exists():
            shutil.copyfile(base / name, target / name)
    config: dict[str, Any] = json.loads((base / "config.json").read_text())
    config.pop("quantization_config", None)  # which says that the model is in 4 bits
    about = {**config, "dtype": "bfloat16", "torch_dtype": "bfloat16"}
    (target / "config.json").write_text(json.dumps(about, indent=2) + "\n")


def _entries(store: Store) -> Iterator[Entry]:
    """The tensors of the model as it was before it was packed."""
    packed = {name.removesuffix(f".{STATE}") for name in store.names if name.endswith(f".{STATE}")}
    for name in sorted(store.names):
        if name in packed:
            yield Entry(name, DTYPE, store.matrix(name).shape)
        elif f"{name.rpartition('.weight.')[0]}.weight" not in packed:
            yield Entry(name, DTYPE, tuple(store.tensor(name).shape))


def _shards(entries: list[Entry]) -> list[list[Entry]]:
    """Entries in order, so many in each that it stays below SHARD where one alone does."""
    found: list[list[Entry]] = []
    size = 0
    for entry in entries:
        if not found or size + entry.size > SHARD:
            found.append([])
            size = 0
        found[-1].append(entry)
        size += entry.size
    return found


def _merge(store: Store, trained: Adapter, name: str) -> torch.Tensor:
    """A tensor of the merged model in bfloat16; W + scale · B A for a matrix that is trained."""
    if f"{name}.{STATE}" not in store.names:
        return store.tensor(name).to(DTYPE)
    out = unpack(store, name)
    _, _, number, linear = name.removesuffix(".weight").split(".", 3)
    lora = trained.loras.get((int(number), linear))
    if lora is not None:
        out.addmm_(lora.b, lora.a, alpha=lora.scale)
    return out.to(DTYPE)


# ---- GGUF ----


def write_gguf(base: Path, adapter: Path, target: Path, told: Told) -> None:
    """Write the adapter as llama.cpp reads it, float32, into the file `target`."""
    from gguf import GGUFWriter  # noqa: PLC0415  numpy and a table of every model: only for those who export

    arch, _ = open_base(base)
    trained = read(arch, adapter, Cpu)
    writer = GGUFWriter(target, GGUF_ARCHITECTURES[arch.kind])
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(trained.alpha))
    of = {name: stem for stem, name in GGUF_NAMES.items()}
    for (number, linear), lora in trained.loras.items():
        name = f"blk.{number}.{of[linear]}.weight"
        writer.add_tensor(f"{name}.lora_a", lora.a.contiguous().numpy())
        writer.add_tensor(f"{name}.lora_b", interleave_heads(lora.b, arch, linear).contiguous().numpy())
    write_to_file(writer)
    told(1.0)


def interleave_heads(values: torch.Tensor, arch: Architecture, linear: str) -> torch.Tensor:
    """A linear's rows as llama.cpp has them: Llama's queries and keys with the two halves of each head interleaved."""
    heads = {"self_attn.q_proj": arch.heads, "self_attn.k_proj": arch.kv_heads}.get(linear)
    if heads is None or GGUF_ARCHITECTURES[arch.kind] != "llama":
        return values
    return values.view(heads, 2, -1, *values.shape[1:]).transpose(1, 2).reshape(values.shape)


def write_to_file(writer: GGUFWriter) -> None:
    """Write the file that a writer was given everything for."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
