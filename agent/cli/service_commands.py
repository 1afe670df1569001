"""`service install`, `status` and `uninstall`: the agent as a systemd service of this machine."""

from __future__ import annotations

import argparse
import pwd
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from agent.contract.atomic_io import write_file
from agent.contract.errors import ConfigError, StateError
from agent.contract.os_errors import os_fault
from agent.system.output import hint, print_json, print_table, say
from agent.system.paths import Home
from agent.system.sensors import board

TEMPLATES = Path(__file__).with_name("units")
SERVICE, SOCKET, OFFLOAD = "nslora-agent.service", "nslora-offload.socket", "nslora-offload@.service"
DROP_IN = f"{SERVICE}.d/jetson.conf"
ALL = (SERVICE, DROP_IN, SOCKET, OFFLOAD)
DEFAULT_TARGET = Path("/etc/systemd/system")
SHOWN = ("LoadState", "ActiveState", "SubState", "StatusText", "MainPID", "MemoryCurrent", "NRestarts")
"""What `systemctl show` is asked for."""


def install(arguments: argparse.Namespace, home: Home) -> int:
    """Write the units for this machine and, where systemd runs, start the service."""
    home.create()
    user = arguments.user or pwd.getpwuid(home.path.stat().st_uid).pw_name
    units = _render_units(home, user, offload=arguments.offload)
    written = []
    for name, text in units:
        path = arguments.to / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, text.encode())
            path.chmod(0o644)
        except OSError as fault:
            raise os_fault(path, fault, "run it with sudo, or give --to DIR") from fault
        written.append(str(path))
    started = _is_systemd_here(arguments.to)
    if started:
        _systemctl("daemon-reload")
        _systemctl("enable", "--now", SERVICE, *([SOCKET] if arguments.offload else []))
    if arguments.json:
        print_json({"written": written, "user": user, "state": str(home.path), "started": started})
        return 0
    for name in written:
        say(f"wrote     {name}")
    say(f"runs as   {user}, with the state folder {home.path}")
    say("started   nslora-agent" if started else "not started: systemd does not run here, or --to was given")
    return 0


def _render_units(home: Home, user: str, *, offload: bool) -> Iterator[tuple[str, str]]:
    """Names and texts of the units; raises ConfigError for what no unit can hold, or an unknown user."""
    try:
        pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"there is no user {user}: create it, or give another --user") from None
    program = Path(sys.executable).parent
    values = {"@BIN@": str(program), "@STATE@": str(home.path), "@USER@": user}
    if any(character in text for text in values.values() for character in ' \t\n%"\\'):
        raise ConfigError(f"{program} or {home.path} holds a blank, %, quote or backslash: move it for the service")
    names = [SERVICE, *([DROP_IN] if "jetson" in board().lower() else []), *([SOCKET, OFFLOAD] if offload else [])]
    for name in names:
        text = (TEMPLATES / Path(name).name).read_text()
        for mark, value in values.items():
            text = text.replace(mark, value)
        yield name, text


def _is_systemd_here(target: Path) -> bool:
    """True if systemd runs this machine and reads units from `target`."""
    return Path("/run/systemd/system").is_dir() and target == DEFAULT_TARGET and shutil.which("systemctl") is not None


def _systemctl(*arguments: str) -> str:
    """Run systemctl and return its output; raises StateError with its complaint."""
    import subprocess  # noqa: PLC0415  10 ms that no other command need pay

    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)  # noqa: S607
    if done.returncode:
        raise StateError(f"systemctl {' '.join(arguments)}: {done.stderr.strip() or 'failed'}")
    return done.stdout


def status(arguments: argparse.Namespace, _: Home) -> int:
    """Show what systemd says of the service; exit code 1 if it does not run."""
    there = [name for name in ALL if (arguments.to / name).exists()]
    properties: dict[str, str] = {}
    if _is_systemd_here(arguments.to):
        lines = _systemctl("show", SERVICE, *(f"--property={name}" for name in SHOWN)).splitlines()
        properties = dict(line.split("=", 1) for line in lines)
    runs = properties.get("ActiveState") == "active"
    if arguments.json:
        print_json({"units": there, "runs": runs, **properties})
    else:
        facts = [
            ("units", ", ".join(there) or f"none in {arguments.to}: nslora-agent service install"),
            *properties.items(),
        ]
        print_table(("", ""), [(name, value) for name, value in facts if value])
        if not properties:
            hint("systemd does not run here")
    return 0 if runs else 1


def uninstall(arguments: argparse.Namespace, home: Home) -> int:
    """Stop the service and delete its units; the state folder stays."""
    there = [name for name in ALL if (arguments.to / name).exists()]
    here = _is_systemd_here(arguments.to)
    if here and there:
        _systemctl("disable", "--now", *(name for name in there if name in {SERVICE, SOCKET}))
    try:
        for name in there:
            (arguments.to / name).unlink()
    except OSError as fault:
        raise os_fault(arguments.to, fault, "run it with sudo") from fault
    if here and there:
        _systemctl("daemon-reload")
    if arguments.json:
        print_json({"deleted": there})
    else:
        say(f"deleted   {', '.join(there) or 'nothing: no unit was there'}")
        say(f"kept      {home.path}")
    return 0
