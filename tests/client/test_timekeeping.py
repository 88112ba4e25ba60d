"""What time it is, from a clock that may be wrong: the rules of `timekeeping`, by number."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_client.clock import SystemClock
from tallystick_client.timekeeping import BEHIND_S, STEP_S_MIN, Mark, judge, read_clock, signed
from tallystick_shared.wire import ClockReading

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
DAY_S = 86_400


def reading(wall_s: int = 0, ran_s: int = 0, boot: str = "a") -> ClockReading:
    return ClockReading(NOON + timedelta(seconds=wall_s), boot, 1000 + ran_s)


def mark(boot: str = "a") -> Mark:
    return signed(None, reading(0, 0, boot), NOON)


@pytest.mark.parametrize(
    ("wall_s", "ran_s", "boot", "at_s", "anomaly"),
    [
        pytest.param(60, 60, "a", 60, "", id="1 both clocks went on"),
        pytest.param(0, 60, "a", 60, "", id="2 the wall clock is a little behind"),
        pytest.param(60 - BEHIND_S, 60, "a", 60, "", id="2 as far behind as is normal"),
        pytest.param(59 - BEHIND_S, 60, "a", 60, "CLOCK_BEHIND", id="3 further behind"),
        pytest.param(-7 * DAY_S, 60, "a", 60, "CLOCK_BEHIND", id="3 set back a week"),
        pytest.param(-7 * DAY_S, 5, "b", 0, "CLOCK_BEHIND", id="3 set back a week, and rebooted"),
        pytest.param(3600, 60, "a", 3600, "", id="4 ahead"),
        pytest.param(DAY_S, 5, "b", DAY_S, "", id="4 off for a day"),
        pytest.param(DAY_S + 1, 5, "b", 0, "CLOCK_AHEAD", id="5 off for longer than unsigned time may gain"),
        pytest.param(365 * DAY_S, 60, "a", 60, "CLOCK_AHEAD", id="5 set ahead a year"),
    ],
)
def test_the_time_is_what_the_rules_say(wall_s: int, ran_s: int, boot: str, at_s: int, anomaly: str) -> None:
    """The time used, and the name of what is wrong with the clock."""
    judged = judge(mark(), reading(wall_s, ran_s, boot))
    assert (judged.at, judged.anomaly) == (NOON + timedelta(seconds=at_s), anomaly)


def test_unsigned_time_gains_a_bounded_step_in_one_boot_altogether() -> None:
    """Rule 4 counts what was gained before in the same boot; another boot may gain again."""
    one = judge(mark(), reading(STEP_S_MIN // 2 + 10, 0)).mark
    two = judge(one, reading(STEP_S_MIN, 0))
    assert two.anomaly == ""
    assert judge(two.mark, reading(STEP_S_MIN + 1, 0)).anomaly == "CLOCK_AHEAD"
    assert judge(two.mark, reading(2 * STEP_S_MIN, 0, "b")).anomaly == ""


def test_a_till_that_reboots_daily_is_not_frozen() -> None:
    """Thirty days without signed time, one boot a day: the time goes on all along."""
    now = mark()
    for day in range(1, 31):
        judged = judge(now, reading(day * DAY_S, 5, f"boot-{day}"))
        assert judged.anomaly == ""
        now = judged.mark
    assert now.at == NOON + timedelta(days=30)


def test_only_where_this_boot_saw_no_signed_time_the_wall_clock_ages_the_bundle() -> None:
    """`latest` is the wall clock after a long time off, and the mark where signed time is known in this boot."""
    off = judge(mark(), reading(30 * DAY_S, 5, "b"))
    assert (off.at, off.latest) == (NOON, NOON + timedelta(days=30))
    again = judge(off.mark, reading(30 * DAY_S, 5, "b"))
    assert again.latest == NOON + timedelta(days=30), "also when asked twice"
    assert judge(mark(), reading(30 * DAY_S, 60)).latest == NOON + timedelta(seconds=60)


def test_signed_time_replaces_what_unsigned_time_gained_but_nothing_signed() -> None:
    """Rule 6: back to signed time, never below earlier signed time, unless a new epoch says so."""
    gained = judge(mark(), reading(3600, 0)).mark
    assert signed(gained, reading(3600), NOON + timedelta(seconds=5)).at == NOON + timedelta(seconds=5)
    assert signed(gained, reading(3600), NOON - timedelta(days=1)).at == NOON
    assert signed(gained, reading(3600), NOON - timedelta(days=1), lower=True).at == NOON - timedelta(days=1)


@given(
    st.lists(st.tuples(st.integers(-30 * DAY_S, 30 * DAY_S), st.integers(0, 3600), st.booleans()), max_size=20),
)
def test_the_time_never_goes_back(steps: list[tuple[int, int, bool]]) -> None:
    """Whatever is done to the wall clock and the power, `at` never goes back, nor past what boots may gain."""
    now, ran_s, boot, boots = mark(), 0, 0, 1
    for wall_s, passed_s, reboots in steps:
        boot, boots = boot + reboots, boots + reboots
        ran_s = 0 if reboots else ran_s + passed_s
        judged = judge(now, reading(wall_s, ran_s, "a" if boot == 0 else str(boot)))
        assert judged.at >= now.at
        assert judged.latest >= judged.at
        now = judged.mark
    ran_at_most_s = sum(passed_s for _, passed_s, _ in steps)
    assert now.at <= NOON + timedelta(seconds=ran_at_most_s + boots * STEP_S_MIN)


def test_the_real_clock_is_one() -> None:
    """The machine's clock has an offset, a boot, and a monotonic time that does not go back."""
    clock = SystemClock()
    first, second = read_clock(clock), read_clock(clock)
    assert first.at.tzinfo is not None
    assert first.boot_id == second.boot_id != ""
    assert first.monotonic_s <= second.monotonic_s


def test_without_a_boot_id_of_the_system_a_boot_is_the_minute_it_began(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every process of one boot names it alike, and the next boot otherwise."""
    monkeypatch.setattr("tallystick_client.clock._BOOT_ID", tmp_path / "none")

    def started(began: datetime, ran_s: float) -> str:
        class Started(SystemClock):
            def now(self) -> datetime:
                return began + timedelta(seconds=ran_s)

            def monotonic(self) -> float:
                return ran_s

        return Started().boot_id()

    assert started(NOON, 5.25) == started(NOON, 5 * DAY_S + 0.5) == "since-2026-11-23T12:00"
    assert started(NOON + timedelta(minutes=3), 5.25) != started(NOON, 5.25)
    assert SystemClock().boot_id().startswith("since-")
