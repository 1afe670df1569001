"""The worth of the decision: `python -m benchmarks.decision`.

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

`--state` is a folder with a prepared base model (`nslora-agent init`); everything else lands in --out. The same command
goes on where it was interrupted, in the middle of an arm too, and tries again what failed. A request that was not
recorded fails its arm (--record URL asks a real LLM instead and adds to the recorded answers). With --file the rows are
those of an IFEval or GSM8K file, whose answers stay in --out.
Last comes one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.contract.atomic_io import remove_tree, sha256_file, write_json
from agent.contract.lines import read_json_lines
from agent.contract.offload_messages import CacheExport
from agent.contract.settings import Limits
from agent.data.dataset import read_examples
from agent.data.formats import HELD_OUT, TRAIN, Example
from agent.runner.progress import PROGRESS
from agent.runner.rewritten_data import REMADE
from agent.scoring.evaluation import Evaluation
from agent.system.config import DEFAULT_BASE
from agent.system.offload_client import offload_worker
from agent.system.paths import Home
from benchmarks import open_sets
from benchmarks.arms import ARMS, NUMERIC_ONLY
from benchmarks.boxes import box, machine, run_job
from benchmarks.decision_report import joint_reward, report, scored
from benchmarks.decision_routing import routing
from benchmarks.running import (
    Part,
    Session,
    add_run_options,
    add_state_option,
    code,
    duration,
    prepared_home,
    run,
    say,
    write_lines,
)
from benchmarks.untrained import UNTRAINED, rewritten

Figures = dict[str, Any]
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
SECONDS_OF_ANSWERS, SECONDS_OF_A_JOB = 60, 260
"""On two cores: what an arm takes that trains nothing, and one that trains with one seed."""
ON_FILES = ("numeric only", "rewrite everything", "neurosymbolic")
MAIN = ("numeric only", "rewrite everything", "fixed alternation", "random routing", "obvious rule", "neurosymbolic")


@dataclass(frozen=True)
class Setup:
    """Where everything is, and how the arms are trained."""

    session: Session
    question: Figures
    """Conditions of every arm: machine, versions, code."""
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

    def settings_of(self, arm: str, seed: int) -> Figures:
        """Settings of an arm's training."""
        return {**self.settings, **self.tuned.get(arm, {}), "seed": seed}

    @property
    def data(self) -> Path:
        """Training and held-out rows in one file, as `enqueue` takes them."""
        return self.boxes.with_suffix(".jsonl")

    @property
    def boxes(self) -> Path:
        """Where the state folders of the arms are."""
        return self.out / (self.file.stem if self.file else f"{self.mix}-{self.held_out}")

    def folder(self, name: str) -> Path:
        """Where the state folder of an arm is, or will be."""
        return self.boxes / name.replace(" ", "-")

    def box(self, name: str) -> Home:
        """The state folder of an arm, made if it is not there."""
        return box(self.folder(name), self.model, [ANSWERS] if ANSWERS.exists() else [], self.record)


def write_data(setup: Setup) -> list[dict[str, Any]]:
    """Write the file that the jobs take; returns the held-out rows with their slices."""
    marked = open_sets.rows(setup.file) if setup.file else _mixed(setup)
    write_lines(setup.data, marked)
    return [row for row in marked if row["split"] == HELD_OUT]


def _mixed(setup: Setup) -> list[dict[str, Any]]:
    parts = {TRAIN: setup.mix, HELD_OUT: setup.held_out}
    return [{**row, "split": split} for split, name in parts.items() for row in read_json_lines(DATA / f"{name}.jsonl")]


def examples_of(path: Path) -> list[Example]:
    """The examples in a data file."""
    with path.open("rb") as stream:
        return list(read_examples(stream, Limits(), print))


def truth(setup: Setup) -> dict[str, Example]:
    """The held-out rows as they are judged, by id."""
    return {example.id: example for example in examples_of(setup.data) if example.split == HELD_OUT}


# ---- running ----


def in_box(setup: Setup, name: str, question: Figures, work: Callable[[Home], Figures]) -> Figures:
    """Work in a box: one that was interrupted goes on, one for another question or that failed is new."""
    folder = setup.folder(name)
    asked = json.loads(json.dumps(setup.question | question))
    kept = folder / "question.json"
    if not kept.exists() or json.loads(kept.read_bytes()) != asked:
        remove_tree(folder)
    home = setup.box(name)
    write_json(kept, asked)
    try:
        return work(home)
    except Exception:
        kept.unlink(missing_ok=True)
        raise


def measured(setup: Setup, name: str, work: Callable[[Home], Figures], question: Figures) -> Figures:
    """A result, kept or new, {"fault": why} if it failed; its row is printed as it comes."""
    part = f"{setup.boxes.name}/{name}"
    result = setup.session.measure(part, lambda: in_box(setup, name, question, work), **question)
    if result.get("fault"):
        print(f"{name:<32}failed: {result['fault']}", flush=True)
    else:
        joint = joint_reward(scored([result], truth(setup)))
        spent = "  ".join(f"{key} {result[key]}" for key in ("requests", "tokens", "seconds") if key in result)
        print(f"{name:<32}joint {100 * joint:5.1f} %  {spent}", flush=True)
    return result


def run_arm(setup: Setup, arm: str, seed: int, data: Path | None = None) -> Figures:
    """One arm with one seed; with other `data` a numeric one on that."""
    settings = setup.settings_of(arm, seed)

    def trained(home: Home) -> Figures:
        _share_before(setup, home)
        job, ended = run_job(home, data or setup.data, "neurosymbolic", settings, ARMS.get(arm, NUMERIC_ONLY))
        if job.version is None:
            raise RuntimeError(f"no version was made: {ended}")
        progress = json.loads((home.run(job.id) / PROGRESS).read_bytes())
        version = home.versions / str(job.version)
        about = json.loads((version / "manifest.json").read_bytes())
        return {
            "arm": arm,
            "seed": seed,
            "answers": json.loads((version / "answers.json").read_bytes())["after"],
            **{key: about["figures"][key] for key in ("requests", "tokens", "steps", "peak_rss_mb")},
            "seconds": round(progress["seconds"], 1),
            "verdict": about["verdict"],
        }

    return measured(setup, f"seed-{seed}/{arm}", trained, question_of(setup, settings, data))


def question_of(setup: Setup, settings: Figures, data: Path | None = None) -> Figures:
    """Conditions of one arm besides those of all."""
    return {"settings": settings, "data": sha256_file(data or setup.data)}


def run_worth(setup: Setup, seed: int) -> list[Figures]:
    """Fresh adapters: one on the rows that neurosymbolic remade alone, one on the same rows as they came."""
    home = setup.box(f"seed-{seed}/neurosymbolic")
    remade = [row for row in read_json_lines(home.run(1) / REMADE) if "remade" in row]
    came = {row["id"]: row for row in read_json_lines(setup.data)}
    held_out = [row for row in came.values() if row["split"] == "held_out"]
    results = []
    for arm, rows in (("remade rows alone", remade), ("their originals", [came[row["id"]] for row in remade])):
        path = setup.out / f"{arm.replace(' ', '-')}-{setup.mix}-{seed}.jsonl"
        results.append(run_arm(setup, arm, seed, write_lines(path, [*rows, *held_out])))
    return results


def _share_before(setup: Setup, home: Home) -> None:
    """The base model's held-out results are the same for every arm: measured once."""
    kept = Home(setup.folder("base")).run(1) / "before.json"
    run = home.run(1)
    if kept.exists() and not (run / "before.json").exists():
        run.mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(kept, run / "before.json")


def run_untrained(setup: Setup, arm: str) -> Figures:
    """One arm that trains nothing, and so needs no seed."""

    def answered(home: Home) -> Figures:
        if not (home.run(1) / "before.json").exists():
            run_job(home, setup.data, "numeric", setup.settings, UNTRAINED[arm])
        evaluation = Evaluation(**json.loads((home.run(1) / "before.json").read_bytes()))
        requests = int(arm == "system prompt")
        return {"arm": arm, "seed": None, "answers": evaluation.answers, "requests": requests, "tokens": 0}

    return measured(setup, arm, answered, question_of(setup, setup.settings))


def rewritten_answers(setup: Setup, numeric: Figures, held_out: list[Figures]) -> Figures:
    """The answers of the numeric arm, each that breaks a constraint rewritten; nobody knows the right one here."""
    slices = {row["id"]: row["slice"] for row in held_out}
    examples = {example.id: example for example in examples_of(setup.data)}

    def mended(home: Home) -> Figures:
        answers, requests = [], 0
        with offload_worker(home, home.path / "offload.log") as worker:
            for answer in numeric["answers"]:
                if slices[answer["id"]] not in REWRITTEN_SLICES:
                    continue
                text, asked = rewritten(examples[answer["id"]], answer["text"], worker)
                answers.append({"id": answer["id"], "text": text})
                requests += asked
        return {**numeric, "arm": "+ rewritten answers", "answers": answers, "requests": requests}

    question = {"of": hashlib.sha256(json.dumps(numeric["answers"]).encode()).hexdigest()}
    return measured(setup, f"seed-{numeric['seed']}/rewritten answers", mended, question)


def all_results(setup: Setup, seeds: list[int], arms: tuple[str, ...], held_out: list[dict[str, Any]]) -> Iterator[Any]:
    """Every arm, base first, then seed by seed."""
    for arm in UNTRAINED:
        if not (setup.file and arm == "fact in the prompt"):
            yield run_untrained(setup, arm)
    for seed in seeds:
        for arm in arms:
            result = run_arm(setup, arm, seed)
            yield result
            if result.get("fault"):
                continue
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
            if result.get("fault"):
                raise RuntimeError(f"{arm} with learning rate {rate:g} failed: nothing is chosen")
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


def compare(setup: Setup, arms: tuple[str, ...], seeds: list[int]) -> Figures:
    """Run what is left, print the report; returns its figures."""
    held_out = write_data(setup)
    setup.session.announce(parts(setup, arms, seeds), "every arm on the same rows, seeds and budget of steps")
    results = list(all_results(setup, seeds, arms, held_out))
    if setup.record and not setup.file:
        export_answers(setup)
    well = [result for result in results if not result.get("fault")]
    figures: Figures = {"arms": report(well, held_out, truth(setup))}
    if len(well) < len(results):
        say("routing is not told: it needs every arm")
    elif set(MAIN) <= set(arms):
        boxes = [{arm: setup.box(f"seed-{seed}/{arm}") for arm in MAIN} for seed in seeds]
        train = list(read_json_lines(DATA / f"{setup.mix}.jsonl"))
        examples = [each for each in examples_of(setup.data) if each.split == TRAIN]
        figures["routing"] = routing(boxes, train, examples)
    return figures | machine()


def parts(setup: Setup, arms: tuple[str, ...], seeds: list[int]) -> list[Part]:
    """Every arm with its seconds."""
    prefix, of_file = setup.boxes.name, setup.file and "fact in the prompt"
    same = question_of(setup, setup.settings)
    found = [Part(f"{prefix}/{arm}", SECONDS_OF_ANSWERS, same) for arm in UNTRAINED if arm != of_file]
    for seed in seeds:
        for arm in arms:
            question = question_of(setup, setup.settings_of(arm, seed))
            found.append(Part(f"{prefix}/seed-{seed}/{arm}", SECONDS_OF_A_JOB, question))
            if arm == "numeric only":
                found.append(Part(f"{prefix}/seed-{seed}/rewritten answers", 20, None))
            if arm == "neurosymbolic" and setup.worth:
                more = ("remade rows alone", "their originals")
                found += [Part(f"{prefix}/seed-{seed}/{each}", SECONDS_OF_A_JOB, None) for each in more]
    return found


def options() -> argparse.Namespace:
    """The command line, parsed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_state_option(parser)
    parser.add_argument("--base", default=DEFAULT_BASE, help="name of the prepared base model")
    add_run_options(parser, "decision-run")
    parser.add_argument("--mix", choices=("even", "style"), default="even", help="training rows [even]")
    parser.add_argument("--file", type=Path, help="rows of this IFEval or GSM8K file instead, 60 at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=sorted(ARMS), help="arms that train")
    parser.add_argument("--epochs", type=float, default=6.0, help="passes that the budget of steps is for [6]")
    parser.add_argument("--worth", action="store_true", help="also train on remade rows alone, and on their originals")
    parser.add_argument("--tune", action="store_true", help="choose the learning rates of the arms instead")
    parser.add_argument("--record", default="", metavar="URL", help="ask this LLM for what is not recorded")
    return parser.parse_args()


def main() -> int:
    """Tune the arms, or compare them."""
    given = options()
    model = prepared_home(given, given.base).model(given.base)
    longest = LONGEST_OF_FILES if given.file else LONGEST
    question = {"base": given.base, **machine(), "code": code("agent", "quant", "offload")}
    with Session("benchmarks.decision", given, question) as session:
        setup = Setup(
            session=session,
            question=question,
            out=given.out / given.base,
            model=model,
            mix=given.mix,
            held_out="tuning" if given.tune else "held-out",
            file=given.file,
            record=given.record,
            worth=given.worth,
            settings={"epochs": given.epochs, "max_new_tokens": longest, "max_slice_drop": 1.0},
            tuned=json.loads(TUNED.read_text()) if TUNED.exists() else {},
        )
        arms = tuple(given.arms or (ON_FILES if given.file else MAIN))
        if not given.tune:
            return session.end(compare(setup, arms, given.seeds))
        seconds = duration(len(arms) * len(RATES) * SECONDS_OF_A_JOB)
        say(f"{len(arms)} arms with {len(RATES)} learning rates: about {seconds} on two cores")
        tune(setup, arms)
        return 0


if __name__ == "__main__":
    sys.exit(run(main))
