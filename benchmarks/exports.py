"""Do exports answer as the version does? `python -m benchmarks.exports --version N`.

Exports a version in every form with `nslora-agent export`, loads each with what serves it elsewhere, asks the held-out
questions of the version's own job, and compares with `nslora-agent generate`:

    peft              plain peft on the 4-bit base, in transformers
    merged            the merged folder, bfloat16, in transformers
    gguf, F16 base    the LoRA adapter in llama.cpp, on an F16 .gguf of the base as it unpacks
    ollama            what the Modelfile names (FROM, ADAPTER) in llama.cpp: the stock quantised .gguf

Prints for each the share of equal answers and the content reward, then how many answers are the same whether llama.cpp
renders the conversation by its own chat template or we do, and last one JSON line. Answers are kept in --out by form:
the same command goes on after an interruption or a form that failed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gguf import GGUFWriter

from agent.contract.atomic_io import sha256_file
from agent.contract.errors import NotFound
from agent.contract.lines import read_json_lines
from agent.queue.store import Store
from agent.scoring.reward import content_reward
from agent.system.paths import Home
from agent.versions.registry import Registry
from benchmarks.base_gguf import copy_fields, write_base
from benchmarks.boxes import machine
from benchmarks.running import Part, Session, add_run_options, code, phase, run
from quant.lean.export import GGUF_ARCHITECTURES
from quant.lean.model import open_model
from quant.shared.generate import greedy

CPU = torch.device("cpu")
LONGEST = 48
Row = dict[str, Any]
Figures = dict[str, Any]
Answer = Callable[[list[dict[str, str]]], str]


def exported(state: Path, version: int, form: str, folder: Path) -> Path:
    """Files that `nslora-agent export` wrote."""
    target = folder / form
    command = [Path(sys.executable).with_name("nslora-agent"), "export", str(version), "--to", form, "-o", target]
    phase(f"export to {form}")
    done = subprocess.run([*command, "--state", state], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`nslora-agent export --to {form}`: {done.stderr.strip()[-300:]}")
    phase("answers")
    return target


def questions(home: Home, about: dict[str, Any], most: int) -> list[Row]:
    """Held-out rows of the version's job, spread over all of them."""
    with Store(home.database) as store:
        spool = home.spool / f"{store.get(about['job']).spool}.jsonl"
    rows = [row for row in read_json_lines(spool) if row.get("split") == "held_out"]
    return rows[:: max(1, len(rows) // most)][:most]


# ---- who answers ----


def ours(base: Path, adapter: Path) -> Answer:
    """The version as `generate` has it, in float32."""
    model = open_model(base, adapter, CPU, torch.float32)
    return lambda messages: dict(greedy(model, [model.encoder.prompt(messages)], LONGEST))[0].text


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


@dataclass(frozen=True)
class Version:
    """A version to be exported, and the questions that it is asked."""

    home: Home
    number: int
    base: Path
    adapter: Path
    rows: list[Row]
    prompts: list[list[dict[str, str]]]

    @classmethod
    def find(cls, home: Home, number: int, most: int) -> Version:
        """Raises NotFound for a version that is not there or has no adapter."""
        if not home.database.exists():
            raise NotFound(f"{home.path} holds no versions: `nslora-agent run` makes one, --state names another folder")
        with Store(home.database) as store:
            registry = Registry(home.path, store)
            about, adapter = registry.get(number).about, registry.adapter(number)
            system = registry.system_prompt(number)
        if adapter is None:
            raise NotFound(f"version {number} has no adapter: name another with --version")
        rows = questions(home, about, most)
        before = [{"role": "system", "content": system}] if system else []
        prompts = [before + row["messages"][:-1] for row in rows]
        return cls(home, number, home.model(about["base"]), adapter, rows, prompts)

    def export(self, form: str, work: Path) -> Path:
        """Files that `nslora-agent export` wrote."""
        return exported(self.home.path, self.number, form, work)

    def answers(self, answer: Answer) -> Figures:
        """One program's answer to every prompt."""
        return {"answers": [answer(prompt) for prompt in self.prompts]}


def as_we_do(version: Version, _: Path) -> Figures:
    """The version itself."""
    phase("answers")
    return version.answers(ours(version.base, version.adapter))


def in_peft(version: Version, work: Path) -> Figures:
    """The adapter in plain peft."""
    return version.answers(of_transformers(version.base, version.export("peft", work)))


def merged(version: Version, work: Path) -> Figures:
    """The merged folder in transformers."""
    return version.answers(of_transformers(version.export("merged", work), None))


def on_f16(version: Version, work: Path) -> Figures:
    """The adapter in llama.cpp on exactly what it was trained on."""
    parts = modelfile(version.export("ollama", work))
    architecture = open_model(version.base, None, CPU, torch.float32).architecture
    exact = GGUFWriter(work / "f16.gguf", GGUF_ARCHITECTURES[architecture])
    copy_fields(parts["FROM"], exact)
    write_base(version.base, exact)
    gguf = version.export("gguf", work) / "adapter.gguf"
    return version.answers(of_llama(work / "f16.gguf", gguf, parts["stops"])[0])


def on_stock(version: Version, work: Path) -> Figures:
    """The texts that the Modelfile names, by llama.cpp's chat template and by ours."""
    parts = modelfile(version.export("ollama", work))
    chat, complete = of_llama(parts["FROM"], parts["ADAPTER"], parts["stops"])
    encoder = open_model(version.base, version.adapter, CPU, torch.float32).encoder
    return version.answers(chat) | {"by_ours": [complete(encoder.render(prompt)) for prompt in version.prompts]}


OURS = "nslora-agent generate"
FORMS = {OURS: as_we_do, "peft": in_peft, "merged": merged, "gguf, F16 base": on_f16, "ollama, stock base": on_stock}
SECONDS_A_PROMPT, SECONDS_OF_A_FORM = 1.5, 30


def compare(session: Session, version: Version) -> Figures:
    """All forms of a version against what it says itself, each printed as it ends."""
    told: Figures = {"prompts": len(version.rows), "forms": {}}
    expected: list[str] = []
    print(f"{len(version.rows):>3} held-out questions          equal  content")
    for name, form in FORMS.items():
        with TemporaryDirectory(dir=session.out) as work:
            found = session.measure(name, lambda: form(version, Path(work)))  # noqa: B023
        if name == OURS:
            expected = found.get("answers", [])
        if found.get("fault") or not expected:
            print(
                f"  {name:<24}  {found.get('fault') or 'nothing to compare with: the version itself failed'}",
                flush=True,
            )
            continue
        told["forms"][name] = shown = compared(version.rows, found["answers"], expected)
        print(f"  {name:<24}{shown['equal']:>8.3f}{shown['content']:>9.3f}", flush=True)
        if "by_ours" in found:
            same = sum(one == other for one, other in zip(found["answers"], found["by_ours"], strict=True))
            told["template"] = same / len(version.rows)
            print(f"  llama.cpp's own chat template and our rendering: {told['template']:.3f} of the answers equal")
    return told


def main() -> int:
    """Compare, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", help="state folder with a version to export [the one that `nslora-agent` uses]")
    parser.add_argument("--version", type=int, default=1, help="the version's number [1]")
    parser.add_argument("--prompts", type=int, default=40, help="how many held-out questions [40]")
    add_run_options(parser, "exports-run")
    given = parser.parse_args()
    version = Version.find(Home.find(given.state), given.version, given.prompts)
    asked = {"prompts": version.prompts, "adapter": _digest(version.adapter), **machine("xllamacpp")}
    question = {**asked, "code": code("agent", "quant")}
    with Session("benchmarks.exports", given, question) as session:
        seconds = SECONDS_OF_A_FORM + SECONDS_A_PROMPT * len(version.prompts)
        session.announce([Part(name, seconds) for name in FORMS], f"version {given.version} in every form")
        return session.end(compare(session, version) | machine("xllamacpp"))


def _digest(adapter: Path) -> str:
    return sha256_file(adapter / "adapter_model.safetensors")


if __name__ == "__main__":
    sys.exit(run(main))
