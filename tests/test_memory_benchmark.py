"""The benchmarks' own instruments, on processes whose memory is known, and how they go on after faults."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from needs import lacks
from processes import PATIENCE, wait_until

from agent.contract.errors import Busy
from agent.system.config import DEFAULT_BASE
from agent.system.paths import Home
from benchmarks.bars import (
    FORMER,
    FREE,
    LEAST,
    TRAINER,
    TRL,
    TUNED,
    TUNED_TRL,
    Bar,
    of_footprint,
    of_latency,
    of_memory,
    over_imports,
    table,
)
from benchmarks.busy import left_by_count, rate_of_peer
from benchmarks.memory import of_ceiling
from benchmarks.models import SHAPES, SMOLLM2, Shape, floor_mib, step_gflop
from benchmarks.running import Part, Session
from benchmarks.watching import Group, Watch

BLOCK = 80
"""MiB that the process below takes in its second phase."""
PROCESS = f"""
import sys
sys.stdin.readline()
block = bytearray({BLOCK} << 20)
for place in range(0, len(block), 4096):
    block[place] = 1
print("taken", flush=True)
sys.stdin.readline()
del block
print("given back", flush=True)
sys.stdin.readline()
"""


@pytest.mark.process
def test_each_phase_has_its_own_highest_values() -> None:
    """What one phase took is not told of the next."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PROCESS], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        time.sleep(0.3)
        watch = Watch(process.pid, Group())
        for phase in ("before", "taken", "after"):
            watch.phase(phase)
            time.sleep(0.1)
            if phase != "after":
                process.stdin.write("\n")
                process.stdin.flush()
                process.stdout.readline()
            if phase == "before":
                continue
        found = watch.close()
        process.stdin.close()
    before, taken, after = (found[phase]["anonymous"] or 0 for phase in ("before", "taken", "after"))
    assert BLOCK <= max(before, taken) - after < BLOCK + 10
    assert (found["taken"]["resident"] or 0) >= BLOCK
    assert (found["taken"]["proportional"] or 0) > 0


@pytest.mark.process
def test_a_group_tells_its_peak_and_holds_its_limit() -> None:
    """A process that wants more than the limit is killed."""
    try:
        group = Group(BLOCK << 19)
    except OSError as fault:
        lacks(f"no control group can be made: {fault}")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PROCESS], stdin=pipe, stdout=pipe, text=True) as process:
        group.add(process.pid)
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        process.wait(PATIENCE)
    assert process.returncode == -9
    peak = group.peak()
    assert peak is None or peak <= BLOCK / 2 + 1
    group.close()
    assert group.folder
    assert not Path(group.folder).exists()


def test_the_floor_is_the_sum_of_what_a_step_cannot_do_without() -> None:
    """SmolLM2, 512 tokens, rank 8: 91 MiB (docs/benchmarks.md)."""
    assert floor_mib(SHAPES[SMOLLM2], 512, 8) == pytest.approx(91, abs=1)
    assert floor_mib(SHAPES["Qwen2.5-0.5B"], 512, 8) == pytest.approx(178, abs=1)


def test_a_run_is_told_over_its_imports() -> None:
    """Libraries differ by hundreds of MiB before any model."""
    phases = {"import": {"anonymous": 100.0}, "step": {"anonymous": 150.5}}
    assert over_imports({"phases": phases}) == 50.5


# ---- figures that follow from others ----


def row(speed: float, over: float, **more: Any) -> dict[str, Any]:
    phases = {name: {"anonymous": 100.0 + over * (name == "step"), "resident": 300.0 + over} for name in PHASES}
    return {"phases": phases, "tokens_per_s": speed, "first_step_s": 1.0, "fault": "", **more}


def model(**rows: dict[str, Any]) -> dict[str, Any]:
    prepared = {"phases": row(0, 10)["phases"], "figures": {"bytes": 2**30}}
    return {"floor": 50.0, "prepare": prepared, "runs": {NAMES[name]: told for name, told in rows.items()}}


PHASES = ("import", "load", "step")
NAMES = {"least": LEAST, "free": FREE, "trainer": TRAINER, "tuned": TUNED, "trl": TRL}
FAILED = {"fault": "was killed by SIGKILL", "phases": {}}


def found(bars: list[Bar], name: str) -> float | None:
    (one,) = [each for each in bars if each.name == name]
    return one.found


def test_bars_whose_contender_failed_are_not_measured_and_the_others_are() -> None:
    """One that was killed takes nobody else's figures away."""
    whole = of_memory({"models": {SMOLLM2: model(least=row(9, 60), free=row(12, 90), trainer=row(6, 600))}})[SMOLLM2]
    assert found(whole, "the same run's tokens/s, of that peer's") == pytest.approx(1.5)
    assert found(whole, "step over imports, of the floor") == pytest.approx(1.2)
    failed = of_memory({"models": {SMOLLM2: model(least=row(9, 60), free=FAILED, trainer=FAILED, trl=row(3, 700))}})
    assert found(failed[SMOLLM2], "the same run's tokens/s, of that peer's") == pytest.approx(3)
    assert found(failed[SMOLLM2], "tokens/s with more memory") is None
    assert found(failed[SMOLLM2], "step over imports, of Trainer's with tuned malloc") is None
    nothing = of_memory({"models": {SMOLLM2: model(least=FAILED)}})
    assert all(each.found is None for each in nothing[SMOLLM2])
    assert "not measured" in table(nothing[SMOLLM2])
    assert {each.cells[2] for each in of_footprint({}) + of_latency({"probe": {}, "top": {}, "recipe": {}})} == {
        "not measured"
    }


def test_rows_of_former_names_are_read_as_those_of_today() -> None:
    """What was kept before rows were named by their number format still makes the tables."""
    former = model(least=row(9, 60), free=row(12, 90), trainer=row(6, 600))
    names = {new: old for old, new in FORMER.items()}
    former["runs"] = {names.get(name, name): told for name, told in former["runs"].items()}
    assert found(of_memory({"models": {SMOLLM2: former}})[SMOLLM2], "tokens/s with more memory") == pytest.approx(2)


def test_a_step_is_as_many_flop_as_its_products() -> None:
    """Counted by hand for a model of one block: 4 a frozen number and token, the head, attention, LoRA."""
    shape = Shape("llama", 1, 4, 8, 2, 1, 2, 10)
    frozen, lora = 4 * 4 + 2 * 2 * 4 + 4 * 4 + 3 * 4 * 8, 2 * (8 + 6 + 6 + 8 + 12 + 12 + 12)
    attention = 12 * (3 * 4 / 2) * 2 * 2
    assert step_gflop(shape, 3, 2) * 1e9 == pytest.approx(4 * frozen * 3 + 4 * 10 * 4 * 3 + attention + 6 * lora * 3)


def test_the_share_of_the_ceiling_is_useful_work_over_the_faster_product() -> None:
    """Of that format; none is told where that or the row is missing."""
    ceiling = {"gflops": {"float32": {"square": 100.0, "576": 80.0}}}
    about, shape = {"sequence": 512, "gflop": 51.2}, SHAPES[SMOLLM2]
    assert of_ceiling(row(500, 1), about, ceiling, shape, "float32") == 0.5
    assert of_ceiling(row(500, 1), about, ceiling, shape, "bfloat16") is None
    assert of_ceiling(FAILED, about, ceiling, shape, "float32") is None


@pytest.mark.parametrize(
    ("cores", "threads", "busy", "share"),
    [(2, 2, 0, 1), (2, 2, 2, 0.5), (2, 2, 15, 2 / 17), (4, 2, 2, 1), (4, 2, 6, 0.5)],
)
def test_what_is_left_beside_busy_processes(cores: int, threads: int, busy: int, share: float) -> None:
    """Everybody's threads get the same; nobody gets more than a core for each."""
    assert left_by_count(cores, threads, busy) == pytest.approx(share)


def test_a_peer_whose_steps_did_not_end_has_an_upper_bound() -> None:
    """The median of the steps that count, else what it was slower than."""
    assert rate_of_peer([9.0, 9.0, 2.0, 4.0]) == {"tokens_per_s": 42.67}
    assert rate_of_peer([50.0], seconds=150.0) == {"tokens_per_s": 1.28, "at_most": True}
    assert rate_of_peer([], seconds=128.0) == {"tokens_per_s": 1.0, "at_most": True}


# ---- going on ----


def given(out: Path, *, again: bool = False) -> argparse.Namespace:
    return argparse.Namespace(out=out, again=again, keep=None)


def test_a_part_is_measured_once_for_each_question(tmp_path: Path) -> None:
    """Other settings, another machine, `--again` or a fault ask again; a fault leaves the others alone."""
    calls: list[str] = []

    def part(name: str) -> Callable[[], dict[str, Any]]:
        def work() -> dict[str, Any]:
            calls.append(name)
            if name == "bad" and len(calls) < 3:
                raise MemoryError("no room")
            return {"name": name}

        return work

    def everything(*, steps: int, again: bool = False) -> tuple[list[str], int]:
        before = len(calls)
        with Session("trial", given(tmp_path, again=again), {"steps": steps}) as session:
            results = {name: session.measure(name, part(name)) for name in ("bad", "good")}
            ended = session.end(results)
        return calls[before:], ended

    assert everything(steps=1) == (["bad", "good"], 1)
    assert everything(steps=1) == (["bad"], 0)
    assert everything(steps=1) == ([], 0)
    assert everything(steps=2) == (["bad", "good"], 0)
    assert everything(steps=2, again=True) == (["bad", "good"], 0)


def test_a_foretold_time_follows_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where kept parts took twice the time that was foretold, the others will too; what failed is not waited for."""
    parts = [Part("kept", 10), Part("left", 30), Part("last", 60)]
    with Session("trial", given(tmp_path), {}) as session:
        session.measure("kept", dict)
    [path] = (tmp_path / "kept").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 20.0}))
    with Session("trial", given(tmp_path), {}) as session:
        session.announce(parts, "what it does")
        assert "on two cores about 3 min in all" in capsys.readouterr().err
        session.measure("left", lambda: {"fault": "no room"})
        session.measure("kept", dict, anew=True)
        assert "about 0 s left" in capsys.readouterr().err


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second is told so at once."""
    with (
        Session("trial", given(tmp_path), {}),
        pytest.raises(Busy, match="another benchmark"),
        Session("trial", given(tmp_path), {}),
    ):
        pass


@pytest.mark.process
def test_a_benchmark_without_its_base_model_says_how_to_make_it(tmp_path: Path) -> None:
    """In one line, with the exit code of what is not found."""
    command = [sys.executable, "-m", "benchmarks.footprint", "--state", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 66
    assert "nslora-agent init --state" in done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_base: Callable[[], Path]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of three runs in one folder: interrupted, to its end, and once more.

    TRL, in a module of this name that cannot be imported, is the contender that fails.
    """
    work = tmp_path_factory.mktemp("benchmark")
    home = Home(work / "state").create()
    home.model(DEFAULT_BASE).symlink_to(tiny_base())
    (work / "trl.py").write_text("raise ImportError('no trl here')\n")
    told: list[tuple[int, str, str]] = []
    some, all_ = ("ours, least", FREE), ("ours, least", FREE, TUNED_TRL)
    for number, only in enumerate((all_, all_, some)):
        command = [sys.executable, "-m", "benchmarks.memory", "--state", str(home.path), "--out", str(work / "out")]
        command += ["--models", "tiny", "--sequence", "32", "--steps", "3", "--only", *only]
        log = work / f"stderr-{number}"
        with (
            log.open("w") as stderr,
            subprocess.Popen(
                command,
                cwd=work,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            ) as process,
        ):
            try:
                if not number:
                    wait_until(lambda log=log: f"{FREE}: import" in log.read_text(), "the second contender")
                    process.send_signal(signal.SIGINT)
                stdout, _ = process.communicate(timeout=PATIENCE)
                told.append((process.returncode, stdout, log.read_text()))
            finally:
                process.kill()
    return told


@pytest.mark.process
def test_an_interrupted_run_keeps_what_ended(runs: list[tuple[int, str, str]]) -> None:
    """It says at once what it will do and for how long; a row stands there as soon as its contender ended."""
    code, stdout, stderr = runs[0]
    assert code == 130, stderr
    assert "on two cores about" in stderr.partition(f"{LEAST}: import")[0]
    assert f"tiny: {LEAST}: step" in stderr
    assert [line for line in stdout.splitlines() if line.startswith(LEAST)]
    assert "the same command goes on" in stderr.splitlines()[-1]


@pytest.mark.process
def test_the_next_run_goes_on_and_a_failed_contender_is_a_row(runs: list[tuple[int, str, str]]) -> None:
    """What was kept is not measured again; the figures come last, as one JSON line."""
    code, stdout, stderr = runs[1]
    assert code == 1, stderr
    assert f"tiny: {LEAST}: kept from" in stderr
    assert f"{LEAST}: step" not in stderr
    assert f"{FREE}: step" in stderr
    figures = json.loads(stdout.splitlines()[-1])
    rows = figures["models"]["tiny"]["runs"]
    assert "no trl here" in rows[TUNED_TRL]["fault"]
    assert list(figures["faults"]) == [f"tiny: {TUNED_TRL}"]
    assert f"{TUNED_TRL:<34}failed: " in stdout
    assert "ceiling in float32" in stdout
    for name in (LEAST, FREE):
        assert rows[name]["tokens_per_s"] > 0
        assert 0 < rows[name]["of_ceiling"] < 1
    chosen = figures["ceiling"]["dtype"]
    assert {told["dtype"] for told in rows.values()} == {"float32", chosen}


@pytest.mark.process
def test_a_third_run_measures_nothing(runs: list[tuple[int, str, str]]) -> None:
    """Its figures are those that are kept, and nothing of it failed."""
    code, _, stderr = runs[2]
    assert code == 0, stderr
    assert ": import" not in stderr
    before, after = (json.loads(out.splitlines()[-1])["models"]["tiny"]["runs"] for _, out, _ in runs[1:])
    assert after == {name: told for name, told in before.items() if not told["fault"]}
