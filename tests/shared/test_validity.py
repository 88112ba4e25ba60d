"""Bounds and hours. Source: engine.md, "Times"."""

from __future__ import annotations

import sys
import zoneinfo
from datetime import datetime, timedelta

import pytest

from tallystick_shared.errors import InvalidInput
from tallystick_shared.model import parse_voucher
from tallystick_shared.validity import epoch_second, zone
from tests.shared.build import Doc, document, fixed, order, percentage, reasons, run, voucher


def reason_at(at: str, **fields: object) -> str | None:
    found = reasons(run(order(1000), voucher(fixed(1), "X", **fields), at=datetime.fromisoformat(at)))
    return found.get("X")


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        ("2026-05-31T23:59:59.999999+02:00", "NOT_YET_VALID"),
        ("2026-06-01T00:00:00+02:00", None),
        ("2026-05-31T22:00:00Z", None),
        ("2026-08-31T23:59:59.999999+02:00", None),
        ("2026-08-31T21:59:59.5Z", None),
        ("2026-09-01T00:00:00+02:00", "EXPIRED"),
    ],
)
def test_both_bounds_are_inclusive_and_fractions_are_dropped(at: str, reason: str | None) -> None:
    """The last second belongs to the voucher to its end, whatever offset it is written in."""
    bounds = {"valid_from": "2026-06-01T00:00:00.9999999+02:00", "valid_until": "2026-08-31T23:59:59.9999999+02:00"}
    assert reason_at(at, **bounds) == reason


def window(start: str, end: str, *days: str, timezone: str = "Europe/Berlin") -> Doc:
    return {"from": start, "to": end, "timezone": timezone, **({"days": list(days)} if days else {})}


@pytest.mark.parametrize(
    ("hours", "at", "is_open"),
    [
        # 2026-06-15 is a Monday
        (window("16:00", "18:00", "mon", "fri"), "2026-06-15T16:00:00+02:00", True),
        (window("16:00", "18:00", "mon", "fri"), "2026-06-15T17:59:59.9+02:00", True),
        (window("16:00", "18:00", "mon", "fri"), "2026-06-15T18:00:00+02:00", False),
        (window("16:00", "18:00", "mon", "fri"), "2026-06-15T15:59:59+02:00", False),
        (window("16:00", "18:00", "mon", "fri"), "2026-06-16T17:00:00+02:00", False),
        (window("16:00", "18:00"), "2026-06-16T17:00:00+02:00", True),
        # crossing midnight: the day is the one on which the window opens
        (window("22:00", "02:00", "mon"), "2026-06-15T23:00:00+02:00", True),
        (window("22:00", "02:00", "mon"), "2026-06-16T01:59:59+02:00", True),
        (window("22:00", "02:00", "mon"), "2026-06-16T02:00:00+02:00", False),
        (window("22:00", "02:00", "mon"), "2026-06-15T01:00:00+02:00", False),
        (window("22:00", "02:00", "sun"), "2026-06-15T01:00:00+02:00", True),
        # equal is a whole day, from the opening on
        (window("06:00", "06:00", "mon"), "2026-06-15T05:59:59+02:00", False),
        (window("06:00", "06:00", "mon"), "2026-06-16T05:59:59+02:00", True),
        (window("06:00", "06:00", "mon"), "2026-06-16T06:00:00+02:00", False),
        (window("00:00", "00:00", "mon"), "2026-06-15T23:59:59+02:00", True),
        # the clocks go back at 03:00 on 2026-10-25: 02:30 comes twice and counts twice
        (window("02:00", "03:00"), "2026-10-25T00:30:00Z", True),
        (window("02:00", "03:00"), "2026-10-25T01:30:00Z", True),
        (window("02:00", "03:00"), "2026-10-25T02:00:00Z", False),
        # they go forward at 02:00 on 2026-03-29: 02:30 never comes
        (window("02:00", "03:00"), "2026-03-29T00:59:59Z", False),
        (window("02:00", "03:00"), "2026-03-29T01:00:00Z", False),
        # the zone's own wall clock, whatever the offset of `at`
        (window("16:00", "18:00", timezone="America/New_York"), "2026-06-15T22:30:00+02:00", True),
        (window("00:00", "01:00", timezone="Asia/Kathmandu"), "2026-06-14T18:30:00Z", True),
    ],
)
def test_hours_are_wall_clock_windows(hours: Doc, at: str, is_open: bool) -> None:
    """`from` is in, `to` is out, days are those of the opening, and only the zone's wall clock is compared."""
    assert reason_at(at, hours=[hours]) == (None if is_open else "OUTSIDE_HOURS")


def test_any_window_will_do() -> None:
    """A voucher with two windows is open in both."""
    hours = [window("08:00", "09:00"), window("16:00", "18:00")]
    assert reason_at("2026-06-15T08:30:00+02:00", hours=hours) is None
    assert reason_at("2026-06-15T17:30:00+02:00", hours=hours) is None
    assert reason_at("2026-06-15T12:30:00+02:00", hours=hours) == "OUTSIDE_HOURS"


@pytest.mark.parametrize("name", ["Europe/Berlin", "Etc/UTC", "America/Argentina/Buenos_Aires", "UTC"])
def test_zones_come_from_the_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zone loads with the machine's copy out of reach, and the machine's search path is left as it was."""
    before = zoneinfo.TZPATH
    monkeypatch.setattr(zoneinfo, "ZoneInfo", None)
    zone.cache_clear()
    assert zone(name).key == name
    assert before == zoneinfo.TZPATH


@pytest.mark.parametrize("name", ["Mars/Base", "europe/berlin", "../zones", "/etc/localtime", "Europe", "", "Europe/"])
def test_unknown_zones_are_refused(name: str) -> None:
    """Only exact names of IANA, and never a path."""
    with pytest.raises(InvalidInput):
        zone(name)


@pytest.mark.parametrize("year", [1, 9999])
def test_the_ends_of_the_calendar_do_not_break_anything(year: int) -> None:
    """A time that cannot be moved into a zone is an error of the input and nothing else."""
    with pytest.raises(InvalidInput) as caught:
        epoch_second(datetime(year, 1, 1, tzinfo=zone("Etc/UTC")))
    assert caught.value.path == "at"
    assert sys.getrecursionlimit()  # the interpreter is unharmed


BERLIN = {"timezone": "Europe/Berlin"}


@pytest.mark.parametrize(
    ("hours", "at", "opens"),
    [
        # on a Monday: later that day, tomorrow, and in a week less a moment
        ([{"from": "16:00", "to": "18:00", **BERLIN}], "2026-06-15T15:59:59+02:00", "2026-06-15T16:00:00+02:00"),
        ([{"from": "16:00", "to": "18:00", **BERLIN}], "2026-06-15T18:00:00+02:00", "2026-06-16T16:00:00+02:00"),
        (
            [{"days": ["mon"], "from": "16:00", "to": "18:00", **BERLIN}],
            "2026-06-15T18:00:00+02:00",
            "2026-06-22T16:00:00+02:00",
        ),
        # the first of two windows, each in its own zone
        (
            [
                {"from": "16:00", "to": "18:00", **BERLIN},
                {"from": "09:00", "to": "10:00", "timezone": "America/New_York"},
            ],
            "2026-06-15T12:00:00+02:00",
            "2026-06-15T09:00:00-04:00",
        ),
        # the clock jumps from 02:00 to 03:00 into the window, and back from 03:00 to 02:00 into it again
        ([{"from": "02:30", "to": "04:00", **BERLIN}], "2026-03-29T01:59:59+01:00", "2026-03-29T03:00:00+02:00"),
        ([{"from": "02:10", "to": "02:20", **BERLIN}], "2026-10-25T02:30:00+02:00", "2026-10-25T02:10:00+01:00"),
        # skipped on its only day of this week
        (
            [{"days": ["sun"], "from": "02:10", "to": "02:50", **BERLIN}],
            "2026-03-28T12:00:00+01:00",
            "2026-04-05T02:10:00+02:00",
        ),
        # an offset of old with seconds in it, which no JSON time can hold: in UTC
        (
            [{"from": "10:00", "to": "11:00", "timezone": "Africa/Monrovia"}],
            "1971-06-01T00:00:00+00:00",
            "1971-06-01T10:44:30Z",
        ),
        # a whole day is left out by the calendar of Samoa
        (
            [{"days": ["fri", "sat"], "from": "08:00", "to": "20:00", "timezone": "Pacific/Apia"}],
            "2011-12-29T21:00:00-10:00",
            "2011-12-31T08:00:00+14:00",
        ),
    ],
)
def test_a_refusal_says_when_it_opens_next(hours: list[Doc], at: str, opens: str) -> None:
    """On the wall clock of the window; a moment before that it is refused, and then it applies."""
    asked = voucher(percentage(10), hours=hours)
    moment = datetime.fromisoformat(opens)
    for when in (datetime.fromisoformat(at), moment - timedelta(seconds=1)):
        [refused] = document(run(order(100), asked, at=when))["refused"]
        assert (refused["reason"], refused["detail"]["opens_at"]) == ("OUTSIDE_HOURS", opens)
    assert not run(order(100), asked, at=moment).refused


def test_a_refusal_names_the_day_and_the_zone() -> None:
    """In words that do not depend on the machine's language; and says so where it expires before it opens."""
    hours = [{"days": ["fri"], "from": "16:05", "to": "18:00", **BERLIN}]
    at = datetime.fromisoformat("2026-06-15T12:00:00Z")
    [refused] = run(order(100), voucher(percentage(10), hours=hours), at=at).refused
    assert refused.detail["message"] == "come back on fri 2026-06-19 at 16:05 (Europe/Berlin)"
    for until, message in (
        ("2026-06-19T16:05:00+02:00", refused.detail["message"]),
        ("2026-06-19T16:04:59+02:00", "use another code: it is not open again before it expires"),
    ):
        [found] = run(order(100), voucher(percentage(10), hours=hours, valid_until=until), at=at).refused
        assert found.detail["message"] == message
        assert [one.closes for one in found.detail["hours"]] == ["18:00"]


def test_refusals_by_time_name_the_bound_as_it_was_written() -> None:
    """With the voucher's own wall clock and offset."""
    bounds = {"valid_from": "2026-06-01T00:00:00+02:00", "valid_until": "2026-08-31T23:59:59Z"}
    early, late = (datetime.fromisoformat(at) for at in ("2026-05-31T21:59:59Z", "2026-09-01T00:00:00Z"))
    [refused] = run(order(100), voucher(percentage(10), **bounds), at=early).refused
    assert refused.detail["message"] == "come back from 2026-06-01 00:00:00 +02:00"
    [refused] = run(order(100), voucher(percentage(10), **bounds), at=late).refused
    assert refused.detail["message"] == "use another code: it was valid until 2026-08-31 23:59:59 +00:00"


@pytest.mark.parametrize(
    ("fields", "path", "expected", "found"),
    [
        ({"from": "24:00"}, "from", "must be a time of day from 00:00 to 23:59, of four digits", '"24:00"'),
        ({"to": "9:00"}, "to", "must be a time of day from 00:00 to 23:59, of four digits", '"9:00"'),
        ({"to": "12:60"}, "to", "must be a time of day from 00:00 to 23:59, of four digits", '"12:60"'),
        ({"timezone": "Berlin"}, "timezone", "must be a time zone of IANA, such as Europe/Berlin", "Berlin"),
    ],
)
def test_a_window_that_cannot_be_is_refused_with_its_place(fields: Doc, path: str, expected: str, found: str) -> None:
    """Which of the windows, which field of it, and what was given."""
    hours = [window("16:00", "18:00"), window("16:00", "18:00") | fields]
    with pytest.raises(InvalidInput) as caught:
        parse_voucher(voucher(fixed(1), hours=hours))
    assert (caught.value.path, caught.value.expected) == (f"hours[1].{path}", expected)
    assert found in str(caught.value)
