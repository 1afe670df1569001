"""Writes docs/nslora-agent.1, the manual page, from the parser, agent.contract.errors and other documents: `make docs`.

`tests/test_docs.py` compares. Nothing in it depends on the version of Python or on the terminal.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from make_cli import commands

from agent.cli.main import build_parser
from agent.contract import errors

DOCS = Path(__file__).parent
TARGET = DOCS / "nslora-agent.1"
README, COMMANDS, DEPLOYMENT = ((DOCS / name).read_text() for name in ("../README.md", "commands.md", "deployment.md"))
SHARED = {"help", "state", "json"}
"""Options of every command, described once."""
ENVIRONMENT = {
    "NSLORA_STATE": "The state folder where *--state* is not given.",
    "XDG_STATE_HOME": "Without either, *nslora* below it is the state folder [~/.local/state].",
    "HTTPS_PROXY, PIP_*, HF_*": "Read while **init** downloads a base model, by no other command.",
    "OMP_NUM_THREADS": "Threads that training uses; without it as many as are fastest.",
    "CREDENTIALS_DIRECTORY": "Set by systemd; the API key may be the credential *nslora-api-key* in it.",
    "NOTIFY_SOCKET": "Set by systemd; the daemon tells it that it is ready and that it lives.",
}
SEE_ALSO = "**systemctl**(1), **journalctl**(1), **systemd-creds**(1); README.md and docs/ of the source."


def escaped(text: str) -> str:
    """A text as roff takes it literally."""
    plain = text.replace("\\", "\\e").replace("-", "\\-")
    return "".join(char if char.isascii() else f"\\[u{ord(char):04X}]" for char in plain)


def rich(markdown: str) -> str:
    """A sentence of Markdown in roff: code and **strong** become bold, *emphasis* italic, links their texts."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", markdown)
    fonts = {"`": "B", "**": "B", "*": "I"}
    return re.sub(r"(`|\*\*|\*)(.+?)\1", lambda found: f"\\f{fonts[found[1]]}{found[2]}\\fR", escaped(text))


def lines(roff: str) -> str:
    """A paragraph in short lines, none of which roff takes for a request."""
    wrapped = textwrap.wrap(roff, 78, break_on_hyphens=False, break_long_words=False)
    return "\n".join(f"\\&{line}" if line[0] in ".'" else line for line in wrapped)


def item(head: str, roff: str) -> str:
    """An entry of a list: what it is about, and below it what is to be said."""
    return f".TP\n{head}\n{lines(roff)}"


def table(name: str, page: str) -> list[list[str]]:
    """The rows of the table in a section of a page, without their heading."""
    section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*) \|$", section, re.MULTILINE)
    return [[cell.strip() for cell in re.split(r" ?\| ?", row)] for row in rows[2:]]


# ---- commands ----


def values(action: argparse.Action) -> str:
    """The values of a flag or an argument, in italics."""
    if action.nargs == 0:
        return ""
    choices = "{" + ",".join(action.choices) + "}" if action.choices and not action.metavar else ""
    name = f"\\fI{escaped(str(choices or action.metavar))}\\fR"
    return {"?": f"[{name}]", "*": f"[{name} ...]"}.get(str(action.nargs), name)


def flags(action: argparse.Action) -> str:
    """The head of an option's or argument's entry."""
    names = ", ".join(f"\\fB{escaped(name)}\\fR" for name in action.option_strings)
    return f"{names} {values(action)}".strip()


def option(action: argparse.Action) -> str:
    """The entry of an option or argument."""
    return item(flags(action), escaped(str(action.help).replace("%%", "%")))


def is_shown(action: argparse.Action) -> bool:
    """Flags that every command has are told once; old names of flags are not told."""
    return action.dest not in SHARED and action.help != argparse.SUPPRESS


def command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """The entry of one command."""
    groups = [(group.title, group._group_actions) for group in parser._action_groups]  # noqa: SLF001  no public way
    told = [(title, [action for action in actions if is_shown(action)]) for title, actions in groups]
    arguments = [values(action) for _, actions in told for action in actions if not action.option_strings]
    yield f'.SS "{" ".join([escaped(name), *arguments])}"\n{lines(escaped(str(parser.description)))}'
    for title, actions in told:
        if actions and title and "settings" in title:
            yield f".PP\n{lines(escaped(title.capitalize()))}:"
        yield from map(option, actions)


def shared() -> Iterator[str]:
    """The options of every command."""
    parser = commands(build_parser())["ls"]
    yield from (option(action) for action in parser._actions if action.dest in SHARED)  # noqa: SLF001  no public way


# ---- the other sections ----


def exit_status() -> Iterator[str]:
    """Those of our errors with what the error means; the others as docs/commands.md has them."""
    ours = {error.exit_code: error for error in errors.BY_NAME.values()}
    for code, _, meaning in table("Exit codes", COMMANDS):
        error = ours.get(int(code))
        again = " The same may succeed later." if error and error.retryable else ""
        yield item(f"\\fB{code}\\fR", rich(f"*{error.__name__}*: {error.__doc__}{again}" if error else meaning))


def examples() -> Iterator[str]:
    """The commands of docs/commands.md, by purpose."""
    yield from (item(rich(about), rich(typed)) for about, typed in table("Every day", COMMANDS))


def page() -> str:
    """The text of docs/nslora-agent.1."""
    parser = build_parser()
    version, day = re.findall(r"^## (\S+) \((\S+)\)$", (DOCS.parent / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    name, does = escaped(parser.prog), str(parser.description)
    bold = f"\\fB{name}\\fR"
    about = README.split("\n\n")[1].replace("\n", " ")
    parts = [
        '.\\" Made by `make docs`; do not edit.',
        f'.TH NSLORA\\-AGENT 1 {day} "{name} {escaped(version)}" "User Commands"',
        ".nh\n.ad l",  # a path or a flag that is cut in two cannot be copied
        f".SH NAME\n{name} \\- {lines(escaped(does[0].lower() + does[1:].partition(':')[0]))}",
        f".SH SYNOPSIS\n{bold} \\fICOMMAND\\fR [\\fIoption\\fR ...] [\\fIargument\\fR ...]",
        f".br\n{bold} \\fB\\-\\-version\\fR",
        f".SH DESCRIPTION\n{lines(rich(about))}",
        ".SH OPTIONS\nEvery command takes",
        *shared(),
        ".SH COMMANDS",
        *(part for words, each in commands(parser).items() for part in command(words, each)),
        ".SH FILES\nIn the state folder:",
        *(item(rich(path), rich(what)) for path, what in table("Where files are", DEPLOYMENT)),
        ".SH ENVIRONMENT",
        *(item(f"\\fB{escaped(names)}\\fR", rich(what)) for names, what in ENVIRONMENT.items()),
        ".SH EXIT STATUS",
        *exit_status(),
        ".SH EXAMPLES",
        *examples(),
        f".SH SEE ALSO\n{lines(rich(SEE_ALSO))}",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    TARGET.write_text(page())
