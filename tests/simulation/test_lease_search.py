"""The exhaustive search of the lease protocol: nothing breaks with all rules on, and something with any one off."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tallystick_server.facts import Facts
from tallystick_server.settling import settle
from tallystick_shared.journal import EventType
from tests.simulation import lease_search, lease_server
from tests.simulation.lease_invariants import PROMISE, broken
from tests.simulation.lease_model import (
    Bounds,
    Device,
    Lease,
    Pool,
    Rules,
    State,
    canonical,
    initial,
    moves,
)
from tests.simulation.lease_search import SMALL, WORDS, Found, needed_within, search, told, without

ONLY_WITHOUT_A_RULE = {"expire", "forgets close", "forgets use"}
REPEATS = {"again close", "again void"}


@pytest.fixture(scope="module")
def found() -> dict[Bounds, Found]:
    return {bounds: search(bounds) for bounds in SMALL}


@pytest.mark.parametrize("bounds", SMALL, ids=str)
def test_no_limit_is_ever_exceeded(found: dict[Bounds, Found], bounds: Bounds) -> None:
    """Whatever the clocks, crashes, repeats, reorderings and losses: every state there is within the bounds holds."""
    assert found[bounds].violation is None
    assert found[bounds].whole is (bounds.depth == 0), "nothing is left to try"
    assert found[bounds].depth >= max(bounds.depth, 16)


def test_everything_that_can_happen_happens(found: dict[Bounds, Found]) -> None:
    """No kind of step is left out of the search, and it is as large as it says; a repeat leads nowhere new."""
    assert frozenset().union(*(one.verbs for one in found.values())) == set(WORDS) - ONLY_WITHOUT_A_RULE - REPEATS
    assert sum(one.states for one in found.values()) > 150_000


@pytest.mark.parametrize("rule", Rules._fields)
def test_each_rule_is_needed(rule: str) -> None:
    """With this one rule off, and all others on, more units are out than the limit; the way there is told in words."""
    broke = search(needed_within(rule), without(rule), only=PROMISE)
    assert broke.violation is not None
    assert broke.violation.startswith(PROMISE)
    assert len(broke.trace) == broke.depth
    assert all(set(line).isdisjoint("{}") for line in broke.trace)


@pytest.mark.parametrize("rule", Rules._fields)
def test_within_the_same_bounds_the_rule_is_enough(rule: str) -> None:
    """Where a rule's absence breaks the limit, its presence keeps it, in every state."""
    kept = search(needed_within(rule))
    assert kept.whole
    assert kept.violation is None


def test_the_trace_is_the_shortest_and_reads_as_a_story() -> None:
    """A close that was sent before it was durable: the till forgets it, and uses what the server has given away."""
    broke = search(Bounds(limit=1), without("close_is_durable_before_it_is_sent"), only=PROMISE)
    assert broke.trace[:4] == (
        "the server grants A a lease of 1",
        "A is told of lease 1, and takes it",
        "A sends a close of lease 1, with 0 used, and crashes: the close was not durable",
        "A redeems one unit of lease 1 and hands over the goods",
    )
    assert broke.violation == f"{PROMISE}: 2, not 1"


def test_a_device_keeps_its_name_through_a_trace() -> None:
    """The search sorts the devices; who is told of is the one it happened to."""
    bounds = Bounds(limit=2)
    state, way = canonical(initial(bounds)), []
    for verb, till_has_rows in (("grant", False), ("takes", False), ("grant", False), ("use", True)):
        label, raw = next(
            (label, reached)
            for label, reached in moves(state, Rules(), bounds)
            if label[0] == verb and label[3] == 1 and bool(state.devices[label[1]].tills[0].rows) is till_has_rows
        )
        way.append(label)
        state = canonical(raw)
    first, taker, second, user = (line.split() for line in told(way, bounds, Rules()))
    assert taker[0] == user[0] == first[3] != second[3]


@pytest.fixture
def settling_anew() -> Iterator[None]:
    """Nothing that was settled before is remembered, nor what is settled meanwhile."""
    lease_server.settled.cache_clear()
    yield
    lease_server.settled.cache_clear()


@pytest.mark.parametrize("wrong", [EventType.REDEEM, EventType.LEASE_CLOSE, EventType.VOID])
def test_a_wrong_settle_is_noticed(wrong: EventType, monkeypatch: pytest.MonkeyPatch, settling_anew: None) -> None:
    """The server's side is the product's own `settle`: where that gives a unit too many, the search says so."""

    def generous(stored: object, seq: int, envelope: object, facts: Facts, rules: object) -> object:
        settled = settle(stored, seq, envelope, facts, rules)  # type: ignore[arg-type]
        if settled.envelope is not None and settled.envelope.type is wrong:
            facts.moves.add(lease_server.VOUCHER, "units", free=1)
        return settled

    monkeypatch.setattr(lease_server, "settle", generous)
    assert search(Bounds(devices=1, limit=1, sales=1)).violation == "I1: the accounts add up to 2, not 1"


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (State(Pool(1), 2, ()), f"{PROMISE}: 2, not 1"),
        (State(Pool(2), 0, ()), "I1: the accounts add up to 2, not 1"),
        (State(Pool(0, held=1), 0, ()), "I1: what is held is not what open and burned leases were granted"),
        (State(Pool(0, closed_used=1), 1, ()), "I1: what closed leases used is not what their closes said"),
        (State(Pool(-1, online=2), 1, ()), "I1: the pool is below zero, and not by use without cover"),
        (State(Pool(0, held=1), 1, (Device(leases=(Lease(1, 1, "open", 0),)),)), "I2: 0 <= k <= u <= q does not hold"),
        (State(Pool(0, held=1), 1, (Device(leases=(Lease(1, 0, "open", 1),)),)), None),
    ],
)
def test_each_invariant_is_looked_at(state: State, says: str | None) -> None:
    """A state that breaks one invariant is told by its name; one that breaks none is not."""
    assert broken(state, 1) == says


def test_the_program_says_what_it_did(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 0, a row for each bound and a trace for each rule; exit 1 where a limit breaks, or a rule is not needed."""
    monkeypatch.setattr(lease_search, "SMALL", (Bounds(limit=1),))
    assert lease_search.main(["--small", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("\nwithout ") == len(Rules._fields)
    assert "nothing breaks" not in out
    monkeypatch.setattr(lease_search, "WHERE_IT_BREAKS", {})
    assert lease_search.main(["--small", "--workers", "1"]) == 1
    assert "without forked_close_returns_nothing: nothing breaks" in capsys.readouterr().out
