"""Whose lease is asked back, without a server: what the decision costs, rests of a budget, and how it ends."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick_server.allotting import Allotting, Candidate
from tallystick_server.demand import Demand
from tests.server.test_allotting import Held, allotting, candidate, sold
from tests.shared.test_cost import lines_run

LIKELIER = Demand(["me", "a", "b", "c"], [("me", "jam", "", 9)])
"""`me` is much likelier than the others, which are alike."""


def rests(*minor: int, known: int = 0) -> list[Held]:
    """Leases of a budget alone, by devices a, b, c..., with so much left of each."""
    return [
        Held(f"l{n}", device, None, minor=left + known, known_minor=known)
        for n, (device, left) in enumerate(zip("abcdef", minor, strict=False))
    ]


# what it costs


@pytest.mark.parametrize(
    ("sales", "free", "largest", "rest", "recalled"),
    [
        (500, (0, None), None, (1, None), True),
        (0, (0, 0), 100, (2, 100), False),
        (0, (0, 0), 500, (1, 30), True),
        (500, (-5_000, None), None, (1, None), False),
    ],
    ids=["worth it", "each would be given again", "rests", "overdrawn"],
)
def test_the_decision_costs_in_proportion_to_the_holders(
    sales: int, free: tuple[int, int | None], largest: int | None, rest: tuple[int, int | None], recalled: bool
) -> None:
    """Eight times the holders, each of another score, cost at most ten times as much: all that have no better claim
    than their holder were compared with all others, for each voucher of a sync."""

    def cost(count: int) -> int:
        devices = [f"d{n}" for n in range(count)]
        held = [Held(f"l{n}", device, rest[0], minor=rest[1]) for n, device in enumerate(devices)]
        theirs = [(device, "jam", "", 500 + n * n) for n, device in enumerate(devices)]
        scores = Demand(["me", *devices], [*theirs, ("me", "jam", "", 500 + count * count), ("me", "tea", "", sales)])
        asks = allotting(scores, held, wants=["tea"])
        one = candidate(*free, largest=largest)
        asks.recallable(one)  # the scores of a campaign are made once for all its vouchers
        lines, found = lines_run(lambda: asks.recallable(one))  # type: ignore[arg-type, return-value]
        assert (found is not None) == recalled
        return lines

    assert cost(400) <= cost(50) * 10


# rests of a budget


def test_rests_are_asked_back_where_together_they_are_a_use() -> None:
    """One alone is less than the largest discount, and was left to its holder for ever; the unlikeliest comes first."""
    one = candidate(None, 0, largest=500)
    assert allotting(LIKELIER, rests(300, 200, known=200)).recallable(one) == "l0"
    assert allotting(LIKELIER, rests(300, 199, known=200)).recallable(one) is None
    assert allotting(LIKELIER, rests(300, 199)).recallable(candidate(None, 1, largest=500)) == "l0"
    assert allotting(LIKELIER, rests(300, 500)).recallable(one) == "l1"
    assert allotting(sold("me a b c"), rests(300, 300)).recallable(one) is None
    assert allotting(LIKELIER, rests(300, 300)).recallable(candidate(0, 0, largest=500)) is None


def test_only_rests_that_come_count() -> None:
    """Not those of a device that is gone, of a lease that is recalled or undecided, or from before the voucher had a
    limit of this measure."""
    one = candidate(0, 0, largest=500)
    mine, other = Held("l", "a", 1, minor=300), Held("m", "b", 1, minor=300)
    assert allotting(LIKELIER, [mine, other]).recallable(one) == "l"
    for gone in (
        other._replace(live=False), other._replace(recalled_at="then"), other._replace(undecided=True),
        other._replace(units=None), other._replace(minor=None),
    ):  # fmt: skip
        assert allotting(LIKELIER, [mine, gone]).recallable(one) is None


# who is not asked, and whom nobody waits for


def test_an_undecided_lease_is_neither_asked_for_nor_counted() -> None:
    """Its device has closed it; the lease of the next holder is asked for, and only what can come is shared."""
    closed = Held("l", "a", undecided=True)
    assert allotting(LIKELIER, [closed]).recallable(candidate(0)) is None
    assert allotting(LIKELIER, [closed, Held("m", "b")]).recallable(candidate(0)) == "m"
    alike = sold("me a b c")
    assert allotting(alike, [Held("l", "a", 6), Held("m", "b", 2)]).recallable(candidate(0)) == "l"
    assert allotting(alike, [Held("l", "a", 12), Held("m", "b", 4)]).recallable(candidate(0)) == "l"
    assert allotting(alike, [Held("l", "a", 12, undecided=True), Held("m", "b", 4)]).recallable(candidate(0)) == "m"


def test_a_holder_that_was_asked_long_ago_is_waited_for_no_more() -> None:
    """It is not asked again; the next one is."""
    held = [Held("l", "a", recalled_at="then"), Held("m", "b")]
    assert allotting(LIKELIER, held).recallable(candidate(0)) == "m"
    held[0] = held[0]._replace(pending=True)
    assert allotting(LIKELIER, held).recallable(candidate(0)) is None


def test_who_has_no_room_is_waited_for_by_nobody() -> None:
    """However likely it is to sell: neither a free unit nor a holder waits for it; what it holds itself counts."""
    rows = [("you", "tea", "", 9)]
    assert allotting(Demand(["me", "you"], rows)).part(candidate(1)) is None
    assert allotting(Demand(["me", "you"], rows, full=["you"])).part(candidate(1)) == (1, None)
    held = [Held("l", "a", 4)]
    assert allotting(Demand(["me", "you", "a"], rows), held).recallable(candidate(0)) is None
    assert allotting(Demand(["me", "you", "a"], rows, full=["you"]), held).recallable(candidate(0)) == "l"
    held = [Held("l", "you", 4, known_units=4), Held("m", "a", 4)]
    assert allotting(Demand(["me", "you", "a"], rows, full=["you"]), held).recallable(candidate(0)) is None


# several scopes


def outside(units: int, **fields: Any) -> Demand:
    """`me` and `near` in this scope; one device of another scope sold so many of `tea`."""
    return Demand(["me", "near"], [(one, "tea", "", n) for one, n in fields.items()], outside=[("tea", units, 1)])


def test_a_voucher_waits_for_a_likelier_seller_of_another_scope() -> None:
    """By what each sold of this voucher alone, whatever else it sold; no share is larger than among the sellers."""
    assert allotting(Demand(["me"], [])).part(candidate(1)) == (1, None)
    assert allotting(Demand(["me"], [("me", "jam", "", 99)], outside=[("tea", 1, 1)])).part(candidate(1)) is None
    assert allotting(outside(2, me=1)).part(candidate(1)) == (1, None)
    assert allotting(outside(3, me=1)).part(candidate(1)) is None
    assert allotting(Demand(["me"], [], outside=[("tea", 1, 1)])).part(candidate(36)) == (2, None)
    assert allotting(Demand(["me"], [], outside=[("tea", 1, 2)])).part(candidate(35)) == (1, None)
    assert allotting(Demand(["me"], [], outside=[("jam", 9, 9)])).part(candidate(36)) == (36, None)
    assert allotting(outside(1, me=9)).part(candidate(36, 3600, largest=100)) == (32, 3200)
    assert outside(1, near=1, me=1).wanting("tea", {"me"}) == 2


def test_a_lease_of_another_scope_is_asked_back_by_a_seller_of_the_voucher_alone() -> None:
    """Nobody there knows what else this device sold: its holder would be given the same again."""
    far, one = [Held("l", "far", 1, elsewhere=True)], candidate(0)
    assert allotting(sold("me", me=1), far).recallable(one) == "l"
    assert allotting(Demand(["me"], [("me", "jam", "", 99)]), far).recallable(one) is None
    assert allotting(sold("me", me=1), [far[0]._replace(sold=1)], wants=["tea"]).recallable(one) is None
    assert allotting(sold("me", me=3), [far[0]._replace(sold=1)]).recallable(one) == "l"
    assert allotting(sold("me", me=9), [far[0]._replace(live=False), Held("m", "me2", 1)]).recallable(one) == "m"
    hoard = [Held("l", "far", 90, elsewhere=True, sold=1)]
    assert allotting(sold("me", me=1), hoard).recallable(one) == "l"
    assert allotting(Demand(["me"], []), hoard).recallable(one) is None


# rest


_FLEET = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 600), st.booleans(), st.booleans()),
    min_size=2,
    max_size=5,
)


def demand_of(device: str, fleet: list[tuple[int, int, int, bool, bool]], holding: Collection[str]) -> Demand:
    """As a device of this scope is told of it: of the other scope only who sold `tea` and holds none."""
    near = [str(n) for n, one in enumerate(fleet) if one[4] == fleet[int(device)][4]]
    rows = [(one, code, "", fleet[int(one)][k]) for one in near for k, code in enumerate(("tea", "jam"))]
    far = {str(n): one[0] for n, one in enumerate(fleet)}.items()
    return Demand(near, rows, outside=[("tea", n, 1) for one, n in far if n and one not in {*near, *holding}])


@settings(max_examples=300, deadline=None)
@given(
    _FLEET,
    st.sampled_from([(1, None), (7, None), (None, 1100), (None, 1515), (30, 1515), (3, 9000)]),
    st.sampled_from([None, 100, 500]),
)
def test_used_leases_come_to_rest(
    fleet: list[tuple[int, int, int, bool, bool]], limit: tuple[int | None, int | None], largest: int | None
) -> None:
    """Some of each first lease is used and some devices go on asking; rests are collected, and then no lease changes
    hands any more, be the devices of one scope or two. Nothing is ever given out twice."""
    devices, numbers = [str(n) for n in range(len(fleet))], itertools.count()
    leases, used = dict[str, Held](), [0, 0]

    def ask(device: str) -> None:
        units = None if limit[0] is None else limit[0] - used[0] - sum(held.units or 0 for held in leases.values())
        minor = None if limit[1] is None else limit[1] - used[1] - sum(held.minor or 0 for held in leases.values())
        one = Candidate("tea", "", "quota", None, largest, units, minor, bool(leases))
        wants = ("tea",) if fleet[int(device)][3] else ()
        far = {str(n) for n, each in enumerate(fleet) if each[4] != fleet[int(device)][4]}
        out = [held._replace(elsewhere=held.device_id in far) for held in leases.values()]
        asks = Allotting(device, wants, demand_of(device, fleet, leases), {"tea": out}, 1000)
        assert (units or 0) >= 0 <= (minor or 0)
        if one.slots <= 0 and (lease := asks.recallable(one)) is not None:
            holder = next(held for held in leases.values() if held.id == lease)
            leases[holder.device_id] = holder._replace(recalled_at="now", pending=True)
        elif (part := asks.part(one)) is not None:
            leases[device] = Held(f"l{next(numbers)}", device, part[0], minor=part[1], sold=fleet[int(device)][0])

    for device in devices:
        ask(device)
    for device, held in leases.items():
        known = None if held.units is None else min(held.units, 1), min(held.minor or 0, fleet[int(device)][2])
        leases[device] = held._replace(known_units=known[0] or 0, known_minor=known[1])
    for _ in range(8 * len(devices)):
        before = dict(leases)
        for device in devices:
            if device in leases and leases[device].recalled_at is not None:
                used[0] += leases[device].known_units
                used[1] += leases.pop(device).known_minor
            if device not in leases:
                ask(device)
        if leases == before:
            break
    assert leases == before, f"they are still exchanged: {leases}"
