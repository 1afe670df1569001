"""`make demo`: from nothing to a model that knows 24 invented facts, by the commands a person would type.

First the symbolic side: a real LLM's recorded rewrites of examples/mixed.jsonl are replayed, without a network.

Everything lands in .demo/ of this checkout; the prepared base model is kept for the next time, the rest is not.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".demo"
AGENT = [str(Path(sys.executable).with_name("nslora-agent"))]
RECORDED = "examples/rewrites.jsonl"
RECORDED_MODEL = "qwen2.5-coder-1.5b-instruct-q4_k_m"
QUESTION = "Which service port does the Marlow pump use?"


def agent(*arguments: str) -> str:
    """Run one command in the demo's state folder; returns its stdout."""
    return subprocess.run(
        [*AGENT, *arguments, "--state", str(STATE)], stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def shown(*arguments: str) -> None:
    """Run one command whose output is for the reader."""
    print(f"\n$ nslora-agent {' '.join(arguments)}", flush=True)
    subprocess.run([*AGENT, *arguments, "--state", str(STATE)], check=True)


def forget_last_time() -> None:
    """Remove everything but the prepared base model."""
    for path in STATE.iterdir():
        if path.name != "models":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def table(rows: list[tuple[str, str, str]]) -> None:
    """Three columns of text."""
    for name, before, after in rows:
        print(f"  {name:<34}{before:>16}{after:>16}")


def report(version: dict[str, Any], seconds: float) -> None:
    """The result in words, what to type next, and last one line of JSON."""
    figures = version["about"]["figures"]
    before, after = figures["before"], figures["after"]
    rows = figures["held_out_rows"]
    print(f"\nIt has learned. {rows} questions it was never trained on, answered before and after:\n")
    table([("", "before", "after")])
    right = (f"{round(m['content'] * rows)} of {rows}" for m in (before, after))
    table([("right answers", *right), ("loss, nats/token", f"{before['loss']:.2f}", f"{after['loss']:.2f}")])
    folder = STATE / "versions" / str(version["number"])
    print(f"\n  training      {figures['train_seconds']:.0f} s at {figures['tokens_per_s']:.0f} tokens/s")
    print(f"  peak memory   {figures['peak_rss_mb']:.0f} MB")
    print(f"  all in all    {seconds:.0f} s")
    print(f"  adapter       {folder.relative_to(ROOT)} (loads in plain peft)")
    print(f'\nNext: . .venv/bin/activate; export NSLORA_STATE={STATE}\n  nslora-agent generate "{QUESTION}"')
    print(f'  nslora-agent generate --version base "{QUESTION}"')
    print("  nslora-agent enqueue YOUR.jsonl && nslora-agent run\n")
    figures_line = {
        "content_before": before["content"],
        "content_after": after["content"],
        "seconds": round(seconds, 1),
        "tokens_per_s": figures["tokens_per_s"],
        "peak_rss_mb": figures["peak_rss_mb"],
        "version": version["number"],
    }
    print(json.dumps(figures_line))


def replay_rewrites() -> None:
    """The symbolic job, and two of the rows it remade."""
    shown("offload", "set", "--mode", "cache-only", "--model", RECORDED_MODEL)
    shown("cache", "import", RECORDED)
    shown("enqueue", "examples/mixed.jsonl", "--mode", "symbolic")
    shown("run", "--drain")
    before = {row["id"]: row for row in rows(ROOT / "examples" / "mixed.jsonl")}
    remade = [row for row in rows(STATE / "runs" / "1" / "remade.jsonl") if "remade" in row]
    print(f"\n{len(remade)} rows were remade. Two of them:")
    for row in (remade[0], remade[-1]):
        print(f"\n  asked      {row['messages'][-2]['content']}")
        print(f"  reference  {before[row['id']]['messages'][-1]['content']!r}")
        print(f"  remade     {row['messages'][-1]['content']!r}")


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def main(data: str) -> int:
    """Run the demo on one file of examples/; exit code 1 if the new version was not promoted."""
    STATE.mkdir(exist_ok=True)
    forget_last_time()
    started = time.monotonic()
    shown("init")
    replay_rewrites()
    shown("validate", data)
    shown("enqueue", data)
    shown("run", "--drain")
    versions = json.loads(agent("versions", "--json"))
    active = next(version for version in versions if version["active"])
    if active["number"] == 0:
        shown("show", "2")
        return 1
    report(active, time.monotonic() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "examples/facts.jsonl"))
