"""What the documents say is what the program does."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import make_cli
import make_man
import make_memory
import pytest
from checkout import ROOT, pyproject
from needs import needs

from agent import errors
from agent.cli import build_parser

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]
COMMANDS = make_cli.commands(build_parser())
EXIT_CODES = {error.exit_code: name for name, error in errors.BY_NAME.items()}
NOT_OURS = {0: "done", 1: "doctor", 2: "usage", 130: "Ctrl-C", 141: "pipe"}
"""Exit codes that no error class has, and a word that explains each."""


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def sections(text: str) -> dict[str, str]:
    """The text below each second-level heading."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def comparable(text: str) -> object:
    """The text itself on the Python it is made with; elsewhere, where argparse words it otherwise, its options."""
    if sys.version_info[:2] == (3, 11):
        return text
    return {title: set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", body)) for title, body in sections(text).items()}


def table_rows(text: str, columns: int) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if len(row) == columns]


def test_the_tables_of_memory_are_what_the_worker_plans_with() -> None:
    """After a change of the formulas `make docs` has been run."""
    text = make_memory.TARGET.read_text()
    assert make_memory.page(text) == text, "run `make docs`"
    assert text.count("<!-- end -->") == 3


def test_every_test_that_the_threat_model_names_is_there() -> None:
    """What is claimed is shown, by a test that can be run."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    there = {
        name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 25
    assert named <= there, named - there


def test_the_command_line_reference_is_what_the_parser_says() -> None:
    """After a change of the parser `make docs` has been run."""
    assert comparable(make_cli.TARGET.read_text()) == comparable(make_cli.render()), "run `make docs`"


def test_the_reference_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow window wraps nothing in the file."""
    monkeypatch.setenv("COLUMNS", "40")
    narrow = make_cli.render()
    monkeypatch.setenv("COLUMNS", "300")
    assert make_cli.render() == narrow


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_section_in_the_reference(name: str) -> None:
    """Nobody has to read the source to find a command."""
    assert f"usage: nslora-agent {name} " in sections(make_cli.TARGET.read_text())[f"nslora-agent {name}"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_ends_in_an_example_that_parses(name: str) -> None:
    """An example can be typed as it stands."""
    text = COMMANDS[name].format_help()
    assert "\nexample:\n" in text
    program, *arguments = shlex.split(text.partition("\nexample:\n")[2])
    assert program == "nslora-agent"
    assert build_parser().parse_args(arguments).command == name.split(maxsplit=1)[0]


def test_the_manual_page_is_what_the_parser_the_errors_and_the_readme_say() -> None:
    """After a change of any `make docs` has been run."""
    text = make_man.TARGET.read_text()
    assert text == make_man.page(), "run `make docs`"
    assert set(re.findall(r"^\\fB(\d+)\\fR$", text, re.MULTILINE)) == {str(code) for code in EXIT_CODES | NOT_OURS}
    flags = {flag for parser in COMMANDS.values() for action in parser._actions for flag in action.option_strings}
    assert all(f"\\fB{make_man.escaped(flag)}\\fR" in text for flag in flags)
    assert text.count(".SS ") == len(COMMANDS)


def test_the_manual_page_reads_well() -> None:
    """There is nothing that groff warns of, and no line begins with what it would take for a request."""
    command = [needs("groff", "man-db"), "-man", "-ww", "-Tutf8", str(make_man.TARGET)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    shown = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout)
    assert "--no-allow-http" in shown
    assert "\N{DEGREE SIGN}" not in make_man.TARGET.read_text()
    assert make_man.lines(".request 'and more") == "\\&.request 'and more"


def test_the_readme_has_every_exit_code_and_no_other() -> None:
    """The table lists each error class with its own code, and the codes that are not errors of ours."""
    rows = table_rows(sections((ROOT / "README.md").read_text())["Exit codes"], 3)
    listed = {int(code): f"{name} {meaning}" for code, name, meaning in rows if code.isdecimal()}
    assert set(listed) == set(EXIT_CODES) | set(NOT_OURS)
    for code, word in {**EXIT_CODES, **NOT_OURS}.items():
        assert word in listed[code], code


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_relative_links_lead_to_files(document: Path) -> None:
    """A link within the checkout leads somewhere."""
    targets = re.findall(r"\]\(([^)#\s]+)", document.read_text())
    broken = [target for target in targets if "://" not in target and not (document.parent / target).exists()]
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_commands_in_the_documents_exist(document: Path) -> None:
    """Lines that call the program parse, as they stand or, with words in capitals, with a 1 in their place."""
    blocks = "".join(re.findall(r"^```(?:sh|console)\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL))
    for line in re.findall(r"^(?:\$ )?(?:sudo )?(?:\S*/)?nslora-agent (.+)$", blocks, re.MULTILINE):
        arguments = shlex.split(line.partition(" && ")[0], comments=True)
        parsed = build_parser().parse_args(["1" if re.fullmatch("[A-Z]+", word) else word for word in arguments])
        assert parsed.command in {name.split()[0] for name in COMMANDS}


def test_the_changelog_is_of_the_version_in_pyproject() -> None:
    """The newest heading names the version that is built, and the day it was finished."""
    newest = re.search(r"^## (\S+)(.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == pyproject()["project"]["version"]
    assert re.fullmatch(r" \(\d{4}-\d{2}-\d{2}\)", newest[2])


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_no_placeholder_is_left(document: Path) -> None:
    """Every figure was measured and filled in."""
    assert not re.findall("@@[^@]*@@", document.read_text())
