"""A clock that stands still until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class FakeClock:
    """`ticks`: by how much it moves on each time it is read."""

    def __init__(self, start: datetime = datetime(2026, 6, 1, 9, tzinfo=UTC)) -> None:
        self.now, self.ticks = start, timedelta(0)

    def __call__(self) -> datetime:
        self.now += self.ticks
        return self.now

    def advance(self, **by: float) -> None:
        self.now += timedelta(**by)
