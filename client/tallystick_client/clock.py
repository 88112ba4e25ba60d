"""The wall clock: with `drivers` the only place of the client that asks the machine for the time."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SystemClock:
    """The machine's clocks. The monotonic one goes on while the machine sleeps, where the system has such a clock."""

    def __init__(self) -> None:
        try:
            self._boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
        except OSError:
            # no such file on this system: every process counts as a boot, which only makes the mark more careful
            self._boot_id = str(uuid.uuid4())
        self._clock_id: int = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", 1))

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.clock_gettime(self._clock_id)

    def boot_id(self) -> str:
        return self._boot_id
