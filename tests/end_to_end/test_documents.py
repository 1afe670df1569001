"""What the documents tell people to type works: every block of commands is run, page by page, or says why it is not."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkout import ROOT
from documents import LANGUAGES, Block, blocks, fault, run, starts_empty
from llm_server import LLMServer
from test_symbolic_job import careful

from agent.system.config import default_toml
from agent.system.paths import Home

pytestmark = pytest.mark.process

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]
RUN = [page for page in PAGES if any(b.language in LANGUAGES and not b.why_not for b in blocks(page.read_text()))]
LONG = {
    "how-it-decides.md",
    "offload.md",
    "quickstart.md",
    "recipes.md",
    "serving.md",
    "troubleshooting.md",
    "tuning.md",
}
"""Pages whose commands load a model many times; `make test-all` runs them too."""
SMALL = {"rank": "4", "learning_rate": "1e-2", "max_new_tokens": "8", "dtype": '"float32"'}
"""Settings with which a job on a tiny model takes seconds."""


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ---- how the blocks are marked ----


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_of_commands_is_run_or_says_why_not(page: Path) -> None:
    """With one of the known reasons, and no fence that is overlooked."""
    text = page.read_text()
    found = blocks(text)
    faults = [f"line {block.line}: {wrong}" for block in found if (wrong := fault(block, ROOT))]
    assert faults == []
    assert text.count("```") == 2 * len(found), "a fence is indented, or never closed"
    assert {block.language for block in found} <= LANGUAGES | {"text", "json", "toml", "markdown"}


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (Block(1, "sh", "ls\n", {"not run": "I did not try"}), "begins with none of"),
        (Block(1, "sh", "ls\n", {"not run": "needs root; see `tests/gone.py`"}), "there is no tests/gone.py"),
        (Block(1, "sh", "ls\n", {"not run": "takes minutes"}), "a test covers it"),
        (Block(1, "sh", "ls\n", {"not run": "covered by others"}), "a test covers it"),
        (Block(1, "console", "ls\n"), "begins with a command"),
    ],
)
def test_a_block_that_is_marked_wrongly_is_found(block: Block, said: str) -> None:
    """Each rule can be broken."""
    assert said in str(fault(block, ROOT))


# ---- running them ----


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a person has at hand: the examples and some data of their own."""
    shutil.copytree(ROOT / "examples", tmp_path / "work" / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "work"


@pytest.fixture
def prepared(
    tmp_path: Path, folder: Path, uninterrupted: Home, source: Path, tiny_base: Callable[[str], Path]
) -> Callable[..., dict[str, str]]:
    """Makes a state folder, with a finished job or without; returns the environment in which it is the one in use."""

    def make(*, empty: bool) -> dict[str, str]:
        home = Home(tmp_path / "state")
        if empty:
            home.create().model(str(source)).symlink_to(tiny_base("llama"))
        else:
            shutil.copytree(uninterrupted.path, home.path, symlinks=True)
        text = default_toml(str(source))
        for name, value in SMALL.items():
            text = text.replace(f"\n#{name} =", f"\n{name} = {value} #", 1)
        home.config.write_text(text)
        shutil.copy(uninterrupted.path.parent / "data.jsonl", folder)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        more = {"LC_ALL": "C.UTF-8", "PIP_NO_INDEX": "1"}
        return {"PATH": path, "HOME": str(tmp_path), "NSLORA_STATE": str(home.path), **more}

    return make


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.exhaustive) if page.name in LONG else page for page in RUN], ids=named
)
def test_the_commands_of_a_page_work_in_their_order(
    page: Path, folder: Path, prepared: Callable[..., dict[str, str]]
) -> None:
    """In a folder with examples/ and data.jsonl, beside a tiny model with 4-bit weights and a scripted remote LLM."""
    text = page.read_text()
    with LLMServer(careful) as server:
        found = run(text, folder, prepared(empty=starts_empty(text)), server.url)
    assert found is None, found


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("```sh\nfalse\n```\n", "line 1: exit code 1 of\nfalse"),
        ("\n```sh\ntrue\necho $nothing\n```\n", "line 2: exit code 1"),
        ("```sh\n(exit 3) # exit code 4\n```\n", "line 1: exit code 1"),
        ("```sh\ntrue # exit code 4\n```\n", "line 1: exit code 1"),
        ("```console\n$ echo job 4: done\njob 3: failed\n```\n", "does not print 'job 3: failed'"),
        ("```console\n$ printf 'b\\na\\n'\na\nb\n```\n", "does not print 'b'"),
        ("```python\nraise SystemExit(5)\n```\n", "line 1: exit code 5"),
        ("```sh\nA=1\n```\n<!-- with: NAME=B -->\n```sh\necho $A $NAME\n```\n", "line 5: exit code 1"),
    ],
    ids=["fails", "unset", "other code", "no code", "other words", "other order", "python", "filled in"],
)
def test_a_page_that_does_not_work_is_found_with_its_line(page: str, said: str, tmp_path: Path) -> None:
    """Commands that fail, that fail otherwise than told, and that print something else."""
    assert said in str(run(page, tmp_path, {"PATH": os.environ["PATH"]}, ""))


def test_a_page_is_one_shell_with_its_words_filled_in(tmp_path: Path) -> None:
    """Variables and files last from block to block; figures, paths and cut lines stand for any."""
    page = """
```sh
NAME=pump
echo "job 12: $NAME, 3 rows, /tmp/a went up" > 12.txt
false # exit code 1
```

<!-- with: JOB=12 -->
```console
$ cat JOB.txt
job 1: pump, 9 rows, /home/you/data…
$ printf 'a\\nb\\nc\\n'
a
…
c
```

<!-- not run: needs root -->
```sh
exit 9
```
"""
    assert run(page, tmp_path, {"PATH": os.environ["PATH"]}, "") is None
