"""What the documents say is what the program does."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import make_cli
import make_man
import make_memory
import make_results
import pytest
from checkout import PACKAGES, ROOT, pyproject, python_files
from needs import needs

from agent.cli.main import build_parser
from agent.constraints import verify
from agent.contract import errors

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


@pytest.mark.parametrize("target", make_results.TABLES, ids=named)
def test_the_tables_of_benchmarks_are_what_was_measured(target: Path) -> None:
    """After a new result is kept `make docs` has been run, and each table stands between its own marks."""
    text, tables = target.read_text(), make_results.TABLES[target]
    assert make_results.page(text, tables) == text, "run `make docs`"
    assert re.findall(r"<!-- (?!end)(\w+) -->", text) == list(tables)


def test_the_readme_says_how_good_the_obvious_rule_is() -> None:
    """In the figures of the benchmark of the decision."""
    found = make_results.kept("decision-even")
    assert found is not None
    rule, ours = (found["arms"][arm]["slices"]["single"]["joint"][0] for arm in ("obvious rule", "neurosymbolic"))
    for page in (make_results.README, make_results.BENCHMARKS):
        assert f"{rule:.0f} % against {ours:.0f} %" in " ".join(page.read_text().split())


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


def test_the_manual_page_is_what_the_parser_the_errors_and_the_documents_say() -> None:
    """After a change of any `make docs` has been run."""
    text = make_man.TARGET.read_text()
    assert text == make_man.page(), "run `make docs`"
    assert set(re.findall(r"^\\fB(\d+)\\fR$", text, re.MULTILINE)) == {str(code) for code in EXIT_CODES | NOT_OURS}
    shown = [action for parser in COMMANDS.values() for action in parser._actions if action.help != argparse.SUPPRESS]
    flags = {flag for action in shown for flag in action.option_strings}
    assert all(f"\\fB{make_man.escaped(flag)}\\fR" in text for flag in flags)
    assert text.count(".SS ") == len(COMMANDS)


@pytest.mark.process
def test_the_manual_page_reads_well() -> None:
    """There is nothing that groff warns of, and no line begins with what it would take for a request."""
    command = [needs("groff", "man-db"), "-man", "-ww", "-Tutf8", str(make_man.TARGET)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    shown = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout)
    assert "--no-allow-http" in shown
    assert "\N{DEGREE SIGN}" not in make_man.TARGET.read_text()
    assert make_man.lines(".request 'and more") == "\\&.request 'and more"


def test_the_table_of_exit_codes_has_every_code_and_no_other() -> None:
    """The table lists each error class with its own code, and the codes that are not errors of ours."""
    rows = table_rows(sections((ROOT / "docs" / "commands.md").read_text())["Exit codes"], 3)
    listed = {int(code): f"{name} {meaning}" for code, name, meaning in rows if code.isdecimal()}
    assert set(listed) == set(EXIT_CODES) | set(NOT_OURS)
    for code, word in {**EXIT_CODES, **NOT_OURS}.items():
        assert word in listed[code], code


def raised() -> Iterator[tuple[str, str]]:
    """Names of what the shipped code raises, and the texts in each such statement."""
    for path in python_files(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                yield ast.unparse(node.exc.func).rpartition(".")[2], "\0".join(texts(node))


def texts(node: ast.AST) -> list[str]:
    """All constant texts below a node."""
    return [each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def symptoms() -> list[tuple[list[str], str]]:
    """The lines of the program that troubleshooting lists, cut at what differs, and the exit code beside each."""
    rows = table_rows((ROOT / "docs" / "troubleshooting.md").read_text(), 3)
    cut = [(re.findall(r"(`+) ?(.+?) ?\1", said), code) for said, _, code in rows if said.startswith("`")]
    return [
        ([part.strip() for _, line in lines for part in line.split("…") if part.strip()], code) for lines, code in cut
    ]


@pytest.mark.slow
def test_troubleshooting_lists_lines_that_the_program_prints() -> None:
    """Word for word where they do not differ from case to case, and with the exit code of the error that says so."""
    known = [text for path in python_files(*PACKAGES) for text in texts(ast.parse(path.read_text()))]
    statements = list(raised())
    assert len(symptoms()) > 50
    unsaid = [parts for parts, _ in symptoms() if not all(any(part in text for text in known) for part in parts)]
    assert unsaid == []
    for parts, code in symptoms():
        names = {name for name, said in statements if all(part in said for part in parts)} & errors.BY_NAME.keys()
        assert not names or code in {str(errors.BY_NAME[name].exit_code) for name in names}, (parts, code)


def test_the_constraints_in_the_documents_are_those_that_can_be_checked() -> None:
    """Each id has a row, and the row names its arguments."""
    rows = table_rows(sections((ROOT / "docs" / "data.md").read_text())["Constraints"], 2)
    told = {name: arguments for ids, arguments in rows for name in re.findall(r"`([a-z_]+:[a-z_]+)`", ids)}
    assert told.keys() == verify._CHECKS.keys()
    for name, check in verify._CHECKS.items():
        assert all(f"`{argument}`" in told[name] for argument in check.arguments), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_relative_links_lead_to_files(document: Path) -> None:
    """A link within the checkout leads somewhere."""
    targets = re.findall(r"\]\(([^)#\s]+)", document.read_text())
    broken = [target for target in targets if "://" not in target and not (document.parent / target).exists()]
    assert not broken


def headings(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_anchors_lead_to_headings(document: Path) -> None:
    """Also after a section was renamed or moved."""
    links = re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", document.read_text())
    assert [
        f"{to}#{anchor}" for to, anchor in links if anchor not in headings(document.parent / to if to else document)
    ] == []


def commands_in(text: str) -> Iterator[list[str]]:
    """The arguments of every call of the program in blocks of commands and in the text, cut at what is the shell's."""
    fences = r"^```(\w*)\n(.*?)^```"
    blocks = re.findall(fences, text, re.MULTILINE | re.DOTALL)
    lines = "".join(body if kind == "sh" else "" for kind, body in blocks)
    lines += "".join(re.findall(r"^\$ (.*\n)", "".join(body for _, body in blocks), re.MULTILINE))
    lines += "\n".join(re.findall(r"`([^`\n]+)`", re.sub(fences, "", text, flags=re.MULTILINE | re.DOTALL)))
    for line in re.findall(r"^(?:sudo )?(?:\S*/)?nslora-agent ([a-z].+)$", lines, re.MULTILINE):
        yield shlex.split(re.split(r" (?:&&?|[|<>])(?: |$)", line)[0], comments=True)


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_commands_in_the_documents_exist(document: Path) -> None:
    """Calls of the program parse, as they stand or, with words in capitals, with a 1 in their place."""
    for arguments in commands_in(document.read_text()):
        parsed = build_parser().parse_args(["1" if re.fullmatch("[A-Z]+", word) else word for word in arguments])
        assert parsed.command in {name.split()[0] for name in COMMANDS}


def test_commands_are_found_in_the_documents() -> None:
    """Or the test above would look at nothing."""
    names = {arguments[0] for document in DOCUMENTS for arguments in commands_in(document.read_text())}
    assert names >= {name.split()[0] for name in COMMANDS} - {"completion"}  # a shell evaluates what that prints


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
