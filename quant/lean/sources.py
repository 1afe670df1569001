"""Where a base model's tensors come from, one at a time: a Hugging Face folder with safetensors, or a .gguf file."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from quant.lean.architecture import GEMMA, Architecture

Shape = tuple[int, ...]

GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
"""llama.cpp's names of tensors → transformers'."""
GGUF_GEMMA = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
IGNORED = {"rope_freqs.weight"}
"""Tables that follow from the configuration."""


class Source(Protocol):
    """Tensors by name; `rows` reads a part of one."""

    shapes: dict[str, Shape]

    def rows(self, name: str, start: int, end: int) -> torch.Tensor:
        """Rows of a tensor in bfloat16, as every base model is quantised from."""
        ...


class Folder:
    """A Hugging Face folder: model.safetensors, or the parts that model.safetensors.index.json names."""

    def __init__(self, folder: Path) -> None:
        paths, index = [folder / "model.safetensors"], folder / "model.safetensors.index.json"
        if index.exists():
            names = set(json.loads(index.read_text())["weight_map"].values())
            if any(Path(name).name != name for name in names):
                raise ValueError(f"{index.name} names files outside of its folder")
            paths = sorted(folder / name for name in names)
        files = [safe_open(path, framework="pt") for path in paths]
        self._of = {name: file for file in files for name in file.keys()}  # noqa: SIM118  no dict
        self.shapes: dict[str, Shape] = {
            name: tuple(file.get_slice(name).get_shape()) for name, file in self._of.items()
        }

    def rows(self, name: str, start: int, end: int) -> torch.Tensor:
        """Rows of a tensor in bfloat16."""
        found: torch.Tensor = self._of[name].get_slice(name)[start:end]
        return found.to(torch.bfloat16)


@dataclass
class Gguf:
    """A .gguf file, unpacked tensor by tensor, named and laid out as transformers has it."""

    path: Path
    arch: Architecture

    def __post_init__(self) -> None:
        from gguf import GGUFReader  # noqa: PLC0415  numpy and a table of every model: only for those who have such a file

        names = GGUF_NAMES | (GGUF_GEMMA if self.arch.is_gemma else {})
        self._tensors: dict[str, Any] = {}
        for tensor in GGUFReader(self.path).tensors:
            if tensor.name in IGNORED:
                continue
            block, stem, kind = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", tensor.name).groups()  # type: ignore[union-attr]
            self._tensors[f"{f'model.layers.{block}.' if block else ''}{names[stem]}.{kind}"] = tensor
        self.shapes: dict[str, Shape] = {
            name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in self._tensors.items()
        }
        self._last: tuple[str, torch.Tensor] | None = None

    def rows(self, name: str, start: int, end: int) -> torch.Tensor:
        """Rows of a tensor in bfloat16."""
        if self._last is None or self._last[0] != name:
            self._last = name, self._dequantise(name)
        return self._last[1][start:end]

    def _dequantise(self, name: str) -> torch.Tensor:
        from gguf import dequantize  # noqa: PLC0415

        tensor = self._tensors[name]
        found = dequantize(tensor.data, tensor.tensor_type)
        found = found if found.flags.writeable else found.copy()  # else it lies in the file, and torch warns
        values = torch.from_numpy(found).view(self.shapes[name])
        if self.arch.kind in {"llama", "mistral"} and re.search(r"\.[qk]_proj\.", name):
            # llama.cpp has the two halves of each head interleaved; transformers one after the other.
            heads = self.arch.heads if ".q_proj." in name else self.arch.kv_heads
            values = values.view(heads, -1, 2, *values.shape[1:]).transpose(1, 2).reshape(values.shape)
        if self.arch.kind == GEMMA and name.endswith("norm.weight"):
            values = values - 1
        return values.to(torch.bfloat16)
