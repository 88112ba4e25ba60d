"""A fleet whose line comes back at one moment does not come back at one moment. Counts of requests, virtual time."""

from __future__ import annotations

import random

import pytest

from benchmarks import spread
from benchmarks.spread import Met, RealTill, meet, naive, real
from tallystick_client.pausing import BACKOFF_MAX_S, SPREAD_S

TILLS = 1_000
PEAK_MAX = 3 * TILLS / SPREAD_S
"""In one second: three times what an even spread would bring, which chance does not reach."""


@pytest.fixture(scope="module")
def met() -> dict[float, Met]:
    """By the share of tills that had tried through the outage."""
    return {failed: meet(real(TILLS, 1, failed=failed), TILLS) for failed in (0.0, 0.5, 1.0)}


@pytest.mark.parametrize("failed", [0.0, 0.5, 1.0])
def test_a_fleet_does_not_come_in_one_second(met: dict[float, Met], failed: float) -> None:
    """Tills that never failed, tills that failed for a quarter of an hour, and both: no second meets many of them."""
    assert met[failed].requests == TILLS
    assert met[failed].peak <= PEAK_MAX


def test_a_naive_fleet_breaks_the_same_bound() -> None:
    """The bound tells the two apart: who calls as soon as the line is back comes all at once, and together again."""
    plain = meet(naive(TILLS), TILLS // 10)
    assert plain.peak == TILLS
    assert plain.arrivals[4] == TILLS - TILLS // 10, "those that were refused come again in the same second"


def test_a_server_that_is_too_small_is_not_overrun_again(met: dict[float, Met]) -> None:
    """Where half of them are refused at first, with a time to come again, no later second is worse than the bound."""
    small = meet(real(TILLS, 1), TILLS // 120, 30)
    assert small.requests > met[0.5].requests
    assert small.peak <= PEAK_MAX
    assert small.done_s() is not None, "every till gets through in the end"


def test_an_announced_outage_does_not_bring_them_together() -> None:
    """503 with one moment for everybody: they come spread out after it (without a lot of their own, all at once)."""
    announced = meet(real(TILLS, 1, failed=1.0), TILLS, announced=True)
    assert announced.peak <= PEAK_MAX
    assert announced.done_s() is not None


def test_no_till_waits_longer_than_the_spread_or_its_backoff(met: dict[float, Met]) -> None:
    """The price of the spread: a minute for those that never failed, five for those that did."""
    first, failed = met[0.0].done_s(), met[1.0].done_s()
    assert first is not None
    assert failed is not None
    assert first <= SPREAD_S
    assert failed <= BACKOFF_MAX_S


def test_chance_alone_decides_who_comes_when() -> None:
    """The same seed gives the same arrivals, another one others."""
    one, same, other = (meet(real(50, seed), 50).arrivals for seed in (1, 1, 2))
    assert one == same != other


class NoChance(random.Random):
    def random(self) -> float:
        return 0.5


def test_without_jitter_the_bound_breaks() -> None:
    """It is the jitter that spreads them: the same machines with one and the same lot come together."""
    alike = meet([(RealTill(NoChance()), 0) for _ in range(TILLS)], TILLS)
    assert alike.peak == TILLS > PEAK_MAX


def test_the_program_prints_both_and_their_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    """One table, both kinds of client in the same run."""
    assert spread.main(["--tills", "200", "--capacity", "20"]) == 0
    out = capsys.readouterr().out
    assert out.count("naive") == out.count("Tallystick") == out.count("ratio") == len(spread.cases(200, 20))
