"""A clock that tests turn: wall and monotonic time go on together, or apart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)


class FakeClock:
    def __init__(self, at: datetime = START) -> None:
        self.wall = at
        self.ran_s = 1000.0
        self.boot = "boot-1"

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.ran_s

    def boot_id(self) -> str:
        return self.boot

    def run(self, **time: float) -> None:
        """Time goes by."""
        self.wall += timedelta(**time)
        self.ran_s += timedelta(**time).total_seconds()

    def turn(self, **time: float) -> None:
        """Somebody sets the wall clock."""
        self.wall += timedelta(**time)

    def reboot(self, **off: float) -> None:
        """Power off for a while: the monotonic clock starts again."""
        self.wall += timedelta(**off)
        self.ran_s = 5.0
        self.boot = f"boot-{int(self.boot[5:]) + 1}"
