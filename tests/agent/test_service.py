"""The systemd units: written for this machine, accepted by systemd, and as closed as they are meant to be."""

from __future__ import annotations

import json
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest
from needs import needs
from processes import agent, failed

from agent.cli import service_commands
from agent.system.sensors import board

ALLOWED_EXPOSURE = 15
"""In tenths, as `systemd-analyze security --threshold` counts."""
MAIN, OFFLOAD, SOCKET = "nslora-agent.service", "nslora-offload@.service", "nslora-offload.socket"


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The folder of all units, as `service install --offload` writes them."""
    done = agent("service", "install", "--offload", "--to", tmp_path / "units", state=tmp_path / "state")
    assert done.returncode == 0, done.stderr
    assert f"wrote     {tmp_path / 'units' / MAIN}" in done.stdout
    assert "not started" in done.stdout
    return tmp_path / "units"


@pytest.mark.process
def test_the_units_name_this_installation_and_its_state_folder(units: Path, tmp_path: Path) -> None:
    """No placeholder is left; it runs as the owner of the state folder; anyone may read a unit."""
    owner = pwd.getpwuid((tmp_path / "state").stat().st_uid).pw_name
    text = (units / MAIN).read_text()
    assert f"ExecStart={Path(sys.executable).parent}/nslora-agent run --state {tmp_path}/state\n" in text
    assert f"User={owner}\n" in text
    for unit in units.iterdir():
        assert re.findall("@[A-Z]+@", unit.read_text()) == []
        assert unit.stat().st_mode & 0o777 == 0o644


@pytest.mark.process
def test_systemd_accepts_the_units(units: Path) -> None:
    """No unknown key and no wrong value."""
    files = sorted(path for path in units.iterdir() if path.is_file())
    assert [path.name for path in files] == [MAIN, SOCKET, OFFLOAD]
    command = [needs("systemd-analyze", "systemd"), "verify", "--man=no", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if "nslora-" in line]
    assert (done.returncode, complaints) == (0, [])


@pytest.mark.process
@pytest.mark.parametrize("name", [MAIN, OFFLOAD])
def test_the_services_are_confined(units: Path, name: str) -> None:
    """At most 1.5 of 10 points of exposure: also as root, which is the worst user to run as."""
    text = "\n".join(
        "User=root" if line.startswith("User=") else line for line in (units / name).read_text().split("\n")
    )
    (units / name).write_text(text)
    command = [needs("systemd-analyze", "systemd"), "security", "--offline=true", f"--threshold={ALLOWED_EXPOSURE}"]
    done = subprocess.run([*command, units / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:]
    assert "Overall exposure level" in done.stdout


@pytest.mark.process
def test_the_agent_has_no_network_and_the_offload_unit_no_device(units: Path) -> None:
    """What one may, the other may not."""
    main, offload = (set((units / name).read_text().splitlines()) for name in (MAIN, OFFLOAD))
    assert {"PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX AF_NETLINK"} < main
    assert not [line for line in main if "Credential" in line]
    assert {"PrivateDevices=yes", "LoadCredential=nslora-api-key:/etc/nslora/api-key"} < offload
    assert not [line for line in offload if line.startswith("PrivateNetwork")]


@pytest.mark.process
def test_what_is_installed_is_told_and_taken_away(units: Path, tmp_path: Path) -> None:
    """The state folder stays; a second uninstall finds nothing to do."""
    state = tmp_path / "state"
    told = agent("service", "status", "--to", units, "--json", state=state)
    assert json.loads(told.stdout) == {"units": [MAIN, SOCKET, OFFLOAD], "runs": False}
    assert told.returncode == 1
    assert agent("service", "uninstall", "--to", units, state=state).returncode == 0
    assert list(units.iterdir()) == []
    assert state.is_dir()
    assert "nothing: no unit was there" in agent("service", "uninstall", "--to", units, state=state).stdout
    assert "none in" in agent("service", "status", "--to", units, state=state).stdout


@pytest.mark.process
def test_a_user_that_is_not_there_and_a_path_that_no_unit_can_hold_are_refused(tmp_path: Path) -> None:
    """Before anything is written."""
    to = ("service", "install", "--to", tmp_path / "units")
    failed(agent(*to, "--user", "nobody-here", state=tmp_path / "state"), 78, "there is no user nobody-here")
    failed(agent(*to, state=tmp_path / "my state"), 78, "holds a blank")
    assert not (tmp_path / "units").exists()


@pytest.mark.process
def test_a_folder_that_cannot_be_written_asks_for_sudo(tmp_path: Path) -> None:
    """A file stands where the folder should be: root could write anywhere else."""
    (tmp_path / "file").write_text("")
    failed(agent("service", "install", "--to", tmp_path / "file", state=tmp_path / "state"), 73, "run it with sudo")


def test_a_jetson_gets_its_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name in its device tree."""
    tree = tmp_path / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_text("NVIDIA Jetson Orin Nano Developer Kit\0")
    name = board(tmp_path)
    assert name == "NVIDIA Jetson Orin Nano Developer Kit"
    monkeypatch.setattr(service_commands, "board", lambda: name)
    home = service_commands.Home(tmp_path / "state").create()
    texts = dict(service_commands._render_units(home, pwd.getpwuid(0).pw_name, offload=False))
    assert list(texts) == [MAIN, f"{MAIN}.d/jetson.conf"]
    assert "SupplementaryGroups=video" in texts[f"{MAIN}.d/jetson.conf"]
