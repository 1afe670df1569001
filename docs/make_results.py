"""Writes the tables of measured figures from benchmarks/results/: `make docs`.

`tests/test_docs.py` compares. A result that is not kept leaves its rows out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.bars import (
    LEAST,
    current,
    of_footprint,
    of_latency,
    of_memory,
    over_imports,
    planned,
    resident,
    table,
    well,
)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README, BENCHMARKS, SERVING = ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "serving.md"
Figures = dict[str, Any]
ARMS = (
    "base", "system prompt", "fact in the prompt", "numeric only", "+ rewritten answers", "rewrite everything",
    "fixed alternation", "random routing", "obvious rule", "neurosymbolic",
)  # fmt: skip


def kept(name: str) -> Figures | None:
    """A result, None if it is not kept."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def of_demo(found: Figures) -> Iterator[tuple[str, str]]:
    """Figures of `make demo`."""
    slices = {each["name"]: each for each in found["slices"]}
    content, style = slices["content"], slices["style"]
    yield f"content right on {content['rows']} held-out rows, before → after", _rise(content)
    yield f"constraints kept on the {style['rows']} of them that have one", _rise(style)
    yield f"rows offered to the remote LLM, of {found['rows']} to learn from", str(found["offered"])
    yield "training", f"{found['steps']} steps, {found['tokens']:,} tokens, {found['tokens_per_s']:.0f} tokens/s"
    yield "highest memory of the training worker", f"{found['peak_rss_mb']:.0f} MB"
    yield "time from `init` to the result, base model prepared included", f"{found['seconds']:.0f} s"


def _rise(part: Figures) -> str:
    return f"{part['before']:.2f} → {part['after']:.2f}"


def of_step(found: Figures) -> Iterator[tuple[str, str]]:
    """Memory and speed of a training step, beside Trainer + peft + bitsandbytes in the same number format."""
    for name, model in current(found)["models"].items():
        rows = well(model["runs"])
        for dtype in ("float32", "bfloat16"):
            pair = (LEAST.replace("float32", dtype), f"trainer, {dtype}")
            if all(each in rows for each in pair):
                cells = [f"{over_imports(rows[each]):,.0f} MiB and {_speed(rows[each])}" for each in pair]
                title = f"{name}, 512 tokens{', bfloat16' * (dtype == 'bfloat16')}: memory of a training step"
                yield f"{title}; Trainer + peft + bitsandbytes", "; ".join(cells)


def _speed(row: Figures) -> str:
    share = row.get("of_ceiling")
    return f"{row['tokens_per_s']:.0f} tokens/s" + (f" ({share:.0%} of the products' ceiling)" if share else "")


def of_daemon(found: Figures) -> Iterator[tuple[str, str]]:
    """Cost of the agent to a box that is not training."""
    yield "idle daemon, proportional memory", f"{found['daemon_idle_mib']['pss']} MiB"
    yield "`nslora-agent --help`; `ls` while a step is computed", f"{found['help_s']} s; {found['ls_training_s']} s"


def measured() -> str:
    """The figures in short, of every benchmark."""
    parts: dict[str, Callable[[Figures], Iterator[tuple[str, str]]]] = {
        "demo": of_demo, "memory": of_step, "footprint": of_daemon,
    }  # fmt: skip
    found = {name: figures for name in parts if (figures := kept(name))}
    if not found:
        return ""
    machine = next(iter(found.values()))["machine"]
    rows = [f"| Measured on {machine}, no GPU | |", "| --- | --- |"]
    for name, figures in found.items():
        rows += [f"| {'`make demo`: ' * (name == 'demo')}{what} | {value} |" for what, value in parts[name](figures)]
    return "\n".join(rows)


def three() -> str:
    """The three figures of README's first screen; empty unless all are kept."""
    steps, demo, footprint = kept("memory"), kept("demo"), kept("footprint")
    if not (steps and demo and footprint):
        return ""
    runs = well(current(steps)["models"]["SmolLM2-135M"]["runs"])
    ours, trainer = (f"{over_imports(runs[name]):,.0f} MiB" for name in (LEAST, "trainer, float32"))
    content = next(each for each in demo["slices"] if each["name"] == "content")
    rows = (
        (f"Measured on {footprint['machine']}, no GPU", ""),
        ("---", "---"),
        (
            "memory of a training step (SmolLM2-135M, 512 tokens)",
            f"{ours}; with Trainer, peft and bitsandbytes {trainer}",
        ),
        (f"content right on {content['rows']} held-out rows of `make demo`, before → after", _rise(content)),
        ("memory of the idle daemon (proportional)", f"{footprint['daemon_idle_mib']['pss']} MiB"),
    )
    return "\n".join(f"| {what} | {value} |".replace("|  |", "| |") for what, value in rows)


def decision() -> str:
    """The decision benchmark: joint reward by slice, and what it took."""
    found = kept("decision-even")
    if found is None:
        return ""
    slices = ("single", "double", "wordings", "arguments", "plain")
    seeds = found["arms"]["neurosymbolic"]["seeds"]
    title = f"Joint reward in %, {seeds} seeds"
    rows = [f"| {title} | {' | '.join(slices)} | requests | tokens trained |", "| --- |" + " --- |" * 7]
    for arm in ARMS:
        told = found["arms"][arm]
        cells = [_interval(told["slices"].get(name)) for name in slices]
        rows.append(f"| {arm} | {' | '.join(cells)} | {told['requests']:.0f} | {told['tokens']:,.0f} |")
    return "\n".join(rows)


def _interval(columns: Figures | None) -> str:
    if columns is None:
        return "-"
    mean, low, high = columns["joint"]
    return f"{mean:.0f} ({low:.0f} to {high:.0f})"


def bars() -> str:
    """Every bar of the memory, latency and footprint benchmarks."""
    parts = []
    if found := kept("memory"):
        parts += [f"**{name}**\n\n{table(each)}" for name, each in of_memory(found).items()]
    if found := kept("latency"):
        parts.append(f"**Probing, top layers and training beside others, SmolLM2-135M**\n\n{table(of_latency(found))}")
    if found := kept("footprint"):
        parts.append(f"**Daemon**\n\n{table(of_footprint(found))}")
    return "\n\n".join(parts)


def contenders() -> str:
    """Figures of each contender."""
    rows = [
        "| MiB | step over imports | peak resident | tokens/s | of the ceiling | s to the first step |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    found = kept("memory")
    for name, model in current(found)["models"].items() if found else ():
        for who, run in model["runs"].items():
            if run.get("fault"):
                rows.append(f"| {name}: {who} | failed | | | | |")
                continue
            share = "" if run.get("of_ceiling") is None else f"{run['of_ceiling']:.0%}"
            cells = f"{over_imports(run):,.0f} | {resident(run):,.0f} | {run['tokens_per_s']} | {share}"
            rows.append(f"| {name}: {who} | {cells} | {run['first_step_s']} |")
        rows.append(f"| {name}: floor | {model['floor']:.0f} | | | | |")
    return "\n".join(rows)


def plans() -> str:
    """Peak resident memory as planned and as measured."""
    found = kept("memory")
    heads = ["MiB, planned → measured", "load", "train", "answer", "save", "export"]
    rows = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for name, phases in planned(found).items() if found else ():
        cells = [f"{plan:.0f} → {took:.0f}" for plan, took in phases.values()]
        rows.append(f"| {' | '.join([name, *cells, *[''] * (len(heads) - 1 - len(cells))])} |")
    return "\n".join(rows)


def exports() -> str:
    """Answers of exported versions elsewhere."""
    found = kept("exports")
    if found is None:
        return ""
    rows = [
        f"| {found['prompts']} held-out questions | the same answer as `generate` | content reward |",
        "| --- | --- | --- |",
    ]
    rows += [f"| {name} | {told['equal']:.0%} | {told['content']:.3f} |" for name, told in found["forms"].items()]
    return "\n".join(rows)


TABLES = {
    README: {"three": three},
    BENCHMARKS: {
        "measured": measured,
        "decision": decision,
        "contenders": contenders,
        "bars": bars,
        "plans": plans,
    },
    SERVING: {"exports": exports},
}


def page(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """A page with its tables made anew."""
    for name, make in tables.items():
        made = make()
        text = re.sub(
            rf"(<!-- {name} -->\n\n).*?(\n\n<!-- end -->)",
            lambda marks, made=made: f"{marks[1]}{made}{marks[2]}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
    return text


if __name__ == "__main__":
    for target, tables in TABLES.items():
        target.write_text(page(target.read_text(), tables))
