"""When a voucher is valid: bounds, and daily windows on the wall clock of a zone.

Source: engine.md, "Times". Zones are read from the pinned `tzdata` package and never from the machine, whose copy
differs from till to till. engine.md names `zoneinfo.reset_tzpath(())` for that; loading the package's files with
`ZoneInfo.from_file` gives the same zones without changing the time zones of the whole host process, in which the
client library is a guest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from functools import cache, lru_cache
from importlib import resources
from operator import itemgetter
from typing import Final
from zoneinfo import ZoneInfo

import tzdata  # type: ignore[import-untyped]  # it has a version and data, no types

from .errors import InvalidInput
from .terms import Hours

TZDATA_VERSION: Final[str] = tzdata.__version__

YEARS: Final = range(1900, 9999)
"""Far enough from the ends of the calendar for every offset and window."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)


def epoch_second(moment: datetime) -> int:
    """Whole seconds since 1970 in UTC, fractions dropped. Raises `InvalidInput` where the time has no offset."""
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise InvalidInput("at", "must be a time with an offset", moment.isoformat())
    if moment.year not in YEARS:
        raise InvalidInput("at", "must be a time between the years 1900 and 9998", moment.isoformat())
    return (moment - _EPOCH) // _SECOND


@cache
def _zone_names() -> frozenset[str]:
    return frozenset((resources.files("tzdata") / "zones").read_text(encoding="utf-8").split())


@cache
def zone(name: str) -> ZoneInfo:
    """The IANA zone of that exact name. Raises `InvalidInput` (empty path) where tzdata has none."""
    if name not in _zone_names():
        raise InvalidInput("", "must be a time zone of IANA, such as Europe/Berlin", name[:60])
    with (resources.files("tzdata.zoneinfo").joinpath(*name.split("/"))).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


def check_hours(hours: Hours, path: str) -> None:
    """Raises `InvalidInput` where a clock time is not HH:MM or the zone is unknown."""
    for name, clock in (("from", hours.opens), ("to", hours.closes)):
        if _CLOCK.fullmatch(clock) is None:
            raise InvalidInput(
                f"{path}.{name}", "must be a time of day from 00:00 to 23:59, of four digits", f'"{clock[:20]}"'
            )
    try:
        zone(hours.timezone)
    except InvalidInput as error:
        raise error.under(f"{path}.timezone") from None


class _Window:
    """One daily window, compiled; days are 0 for Monday to 6."""

    __slots__ = ("closes", "days", "name", "opens", "zone")

    def __init__(self, hours: Hours) -> None:
        self.name = hours.timezone
        self.zone = zone(hours.timezone)
        self.days = frozenset(DAYS.index(day) for day in hours.days or DAYS)
        self.opens = _minute(hours.opens)
        self.closes = _minute(hours.closes)

    def is_open(self, second: int) -> bool:
        day, minute = _wall_clock(self.zone, second)
        if self.opens < self.closes:
            return self.opens <= minute < self.closes and day in self.days
        return (minute >= self.opens and day in self.days) or (minute < self.closes and (day - 1) % 7 in self.days)

    def next_opening(self, second: int) -> int | None:
        """The first moment after a second at which it opens: by the clock, or because the clock jumps.

        Two weeks ahead, because a window on one day of the week can fall into the hour that is skipped that day.
        """
        today = (_EPOCH + timedelta(seconds=second)).astimezone(self.zone).date()
        for days in range(-1, 16):
            midnight = datetime.combine(today + timedelta(days=days), time(), self.zone)
            opens = midnight.replace(hour=self.opens // 60, minute=self.opens % 60)
            moments = {_second(opens), _second(opens.replace(fold=1))}
            moments.update(self._jumps(_second(midnight), _second(midnight + timedelta(days=1))))
            for moment in sorted(moments):
                if moment > second and self.is_open(moment):
                    return moment
        return None

    def _jumps(self, start: int, end: int) -> Iterator[int]:
        """The second at which the zone's offset changes, where it does between the two."""
        before = self._offset(start)
        if self._offset(end) == before:
            return
        while end - start > 1:
            middle = (start + end) // 2
            start, end = (middle, end) if self._offset(middle) == before else (start, middle)
        yield end

    def _offset(self, second: int) -> timedelta | None:
        return (_EPOCH + timedelta(seconds=second)).astimezone(self.zone).utcoffset()


@lru_cache(64)  # an order is checked against many vouchers at one moment, nearly all of one zone
def _wall_clock(place: ZoneInfo, second: int) -> tuple[int, int]:
    """Day of the week from 0 for Monday, and minute of the day."""
    local = (_EPOCH + timedelta(seconds=second)).astimezone(place)
    return local.weekday(), local.hour * 60 + local.minute


class OpeningHours:
    """A voucher's `hours`, compiled. Only the wall clock is compared: a repeated hour counts twice."""

    __slots__ = ("_windows",)

    def __init__(self, windows: tuple[Hours, ...]) -> None:
        self._windows = [_Window(window) for window in windows]

    def is_open(self, second: int) -> bool:
        """Whether any window is open at an epoch second."""
        return any(window.is_open(second) for window in self._windows)

    def next_opening(self, second: int) -> tuple[datetime, str] | None:
        """The first moment after an epoch second at which it opens, on the wall clock of the window, and its zone."""
        found = [(window.next_opening(second), window) for window in self._windows]
        opening, window = min(
            ((moment, window) for moment, window in found if moment is not None),
            key=itemgetter(0),
            default=(None, None),
        )
        if opening is None or window is None:
            return None
        local = (_EPOCH + timedelta(seconds=opening)).astimezone(window.zone)
        offset = local.utcoffset()
        # an offset of old, with seconds in it, is none that JSON can hold
        return (local.astimezone(UTC) if offset is None or offset.seconds % 60 else local), window.name


def _second(moment: datetime) -> int:
    return (moment - _EPOCH) // _SECOND


def _minute(clock: str) -> int:
    hour, minute = clock.split(":")
    return int(hour) * 60 + int(minute)
