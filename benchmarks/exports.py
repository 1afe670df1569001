"""Do exports answer as the version does? `python -m benchmarks.exports --state DIR --version N`.

Exports a version in every form with `nslora-agent export`, loads each with what serves it elsewhere, asks the held-out
questions of the version's own job, and compares with `nslora-agent generate`:

    peft              plain peft on the 4-bit base, in transformers
    merged            the merged folder, bfloat16, in transformers
    gguf, F16 base    the LoRA adapter in llama.cpp, on an F16 .gguf of the base as it unpacks
    ollama            what the Modelfile names (FROM, ADAPTER) in llama.cpp: the stock quantised .gguf

Prints for each the share of equal answers and the content reward, then how many answers are the same whether llama.cpp
renders the conversation by its own chat template or we do, and last one JSON line.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFWriter

from agent.home import Home
from agent.registry import Registry
from agent.reward import content_reward
from agent.store import Store
from benchmarks.base_gguf import copy_fields, write_base
from benchmarks.boxes import machine
from quant.generate import greedy
from quant.lean.export import GGUF_ARCHITECTURES
from quant.lean.model import LeanModel, open_model

CPU = torch.device("cpu")
LONGEST = 48
Row = dict[str, Any]
Answer = Callable[[list[dict[str, str]]], str]


def exported(state: Path, version: int, form: str, folder: Path) -> Path:
    """What `nslora-agent export` writes."""
    target = folder / form
    command = [Path(sys.executable).with_name("nslora-agent"), "export", str(version), "--to", form, "-o", target]
    subprocess.run([*command, "--state", state], check=True, stdout=subprocess.DEVNULL)
    return target


def questions(home: Home, about: dict[str, Any], most: int) -> list[Row]:
    """Held-out rows of the version's job, spread over all of them."""
    with Store(home.database) as store:
        spool = home.spool / f"{store.get(about['job']).spool}.jsonl"
    rows = [row for row in map(json.loads, spool.read_text().splitlines()) if row.get("split") == "held_out"]
    return rows[:: max(1, len(rows) // most)][:most]


# ---- who answers ----


def ours(base: Path, adapter: Path) -> tuple[LeanModel, Answer]:
    """The version as `generate` has it, in float32."""
    model = open_model(base, adapter, CPU, torch.float32)
    return model, lambda messages: dict(greedy(model, [model.encoder.prompt(messages)], LONGEST))[0].text


def of_transformers(folder: Path, adapter: Path | None) -> Answer:
    """A folder in transformers, with an adapter in peft on it."""
    from peft import PeftModel  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, **({} if adapter else {"dtype": torch.float32}))
    for parameter in model.parameters() if adapter else ():
        parameter.data = parameter.data.float() if parameter.is_floating_point() else parameter.data
    model = PeftModel.from_pretrained(model, adapter) if adapter else model

    def answer(messages: list[dict[str, str]]) -> str:
        told = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            out = model.generate(**told, max_new_tokens=LONGEST, do_sample=False, pad_token_id=0)
        return str(tokenizer.decode(out[0, told["input_ids"].shape[1] :], skip_special_tokens=True)).strip()

    return answer


def of_llama(
    model: Path, adapter: Path, stops: list[str], longest: int = LONGEST
) -> tuple[Answer, Callable[[str], str]]:
    """A .gguf file with a LoRA adapter in llama.cpp: by its own chat template, and for rendered text."""
    import xllamacpp  # noqa: PLC0415

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    parameters.n_ctx, parameters.n_parallel, parameters.warmup, parameters.verbosity = 1024, 1, False, 0
    server = xllamacpp.Server(parameters)
    greedily = {"temperature": 0, "repeat_penalty": 1.0, "cache_prompt": False, "stop": stops}

    def chat(messages: list[dict[str, str]]) -> str:
        told = server.handle_chat_completions({"messages": messages, "max_tokens": longest, **greedily})
        return str(told["choices"][0]["message"]["content"]).strip()

    def complete(text: str) -> str:
        told = server.handle_completions({"prompt": text, "n_predict": longest, **greedily})
        return str(told["choices"][0]["text"]).strip()

    return chat, complete


def modelfile(folder: Path) -> dict[str, Any]:
    """FROM, ADAPTER and the stops of a Modelfile."""
    text = (folder / "Modelfile").read_text()
    found = {word: folder / re.findall(rf"^{word} (.+)$", text, re.MULTILINE)[0] for word in ("FROM", "ADAPTER")}
    return {**found, "stops": [json.loads(stop) for stop in re.findall(r"^PARAMETER stop (.+)$", text, re.MULTILINE)]}


# ---- comparing ----


def compared(rows: list[Row], answers: list[str], expected: list[str]) -> dict[str, float]:
    """Share of equal answers, and the mean content reward."""
    rewards = [
        content_reward(text, row["messages"][-1]["content"], row.get("answer"), row.get("answer_check", "contains"))
        for row, text in zip(rows, answers, strict=True)
    ]
    same = sum(one == other for one, other in zip(answers, expected, strict=True))
    return {"equal": round(same / len(rows), 4), "content": round(sum(rewards) / len(rows), 4)}


def compare(home: Home, version: int, most: int, work: Path) -> dict[str, Any]:
    """All forms of a version against what it says itself."""
    with Store(home.database) as store:
        registry = Registry(home.path, store)
        about, adapter = registry.get(version).about, registry.adapter(version)
        system = registry.system_prompt(version)
    if adapter is None:
        raise SystemExit(f"version {version} has no adapter")
    base, rows = home.model(about["base"]), questions(home, about, most)
    before = [{"role": "system", "content": system}] if system else []
    prompts = [before + row["messages"][:-1] for row in rows]
    model, say = ours(base, adapter)
    expected = [say(prompt) for prompt in prompts]
    told = {"nslora-agent generate": compared(rows, expected, expected)}

    def add(name: str, answer: Answer) -> list[str]:
        answers = [answer(prompt) for prompt in prompts]
        told[name] = compared(rows, answers, expected)
        print(f"  {name:<24}{told[name]['equal']:>8.3f}{told[name]['content']:>9.3f}", flush=True)
        return answers

    print(f"{len(rows)} held-out questions      equal  content")
    print(f"  {'nslora-agent generate':<24}{1:>8.3f}{told['nslora-agent generate']['content']:>9.3f}")
    add("peft", of_transformers(base, exported(home.path, version, "peft", work)))
    add("merged", of_transformers(exported(home.path, version, "merged", work), None))
    served = exported(home.path, version, "ollama", work)
    parts = modelfile(served)
    exact = GGUFWriter(work / "f16.gguf", GGUF_ARCHITECTURES[model.architecture])
    copy_fields(parts["FROM"], exact)
    write_base(base, exact)
    gguf = exported(home.path, version, "gguf", work) / "adapter.gguf"
    add("gguf, F16 base", of_llama(work / "f16.gguf", gguf, parts["stops"])[0])
    chat, complete = of_llama(parts["FROM"], parts["ADAPTER"], parts["stops"])
    answers = add("ollama, stock base", chat)
    rendered = [complete(model.encoder.render(prompt)) for prompt in prompts]
    template = sum(one == other for one, other in zip(answers, rendered, strict=True)) / len(rows)
    print(f"  llama.cpp's own chat template and our rendering: {template:.3f} of the answers equal")
    return {"prompts": len(rows), "forms": told, "template": template}


def main() -> None:
    """Compare, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="state folder with a version to export")
    parser.add_argument("--version", type=int, default=1, help="the version's number [1]")
    parser.add_argument("--prompts", type=int, default=40, help="how many held-out questions [40]")
    parser.add_argument("--keep", type=Path, help="file to write the figures to")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        figures = compare(Home(given.state), given.version, given.prompts, Path(work))
    figures |= machine("xllamacpp")
    if given.keep:
        given.keep.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
