"""What time it is, from a clock that may be wrong. Pure; source: protocol.md, section 6, "Time".

The **mark** is the latest time this till is sure of. Rules, in this order:

1. expected = the mark plus what the monotonic clock ran since, in the same boot; in another boot, the mark alone.
2. The wall clock is at or a little behind expected (`BEHIND_S`): normal, the time is expected.
3. It is further behind: the time is expected, and that is a `clock_anomaly` (`CLOCK_BEHIND`).
4. It is ahead, and all that unsigned time gained in this boot stays within `step_s`: the time is the wall clock's.
5. It is further ahead: the time is expected, and that is a `clock_anomaly` (`CLOCK_AHEAD`).
6. Signed time replaces all that unsigned time gained. It never goes below earlier signed time, but with a new server
   epoch it may.

So the time never goes back, and a clock set back revives no voucher. Rule 5 alone could hold time still on a till that
was off for long; hence `Judged.latest`, by which the age of the bundle is measured: it is the wall clock then, unless
this boot has seen signed time.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol

import msgspec

from tallystick_shared.wire import ClockReading

BEHIND_S = 600
"""How far a wall clock may be behind what is known before it is called an anomaly."""
STEP_S_MIN = 86_400
"""The least that unsigned time may gain in one boot; a till uses its longest time offline in all, if that is more."""


class Clock(Protocol):
    """The only source of time; `tallystick_client.clock.SystemClock` is the real one."""

    def now(self) -> datetime:
        """The wall clock, with offset."""

    def monotonic(self) -> float:
        """Seconds that never go back within one boot."""

    def boot_id(self) -> str:
        """Which boot `monotonic` belongs to; at most 64 characters."""


class Mark(msgspec.Struct, frozen=True):
    """`at`: the latest time this till used, read with `monotonic_s` in `boot_id`.

    `gained_s`: how much of it unsigned time added in that boot. `signed_at`: the highest signed time ever seen, and
    `signed_boot_id` the boot that saw it.
    """

    at: datetime
    boot_id: str
    monotonic_s: int
    gained_s: int
    signed_at: datetime
    signed_boot_id: str


class Judged(msgspec.Struct, frozen=True):
    """`at`: the time to use, whole seconds, UTC. `latest`: the latest it may be. `anomaly`: empty, or its name."""

    at: datetime
    latest: datetime
    mark: Mark
    anomaly: str = ""


def read_clock(clock: Clock) -> ClockReading:
    wall = clock.now().astimezone(UTC).replace(microsecond=0)
    return ClockReading(wall, clock.boot_id()[:64], max(0, int(clock.monotonic())))


def judge(mark: Mark, reading: ClockReading, *, step_s: int = STEP_S_MIN) -> Judged:
    """The time now, by rules 1 to 5. `step_s` is the bound of rule 4, in seconds."""
    same_boot = reading.boot_id == mark.boot_id and reading.monotonic_s >= mark.monotonic_s
    elapsed_s = reading.monotonic_s - mark.monotonic_s if same_boot else 0
    expected = mark.at + timedelta(seconds=elapsed_s)
    gained_s = mark.gained_s if same_boot else 0
    ahead_s = int((reading.at - expected).total_seconds())
    anomaly, at = "", expected
    if ahead_s < -BEHIND_S:
        anomaly = "CLOCK_BEHIND"
    elif ahead_s > 0 and gained_s + ahead_s <= max(step_s, STEP_S_MIN):
        at, gained_s = reading.at, gained_s + ahead_s
    elif ahead_s > 0:
        anomaly = "CLOCK_AHEAD"
    sure = mark.signed_boot_id == reading.boot_id
    latest = at if sure else max(at, reading.at)
    moved = msgspec.structs.replace(
        mark, at=at, boot_id=reading.boot_id, monotonic_s=reading.monotonic_s, gained_s=gained_s
    )
    return Judged(at, latest, moved, anomaly)


def signed(mark: Mark | None, reading: ClockReading, server_time: datetime, *, lower: bool = False) -> Mark:
    """The mark after signed time (rule 6), the first one too. `lower`: a new server epoch, which may set it back."""
    at = server_time.astimezone(UTC).replace(microsecond=0)
    if mark is not None and not lower:
        at = max(at, mark.signed_at)
    return Mark(at, reading.boot_id, reading.monotonic_s, 0, at, reading.boot_id)
