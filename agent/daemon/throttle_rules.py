"""When the box needs its power, its memory or its coolness for something else than training. Pure.

A limit that pauses training is not the one that lets it go on: between the two lies a gap, so that a box at its limit
does not start and stop all the time.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator
from dataclasses import dataclass

from agent.contract.settings import Governor as Settings
from agent.system.sensors import Reading

COOLER = 10.0
"""Degrees below `hottest` at which training goes on."""
FULLER = 10.0
"""Per cent above `battery` at which training goes on while the battery is being emptied."""
CALMER = 0.5
"""Share of a limit on memory pressure or load at which training goes on."""
LEAST_PAUSE = 60.0
"""Seconds that a pause lasts at least."""


@dataclass(frozen=True)
class Hold:
    """Why training is paused, and since when (seconds of the clock that `step` is given)."""

    reason: str
    since: float


def step(hold: Hold | None, reading: Reading, settings: Settings, now: float, wall: dt.time) -> Hold | None:
    """The reason to hold training from now on, None for none; `hold` is the reason so far.

    `now` is a monotonic clock in seconds, `wall` the box's wall clock.
    """
    reason = next(reasons(reading, settings, wall, is_held=hold is not None), None)
    if reason is not None:
        return Hold(reason, hold.since if hold else now)
    return hold if hold and now - hold.since < LEAST_PAUSE else None


def reasons(reading: Reading, settings: Settings, wall: dt.time, *, is_held: bool) -> Iterator[str]:
    """Everything that speaks against training; `is_held` says that it pauses already, for which limits are lower."""
    if settings.train_between and not is_within(wall, settings.train_between):
        yield f"training is for {settings.train_between} only"
    if reading.power_mode is not None and settings.power_modes and reading.power_mode not in settings.power_modes:
        yield f"power mode {reading.power_mode} is not one of {', '.join(settings.power_modes)}"
    if reading.hottest and reading.hottest.celsius >= (settings.hottest or math.inf) - COOLER * is_held:
        yield f"{reading.hottest.name} is at {reading.hottest.celsius:.0f} °C, the limit is {settings.hottest:g}"
    least = settings.battery + FULLER * is_held if settings.battery else -1.0
    if reading.battery is not None and reading.discharging and reading.battery < least:
        yield f"the battery is at {reading.battery:.0f} % and discharging, the limit is {settings.battery:g}"
    calm = CALMER if is_held else 1.0
    if (reading.memory_pressure or 0) > calm * (settings.memory_pressure or math.inf):
        yield f"programs wait {reading.memory_pressure:.0f} % of the time for memory"
    if (reading.load or 0) > calm * (settings.load or math.inf):
        yield f"the load is {reading.load:.1f} for each core, the limit is {settings.load:g}"


def is_within(wall: dt.time, span: str) -> bool:
    """True if a time of day lies in a span such as "22:00-06:00", whose end is not part of it."""
    start, end = (dt.time.fromisoformat(part) for part in span.split("-"))
    return start <= wall < end if start <= end else wall >= start or wall < end
