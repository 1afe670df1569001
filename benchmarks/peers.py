"""The usual tools: transformers' Trainer with peft and bitsandbytes, TRL's SFTTrainer, and `generate`.

    python -m benchmarks.peers trainer|trl|generate MODEL DATA --prompts 1 --dtype float32|bfloat16 --sequence 512

Run by benchmarks.memory and benchmarks.latency in a process of its own. stdout carries JSON lines alone (what libraries
print goes to stderr): each phase is announced there and begins once a line came on stdin, each step is told as it ends,
and the last line has the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO

from agent.contract.lines import read_json_lines
from agent.contract.worker_server import claim_stdout, die_with_parent

NEW_TOKENS = 24
WARM_UP = 2
"""Steps that are not counted."""
_stdout: BinaryIO


def tell(message: dict[str, Any]) -> None:
    """One line for the watcher."""
    _stdout.write(json.dumps(message).encode() + b"\n")


def phase(name: str) -> None:
    """Announce a phase, and wait until the watcher has taken its marks."""
    tell({"phase": name})
    sys.stdin.readline()


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("trainer", "trl", "generate"))
    parser.add_argument("model", help="Hugging Face folder")
    parser.add_argument("data", type=Path, help="lines of {text}")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--prompts", type=int, required=True, help="first texts that are answered, one by one")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parent", type=int, required=True, help="process whose death ends this one")
    return parser.parse_args()


def load(given: argparse.Namespace) -> tuple[Any, Any]:
    """The model in 4 bits with a LoRA adapter, and its tokenizer, as the documentation of peft does it.

    With bfloat16 the products with 4-bit weights are computed in that; peft keeps norms and the head in float32.
    Autocast on top of it (`bf16=True`) was not faster on a CPU.
    """
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig  # noqa: PLC0415

    dtype = getattr(torch, given.dtype)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        given.model, quantization_config=config, dtype=dtype, device_map={"": given.device}
    )
    return model, AutoTokenizer.from_pretrained(given.model)


def lora() -> Any:
    """The adapter's settings."""
    from peft import LoraConfig  # noqa: PLC0415

    return LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


def timed() -> tuple[Any, list[tuple[float, float]], list[dict[str, float]]]:
    """A callback, the beginning and end of each step, and what was logged."""
    from transformers import TrainerCallback  # noqa: PLC0415

    steps: list[tuple[float, float]] = []
    logs: list[dict[str, float]] = []

    class Timed(TrainerCallback):  # type: ignore[misc]
        """Notes times and logs."""

        began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            """Before the forward pass."""
            self.began = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """After the update."""
            steps.append((self.began, time.monotonic()))
            tell({"step": len(steps), "seconds": steps[-1][1] - steps[-1][0]})

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            """Loss and gradient norm."""
            noted.append(logs or {})

    noted = logs
    return Timed(), steps, logs


def arguments(given: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Arguments of both trainers."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": 1,
        "max_steps": given.steps,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "disable_tqdm": True,
        "seed": 0,
        "learning_rate": 5e-5,
        "max_grad_norm": 1.0,
    }


def trainer(given: argparse.Namespace, model: Any, tokenizer: Any, texts: list[str], folder: str) -> Any:
    """The Trainer of transformers on rows of all their tokens."""
    from peft import get_peft_model, prepare_model_for_kbit_training  # noqa: PLC0415
    from transformers import Trainer, TrainingArguments  # noqa: PLC0415

    rows = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=given.sequence)["input_ids"][0]
        rows.append({"input_ids": ids, "labels": ids.clone(), "attention_mask": ids.new_ones(len(ids))})
    model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    model = get_peft_model(model, lora())
    callback, *noted = timed()
    return Trainer(
        model=model, args=TrainingArguments(**arguments(given, folder)), train_dataset=rows, callbacks=[callback]
    ), noted


def trl(given: argparse.Namespace, model: Any, tokenizer: Any, texts: list[str], folder: str) -> Any:
    """TRL's SFTTrainer on the same texts."""
    from datasets import Dataset  # noqa: PLC0415
    from trl import SFTConfig, SFTTrainer  # noqa: PLC0415

    callback, *noted = timed()
    config = SFTConfig(**arguments(given, folder), max_length=given.sequence, dataset_num_proc=None, bf16=False)
    return SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
        peft_config=lora(),
        callbacks=[callback],
    ), noted


def generate(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Answer texts one by one; returns tokens a second."""
    import torch  # noqa: PLC0415

    model.eval()
    # Training with checkpointing has switched the cache off.
    model.gradient_checkpointing_disable()
    model.config.use_cache = True
    started, tokens = time.monotonic(), 0
    for text in texts:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": text[:200]}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        with torch.inference_mode():
            out = model.generate(**asked, max_new_tokens=NEW_TOKENS, do_sample=False)
        tokens += out.shape[1] - asked["input_ids"].shape[1]
    return tokens / (time.monotonic() - started)


def cuda_peaks(device: str) -> dict[str, float]:
    """The most GPU memory that was allocated and reserved so far, in MiB; nothing on a CPU."""
    if device == "cpu":
        return {}
    import torch  # noqa: PLC0415

    peaks = {"cuda_allocated": torch.cuda.max_memory_allocated(), "cuda_reserved": torch.cuda.max_memory_reserved()}
    return {name: round(value / 2**20, 1) for name, value in peaks.items()}


def main() -> int:
    """All phases."""
    global _stdout  # noqa: PLW0603  claimed once, before anything can print
    began, given = time.monotonic(), options()
    die_with_parent(given.parent)
    _stdout = claim_stdout()
    os.environ["HF_HUB_OFFLINE"] = "1"
    phase("import")
    if given.kind == "trl":
        import trl as _  # noqa: F401, PLC0415  first: where it is missing the others need not be imported
    import bitsandbytes  # noqa: F401, PLC0415
    import peft  # noqa: F401, PLC0415
    import transformers  # noqa: F401, PLC0415

    phase("load")
    texts = [row["text"] for row in read_json_lines(given.data)]
    model, tokenizer = load(given)
    figures = {}
    if given.kind != "generate":
        model, figures = trained(given, model, tokenizer, texts, began)
    phase("generate")
    figures["generated_per_s"] = round(generate(model, tokenizer, texts[: given.prompts]), 1)
    if given.kind != "generate":
        phase("save")
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
    tell({"figures": {**figures, **cuda_peaks(given.device)}})
    return 0


def trained(
    given: argparse.Namespace, model: Any, tokenizer: Any, texts: list[str], began: float
) -> tuple[Any, dict[str, Any]]:
    """The model with its adapter after some steps, and what they took."""
    with tempfile.TemporaryDirectory() as folder:
        build = trainer if given.kind == "trainer" else trl
        made, (steps, logs) = build(given, model, tokenizer, texts, folder)
        phase("step")
        made.train()
    counted = [end - start for start, end in steps[WARM_UP:]]
    return made.model, {
        "tokens_per_s": round(given.sequence / statistics.median(counted), 1),
        "first_step_s": round(steps[0][0] - began, 2),
        "losses": [round(log["loss"], 4) for log in logs if "loss" in log],
        "norms": [round(float(log["grad_norm"]), 4) for log in logs if "grad_norm" in log],
    }


if __name__ == "__main__":
    sys.exit(main())
