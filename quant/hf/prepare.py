"""Preparing a base model with transformers: other architectures, and what a .gguf file says about itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()


def gguf_config(source: Path) -> dict[str, Any]:
    """The configuration in a .gguf file, as in a config.json."""
    found: dict[str, Any] = AutoConfig.from_pretrained(source.parent, gguf_file=source.name).to_dict()
    return found


def save_tokenizer(source: Path, work: Path) -> None:
    """Write the tokenizer of a .gguf file, or of a folder that has it in an older format, into `work`."""
    _tokenizer(source).save_pretrained(work)


def _tokenizer(source: Path) -> Any:
    if source.suffix == ".gguf":
        return AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    return AutoTokenizer.from_pretrained(source)


def quantise(source: Path, work: Path) -> int:
    """Quantise a whole model in memory into `work`, tokenizer and all; returns how many numbers it has."""
    _tokenizer(source).save_pretrained(work)
    plain = work / "plain"
    if source.suffix == ".gguf":
        dequantise_gguf(source, plain)
        source = plain
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    network = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=config, dtype=torch.bfloat16, device_map={"": "cpu"}, use_safetensors=True
    )
    network.save_pretrained(work)
    shutil.rmtree(plain, ignore_errors=True)
    return sum(_elements(p) for p in network.parameters())


def dequantise_gguf(source: Path, plain: Path) -> None:
    """GGUF to a plain bfloat16 folder: transformers cannot read and quantise a .gguf in one go."""
    network = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
    network.hf_quantizer = None
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    network.save_pretrained(plain)


def _elements(parameter: Any) -> int:
    """Numbers a parameter stands for: a 4-bit one holds two in each byte."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())
