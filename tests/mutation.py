"""Change the code that decides and computes, one spot at a time, and see that a test fails each time.

`.venv/bin/python tests/mutation.py` draws a sample of mutmut's mutants, the same one for the same seed and code, runs
those tests on each that reach it, and shows the mutants that no test noticed. Which files are changed and which tests
judge stands in pyproject.toml, [tool.mutmut].

It fails where the share of mutants that are noticed falls below BAR, and not at every survivor: code that moves or
grows changes which mutants are drawn, and among some 6,000 there are always some that change nothing that matters,
such as a word of a message. Whoever sees one that matters adds a test. A survivor that was looked at and changes no
behaviour stands with the reason in `mutation-accepted.toml`, by function and change, wherever the function lies; it
counts as noticed.

Not changed, because mutmut cannot: constants of modules, and functions with decorators such as properties.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path

from checkout import ROOT, tomllib
from mutmut.__main__ import create_mutants
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir, walk_mutatable_files
from mutmut.utils.format_utils import orig_function_and_class_names_from_key as function_of

BAR = 0.85
"""Share of the drawn mutants that must be noticed or accepted. Samples had 93 to 95 %; of such code a sample of 150
falls below this by chance once in a thousand times."""
SAMPLE = 150
ACCEPTED = Path(__file__).with_name("mutation-accepted.toml")
WORK = Path("mutants")
"""Where mutmut keeps its copy of the code."""
ON_A_GPU = {"_unpack_cuda", "forget"}
"""Functions that run on a GPU alone: tests/quant/test_cuda.py judges them."""
NOTICED = {"killed", "timeout", "segfault"}

UNSEEN = re.compile(r",? ?(?:strict|device)=[\w.]+|, (?=\))")
"""Arguments that change nothing here: one only catches mistakes of the code that calls `zip`, one only a GPU tells."""

Change = tuple[str, str, str]
"""A function, the lines that a mutant takes away, and those that it puts there."""


def main() -> int:
    """Run a sample of mutants; returns 1 if too many of them live."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--sample", type=int, default=SAMPLE, help="mutants to run, 0: all [%(default)s]")
    options.add_argument("--seed", type=int, default=0, help="which mutants are drawn [%(default)s]")
    options.add_argument("--only", default="", help="only of files whose path starts so")
    options.add_argument("--children", type=int, default=2, help="mutants at a time [%(default)s]")
    options.add_argument("--keep", action="store_true", help="go on with what an earlier run left in mutants/")
    asked = options.parse_args()
    os.chdir(ROOT)
    if not asked.keep:
        shutil.rmtree(WORK, ignore_errors=True)
    drawn = draw(generate(asked.children, asked.only), asked.sample, asked.seed)
    run(list(chain.from_iterable(drawn.values())), asked.children)
    noticed = report(drawn)
    if not asked.keep:
        shutil.rmtree(WORK)
    print(f"noticed or accepted: {noticed:.1%}, at least {BAR:.0%} must be")
    return int(noticed < BAR)


def generate(children: int, only: str) -> dict[Path, list[str]]:
    """Write the mutants of all files below mutants/; returns their names by file."""
    WORK.mkdir(exist_ok=True)
    with Path(os.devnull).open("w") as silence:
        told, sys.stdout = sys.stdout, silence
        try:
            copy_src_dir()
            copy_also_copy_files()
            create_mutants(children)
        finally:
            sys.stdout = told
    files = sorted(path for path in walk_mutatable_files() if str(path).startswith(only))
    return {path: [name for name in results(path) if function_of(name)[0] not in ON_A_GPU] for path in files}


def draw(names: Mapping[Path, Sequence[str]], most: int, seed: int) -> dict[Path, list[str]]:
    """Draw so many mutants, from each file as many as from any other while it has some.

    What is drawn of a file does not depend on the others.
    """
    dice = {path: random.Random(f"{seed} {path}") for path in names}
    shuffled = [[(path, name) for name in dice[path].sample(found, len(found))] for path, found in names.items()]
    turns = [each for turn in zip_longest(*shuffled) for each in turn if each is not None]
    chosen = turns[: most or None]
    return {path: [name for of, name in chosen if of == path] for path in names}


def run(names: Sequence[str], children: int) -> None:
    """Let mutmut run the tests on each mutant."""
    command = [Path(sys.executable).with_name("mutmut"), "run", "--max-children", str(children), *names]
    # One thread for each: torch must not find other numbers of them from mutant to mutant.
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def results(path: Path) -> dict[str, str]:
    """The fate of each mutant of a file."""
    found = SourceFileMutationData(path=path)
    found.load()
    return {name: status_by_exit_code[code] for name, code in found.exit_code_by_key.items()}


def report(drawn: Mapping[Path, Sequence[str]]) -> float:
    """Print each mutant that lives and a table by file; returns the share that does not, or may."""
    accepted, counts = read_accepted(), {}
    for path, names in drawn.items():
        became = results(path)
        counts[path] = Counter(fate(name, path, became[name], accepted) for name in names)
    print(f"\n{'file':32}{'drawn':>8}{'noticed':>9}{'accepted':>10}{'lives':>7}")
    for path, count in ((path, count) for path, count in counts.items() if count):
        print(f"{path!s:32}{count.total():8}{count['noticed']:9}{count['accepted']:10}{count['lives']:7}")
    total = sum(counts.values(), Counter())
    return 1 - total["lives"] / max(1, total.total())


def fate(name: str, path: Path, status: str, accepted: Mapping[Change, str]) -> str:
    """The fate of a mutant: noticed, accepted or alive; one that lives is printed."""
    if status in NOTICED:
        return "noticed"
    diff = get_diff_for_mutant(name, path=path)
    function, before, after = change(name, diff)
    if (function, before, after) in accepted or UNSEEN.sub("", after) == UNSEEN.sub("", before):
        return "accepted"
    print(f"\n{status}: {function} in {path} ({name})\n  - {before}\n  + {after}")
    return "lives"


def change(name: str, diff: str) -> Change:
    """The change of a mutant, whatever file and line it is in."""
    function, cls = function_of(name)
    lines = diff.splitlines()[2:]
    before, after = (" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
    return f"{cls}.{function}" if cls else function, before, after


def read_accepted() -> dict[Change, str]:
    """The mutants that may live, and why."""
    listed = tomllib.loads(ACCEPTED.read_text(encoding="utf-8"))["mutant"]
    return {(each["function"], each["before"], each["after"]): each["reason"] for each in listed}


if __name__ == "__main__":
    sys.exit(main())
