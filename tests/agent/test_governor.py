"""When training pauses for the box's sake: sensors out of a tree of files, the rule itself, and its settings."""

from __future__ import annotations

import datetime as dt
import os
from dataclasses import replace
from pathlib import Path

import pytest

from agent.contract.errors import ConfigError
from agent.contract.settings import Governor
from agent.daemon.throttle import Throttle
from agent.daemon.throttle_rules import LEAST_PAUSE, Hold, is_within, step
from agent.system.config import read_config
from agent.system.sensors import Reading, Zone, memory_kills, read, zones

NOON = dt.time(12)
SETTINGS = Governor(hottest=80, battery=30, memory_pressure=20, load=2)


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """The files of a Jetson with a battery."""
    for zone, (name, heat) in enumerate((("CPU-therm", 51500), ("GPU-therm", 63000), ("PMIC-Die", 50000))):
        write(tmp_path, f"sys/class/thermal/thermal_zone{zone}/temp", f"{heat}\n")
        write(tmp_path, f"sys/class/thermal/thermal_zone{zone}/type", f"{name}\n")
    for name, value in (("type", "Battery"), ("capacity", "77"), ("status", "Discharging")):
        write(tmp_path, f"sys/class/power_supply/BAT0/{name}", f"{value}\n")
    for name, value in (("type", "Battery"), ("capacity", "3"), ("status", "Discharging"), ("scope", "Device")):
        write(tmp_path, f"sys/class/power_supply/mouse/{name}", f"{value}\n")
    write(tmp_path, "sys/class/power_supply/AC/type", "Mains\n")
    write(tmp_path, "var/lib/nvpmodel/status", "pmode:0002")
    some = "some avg10=9.00 avg60=0.00 avg300=0.00 total=0\n"
    write(tmp_path, "proc/pressure/memory", f"{some}full avg10=1.50 avg60=0.00 avg300=0.00 total=0\n")
    write(tmp_path, "proc/loadavg", f"{3 * (os.cpu_count() or 1)}.00 0.1 0.2 1/200 1234\n")
    return tmp_path


# ---- sensors ----


def test_a_board_is_read(board: Path) -> None:
    """The hottest zone, the box's own battery and not a mouse's, the power mode, pressure and load."""
    assert read(board) == Reading(Zone(63.0, "GPU-therm"), 77.0, True, "2", 1.5, 3.0)
    assert len(list(zones(board))) == 3


def test_a_box_without_sensors_reads_as_nothing(tmp_path: Path) -> None:
    """No file is no fault."""
    assert read(tmp_path) == Reading()
    assert memory_kills(tmp_path) == 0


def test_kills_for_memory_are_counted_in_the_processs_own_group(tmp_path: Path) -> None:
    """The box's count, which others raise too, stands in where no group counts; a container sees its own as the top."""
    write(tmp_path, "proc/vmstat", "nr_free_pages 5\noom_kill 16\nzone 1\n")
    assert memory_kills(tmp_path) == 16
    write(tmp_path, "proc/self/cgroup", "5:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/box.slice/agent.service\n")
    assert memory_kills(tmp_path) == 16
    write(tmp_path, "sys/fs/cgroup/memory.events", "oom 9\noom_kill 9\n")
    write(tmp_path, "sys/fs/cgroup/box.slice/agent.service/memory.events", "high 0\noom 3\noom_kill 2\n")
    assert memory_kills(tmp_path) == 2
    write(tmp_path, "sys/fs/cgroup/memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert memory_kills(tmp_path) == 1


@pytest.mark.parametrize("text", ["", "-", "N/A", "\xff\xfe"])
def test_a_sensor_that_says_nonsense_is_left_out(board: Path, text: str) -> None:
    """Drivers do, while a board wakes up."""
    for path in ("sys/class/thermal/thermal_zone1/temp", "sys/class/power_supply/BAT0/capacity"):
        (board / path).write_text(text)
    reading = read(board)
    assert reading.hottest == Zone(51.5, "CPU-therm")
    assert reading.battery is None


def test_a_sensor_that_cannot_be_read_is_left_out(board: Path) -> None:
    """A suspended GPU's zone answers EAGAIN; a folder stands for that here."""
    zone = board / "sys/class/thermal/thermal_zone1/temp"
    zone.unlink()
    zone.mkdir()
    assert read(board).hottest == Zone(51.5, "CPU-therm")


def test_this_box_can_be_read() -> None:
    """Whatever it has."""
    assert read().load is not None


# ---- the rule ----

CALM = Reading(Zone(60, "zone"), 80, discharging=True, power_mode="0", memory_pressure=1, load=1)


@pytest.mark.parametrize(
    ("bad", "between", "reason"),
    [
        ({"hottest": Zone(80, "zone")}, {"hottest": Zone(71, "zone")}, "zone is at 80 °C, the limit is 80"),
        ({"battery": 29}, {"battery": 39}, "the battery is at 29 % and discharging, the limit is 30"),
        ({"memory_pressure": 21}, {"memory_pressure": 11}, "programs wait 21 % of the time for memory"),
        ({"load": 2.5}, {"load": 1.5}, "the load is 2.5 for each core, the limit is 2"),
    ],
)
def test_each_limit_holds_until_it_is_well_undercut(
    bad: dict[str, object], between: dict[str, object], reason: str
) -> None:
    """Between the limit and the one that lets go, what was stays: no flapping."""
    assert step(None, CALM, SETTINGS, 0, NOON) is None
    assert step(None, replace(CALM, **between), SETTINGS, 0, NOON) is None  # type: ignore[arg-type]
    hold = step(None, replace(CALM, **bad), SETTINGS, 5, NOON)  # type: ignore[arg-type]
    assert hold == Hold(reason, 5)
    later = step(hold, replace(CALM, **between), SETTINGS, 500, NOON)  # type: ignore[arg-type]
    assert later
    assert later.since == 5
    assert step(hold, CALM, SETTINGS, 5 + LEAST_PAUSE, NOON) is None


def test_a_pause_lasts_a_minute_at_least() -> None:
    """A load that comes and goes must not end a worker every five seconds."""
    hold = Hold("why", 100)
    assert step(hold, CALM, SETTINGS, 99 + LEAST_PAUSE, NOON) == hold
    assert step(hold, CALM, SETTINGS, 100 + LEAST_PAUSE, NOON) is None


def test_a_battery_at_the_mains_is_no_reason() -> None:
    """However empty it is."""
    assert step(None, replace(CALM, battery=1, discharging=False), SETTINGS, 0, NOON) is None


def test_a_limit_of_zero_is_none() -> None:
    """As each setting says."""
    off = Governor(hottest=0, battery=0, memory_pressure=0, load=0)
    worst = Reading(Zone(200, "zone"), 0, discharging=True, power_mode="9", memory_pressure=100, load=100)
    assert step(None, worst, off, 0, NOON) is None
    assert step(Hold("why", 0), worst, off, LEAST_PAUSE, NOON) is None


def test_a_battery_at_its_limit_is_full_enough() -> None:
    """Below it training pauses, and goes on from ten per cent above it."""
    assert step(None, replace(CALM, battery=30), SETTINGS, 0, NOON) is None
    assert step(Hold("why", 0), replace(CALM, battery=40), SETTINGS, LEAST_PAUSE, NOON) is None


def test_what_a_box_cannot_tell_is_no_reason() -> None:
    """However low the limits are."""
    lowest = Governor(hottest=0.1, battery=100, power_modes=("0",), memory_pressure=0.1, load=0.1)
    blind = Reading(None, None, discharging=True, power_mode=None, memory_pressure=None, load=None)
    assert step(None, blind, lowest, 0, NOON) is None


def test_training_waits_for_its_hours() -> None:
    """By the box's own clock."""
    nightly = replace(SETTINGS, train_between="22:00-06:00")
    assert step(None, CALM, nightly, 0, dt.time(23)) is None
    assert step(None, CALM, nightly, 7, NOON) == Hold("training is for 22:00-06:00 only", 7)


def test_power_modes_are_those_in_which_training_may_run() -> None:
    """A box without nvpmodel has none to be wrong."""
    settings = replace(SETTINGS, power_modes=("0", "2"))
    assert step(None, CALM, settings, 0, NOON) is None
    assert step(None, replace(CALM, power_mode="1"), settings, 0, NOON) == Hold("power mode 1 is not one of 0, 2", 0)
    assert step(None, replace(CALM, power_mode=None), settings, 0, NOON) is None


@pytest.mark.parametrize(
    ("wall", "span", "inside"),
    [
        ("22:00", "22:00-06:00", True),
        ("03:00", "22:00-06:00", True),
        ("06:00", "22:00-06:00", False),
        ("21:59", "22:00-06:00", False),
        ("08:00", "08:00-17:30", True),
        ("08:30", "08:00-17:30", True),
        ("17:30", "08:00-17:30", False),
        ("00:00", "00:00-00:00", False),
    ],
)
def test_a_span_may_cross_midnight(wall: str, span: str, inside: bool) -> None:  # noqa: FBT001
    """Its end is not part of it."""
    assert is_within(dt.time.fromisoformat(wall), span) is inside


# ---- settings ----


@pytest.mark.parametrize("span", ["22-6", "22:00-6:00", "24:00-06:00", "22:00-06:60", "always", "22:00 - 06:00"])
def test_a_span_in_another_form_is_refused_with_an_example(tmp_path: Path, span: str) -> None:
    """It must not be found out at night."""
    path = tmp_path / "config.toml"
    path.write_text(f'[governor]\ntrain_between = "{span}"\n')
    with pytest.raises(ConfigError, match=r'governor\.train_between must look like "22:00-06:00"'):
        read_config(path)


def test_a_changed_config_counts_at_once_and_a_broken_one_changes_nothing(
    board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The daemon need not be started again; a typing mistake must not overheat the box."""
    config = tmp_path / "config.toml"
    throttle = Throttle(config, board, lambda: dt.datetime(2026, 11, 23, 12, tzinfo=dt.timezone.utc))
    assert throttle(0) is None
    config.write_text("[governor]\nhottest = 60\n")
    assert throttle(5) == Hold("GPU-therm is at 63 °C, the limit is 60", 5)
    config.write_text("[governor]\nhottest = very\n")
    os.utime(config, (1, 1))
    assert throttle(10) == Hold("GPU-therm is at 63 °C, the limit is 60", 5)
    assert "the governor's settings stay as they were" in capsys.readouterr().err
    throttle(15)
    assert capsys.readouterr().err == ""
    (board / "sys/class/thermal/thermal_zone1/temp").write_text("40000")
    (board / "sys/class/thermal/thermal_zone0/temp").write_text("40000")
    (board / "sys/class/thermal/thermal_zone2/temp").write_text("40000")
    assert throttle(5 + LEAST_PAUSE) is None
