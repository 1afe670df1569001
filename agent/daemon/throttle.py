"""The governor at work: this box's sensors, its wall clock, and the settings in config.toml as it is now."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

from agent.contract.errors import ConfigError
from agent.contract.settings import Governor as Settings
from agent.daemon import throttle_rules
from agent.daemon.throttle_rules import Hold
from agent.system import sensors
from agent.system.config import read_config
from agent.system.output import hint


class Throttle:
    """Called with a monotonic clock in seconds, says what holds training back, or None.

    A config.toml that was changed counts from the next call on; one with a fault in it is told and changes nothing.
    """

    def __init__(
        self,
        config: Path,
        root: Path = Path("/"),
        wall: Callable[[], dt.datetime] = dt.datetime.now,  # the box's own time: that is what people mean
    ) -> None:
        self._config, self._root, self._wall = config, root, wall
        self._read_at: float | None = None
        self._settings = Settings()
        self._hold: Hold | None = None

    def __call__(self, now: float) -> Hold | None:
        """Look at everything once."""
        changed = self._config.stat().st_mtime if self._config.exists() else 0.0
        if changed != self._read_at:
            self._read_at = changed
            try:
                self._settings = read_config(self._config).governor
            except ConfigError as fault:
                hint(f"nslora-agent: {fault}; the governor's settings stay as they were")
        self._hold = throttle_rules.step(self._hold, sensors.read(self._root), self._settings, now, self._wall().time())
        return self._hold
