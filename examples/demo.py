"""`make demo`: from nothing to a model that knows a site's facts and keeps the rules of a message, as a person would.

The data is most of examples/mixed.jsonl: some rows lack content, some style, most both, some nothing. The remote LLM is
its recorded answers, so no network is needed. Everything lands in .demo/ of this checkout; the prepared base model is
kept for the next time, the rest is not.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agent.contract.lines import read_json_lines
from benchmarks.boxes import machine

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".demo"
AGENT = [str(Path(sys.executable).with_name("nslora-agent"))]
MIXED = "examples/mixed.jsonl"
DATA = STATE / "mixed.jsonl"
SUBJECTS = 16
"""Of the 24 that the file tells of: less than eight minutes also on two cores without AVX-512."""
RECORDED = "examples/rewrites.jsonl"
RECORDED_MODEL = "qwen2.5-coder-1.5b-instruct-q4_k_m"
PASSES, RATE = "5", "2e-3"
QUESTION = "Which service port does the Brannok pump use? Write everything in uppercase."


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


def write_data() -> None:
    """Write the rows of the first subjects."""
    lines = (ROOT / MIXED).read_text().splitlines(keepends=True)
    subject = {line: json.loads(line)["id"].partition(".")[0] for line in lines}
    chosen = list(dict.fromkeys(subject.values()))[:SUBJECTS]
    DATA.write_text("".join(line for line in lines if subject[line] in chosen))
    print(f"rows on {SUBJECTS} subjects, out of {MIXED}: {DATA}", flush=True)


def print_table(rows: Iterable[tuple[object, ...]]) -> None:
    """Columns of text, the first one to the left."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *rest in cells:
        print("  " + first.ljust(widths[0]) + "".join(c.rjust(w + 2) for c, w in zip(rest, widths[1:], strict=True)))


# ---- what was done with the training rows ----


def kind(row: dict[str, Any]) -> str:
    """The constraint of a row of the data."""
    return str(row["constraints"][0]["id"]).partition(":")[2] if row.get("constraints") else "no constraint"


def treatment(told: dict[str, Any], remade: dict[str, str]) -> dict[str, set[str]]:
    """The ids of the rows that were treated in each way."""
    acted = {
        action: {o["example"] for o in told["outcomes"] if o["action"] == action} for action in ("weights", "rewrite")
    }
    offered = acted["rewrite"]
    by_remote = {name for name, model in remade.items() if model != "own answer"}
    last = {choice["example"]: choice["state"] for choice in told["choices"]}
    return {
        "tuned on": acted["weights"],
        "rewritten": by_remote,
        "refused": offered - by_remote,
        "mended itself": set(remade) - by_remote,
        "left alone": {name for name, state in last.items() if state == "neither"},
    }


def report_rows(told: dict[str, Any]) -> None:
    """Table: what was tuned, rewritten and left alone, by constraint."""
    rows = {row["id"]: row for row in read(DATA) if row["split"] == "train"}
    remade = {row["id"]: row["remade"]["model"] for row in map(json.loads, agent("remade", "1").splitlines())}
    treated = treatment(told, remade)
    print("\nWhat was done with the training rows (a row can be in several columns):\n")
    table: list[tuple[object, ...]] = [("", "rows", *treated)]
    for name in dict.fromkeys(map(kind, rows.values())):
        ids = {i for i, row in rows.items() if kind(row) == name}
        table.append((name, len(ids), *(len(ids & found) for found in treated.values())))
    table.append(("all", len(rows), *(len(found) for found in treated.values())))
    print_table(table)
    left = [choice for choice in told["choices"] if choice["example"] in treated["left alone"]]
    for choice in left[:3]:
        print(f"\n  left alone: {choice['example']}, because {choice['reason']}")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return list(read_json_lines(path))


# ---- what it was good for ----


def report(version: dict[str, Any], told: dict[str, Any], seconds: float) -> None:
    """The result in words, what to type next, and last one line of JSON."""
    figures = version["about"]["figures"]
    print(f"\nRewards on {figures['held_out_rows']} held-out rows, pairings of fact and rule never trained on:\n")
    slices = [each for each in version["about"]["verdict"]["slices"] if each["name"] != "likeness"]
    print_table([("", "rows", "before", "after")] + [
        (each["name"].partition(":")[2] or each["name"], each["rows"], f"{each['before']:.2f}", f"{each['after']:.2f}")
        for each in slices
    ])  # fmt: skip
    used = figures["requests"]
    offered = {outcome["example"] for outcome in told["outcomes"] if outcome["action"] == "rewrite"}
    flagged = {choice["example"] for choice in told["choices"] if choice["standing"]["flagged"]}
    print(f"\n  remote LLM    {used} requests for {len(offered)} of {len(flagged)} flagged rows; the other", end=" ")
    print(f"{len(told['choices']) - len(offered)} rows were never sent")
    print(f"  training      {figures['steps']} steps, {figures['tokens']} tokens, {figures['train_seconds']:.0f} s")
    print(f"  peak memory   {figures['peak_rss_mb']:.0f} MB")
    print(f"  all in all    {seconds:.0f} s")
    print(f'\nNext: . .venv/bin/activate; export NSLORA_STATE={STATE}\n  nslora-agent generate "{QUESTION}"')
    print("  nslora-agent explain 1 brannok-pump.port.english_capital")
    print("  nslora-agent enqueue YOUR.jsonl && nslora-agent run\n")
    line = {
        "slices": slices,
        "rows": len(told["choices"]),
        "offered": len(offered),
        "requests": used,
        "steps": figures["steps"],
        "tokens": figures["tokens"],
        "seconds": round(seconds, 1),
        "tokens_per_s": figures["tokens_per_s"],
        "peak_rss_mb": figures["peak_rss_mb"],
        "version": version["number"],
        **machine(),
    }
    print(json.dumps(line))


def main() -> int:
    """Run the demo; exit code 1 if the new version was not promoted."""
    STATE.mkdir(exist_ok=True)
    forget_last_time()
    write_data()
    started = time.monotonic()
    shown("init")
    shown("offload", "set", "--mode", "cache-only", "--model", RECORDED_MODEL)
    shown("cache", "import", RECORDED)
    shown("enqueue", str(DATA), "--epochs", PASSES, "--learning-rate", RATE)
    shown("run", "--drain")
    shown("explain", "1")
    version = next(each for each in json.loads(agent("versions", "--json")) if each["active"])
    told = json.loads(agent("explain", "1", "--json"))
    if version["number"] == 0:
        shown("show", "1")
        return 1
    report_rows(told)
    report(version, told, time.monotonic() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
