"""Base models: quantised to NF4 once by `prepare`, loaded from that copy ever after by `load`."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from agent.durable import TEMPORARY, folder_fault, publish_folder, remove_tree
from agent.errors import BaseModelError
from agent.protocol import Prepared
from quant.chat import Encoder
from quant.devices import choose_device, choose_dtype

transformers_logging.disable_progress_bar()


@dataclass
class Model:
    """A loaded base model, with an adapter on it if `network` is a PeftModel."""

    network: Any
    encoder: Encoder
    device: torch.device
    dtype: torch.dtype

    @property
    def architecture(self) -> str:
        """The model type as transformers names it: llama, gemma3_text, qwen2, ..."""
        return str(self.network.config.model_type)


def prepare(source: Path, target: Path) -> Prepared:
    """Quantise the model at `source` to NF4 with double quantisation (QLoRA, arXiv 2305.14314) into `target`.

    `source` is a Hugging Face folder with safetensors or a .gguf file. The result is published whole or not at
    all. Raises BaseModelError if the source cannot be read.
    """
    started = time.monotonic()
    work = target.with_name(f"{TEMPORARY}{target.name}")
    remove_tree(work)
    work.mkdir(parents=True)
    try:
        network = _quantised(source, work / "plain")
        _tokenizer(source).save_pretrained(work)
        network.save_pretrained(work)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError) as fault:
        remove_tree(work)
        raise BaseModelError(f"cannot prepare {source}: {_one_line(fault)}") from fault
    shutil.rmtree(work / "plain", ignore_errors=True)
    about = {
        "architecture": network.config.model_type,
        "parameters": sum(_elements(p) for p in network.parameters()),
        "quantisation": "nf4, double quantisation, blocks of 64",
    }
    publish_folder(work, target, about)
    size = sum(p.stat().st_size for p in target.iterdir())
    return Prepared(about["architecture"], about["parameters"], size, round(time.monotonic() - started, 1))


def _quantised(source: Path, plain: Path) -> Any:
    if source.suffix == ".gguf":
        _dequantise_gguf(source, plain)
        source = plain
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return AutoModelForCausalLM.from_pretrained(
        source, quantization_config=config, dtype=torch.bfloat16, device_map={"": "cpu"}, use_safetensors=True
    )


def _dequantise_gguf(source: Path, plain: Path) -> None:
    """GGUF to a plain bfloat16 folder: transformers cannot read and quantise a .gguf in one go."""
    network = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
    network.hf_quantizer = None
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    network.save_pretrained(plain)


def _tokenizer(source: Path) -> Any:
    if source.suffix == ".gguf":
        return AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    return AutoTokenizer.from_pretrained(source)


def _elements(parameter: Any) -> int:
    """Numbers a parameter stands for: a 4-bit one holds two in each byte."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())


def load(folder: Path, adapter: Path | None, device_name: str, dtype_name: str) -> Model:
    """Load a prepared base model and, if given, a PEFT adapter on top of it.

    Raises BaseModelError if the folder is not whole.
    """
    fault = folder_fault(folder, contents=False)
    if fault:
        raise BaseModelError(f"the base model is damaged: {fault}; run `nslora-agent init --again`")
    device = choose_device(device_name)
    dtype = choose_dtype(dtype_name, device)
    config = AutoConfig.from_pretrained(folder)
    config.quantization_config["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
    network = AutoModelForCausalLM.from_pretrained(folder, config=config, device_map={"": device}, use_safetensors=True)
    _settle(network, dtype)
    if adapter is not None:
        network = PeftModel.from_pretrained(network, adapter, is_trainable=True)
    network.eval()
    return Model(network, Encoder(AutoTokenizer.from_pretrained(folder)), device, dtype)


def _settle(network: Any, dtype: torch.dtype) -> None:
    """Freeze the base; everything that is not 4-bit becomes float32, whatever type it was stored in.

    So the residual stream is exact and only the matrix products run in the compute dtype, as in QLoRA. With all of
    it in bfloat16 the 24 facts of the example stayed at 0.44 where float32 reached 0.9 (docs/decisions.md).
    """
    network.requires_grad_(requires_grad=False)
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    for module in network.modules():
        if isinstance(module, Linear4bit):
            module.weight.quant_state.dtype = dtype
            # On CPUs with AVX512-BF16 the first answer would repack the weights in place for a kernel that has no
            # backward: training after it would silently learn nothing.
            module.support_avx512bf16_for_cpu = False


def _one_line(fault: Exception) -> str:
    return " ".join(str(fault).split())[:300] or type(fault).__name__
