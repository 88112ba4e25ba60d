"""Voids and closes without a server: what comes back to the accounts, and what waits for a person."""

from __future__ import annotations

import pytest

from tallystick_server.facts import Facts, UseFacts
from tallystick_server.settling import Settled, settle
from tallystick_shared.journal import EventType, Use
from tallystick_shared.wire import Flag, Outcome
from tests.server.accounts import (
    JAM,
    LEASE,
    OTHER,
    REVISION,
    RULES,
    SALE,
    TEA,
    event,
    facts,
    lease,
    moves,
    online,
    use,
    with_lease,
)


def void(found: Facts, *uses: Use, ref: str | None = SALE) -> Settled:
    stored, envelope = event(EventType.VOID, list(uses), ref=ref)
    return settle(stored, 1, envelope, found, RULES)


def sold(*uses: UseFacts) -> Facts:
    found = facts()
    found.redemptions[SALE] = online(
        *(uses or (UseFacts(TEA, REVISION, 1, 100, 100, LEASE, "lease"),)), customer="anna"
    )
    return found


@pytest.mark.parametrize(
    ("wanted", "given", "flagged"),
    [((1, 100), (1, 100), False), ((0, 40), (0, 40), False), ((1, 101), (1, 100), True), ((2, 100), (1, 100), True)],
)
def test_a_void_gives_back_what_there_is(wanted: tuple[int, int], given: tuple[int, int], flagged: bool) -> None:
    """To the pool and, by unit, to the customer; whoever asks for more is flagged."""
    found = sold()
    settled = void(found, use(*wanted))
    assert settled.reasons == ([Flag.ALREADY_VOIDED] if flagged else [])
    assert settled.outcome is (Outcome.FLAGGED if flagged else Outcome.APPLIED)
    back = {"units": given[0], "minor": given[1]}
    assert moves(found) == {(TEA, one): {"free": n, "voided": n} for one, n in back.items() if n}
    assert found.customer_moves == ({(TEA, "anna"): -given[0]} if given[0] else {})
    mine = found.redemptions[SALE].uses[TEA]
    assert (mine.voided_units, mine.voided_minor, mine.changed) == (*given, True)
    assert void(found, use(1, 100)).reasons == [Flag.ALREADY_VOIDED]


def test_a_void_that_names_no_use_gives_back_all_that_is_left() -> None:
    """Of each voucher, without what was voided before; a second one gives nothing and is no mistake."""
    found = sold(
        UseFacts(TEA, REVISION, 1, 100, 100, None, "online", 0, 30), UseFacts(JAM, REVISION, 1, 50, 50, None, "")
    )
    assert void(found).reasons == []
    whole = {"units": {"free": 1, "voided": 1}}
    assert moves(found) == {
        (TEA, "units"): whole["units"], (TEA, "minor"): {"free": 70, "voided": 70},
        (JAM, "units"): whole["units"], (JAM, "minor"): {"free": 50, "voided": 50},
    }  # fmt: skip
    assert void(found).reasons == []
    assert moves(found)[TEA, "minor"] == {"free": 70, "voided": 70}


def test_a_void_of_another_redemption_or_voucher_moves_nothing() -> None:
    """Not even the part that would be right."""
    for uses, ref in (([use()], OTHER), ([use()], None), ([use(), use(voucher_id=JAM)], SALE)):
        found = sold()
        settled = void(found, *uses, ref=ref)
        assert (settled.outcome, settled.reasons) == (Outcome.FLAGGED, [Flag.WITHOUT_COVER])
        assert (moves(found), found.customer_moves) == ({}, {})


def close(found: Facts, *uses: Use) -> Settled:
    stored, envelope = event(EventType.LEASE_CLOSE, list(uses))
    return settle(stored, 1, envelope, found, RULES)


@pytest.mark.parametrize("u", [(2, 200), (5, 500), (3, 200)], ids=["k", "q", "between"])
def test_a_close_returns_q_less_u(u: tuple[int, int]) -> None:
    """From k to q, both among them: q leaves `held`, u stays used, the rest is free."""
    found = with_lease(facts(), lease(5, 500, known=(2, 200)))
    assert close(found, use(*u)).outcome is Outcome.APPLIED
    parts = {"units": (5, u[0]), "minor": (500, u[1])}
    expected = {(TEA, one): {"free": q - n, "held": -q, "closed_used": n} for one, (q, n) in parts.items()}
    assert moves(found) == {key: {name: n for name, n in move.items() if n} for key, move in expected.items()}
    held = found.leases[LEASE]
    assert (held.known_units, held.known_minor, held.state, held.changed) == (*u, "closed", True)
    assert close(found, use(*u)).outcome is Outcome.DUPLICATE


@pytest.mark.parametrize("u", [(1, 200), (2, 199), (6, 500), (5, 501)])
def test_a_close_below_k_or_above_q_returns_nothing(u: tuple[int, int]) -> None:
    """By a unit or a cent: it is kept for a person, with its place in the journal, and a second close with it."""
    found = with_lease(facts(), lease(5, 500, known=(2, 200)))
    settled = close(found, use(*u))
    assert (settled.outcome, settled.reasons) == (Outcome.FLAGGED, [Flag.WITHOUT_COVER])
    held = found.leases[LEASE]
    assert (held.close_seq, held.changed, held.state, held.known_units) == (1, True, "open", 2)
    assert moves(found) == {}
    assert close(found, use(2, 200)).outcome is Outcome.DUPLICATE


def test_a_close_over_what_cannot_be_read_returns_nothing() -> None:
    """Whether all leases are blocked or this one."""
    for fields in ({"all_leases_blocked": True}, {"blocked_leases": {LEASE}}):
        found = with_lease(facts(), lease(known=(1, 0)))
        for name, value in fields.items():
            setattr(found, name, value)
        assert close(found, use(1, 0)).reasons == [Flag.UNREADABLE]
        assert moves(found) == {}


@pytest.mark.parametrize(("burned_by", "outcome"), [("lost", Outcome.APPLIED), ("forked", Outcome.DUPLICATE)])
def test_a_burned_lease_is_closed_only_where_its_till_was_lost(burned_by: str, outcome: Outcome) -> None:
    """Of a till that forked another branch may have used it."""
    found = with_lease(facts(), lease(state="burned"))
    found.leases[LEASE].burned_by = burned_by
    assert close(found, use(0, 0)).outcome is outcome


def test_a_close_names_one_lease_of_its_own_voucher() -> None:
    """None, two, an unknown one, or another voucher's: without cover."""
    for uses in ([], [use(), use(voucher_id=JAM)], [use(of=OTHER)], [use(of=None)], [use(voucher_id=JAM)]):
        found = with_lease(facts(), lease())
        settled = close(found, *uses)
        assert (settled.outcome, settled.reasons) == (Outcome.FLAGGED, [Flag.WITHOUT_COVER])
        assert moves(found) == {}
