"""What the decision is worth: `python -m benchmarks.decision --state DIR`.

Runs every arm on the same rows, seeds and budget of steps, with the recorded answers of a real LLM, and prints content,
style and joint reward (both right) by slice, remote requests, tokens trained, time and memory, with 95 % intervals.

    base                  the model as it came
    system prompt         the same with a system prompt that the remote LLM wrote
    fact in the prompt    the same with the fact told in the question
    numeric only          tuned on every row as it came
    + rewritten answers   numeric only, and the remote LLM rewrites each answer that breaks a constraint
    rewrite everything    every row offered for a rewrite, then tuned on all of them
    fixed alternation     our classifier, but phases of fixed length: the ablation of the monitoring signal
    random routing        our loop, but a coin for each bit
    obvious rule          our loop, but: a constraint fails → rewrite, else weights
    neurosymbolic         what `nslora-agent enqueue` does

`--state` is a folder with a prepared base model (`nslora-agent init --state DIR`); everything else lands in --out. An
interrupted run goes on where it was; a request that was not recorded fails it (--record URL asks a real LLM instead and
adds to the recorded answers). With --file the rows are those of an IFEval or GSM8K file, whose answers stay in --out.
Last comes one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from agent import symbolic
from agent.config import DEFAULT_BASE
from agent.dataset import read_examples
from agent.evaluation import Evaluation
from agent.home import Home
from agent.jsonl import Limits
from agent.offload_messages import CacheExport
from agent.offloading import offload_worker
from agent.progress import PROGRESS
from agent.remade import REMADE
from agent.settings import Offload
from agent.shapes import HELD_OUT, TRAIN, Example, Message
from agent.stages import Stages
from benchmarks import open_sets
from benchmarks.arms import ARMS, NumericOnly
from benchmarks.boxes import box, machine, run_job
from benchmarks.decision_report import joint_reward, report, scored
from benchmarks.decision_routing import routing

DATA = Path(__file__).with_name("data")
ANSWERS = DATA / "answers.jsonl"
REWRITTEN_SLICES = {"single", "double", "file"}
"""Slices whose answers are rewritten one by one: each costs requests, and the others would say the same."""
TUNED = DATA / "tuned.json"
RATES = (1e-3, 2e-3)
"""The grid of learning rates."""
TUNING_SEED = 100
LONGEST, LONGEST_OF_FILES = 56, 256
"""Tokens of an answer."""
ON_FILES = ("numeric only", "rewrite everything", "neurosymbolic")
MAIN = ("numeric only", "rewrite everything", "fixed alternation", "random routing", "obvious rule", "neurosymbolic")


@dataclass(frozen=True)
class Setup:
    """Where everything is, and how the arms are trained."""

    out: Path
    model: Path
    mix: str
    held_out: str
    file: Path | None
    """An IFEval or GSM8K file in the place of the mix."""
    record: str
    worth: bool
    settings: dict[str, Any]
    tuned: dict[str, dict[str, Any]]
    """By arm, the settings that its grid chose."""

    @property
    def data(self) -> Path:
        """Training and held-out rows in one file, as `enqueue` takes them."""
        return self.boxes.with_suffix(".jsonl")

    @property
    def boxes(self) -> Path:
        """Where the state folders of the arms are."""
        return self.out / (self.file.stem if self.file else f"{self.mix}-{self.held_out}")

    def box(self, name: str) -> Home:
        """The state folder of an arm."""
        folder = self.boxes / name.replace(" ", "-")
        return box(folder, self.model, [ANSWERS] if ANSWERS.exists() else [], self.record)


def write_data(setup: Setup) -> list[dict[str, Any]]:
    """Write the file that the jobs take; returns the held-out rows with their slices."""
    marked = open_sets.rows(setup.file) if setup.file else _mixed(setup)
    setup.out.mkdir(parents=True, exist_ok=True)
    setup.data.write_text("".join(json.dumps(row) + "\n" for row in marked))
    return [row for row in marked if row["split"] == HELD_OUT]


def _mixed(setup: Setup) -> list[dict[str, Any]]:
    parts = {TRAIN: setup.mix, HELD_OUT: setup.held_out}
    return [{**row, "split": split} for split, name in parts.items() for row in _rows(DATA / f"{name}.jsonl")]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def examples_of(path: Path) -> list[Example]:
    """The examples in a data file."""
    with path.open("rb") as stream:
        return list(read_examples(stream, Limits(), print))


def truth(setup: Setup) -> dict[str, Example]:
    """The held-out rows as they are judged, by id."""
    return {example.id: example for example in examples_of(setup.data) if example.split == HELD_OUT}


# ---- arms that train nothing ----


class Measured(Stages):
    """The base model on the held-out rows."""

    system_prompt = ""

    def work(self) -> tuple[str, int | None]:
        """Measure, and leave the figures in the run's folder."""
        self.start()
        self.attempt.phase("load")
        self.load(0)
        evaluation = self.measure("before", self.prompt())
        (self.run / "before.json").write_text(json.dumps(dataclasses.asdict(evaluation)))
        return "measured", None

    def prompt(self) -> str:
        """The system prompt."""
        return ""


class SystemPrompt(Measured):
    """With a system prompt by the remote LLM, from what the training rows' references lack."""

    proposed = ""

    def ask(self, request: Any) -> Any:
        """One step by the remote LLM, what it wrote noted."""
        told = self.attempt.ask_remote(request)
        self.proposed = told.text or self.proposed
        return told

    def prompt(self) -> str:
        """What TextGrad makes of the default prompt; what our checks refuse too, or there would be no arm."""
        flags = ((example, symbolic.flag(example, Offload())) for example in self.examples[0])
        cases = symbolic.failing_cases((example, flag) for example, flag in flags if flag is not None)
        told = symbolic.improve_prompt(self.job.id, "", cases, self.ask)
        print(f"system prompt: {told.state} {told.reasons}: {self.proposed!r}")
        return self.proposed or symbolic.DEFAULT_PROMPT


class FactInPrompt(Measured):
    """With the fact told before the question."""

    @cached_property
    def examples(self) -> tuple[list[Example], list[Example]]:
        """The held-out rows with their plain fact."""
        train, held_out = super().examples
        facts = {str(example.answer): example.reference for example in train if not example.constraints}
        return train, [self._told(example, facts[str(example.answer)]) for example in held_out]

    @staticmethod
    def _told(example: Example, fact: str) -> Example:
        question = Message("user", f"{fact} {example.prompt[-1].content}")
        return replace(example, messages=(*example.messages[:-2], question, example.messages[-1]))


UNTRAINED = {"base": Measured, "system prompt": SystemPrompt, "fact in the prompt": FactInPrompt}


# ---- running ----


def run_arm(setup: Setup, arm: str, seed: int, data: Path | None = None) -> dict[str, Any]:
    """One arm with one seed, or what an earlier run kept of it; with other `data` a numeric one on that."""
    home = setup.box(f"seed-{seed}/{arm}")
    kept = home.path / "result.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    _share_before(setup, home)
    print(f"-- {arm}, seed {seed}, {setup.mix}", flush=True)
    settings = {**setup.settings, **setup.tuned.get(arm, {}), "seed": seed}
    job, ended = run_job(home, data or setup.data, "neurosymbolic", settings, ARMS.get(arm, NumericOnly))
    print(f"   {ended}", flush=True)
    if job.version is None:
        raise SystemExit(f"{arm}: no version was made: {ended}")
    progress = json.loads((home.run(job.id) / PROGRESS).read_bytes())
    version = home.versions / str(job.version)
    about = json.loads((version / "manifest.json").read_bytes())
    result = {
        "arm": arm,
        "seed": seed,
        "answers": json.loads((version / "answers.json").read_bytes())["after"],
        "requests": about["figures"]["requests"],
        "tokens": about["figures"]["tokens"],
        "steps": about["figures"]["steps"],
        "peak_rss_mb": about["figures"]["peak_rss_mb"],
        "seconds": round(progress["seconds"], 1),
        "verdict": about["verdict"],
    }
    kept.write_text(json.dumps(result))
    return result


def run_worth(setup: Setup, seed: int) -> list[dict[str, Any]]:
    """Fresh adapters: one on the rows that neurosymbolic remade alone, one on the same rows as they came."""
    home = setup.box(f"seed-{seed}/neurosymbolic")
    remade = [row for row in _rows(home.run(1) / REMADE) if "remade" in row]
    came = {row["id"]: row for row in _rows(setup.data)}
    held_out = [row for row in came.values() if row["split"] == "held_out"]
    results = []
    for arm, rows in (("remade rows alone", remade), ("their originals", [came[row["id"]] for row in remade])):
        path = setup.out / f"{arm.replace(' ', '-')}-{setup.mix}-{seed}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *held_out]))
        results.append(run_arm(setup, arm, seed, path))
    return results


def _share_before(setup: Setup, home: Home) -> None:
    """The base model's held-out results are the same for every arm: measured once."""
    measured = setup.box("base").run(1) / "before.json"
    run = home.run(1)
    if measured.exists() and not (run / "before.json").exists():
        run.mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(measured, run / "before.json")


def run_untrained(setup: Setup, arm: str) -> dict[str, Any]:
    """One arm that trains nothing, and so needs no seed."""
    home = setup.box(arm)
    if not (home.run(1) / "before.json").exists():
        print(f"-- {arm}", flush=True)
        run_job(home, setup.data, "numeric", setup.settings, UNTRAINED[arm])
    evaluation = Evaluation(**json.loads((home.run(1) / "before.json").read_bytes()))
    return {
        "arm": arm,
        "seed": None,
        "answers": evaluation.answers,
        "requests": int(arm == "system prompt"),
        "tokens": 0,
    }


def rewritten_answers(setup: Setup, numeric: dict[str, Any], held_out: list[dict[str, Any]]) -> dict[str, Any]:
    """The answers of the numeric arm, each that breaks a constraint rewritten; nobody knows the right one here."""
    seed = numeric["seed"]
    home = setup.box(f"seed-{seed}/rewritten answers")
    kept = home.path / "result.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    slices = {row["id"]: row["slice"] for row in held_out}
    examples = {example.id: example for example in examples_of(setup.data)}
    answers, requests = [], 0
    with offload_worker(home, home.path / "offload.log") as worker:
        for answer in numeric["answers"]:
            if slices[answer["id"]] not in REWRITTEN_SLICES:
                continue
            text, asked = rewritten(examples[answer["id"]], answer["text"], worker)
            answers.append({"id": answer["id"], "text": text})
            requests += asked
    result = {**numeric, "arm": "+ rewritten answers", "answers": answers, "requests": requests}
    kept.write_text(json.dumps(result))
    return result


def rewritten(example: Example, text: str, worker: Any) -> tuple[str, int]:
    """An answer that breaks a constraint rewritten, if that is accepted, and the requests that took."""
    messages = (*example.prompt, Message("assistant", text or " "))
    asked = replace(example, messages=messages, answer=None, split=None)
    flag = symbolic.flag(asked, Offload())
    if flag is None:
        return text, 0
    request = symbolic.first_request(1, asked, flag, "reference")
    told = symbolic.rewrite(asked, flag, request, lambda each: worker.ask(each, lambda _: None, lambda: None))
    return told.text or text, symbolic.requests(flag, told)


def all_results(setup: Setup, seeds: list[int], arms: tuple[str, ...], held_out: list[dict[str, Any]]) -> Iterator[Any]:
    """Every arm, base first, then seed by seed."""
    for arm in UNTRAINED:
        if not (setup.file and arm == "fact in the prompt"):
            yield run_untrained(setup, arm)
    for seed in seeds:
        for arm in arms:
            result = run_arm(setup, arm, seed)
            yield result
            if arm == "numeric only":
                yield rewritten_answers(setup, result, held_out)
            if arm == "neurosymbolic" and setup.worth:
                yield from run_worth(setup, seed)


def tune(setup: Setup, arms: tuple[str, ...]) -> None:
    """Choose each arm's learning rate on rows that are not held out, with a seed that is not reported."""
    chosen = {}
    for arm in arms:
        found = {}
        for rate in RATES:
            tried = replace(setup, out=setup.out / f"rate-{rate:g}", tuned={arm: {"learning_rate": rate}})
            write_data(tried)
            result = run_arm(tried, arm, TUNING_SEED)
            # Of equals the one that took fewer tokens.
            found[rate] = joint_reward(scored([result], truth(tried))), -result["tokens"]
        chosen[arm] = {"learning_rate": max(RATES, key=lambda rate: found[rate])}
        print(f"{arm}: " + ", ".join(f"{rate:g} {joint:.3f}" for rate, (joint, _) in found.items()), flush=True)
    TUNED.write_text(json.dumps(chosen, indent=1) + "\n")


def export_answers(setup: Setup) -> None:
    """Add what the boxes recorded to the answers of the repository."""
    known = {}
    for home in (Home(cache.parent) for cache in setup.boxes.rglob("cache.db")):
        path = setup.out / "export.jsonl"
        with offload_worker(home, setup.out / "export.log") as worker:
            worker.ask(CacheExport(str(path)))
        known.update(dict.fromkeys(path.read_text().splitlines()))
    ANSWERS.write_text("".join(line + "\n" for line in sorted(known)))


def run(setup: Setup, arms: tuple[str, ...], seeds: list[int]) -> dict[str, Any]:
    """Run what is left, print the report; returns its figures."""
    held_out = write_data(setup)
    results = list(all_results(setup, seeds, arms, held_out))
    if setup.record and not setup.file:
        export_answers(setup)
    figures: dict[str, Any] = {"arms": report(results, held_out, truth(setup))}
    if set(MAIN) <= set(arms):
        boxes = [{arm: setup.box(f"seed-{seed}/{arm}") for arm in MAIN} for seed in seeds]
        train = _rows(DATA / f"{setup.mix}.jsonl")
        examples = [each for each in examples_of(setup.data) if each.split == TRAIN]
        figures["routing"] = routing(boxes, train, examples)
    return figures | machine()


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="folder with a prepared base model")
    parser.add_argument("--base", default=DEFAULT_BASE, help="name of the prepared base model")
    parser.add_argument("--out", type=Path, default=Path("decision-run"), help="folder for everything [decision-run]")
    parser.add_argument("--mix", choices=("even", "style"), default="even", help="training rows [even]")
    parser.add_argument("--file", type=Path, help="rows of this IFEval or GSM8K file instead, 60 at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=sorted(ARMS), help="arms that train")
    parser.add_argument("--epochs", type=float, default=6.0, help="passes that the budget of steps is for [6]")
    parser.add_argument("--worth", action="store_true", help="also train on remade rows alone, and on their originals")
    parser.add_argument("--tune", action="store_true", help="choose the learning rates of the arms instead")
    parser.add_argument("--record", default="", metavar="URL", help="ask this LLM for what is not recorded")
    parser.add_argument("--keep", type=Path, help="file to write the figures to")
    return parser.parse_args()


def main() -> int:
    """Tune the arms, or compare them."""
    given = options()
    longest = LONGEST_OF_FILES if given.file else LONGEST
    setup = Setup(
        out=given.out / given.base,
        model=Home(given.state).model(given.base),
        mix=given.mix,
        held_out="tuning" if given.tune else "held-out",
        file=given.file,
        record=given.record,
        worth=given.worth,
        settings={"epochs": given.epochs, "max_new_tokens": longest, "most_fall": 1.0},
        tuned=json.loads(TUNED.read_text()) if TUNED.exists() else {},
    )
    arms = tuple(given.arms or (ON_FILES if given.file else MAIN))
    if given.tune:
        tune(setup, arms)
        return 0
    figures = run(setup, arms, given.seeds)
    if given.keep:
        given.keep.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
