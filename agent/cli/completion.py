"""Completion in a shell: `completion` prints a script of argcomplete's, which has this program answer at each TAB."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from agent.contract.atomic_io import read_manifest
from agent.queue.jobs import MOVES, RETRIABLE, State
from agent.queue.store import newest_jobs
from agent.system.config import DEFAULT_BASE, GROUPS
from agent.system.output import print_json, say
from agent.system.paths import Home

if TYPE_CHECKING:
    from argcomplete.completers import BaseCompleter

ASKED = "_ARGCOMPLETE"
"""The variable by which the script says that a shell asks."""
SHELLS = ("bash", "zsh", "fish")
FITTING = {"cancel": {s for s in State if State.CANCELLED in MOVES[s]}, "retry": RETRIABLE}
"""States of the jobs that a command can be about; any where it is not named."""
LISTED = 200
"""Jobs that are offered, the newest."""

Offers = Mapping[str, str]
"""What may stand in a place, and what it means."""


def completion(arguments: argparse.Namespace, home: Home) -> int:  # noqa: ARG001  a command like the others
    """Print the script for a shell."""
    from argcomplete.shell_integration import shellcode  # noqa: PLC0415

    # Without bash's own defaults: files where a job is asked for would only mislead.
    script = shellcode(["nslora-agent"], False, arguments.shell, ["-o", "nospace"])
    print_json({"shell": arguments.shell, "script": script}) if arguments.json else say(script)
    return 0


def answer(parser: argparse.ArgumentParser) -> None:
    """Tell the shell what may follow, and exit; faults are silent, because the script throws stderr away."""
    import argcomplete  # noqa: PLC0415  nobody else pays for it

    offers = cast("BaseCompleter", _offer)  # which are called in the same way
    argcomplete.autocomplete(parser, always_complete_options=False, default_completer=offers)


def _offer(prefix: str, action: argparse.Action, parsed_args: argparse.Namespace, **_: object) -> Offers:
    """For a place that has no fixed choices."""
    if action.dest in OFFERED:
        return OFFERED[action.dest](prefix, parsed_args)
    if "." not in action.dest:
        return {}
    group, name = action.dest.split(".")
    about = GROUPS[group].__dataclass_fields__[name].metadata  # the flag of a setting, which argparse does not know
    return dict.fromkeys(about["choices"], str(about["help"]))


def _paths(prefix: str, _: argparse.Namespace) -> Offers:
    """Files and folders; a folder ends with a slash, so that the next TAB goes on in it."""
    folder, start = prefix[: prefix.rfind("/") + 1], prefix[prefix.rfind("/") + 1 :]
    found = sorted(Path(folder or ".").expanduser().iterdir())
    listed = [(path.name, path.is_dir()) for path in found if start or not path.name.startswith(".")]
    return {
        f"{folder}{name}/" if is_dir else f"{folder}{name}": "folder" if is_dir else "file" for name, is_dir in listed
    }


def _folders(prefix: str, given: argparse.Namespace) -> Offers:
    return {path: what for path, what in _paths(prefix, given).items() if what == "folder"}


def _bases(prefix: str, given: argparse.Namespace) -> Offers:
    paths = _paths(prefix, given).items()
    return {DEFAULT_BASE: "the default", **{path: what for path, what in paths if path.endswith(("/", ".gguf"))}}


def _jobs(_: str, given: argparse.Namespace) -> Offers:
    fitting = FITTING.get(given.command, set(State))
    jobs = newest_jobs(Home.find(given.state).database, LISTED)
    return {str(number): f"{state}, {Path(file).name}" for number, state, file in jobs if state in fitting}


def _versions(_: str, given: argparse.Namespace) -> Offers:
    folders = [path for path in Home.find(given.state).versions.iterdir() if path.name.isdecimal()]
    about = {path.name: read_manifest(path) or {} for path in sorted(folders, key=lambda path: -int(path.name))}
    return {name: f"job {known['job']}" if known.get("job") else "the base model" for name, known in about.items()}


def _settings(_: str, __: argparse.Namespace) -> Offers:
    fields = {group: dataclasses.fields(cls) for group, cls in GROUPS.items()}
    return {f"{group}.{each.name}": each.metadata["help"] for group, known in fields.items() for each in known}


OFFERED: dict[str, Callable[[str, argparse.Namespace], Offers]] = {
    **dict.fromkeys(("file", "output", "gguf", "offload.api_key_file", "offload.socket"), _paths),
    **dict.fromkeys(("state", "to"), _folders),
    "base": _bases,
    "job": _jobs,
    "version": _versions,
    "name": _settings,
}
"""What an argument is made of, by its name in the parser."""
