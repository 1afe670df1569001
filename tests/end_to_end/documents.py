"""The command blocks of the documents: what they are, and how those of one page are run, in order, in one shell.

A fenced block of sh, console or python is run. HTML comments on the lines right above its fence change that:

    <!-- not run: needs root -->              it is not; the reason begins with one of REASONS, and a test that it names
                                              in backticks is there
    <!-- with: JOB=1 FILE=data.jsonl -->      words in capitals that stand for something, and what for
    <!-- shown: by the default base model --> the output that a console block shows is that of a real model, and not
                                              compared with what the tiny one of the tests says

and a comment anywhere on a page says what the page starts with, if not with a finished job 1 and its version 1:

    <!-- starts with: an empty queue -->

In a console block `$ ` begins a command, and what follows is what it prints. Of that, the words must be printed, in the
order shown; a word with a digit, a slash or an ellipsis in it stands for any word, a line of nothing but an ellipsis
for any lines. A command with `# exit code 65` behind it must end so, any other with 0. Loopback URLs
(http://127.0.0.1:8080/v1) are those of the remote LLM that the test scripts.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

REASONS = (
    "needs a Jetson", "needs a cloud key", "needs systemd as PID 1", "needs root", "needs a GPU", "needs Ollama",
    "needs llama.cpp", "installs packages from the network", "takes minutes", "covered by",
)  # fmt: skip
"""How a reason not to run a block may begin."""
LANGUAGES = {"sh", "console", "python"}
"""Those of blocks that are run; text, toml, json and the like are shown."""
MARK = "@@ nslora-documents "
"""Begins the line of the log before what a command prints."""
LOOPBACK = re.compile(r"http://(?:127\.0\.0\.1|localhost):[0-9]+/v1")
EXIT_CODE = re.compile(r"(?m)^(.*?)\s+# exit code ([0-9]+).*$")
VARIES = re.compile(r"\S*[0-9/…]\S*")
COMMENT = re.compile(r"<!-- (not run|with|shown): (.*) -->\n")
FENCE = re.compile(r"^((?:<!-- [^\n]* -->\n)*)```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page and what the comments above it say."""

    line: int
    language: str
    text: str
    comments: Mapping[str, str] = field(default_factory=dict)

    @property
    def why_not(self) -> str:
        """The reason why it is not run, empty if it is."""
        return self.comments.get("not run", "")

    def steps(self, url: str) -> Iterator[Step]:
        """What to type; of a console block also what is shown then. `url` is the remote LLM's."""
        text = LOOPBACK.sub(url, self.text)
        for pair in self.comments.get("with", "").split():
            word, _, value = pair.partition("=")
            text = re.sub(rf"\b{word}\b", value, text)
        if self.language == "python":
            yield Step(self.line, f"python - <<'PYTHON'\n{text}PYTHON\n")
        elif self.language == "sh":
            yield Step(self.line, text)
        else:
            yield from self._typed(text)

    def _typed(self, text: str) -> Iterator[Step]:
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            yield Step(self.line, command + "\n", () if "shown" in self.comments else tuple(shown.splitlines()))


@dataclass(frozen=True)
class Step:
    """Something to type, and what is shown to be printed then."""

    line: int
    typed: str
    shown: tuple[str, ...] = ()

    def script(self, number: int) -> str:
        """The shell's text for it; a command's exit code must be the one that is told."""
        checked = EXIT_CODE.sub(r"code=0; \1 || code=$?; [ $code = \2 ]", self.typed)
        return f"echo; echo '{MARK}{number}'\n{checked}"


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page."""
    found = []
    for match in FENCE.finditer(text):
        comments = dict(COMMENT.findall(match[1]))
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(line, match[2], match[3], comments))
    return found


def starts_empty(text: str) -> bool:
    """Whether a page starts with an empty queue."""
    return "<!-- starts with: an empty queue -->" in text


def fault(block: Block, root: Path) -> str | None:
    """What is wrong with a block as it is written."""
    if block.why_not and not block.why_not.startswith(REASONS):
        return f"{block.why_not!r} begins with none of: {', '.join(REASONS)}"
    gone = [path for path in re.findall(r"`(tests/[^`]+)`", block.why_not) if not (root / path).exists()]
    if gone:
        return f"there is no {gone[0]}"
    if block.why_not.startswith(("takes minutes", "covered by")) and "`tests/" not in block.why_not:
        return "a test covers it: name it"
    if block.language == "console" and not block.text.startswith("$ "):
        return "a console block begins with a command"
    return None


def run(text: str, folder: Path, environment: Mapping[str, str], url: str, seconds: float = 240) -> str | None:
    """Run a page's blocks in `folder`; returns what went wrong first, with its line, None if nothing did."""
    chosen = (block for block in blocks(text) if block.language in LANGUAGES and not block.why_not)
    steps = [step for block in chosen for step in block.steps(url)]
    script = folder / ".script"
    script.write_text("".join(step.script(number) for number, step in enumerate(steps)))
    command = ["bash", "-euo", "pipefail", str(script)]
    with (folder / ".log").open("w+") as log:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            timeout=seconds, check=False,
        )  # fmt: skip
        log.seek(0)
        parts = re.split(rf"^{MARK}[0-9]+\n", log.read(), flags=re.MULTILINE)
    printed = parts[1:]
    for step, said in zip(steps, printed, strict=False):
        missing = not_printed(step.shown, said)
        if missing is not None:
            return f"line {step.line}: {step.typed.strip()!r} does not print {missing!r} but:\n{said}"
    if done.returncode:
        step = steps[len(printed) - 1]
        return f"line {step.line}: exit code {done.returncode} of\n{step.typed}\n{''.join(parts[-1:])}"
    return None


def not_printed(shown: tuple[str, ...], said: str) -> str | None:
    """The first line shown that was not printed, in order; None if all were."""
    lines = iter(said.splitlines())
    for line in filter(str.strip, shown):
        if line.strip() != "…" and not any(_pattern(line).fullmatch(each.strip()) for each in lines):
            return line
    return None


def _pattern(line: str) -> re.Pattern[str]:
    words = line.split()
    found = [r"\S+" if VARIES.fullmatch(word) else re.escape(word) for word in words]
    if words[-1].endswith("…"):
        found[-1] = ".*"
    return re.compile(r"\s+".join(found))
