"""When a voucher is valid: bounds, and daily windows on the wall clock of a zone.

Source: engine.md, "Times". Zones are read from the pinned `tzdata` package and never from the machine, whose copy
differs from till to till. engine.md names `zoneinfo.reset_tzpath(())` for that; loading the package's files with
`ZoneInfo.from_file` gives the same zones without changing the time zones of the whole host process, in which the
client library is a guest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
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
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
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
            raise InvalidInput(f"{path}.{name}", "must be a time of day from 00:00 to 23:59", f'"{clock[:20]}"')
    try:
        zone(hours.timezone)
    except InvalidInput as error:
        raise error.under(f"{path}.timezone") from None


def compile_hours(windows: tuple[Hours, ...]) -> Callable[[int], bool]:
    """Whether any window is open at an epoch second. Only the wall clock is compared: a repeated hour counts twice."""
    compiled = []
    for window in windows:
        days = frozenset(_DAYS.index(day) for day in window.days or _DAYS)
        compiled.append((zone(window.timezone), days, _minute(window.opens), _minute(window.closes)))

    def is_open(second: int) -> bool:
        moment = _EPOCH + timedelta(seconds=second)
        for place, days, opens, closes in compiled:
            local = moment.astimezone(place)
            minute, day = local.hour * 60 + local.minute, local.weekday()
            if opens < closes:
                if opens <= minute < closes and day in days:
                    return True
            elif (minute >= opens and day in days) or (minute < closes and (day - 1) % 7 in days):
                return True
        return False

    return is_open


def _minute(clock: str) -> int:
    hour, minute = clock.split(":")
    return int(hour) * 60 + int(minute)
