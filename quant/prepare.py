"""Base models: quantised once to NF4 with double quantisation (QLoRA, arXiv 2305.14314), then loaded from that."""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.contract.atomic_io import TEMPORARY, publish_folder, remove_tree
from agent.contract.protocol import Prepared
from quant.lean.architecture import architecture
from quant.lean.convert import convert
from quant.lean.sources import Folder, Gguf
from quant.shared.model import foreign_faults

CONFIG = "config.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
BESIDE = ("special_tokens_map.json", "chat_template.jinja", "generation_config.json")
QUANTISATION = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "float32",
    "bnb_4bit_quant_storage": "uint8",
}
"""What transformers must read in config.json to load the file."""


def prepare(source: Path, target: Path, told: Callable[[float], None] = lambda _: None) -> Prepared:
    """Quantise the model at `source`, a Hugging Face folder with safetensors or a .gguf file, into `target`.

    `told` is called with the share that is done. The result is published whole or not at all. Raises BaseModelError if
    the source cannot be read.
    """
    started = time.monotonic()
    work = target.with_name(f"{TEMPORARY}{target.name}")
    remove_tree(work)
    work.mkdir(parents=True)
    try:
        with foreign_faults(f"cannot prepare {source}"):
            kind, parameters = _write_model(source, work, told)
    except BaseException:
        remove_tree(work)
        raise
    quantisation = "nf4, double quantisation, blocks of 64"
    publish_folder(work, target, {"architecture": kind, "parameters": parameters, "quantisation": quantisation})
    size = sum(p.stat().st_size for p in target.iterdir())
    return Prepared(kind, parameters, size, round(time.monotonic() - started, 1))


def _write_model(source: Path, work: Path, told: Callable[[float], None]) -> tuple[str, int]:
    """Fill the folder `work`; returns the kind of model and how many numbers it has."""
    is_gguf = source.suffix == ".gguf"
    config = _from_transformers().gguf_config(source) if is_gguf else json.loads((source / CONFIG).read_text())
    arch = architecture(config)
    if arch is None:
        parameters: int = _from_transformers().quantise(source, work)
        return config["model_type"], parameters
    if is_gguf or not all((source / name).exists() for name in TOKENIZER):
        _from_transformers().save_tokenizer(source, work)
    else:
        for name in (*TOKENIZER, *BESIDE):
            if (source / name).exists():
                shutil.copyfile(source / name, work / name)
    (work / CONFIG).write_text(json.dumps(config | {"quantization_config": QUANTISATION}, indent=2))
    return arch.kind, convert(Gguf(source, arch) if is_gguf else Folder(source), arch, work, told)


def _from_transformers() -> Any:
    """The preparing that only transformers can do, imported by need: it costs seconds and 300 MB."""
    return importlib.import_module("quant.hf.prepare")
