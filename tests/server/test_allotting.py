"""What part of a limit a device is granted and whose is recalled, without a server: each number at its bound."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick_server.allotting import Allotting, Candidate
from tallystick_server.demand import Demand

BIG = 10**9


class Held(NamedTuple):
    """An open lease of another device."""

    id: str
    device_id: str
    units: int | None = 10
    known_units: int = 0
    minor: int | None = None
    known_minor: int = 0
    recalled_at: object = None
    pending: bool = False
    undecided: bool = False
    live: bool = True
    elsewhere: bool = False
    sold: int = 0


def candidate(
    units: int | None = 10, minor: int | None = None, *, largest: int | None = None, policy: str = "quota",
    held: bool = False,
) -> Candidate:  # fmt: skip
    return Candidate("tea", "", policy, None, largest, units, minor, held)


def allotting(
    scores: Demand, holders: Sequence[Held] = (), *, wants: Sequence[str] = (), units_max: int = 1000
) -> Allotting:
    return Allotting("me", wants, scores, {"tea": holders} if holders else {}, units_max)


def sold(live: str, **units: int) -> Demand:
    """Live devices, and the units of `tea` that devices sold, of no campaign."""
    return Demand(live.split(), [(device, "tea", "", n) for device, n in units.items()])


# demand


def test_a_score_weighs_a_voucher_and_its_campaign_sixteen_times() -> None:
    """1, and once anything, sixteen times the campaign, sixteen times the voucher itself."""
    scores = Demand(["me", "you"], [("me", "tea", "spring", 2), ("me", "jam", "spring", 3), ("me", "gold", "", 5)])
    assert scores.score("me", "tea", "spring") == 1 + 10 + 16 * 5 + 16 * 2
    assert scores.score("me", "jam", "spring") == 1 + 10 + 16 * 5 + 16 * 3
    assert scores.score("me", "gold", "") == 1 + 10 + 16 * 5
    assert scores.score("me", "new", "spring") == 1 + 10 + 16 * 5
    assert scores.score("me", "new", "autumn") == 1 + 10
    assert scores.score("you", "tea", "spring") == 1
    assert scores.rivals("tea", "spring", ()).total == (1 + 10 + 80 + 32) + 1
    assert scores.rivals("gold", "", ()).total == (1 + 10 + 80) + 1
    assert scores.rivals("tea", "spring", {"you", "gone"}).total == 1 + 10 + 80 + 32
    assert scores.rivals("tea", "spring", {"me"}).total == 1


@pytest.mark.parametrize(("units", "weight"), [(499, 499), (500, 500), (501, 501), (503, 501), (504, 502), (600, 510)])
def test_many_units_weigh_ever_less(units: int, weight: int) -> None:
    """Past 500 by their root."""
    assert Demand(["me"], [("me", "tea", "", units)]).score("me", "jam", "") == 1 + weight


@pytest.mark.parametrize(
    "scores",
    [
        sold("me you", me=1, gone=9),
        Demand(["me", "you", "gone"], [("me", "tea", "", 1), ("gone", "tea", "", 9)], full=["gone"]),
    ],
    ids=["not live", "full"],
)
def test_devices_that_are_not_live_or_full_are_nobodys_rivals(scores: Demand) -> None:
    """They have a score, and are in no sum and no count."""
    assert scores.score("gone", "tea", "") == 1 + 9 + 16 * 9
    assert scores.rivals("tea", "", ()).total == (1 + 1 + 16) + 1
    assert scores.wanting("tea", {"you"}) == 1
    assert scores.wanting("tea", {"me"}) == 0
    assert scores.wanting("jam", set()) == 0
    assert scores.rivals("tea", "", {"you"}).much_likelier(1) == 1


def test_much_likelier_is_more_than_twice() -> None:
    """Of the live ones that are not left out, whether by what they sold of the voucher or of anything."""
    scores = Demand(["me", "a", "b", "c"], [("a", "tea", "", 1), ("b", "jam", "", 17), ("c", "jam", "", 18)])
    assert [scores.score(one, "tea", "") for one in "abc"] == [18, 18, 19]
    assert scores.rivals("tea", "", ()).much_likelier(8) == 3
    assert scores.rivals("tea", "", ()).much_likelier(9) == 1
    assert scores.rivals("tea", "", {"c"}).much_likelier(9) == 0
    assert scores.rivals("tea", "", {"a", "gone"}).much_likelier(8) == 2
    assert scores.rivals("tea", "", ()).much_likelier(10) == 0


# slots


@pytest.mark.parametrize(
    ("one", "slots"),
    [
        (candidate(3), 3),
        (candidate(0), 0),
        (candidate(None), BIG),
        (candidate(9, 250, largest=100), 2),
        (candidate(2, 900, largest=100), 2),
        (candidate(None, 99, largest=100), 0),
        (candidate(None, 7), 7),
        (candidate(None, 7, largest=0), 7),
        (candidate(None, 2 * BIG), BIG),
        (candidate(9, policy="exclusive"), 1),
        (candidate(0, policy="exclusive"), 0),
        (candidate(9, policy="exclusive", held=True), 0),
        (candidate(9, held=True), 9),
    ],
)
def test_slots_are_the_devices_that_could_get_a_use(one: Candidate, slots: int) -> None:
    """By units and by the largest discount; of an exclusive voucher one, while nobody holds it."""
    assert one.slots == slots


# parts


def test_a_device_gets_its_share_of_the_units() -> None:
    """By score; one where its share is less and it is among the first; no more than a lease may have."""
    alike = sold("me a b")
    assert allotting(alike).part(candidate(9)) == (3, None)
    assert allotting(alike).part(candidate(2)) == (1, None)
    assert allotting(alike).part(candidate(0)) is None
    assert allotting(alike, units_max=2).part(candidate(9)) == (2, None)
    assert allotting(sold("me a", a=1)).part(candidate(19)) == (1, None)
    assert allotting(sold("me a", a=1)).part(candidate(38)) == (2, None)
    assert allotting(sold("me a", a=1)).part(candidate(1)) is None
    assert allotting(sold("me a", a=1)).part(candidate(2)) == (1, None)


def test_whoever_holds_a_lease_has_no_share_of_what_is_left() -> None:
    """Nor does a device that is not live; this one has, live or not."""
    assert allotting(sold("me a b"), [Held("l", "a")]).part(candidate(8)) == (4, None)
    assert allotting(sold("me a b"), [Held("l", "a"), Held("m", "b")]).part(candidate(8)) == (8, None)
    assert allotting(sold("me a"), [Held("l", "gone")]).part(candidate(8)) == (4, None)
    assert allotting(sold("a")).part(candidate(8)) == (4, None)


def test_an_exclusive_voucher_goes_whole_to_the_likeliest() -> None:
    """Units and minor as they are, or nothing."""
    whole = candidate(9, 900, policy="exclusive")
    assert allotting(sold("me a")).part(whole) == (9, 900)
    assert allotting(sold("me a", a=1)).part(whole) is None


@pytest.mark.parametrize(
    ("one", "part"),
    [
        (candidate(None, 900, largest=100), (None, 300)),
        (candidate(None, 900), (None, 300)),
        (candidate(None, 200, largest=100), (None, 100)),
        (candidate(None, 150, largest=100), (None, 100)),
        (candidate(None, 99, largest=100), None),
        (candidate(None, 2), None),
        (candidate(9, 9000, largest=100), (3, 300)),
        (candidate(9, 600, largest=100), (3, 200)),
        (candidate(9, 100, largest=100), (1, 100)),
        (candidate(9, 900), (3, 300)),
        (candidate(9, 2), None),
        (candidate(None, 90_000, largest=1), (None, 1000)),
    ],
)
def test_minor_covers_the_largest_discount_and_no_more_than_the_units(
    one: Candidate, part: tuple[int | None, int | None] | None
) -> None:
    """Of three alike: a third, at least one whole discount, at most what the units can use; both or nothing."""
    assert allotting(sold("me a b")).part(one) == part


# recalls


def test_a_likelier_device_gets_a_lease_back_for_it() -> None:
    """More than twice as likely; where it asks for the voucher, likelier at all."""
    one = candidate(0)
    lease = [Held("l", "a", units=1)]
    assert allotting(sold("me a", me=1), lease).recallable(one) == "l"
    assert allotting(sold("me a"), lease).recallable(one) is None
    assert allotting(sold("me a"), lease, wants=["tea"]).recallable(one) is None
    even = Demand(["me", "a"], [("me", "jam", "", 1)])
    assert even.score("me", "tea", "") == 2 * even.score("a", "tea", "")
    assert allotting(even, lease).recallable(one) is None
    assert allotting(even, lease, wants=["tea"]).recallable(one) is None  # its holder would be given it again
    two = [Held("l", "a", units=2)]
    assert allotting(even, two, wants=["tea"]).recallable(one) == "l"
    assert allotting(sold("me a", me=1)).recallable(one) is None


def test_the_unlikeliest_live_holder_gives_back() -> None:
    """One that is not live would not hear of it; a lease that is used up or recalled already is left alone."""
    scores = sold("me a b c", me=9, b=1)
    held = [Held("x", "b"), Held("y", "a")]
    assert allotting(scores, held).recallable(candidate(0)) == "y"
    assert allotting(scores, [*held, Held("z", "gone", live=False)]).recallable(candidate(0)) == "y"
    assert allotting(scores, [Held("x", "b"), Held("y", "a", known_units=10)]).recallable(candidate(0)) == "x"
    spent = Held("y", "a", units=None, minor=100, known_minor=100)
    assert allotting(scores, [Held("x", "b"), spent]).recallable(candidate(0)) == "x"
    some, left = Held("x", "b", minor=100), Held("y", "a", minor=100, known_minor=99)
    assert allotting(scores, [some, left]).recallable(candidate(0, 0)) == "y"
    before_the_limit = Held("y", "a", units=None, minor=100)  # it has no units to give back
    assert allotting(scores, [some, before_the_limit]).recallable(candidate(0, 0)) == "x"
    assert allotting(scores, [Held("y", "a", recalled_at="then")]).recallable(candidate(0)) is None


def test_no_more_are_recalled_than_devices_want() -> None:
    """One at a time, or as many as sold or refused the voucher lately and hold none."""
    held = [Held("x", "a"), Held("y", "b", recalled_at="then", pending=True), Held("z", "c")]
    assert allotting(sold("me a b c", me=9), held).recallable(candidate(0)) is None
    assert allotting(sold("me a b c d", me=9, d=1), held).recallable(candidate(0)) == "x"


@pytest.mark.parametrize(("units", "recalled"), [(1, None), (2, "l"), (10, "l")])
def test_who_holds_twice_its_share_gives_back(units: int, recalled: str | None) -> None:
    """The first device of a new server took all; the second one would have a share of its own."""
    assert allotting(sold("me a"), [Held("l", "a", units=units)]).recallable(candidate(0)) == recalled


def test_two_that_hold_their_share_keep_it() -> None:
    """Of three alike, four units each is less than twice a third of eight."""
    assert allotting(sold("me a b"), [Held("l", "a", 4), Held("m", "b", 4)]).recallable(candidate(0)) is None
    assert allotting(sold("me a b"), [Held("l", "a", 6), Held("m", "b", 3)]).recallable(candidate(0)) == "l"
    assert allotting(sold("me a b"), [Held("l", "a", 5), Held("m", "b", 3)]).recallable(candidate(0)) is None


def test_the_last_use_of_a_budget_is_waited_for_too() -> None:
    """However many units there are: one discount is left, and it is not for whoever asks (fleet, seed 1, case 10)."""
    likelier = sold("me a", a=1)
    assert allotting(likelier).part(candidate(57, 500, largest=500)) is None
    assert allotting(likelier).part(candidate(57, 999, largest=500)) is None
    assert allotting(likelier).part(candidate(57, 1000, largest=500)) == (2, 500)
    assert allotting(likelier, [Held("l", "a")]).part(candidate(57, 500, largest=500)) == (1, 500)
    assert allotting(sold("me a")).part(candidate(57, 500, largest=500)) == (1, 500)


def test_what_its_holder_would_be_given_again_is_not_recalled() -> None:
    """With what is free, the lease must be enough for both; the lease of an exclusive voucher goes whole."""
    wanted = Demand(["me", "a"], [("me", "jam", "", 1)])
    units, minor = [Held("l", "a", units=1)], [Held("l", "a", units=None, minor=150, known_minor=30)]
    for free, holders, recalled in (
        (candidate(0), units, None),
        (candidate(-1), [Held("l", "a", units=3, known_units=1)], None),
        (candidate(-1), [Held("l", "a", units=3)], "l"),
        (candidate(None, 79, largest=100), minor, None),
        (candidate(None, 80, largest=100), minor, "l"),
    ):
        assert allotting(wanted, holders, wants=["tea"]).recallable(free) == recalled
    whole = candidate(0, policy="exclusive", held=True)
    assert allotting(wanted, [Held("l", "a", units=9)], wants=["tea"]).recallable(whole) is None
    assert allotting(sold("me a", me=1), [Held("l", "a", units=9)]).recallable(whole) == "l"


_SOLD = st.lists(
    st.tuples(st.sampled_from(["tea", "jam"]), st.integers(0, 30)), max_size=2, unique_by=lambda one: one[0]
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(_SOLD, min_size=2, max_size=5),
    st.sampled_from([(1, None), (7, None), (40, None), (None, 1100), (None, 77), (30, 1515), (3, 9000)]),
    st.sampled_from([None, 100, 500]),
    st.sampled_from(["quota", "exclusive"]),
)
def test_leases_come_to_rest(
    fleet: list[list[tuple[str, int]]], limit: tuple[int | None, int | None], largest: int | None, policy: str
) -> None:
    """Where nothing is sold, every device has synced a few times and then no lease changes hands any more."""
    rows = [(str(n), voucher, "", units) for n, sales in enumerate(fleet) for voucher, units in sales if units]
    devices, leases, numbers = [str(n) for n in range(len(fleet))], dict[str, Held](), itertools.count()
    scores = Demand(devices, rows)
    for _ in range(6 * len(devices)):
        before = dict(leases)
        for device in devices:
            if device in leases and leases[device].recalled_at is not None:
                del leases[device]
            if device in leases:
                continue
            out = leases.values()
            units = None if limit[0] is None else limit[0] - sum(one.units or 0 for one in out)
            minor = None if limit[1] is None else limit[1] - sum(one.minor or 0 for one in out)
            one = candidate(units, minor, largest=largest, policy=policy, held=bool(out))
            asks = Allotting(device, (), scores, {"tea": list(out)}, 1000)
            if one.slots <= 0 and (lease := asks.recallable(one)) is not None:
                holder = next(held for held in out if held.id == lease)
                leases[holder.device_id] = holder._replace(recalled_at="now", pending=True)
            elif (part := asks.part(one)) is not None:
                leases[device] = Held(f"l{next(numbers)}", device, units=part[0], minor=part[1])
        if leases == before:
            break
    assert leases == before, f"they are still exchanged: {leases}"
