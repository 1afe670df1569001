"""Rules of this house that no tool checks: what may be imported where, how long things may be, what is shipped."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import PACKAGES, ROOT, pyproject, python_files
from needs import needs

LINES_OF_A_FILE = 400

HEAVY = {
    "torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "gguf", "huggingface_hub", "numpy",
    "textgrad", "litellm", "httpx", "rich", "sqlite_utils", "pandas", "jsonschema", "referencing", "langdetect",
    "punkt", "starlette", "uvicorn", "asyncio", "argcomplete",
}  # fmt: skip
"""What no module of agent/ imports before it has to."""
LAZY = {
    "agent/cli/screen.py": {"rich"},
    "agent/serve/server.py": {"starlette", "uvicorn", "asyncio"},
    "agent/serve/chat_service.py": {"asyncio"},
}
"""Modules that are imported only where they are needed."""
CONTRACT = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in python_files("agent/contract")
}
"""What the workers may import of agent/, and what imports nothing else of it."""

PLACES = {
    **dict.fromkeys(("torch", "transformers", "peft", "bitsandbytes", "safetensors"), ("quant/",)),
    **dict.fromkeys(("httpx", "textgrad"), ("offload/",)),
    "huggingface_hub": ("agent/versions/fetch.py",),
    "socket": (
        "agent/system/systemd.py",
        "agent/system/worker_client.py",
        "agent/contract/confinement.py",
        "agent/serve/server.py",
    ),
    **dict.fromkeys(("starlette", "uvicorn"), ("agent/serve/server.py",)),
    "asyncio": ("agent/serve/server.py", "agent/serve/chat_service.py"),
    **dict.fromkeys(("requests", "urllib.request", "http.client", "http.server", "socketserver"), ()),
    **dict.fromkeys(("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"), ()),
}
"""The only places that may import a module; nowhere, where there is none."""
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "torch.save", "os.system", "os.popen"}
LISTENING = {"listen", "bind", "start_server", "create_server"}
"""Methods that open a port: this program has none."""
UNIX_ONLY = {"agent/serve/server.py"}
"""Where they make a Unix socket."""
FORBIDDEN_ARGUMENTS = {"trust_remote_code", "allow_pickle", "shell"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ---- imports ----


IMPORT_EACH = """
import importlib, os, sys
for module in sys.argv[1:]:
    if os.fork() == 0:
        old = set(sys.modules)
        importlib.import_module(module)
        os.write(1, (" ".join([module, *(set(sys.modules) - old)]) + "\\n").encode())
        os._exit(0)
    assert os.wait()[1] == 0, module
"""


@pytest.fixture(scope="module")
def imported_by() -> dict[str, set[str]]:
    """By module of agent/: names of all modules that a fresh interpreter holds after its import and did not before."""
    files = (path.relative_to(ROOT).with_suffix("") for path in python_files("agent"))
    modules = [".".join(path.parts).removesuffix(".__init__") for path in files]
    command = [sys.executable, "-c", IMPORT_EACH, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    told = (line.split() for line in done.stdout.splitlines())
    return {module: set(names) for module, *names in told}


@pytest.mark.process
@pytest.mark.parametrize("path", python_files("agent"), ids=named)
def test_a_module_of_agent_imports_nothing_heavy(path: Path, imported_by: dict[str, set[str]]) -> None:
    """Commands start at once and the daemon stays small: torch and the like are imported where they are used."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    tops = {name.partition(".")[0] for name in imported_by[module]}
    assert "agent" in tops
    assert not tops & (HEAVY - LAZY.get(named(path), set()))


@pytest.mark.process
@pytest.mark.parametrize("module", sorted(CONTRACT))
def test_the_contract_imports_only_the_standard_library(module: str, imported_by: dict[str, set[str]]) -> None:
    """What the workers share with the loop brings nothing else of agent along."""
    allowed = {"agent", *CONTRACT}
    found = {name for name in imported_by[module] if name.partition(".")[0] not in sys.stdlib_module_names}
    assert module in found
    assert found <= allowed


def test_the_map_of_rooms_is_the_tree() -> None:
    """docs/architecture.md has one line for each package, in the order of the import layers."""
    _, _, text = (ROOT / "docs/architecture.md").read_text().partition("## Rooms\n")
    rooms = [line.split()[0] for line in text.split("```")[1].splitlines()[1:]]
    packages = {named(path.parent) for path in python_files(*PACKAGES) if path.name == "__init__.py"} - {"agent"}
    modules = {named(path) for path in (ROOT / "agent").glob("*.py")} - {"agent/__init__.py"}
    assert sorted(rooms) == sorted(packages | modules)
    layers = pyproject()["tool"]["importlinter"]["contracts"][0]["layers"]
    placed = [[name.strip() for name in layer.split("|")] for layer in layers]
    told = [room.removesuffix(".py").replace("/", ".") for room in rooms if not room.startswith("quant/")]
    assert told == [name for layer in placed for name in sorted(layer, key=told.index)]


def test_only_what_programs_import_stays_directly_in_agent() -> None:
    """Every other module lives in a package whose name is its job."""
    assert {path.name for path in (ROOT / "agent").glob("*.py")} == {"__init__.py", "api.py", "errors.py"}


# ---- what code may not do ----


def faults(source: str, where: str) -> Iterator[str]:
    """What is forbidden in a file of that name, one line for each."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (f"line {node.lineno} imports {name}" for name in misplaced(node, where))
        elif isinstance(node, ast.Call):
            yield from (f"line {node.lineno}: {what}" for what in call_faults(node, where))


def misplaced(node: ast.Import | ast.ImportFrom, where: str) -> Iterator[str]:
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        names = [str(node.module), *(f"{node.module}.{name}" for name in names)]
    for module, places in PLACES.items():
        if any(name == module or name.startswith(f"{module}.") for name in names) and not where.startswith(places):
            yield module


def call_faults(node: ast.Call, where: str) -> Iterator[str]:
    called = ast.unparse(node.func)
    if called == "socket.socket" and where in UNIX_ONLY and "socket.AF_UNIX" not in map(ast.unparse, node.args):
        yield "a socket that is not of this box alone"
    if called in FORBIDDEN_CALLS:
        yield called
    if isinstance(node.func, ast.Attribute) and node.func.attr in LISTENING and where not in UNIX_ONLY:
        yield f"{called} opens a port"
    for keyword in node.keywords:
        off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg in FORBIDDEN_ARGUMENTS and not off:
            yield f"{keyword.arg} is not False"


@pytest.mark.parametrize("path", python_files(*PACKAGES), ids=named)
def test_code_runs_no_foreign_code_and_stays_off_the_network(path: Path) -> None:
    """No pickle, no eval, no shell, no remote code, no port; torch and the network only in their own folders."""
    assert list(faults(path.read_text(), named(path))) == []


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("import pickle", "agent/queue/store.py"),
        ("from torch import nn", "agent/runner/job_process.py"),
        ("import torch.nn as nn", "offload/worker.py"),
        ("def f():\n    import httpx", "quant/worker.py"),
        ("from urllib import request", "agent/versions/fetch.py"),
        ("import socket", "agent/daemon/daemon.py"),
        ("torch.load(path)", "quant/load.py"),
        ("eval(text)", "agent/system/config.py"),
        ("run(command, shell=True)", "agent/versions/fetch.py"),
        ("AutoModel.from_pretrained(path, trust_remote_code=flag)", "quant/load.py"),
        ("connection.listen(5)", "agent/system/systemd.py"),
        ("socket.socket(socket.AF_INET)", "agent/serve/server.py"),
        ("socket.socket()", "agent/serve/server.py"),
    ],
)
def test_the_check_above_sees_what_is_forbidden(source: str, where: str) -> None:
    """One line of each kind is found."""
    assert len(list(faults(source, where))) == 1


def test_the_check_above_leaves_the_rest_alone() -> None:
    """Imports in their own place, `network.eval()` and an argument that switches a danger off are fine."""
    source = "import torch\nfrom safetensors.torch import load_file\nnetwork.eval()\nload(trust_remote_code=False)"
    assert list(faults(source, "quant/load.py")) == []


# ---- sizes ----


@pytest.mark.parametrize("path", python_files(*PACKAGES, "benchmarks", "docs", "examples"), ids=named)
def test_a_file_is_short(path: Path) -> None:
    """A file can be read in one go."""
    assert len(path.read_text().splitlines()) <= LINES_OF_A_FILE


# ---- what is shipped ----


def test_the_packages_are_listed_one_by_one() -> None:
    """Nothing is shipped because it happens to lie in the checkout."""
    found = pyproject()["tool"]["setuptools"]
    folders = sorted({path.parent for path in python_files(*PACKAGES)})
    found["packages"].sort()
    assert found == {
        "packages": [".".join(path.relative_to(ROOT).parts) for path in folders],
        "package-data": {
            "agent": ["py.typed"],
            "agent.cli": ["units/*", "templates/*"],
            "agent.decide": ["prior.json"],
        },
        "data-files": {"share/man/man1": ["docs/nslora-agent.1"]},
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is shipped, built from a copy of the checkout."""
    if importlib.util.find_spec("setuptools") is None and os.environ.get("CI") != "true":
        pytest.skip("setuptools is not installed: pip install setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, copy], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.process
def test_a_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    """No test, benchmark or example is shipped; every module, the classifier's prior, page and licence are."""
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {re.sub(r"^[^/]+\.data/data/", "", name) for name in names if ".dist-info/" not in name}
    units = {named(path) for folder in ("units", "templates") for path in (ROOT / "agent/cli" / folder).iterdir()}
    code = {"agent/decide/prior.json", "agent/py.typed", *units, *(named(path) for path in python_files(*PACKAGES))}
    assert shipped == code | {"share/man/man1/nslora-agent.1"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.process
def test_man_finds_the_page_where_the_program_is_installed(wheel: Path, tmp_path: Path) -> None:
    """By the path alone, as in an environment that is activated."""
    venv.create(tmp_path / "env", with_pip=False)  # one of its own: pip would take the tests' program away
    bin_ = tmp_path / "env" / "bin"
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        bin_ / "python",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
    ]
    subprocess.run([*command, "--no-compile", wheel], check=True, capture_output=True)
    environment = {"PATH": f"{bin_}:/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    command = [needs("man", "man-db"), "nslora-agent"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "adapts a 4-bit language model" in shown
