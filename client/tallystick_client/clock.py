"""The wall clock: the only place of the client that asks the machine what time it is."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SystemClock:
    """The machine's clocks. The monotonic one goes on while the machine sleeps, where the system has such a clock."""

    def __init__(self) -> None:
        self._clock_id: int = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", 1))
        try:
            self._boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
        except OSError:
            self._boot_id = self._boot_minute()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.clock_gettime(self._clock_id)

    def boot_id(self) -> str:
        return self._boot_id

    def _boot_minute(self) -> str:
        """The boot's name on a system without that file: the minute it began, the same for every process.

        A wall clock that is set makes another name, and so another boot, which only makes the mark more careful.
        """
        began_s = self.now().timestamp() - self.monotonic()
        return f"since-{datetime.fromtimestamp(round(began_s / 60) * 60, UTC):%Y-%m-%dT%H:%M}"
