"""Sensors of the box: temperature, battery, power mode, memory pressure, load, all read below one root."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Zone:
    """A thermal zone; `celsius` is degrees."""

    celsius: float
    name: str


@dataclass(frozen=True)
class Reading:
    """One reading of the box; None where it has no such sensor.

    Attributes:
        hottest: the hottest thermal zone.
        battery: charge in per cent, of the emptiest battery.
        discharging: whether some battery is being emptied.
        power_mode: number of nvpmodel's mode, on a Jetson.
        memory_pressure: per cent of the last ten seconds in which every task waited for memory (PSI, full).
        load: load average of the last minute for each core.
    """

    hottest: Zone | None = None
    battery: float | None = None
    discharging: bool = False
    power_mode: str | None = None
    memory_pressure: float | None = None
    load: float | None = None


def read(root: Path = Path("/")) -> Reading:
    """A reading of the box, or of a tree that looks like one."""
    charges, statuses = [], set()
    for supply in (root / "sys/class/power_supply").glob("*"):
        if _text(supply / "type") == "Battery" and _text(supply / "scope") != "Device":
            charges += _numbers(supply / "capacity")
            statuses.add(_text(supply / "status"))
    found = list(zones(root))
    pressure = re.search(r"^full avg10=([0-9.]+)", _text(root / "proc/pressure/memory"), re.MULTILINE)
    mode = re.search(r"pmode:0*(\d+)", _text(root / "var/lib/nvpmodel/status"))
    load = _text(root / "proc/loadavg").split()
    return Reading(
        hottest=max(found, key=lambda zone: zone.celsius) if found else None,
        battery=min(charges, default=None),
        discharging="Discharging" in statuses,
        power_mode=mode[1] if mode else None,
        memory_pressure=float(pressure[1]) if pressure else None,
        load=float(load[0]) / (os.cpu_count() or 1) if load else None,
    )


def zones(root: Path = Path("/")) -> Iterator[Zone]:
    """Every thermal zone that can be read just now."""
    for folder in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        for number in _numbers(folder / "temp"):
            yield Zone(number / 1000, _text(folder / "type") or folder.name)


def board(root: Path = Path("/")) -> str:
    """The board's name, as on a Jetson; empty on a machine without a device tree."""
    return _text(root / "proc/device-tree/model").strip("\0\n ")


def free_memory(root: Path = Path("/")) -> float:
    """Bytes of memory that programs can still have."""
    found = re.search(r"^MemAvailable: *(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    return 1024.0 * int(found[1]) if found else 0.0


def memory_kills(root: Path = Path("/")) -> int:
    """The processes of this one's control group that the kernel killed because memory ran out, of it or of the box.

    Counted over the whole box where no group counts. A box-wide count rises for other people's processes too.
    """
    counts = [*_counts_of_kills(root), root / "proc/vmstat"]
    found = (re.search(r"^oom_kill (\d+)$", _text(path), re.MULTILINE) for path in counts)
    return next((int(match[1]) for match in found if match), 0)


def _counts_of_kills(root: Path) -> Iterator[Path]:
    """Files in which this process's control group (v1 and v2) may count kills, the likeliest first.

    In a container the path may be the host's, of which the container sees the last part only, or none.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in {"", "memory"}:
            top = root / "sys/fs/cgroup" / controllers
            group = top / path.lstrip("/")
            name = "memory.oom_control" if controllers else "memory.events"
            yield from (folder / name for folder in (group, *group.parents) if folder.is_relative_to(top))


def _numbers(path: Path) -> list[float]:
    with suppress(ValueError):
        return [float(_text(path))]
    return []


def _text(path: Path) -> str:
    """A file's text without the white space around it, empty where there is none; sensors come and go."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
