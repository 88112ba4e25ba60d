"""Settling without a server: which accounts an event moves, by how much, and what happens exactly at each bound."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from tallystick_server.facts import Facts, LeaseFacts, RedemptionFacts, UseFacts
from tallystick_server.reading import content_digest, open_envelope
from tallystick_server.settling import Rules, Settled, quarantined, settle
from tallystick_shared.journal import (
    EVENT_BYTES_MAX,
    EventType,
    RedeemBody,
    StoredEvent,
)
from tallystick_shared.signing import sha256_hex
from tallystick_shared.wire import Flag, Outcome
from tests.server.accounts import (
    ANNA,
    JAM,
    LEASE,
    MINUTE,
    OTHER,
    PATIENT,
    REVISION,
    RULES,
    SALE,
    SECOND,
    TEA,
    body_of,
    event,
    facts,
    lease,
    moves,
    online,
    redeem,
    use,
    with_lease,
)
from tests.shared.build import NOON

# what is an event at all


def test_an_envelope_is_opened_only_where_it_belongs() -> None:
    """Of another place in the journal, with a voucher twice, too large by a byte, or of no year: not opened."""
    stored, envelope = event(EventType.REDEEM, [use()], body=b"x")
    assert open_envelope(stored, 1) == envelope
    assert open_envelope(stored, 2) is None
    assert open_envelope(event(EventType.REDEEM, [use(), use()])[0], 1) is None
    assert open_envelope(event(EventType.REDEEM, [use(), use(voucher_id=JAM)])[0], 1) is not None
    largest = EVENT_BYTES_MAX - len(stored.envelope)
    assert open_envelope(StoredEvent(stored.envelope, b"x" * largest), 1) is not None
    assert open_envelope(StoredEvent(stored.envelope, b"x" * (largest + 1)), 1) is None
    for year, opened in ((1970, True), (1969, False), (9998, True), (9999, False)):
        at = NOON.replace(year=year)
        assert (open_envelope(event(EventType.REDEEM, [use()], at=at)[0], 1) is not None) is opened


def test_what_cannot_be_read_blocks_the_leases_it_may_have_used() -> None:
    """All of them where there is no envelope; the named ones where only the body is missing."""
    found = facts()
    stored, envelope = event(EventType.REDEEM, [use(), use(voucher_id=JAM, of=None)])
    assert quarantined(stored, 7, envelope, found) == Settled(
        stored, 7, envelope, Outcome.QUARANTINED, [Flag.UNREADABLE]
    )
    assert (found.all_leases_blocked, found.blocked_leases) == (False, {LEASE})
    assert settle(stored, 7, None, found, RULES) == Settled(stored, 7, None, Outcome.QUARANTINED, [Flag.UNREADABLE])
    assert found.all_leases_blocked is True


# a redemption


def test_a_redemption_is_kept_with_all_that_is_asked_of_it_later() -> None:
    """Time, store, customer, digests, result and uses, the engine's figure; a unit sold, and of a customer."""
    found = with_lease(facts(free={"units": 5}), lease())
    body = body_of(ANNA)
    stored, envelope = event(EventType.REDEEM, [use()], body=body)
    assert settle(stored, 1, envelope, found, RULES) == Settled(stored, 1, envelope, Outcome.APPLIED, [])
    result = bytes(msgspec.json.decode(body, type=RedeemBody).result)
    assert found.redemptions == {
        SALE: RedemptionFacts(
            SALE, NOON, "store-1", "anna", False, content_digest(ANNA, ["tea"]), sha256_hex(body), result,
            {TEA: UseFacts(TEA, REVISION, 1, 100, 100, LEASE, "lease")}, is_new=True, replaces=False,
        )
    }  # fmt: skip
    assert (found.sold, found.customer_moves, found.last_event_at) == ({TEA: 1}, {(TEA, "anna"): 1}, NOON)
    assert moves(found) == {}
    held = found.leases[LEASE]
    assert (held.known_units, held.known_minor, held.changed) == (1, 100, True)


def test_the_digest_of_what_was_asked_is_as_it_is_stored() -> None:
    """SHA-256 of the order and the codes, a line each: an attempt from before an upgrade is known again after it."""
    asked = b'{"id":"o","currency":"EUR","lines":[{"id":"1","product_id":"p","quantity":1,"unit_price_minor":1000}],'
    asked += b'"customer":{"id":"anna"}}\ntea\njam'
    assert content_digest(ANNA, ["tea", "jam"]) == sha256_hex(asked)
    assert content_digest(ANNA, ["tea", "jam"]) == "a43da52cada35b19f896758820fa9a6a151f733f5d0ac395545cdcc1529a3248"


def test_two_redemptions_of_a_batch_add_up() -> None:
    """Units sold, a customer's and a lease's are those of both."""
    found = with_lease(facts(), lease())
    redeem(found, body=body_of(ANNA))
    stored, envelope = event(EventType.REDEEM, [use()], body=body_of(ANNA))
    settle(stored, 2, msgspec.structs.replace(envelope, id=OTHER), found, RULES)
    assert (found.sold, found.customer_moves) == ({TEA: 2}, {(TEA, "anna"): 2})
    assert (found.leases[LEASE].known_units, found.leases[LEASE].known_minor) == (2, 200)


def test_an_unreadable_body_counts_and_says_nothing() -> None:
    """No order, no customer, no digest of a content; the use is the envelope's."""
    for body in (b"{}", b"\xff", b"[" * 5000, b"null", body_of(result=b'{"applied":0}')):
        found = with_lease(facts(), lease())
        assert redeem(found, body=body).reasons == [Flag.UNREADABLE]
        sale = found.redemptions[SALE]
        assert (sale.customer_id, sale.content_sha256, sale.result) == (None, "", b"null")
        assert sale.uses == {TEA: UseFacts(TEA, REVISION, 1, 100, None, LEASE, "lease")}


def test_a_body_of_another_digest_is_unreadable() -> None:
    """However well it reads, it is not what the till signed."""
    stored, envelope = event(EventType.REDEEM, [use()], body=body_of())
    found = with_lease(facts(), lease())
    assert settle(StoredEvent(stored.envelope, body_of(ANNA)), 1, envelope, found, RULES).reasons == [Flag.UNREADABLE]


# 1. identifier


def test_1_an_attempt_that_fell_back_gives_back_what_it_took() -> None:
    """From `online` to free, units and minor, and the customer's unit; the lease covers it from then on."""
    found = with_lease(facts(), lease())
    found.redemptions[SALE] = online(UseFacts(TEA, REVISION, 1, 100, 100, None, "online"), sold=ANNA, customer="anna")
    assert redeem(found, body=body_of(ANNA)).outcome is Outcome.APPLIED
    assert moves(found) == {
        (TEA, "units"): {"free": 1, "online": -1},
        (TEA, "minor"): {"free": 100, "online": -100},
    }
    assert found.customer_moves == {(TEA, "anna"): 0}
    assert found.redemptions[SALE].replaces is True
    assert found.redemptions[SALE].online is False


@pytest.mark.parametrize(
    ("voided", "moved"),
    [
        ((1, 100), {"units": {"free": 1, "online": -1}, "minor": {"free": 100, "online": -100}}),
        ((0, 30), {"units": {"free": 1, "online": -1}, "minor": {"free": 100, "online": -100}}),
        ((1, 130), {"units": {"free": 1, "online": -1}, "minor": {"free": 100, "online": -130, "voided": -30}}),
    ],
    ids=["all", "a part", "more than the new use"],
)
def test_1_what_was_voided_of_the_attempt_stays_voided(
    voided: tuple[int, int], moved: dict[str, dict[str, int]]
) -> None:
    """The new use carries it, as far as it is as large; what is beyond that came back already."""
    found = with_lease(facts(), lease())
    taken = max(100, voided[1])
    found.redemptions[SALE] = online(
        UseFacts(TEA, REVISION, 1, taken, taken, None, "online", *voided), sold=ANNA, customer="anna"
    )
    redeem(found, body=body_of(ANNA))
    assert moves(found) == {(TEA, measure): changed for measure, changed in moved.items()}
    carried = found.redemptions[SALE].uses[TEA]
    assert (carried.voided_units, carried.voided_minor) == (voided[0], min(voided[1], 100))
    assert found.customer_moves == {(TEA, "anna"): 0}


def test_1_a_voucher_that_the_fallback_no_longer_uses_is_given_back_whole() -> None:
    """But not what was voided of it, which is back already."""
    found = with_lease(facts(), lease())
    found.redemptions[SALE] = online(
        UseFacts(TEA, REVISION, 1, 100, 100, None, "online"), UseFacts(JAM, REVISION, 3, 90, 90, None, "online", 2, 60)
    )
    redeem(found)
    assert moves(found) == {
        (TEA, "units"): {"free": 1, "online": -1},
        (TEA, "minor"): {"free": 100, "online": -100},
        (JAM, "units"): {"free": 1, "online": -3, "voided": -2},
        (JAM, "minor"): {"free": 30, "online": -90, "voided": -60},
    }


def test_1_an_attempt_for_something_else_is_left_alone() -> None:
    """Another order, or a body that cannot be read: flagged, and nothing moves."""
    for body in (body_of(ANNA), b"{}"):
        found = with_lease(facts(), lease())
        found.redemptions[SALE] = before = online(UseFacts(TEA, REVISION, 1, 100, 100, None, "online"))
        settled = redeem(found, body=body)
        assert (settled.outcome, settled.reasons) == (Outcome.FLAGGED, [Flag.IDENTIFIER_REUSED])
        assert (moves(found), found.redemptions[SALE], found.sold) == ({}, before, {})


# 2. body


def test_2_the_result_names_each_use_and_no_more() -> None:
    """The code as it was typed; another amount, a code that is none, one too many or too few is a mismatch."""
    line = '"lines":[{"id":"1","discount_minor":100}]'
    good = f'{{"code":" TEA","discount_minor":100,{line}}}'
    for applied, reasons in (
        (good, []),
        (good.replace('minor":100,"lines', 'minor":99,"lines'), [Flag.PRICE_MISMATCH]),
        (good.replace(" TEA", "\\u0000"), [Flag.PRICE_MISMATCH]),
        (good + "," + good.replace("TEA", "jam"), [Flag.PRICE_MISMATCH]),
        ("", [Flag.PRICE_MISMATCH]),
    ):
        found = with_lease(facts(), lease())
        assert redeem(found, body=body_of(result=f'{{"applied":[{applied}]}}'.encode())).reasons == reasons


# 3. cover


@pytest.mark.parametrize(
    ("held", "covered"),
    [
        (lease(1), True),
        (lease(1, known=(1, 0)), False),
        (lease(None, 100), True),
        (lease(None, 99), False),
        (lease(1, 99), False),
        (lease(1, 100, state="burned"), True),
        (lease(1, 100, state="closed"), False),
    ],
    ids=["the last unit", "none left", "the last cent", "a cent too little", "units only", "burned", "closed"],
)
def test_3_a_lease_covers_up_to_its_last_unit_and_cent(held: LeaseFacts, covered: bool) -> None:
    """What it covers is counted there and moves no pool; what it does not is taken from the pool and flagged."""
    found = with_lease(facts(free={"units": 9, "minor": 900}), held)
    before = (held.known_units, held.known_minor)
    settled = redeem(found)
    assert settled.reasons == ([] if covered else [Flag.WITHOUT_COVER])
    assert found.redemptions[SALE].uses[TEA].cover == ("lease" if covered else "none")
    counted = (before[0] + 1, before[1] + 100)
    assert (held.known_units, held.known_minor) == (counted if covered else before)
    outside = {(TEA, "units"): {"free": -1, "uncovered": 1}, (TEA, "minor"): {"free": -100, "uncovered": 100}}
    beyond = {(TEA, m): outside[TEA, m] for m, q in (("units", held.units), ("minor", held.minor)) if q is None}
    assert moves(found) == (beyond if covered else outside)


def test_3_a_lease_of_another_voucher_covers_nothing() -> None:
    """The units it holds are another voucher's."""
    found = with_lease(facts(free={"units": 9}), lease())
    found.leases[LEASE].voucher_id = JAM
    assert redeem(found).reasons == [Flag.WITHOUT_COVER]
    assert moves(found) == {(TEA, "units"): {"free": -1, "uncovered": 1}}


@pytest.mark.parametrize(("after", "reasons"), [(timedelta(0), []), (SECOND, [Flag.LATE])])
def test_3_a_lease_covers_to_the_second_of_its_end(after: timedelta, reasons: list[Flag]) -> None:
    """At its end it does still; a second later it covers and is late."""
    found = with_lease(facts(), lease())
    assert redeem(found, at=found.leases[LEASE].expires_at + after, rules=PATIENT).reasons == reasons


@pytest.mark.parametrize(
    ("free", "cover"),
    [
        ({}, "open"),
        ({"units": 1}, "open"),
        ({"units": 0}, "none"),
        ({"minor": 100}, "open"),
        ({"minor": 99}, "none"),
        ({"units": 0, "minor": 900}, "none"),
    ],
)
def test_3_a_soft_voucher_is_free_to_use_within_its_limit(free: dict[str, int], cover: str) -> None:
    """To the last unit and cent of what is free; what is taken is taken either way."""
    found = facts(free=free, policy="soft")
    found.revisions = {}
    redeem(found, use(of=None))
    assert found.redemptions[SALE].uses[TEA].cover == cover
    amounts = {"units": 1, "minor": 100}
    assert moves(found) == {(TEA, one): {"free": -amounts[one], "uncovered": amounts[one]} for one in free}


def test_3_what_the_batch_took_before_is_free_no_longer() -> None:
    """The second use of a soft voucher with one unit is beyond the limit."""
    found = facts(free={"units": 1}, policy="soft")
    found.revisions = {}
    redeem(found, use(of=None))
    stored, envelope = event(EventType.REDEEM, [use(of=None)], body=body_of())
    settled = settle(stored, 2, msgspec.structs.replace(envelope, id=OTHER), found, RULES)
    assert Flag.WITHOUT_COVER in settled.reasons


def test_3_a_voucher_that_is_not_known_has_no_cover() -> None:
    """And moves no pool: there is none."""
    found = Facts()
    assert redeem(found, use(of=None)).reasons == [Flag.UNKNOWN_REVISION, Flag.WITHOUT_COVER]
    assert moves(found) == {}


# 4. price


def test_4_a_revision_that_is_not_known_is_no_wrong_price() -> None:
    """A restore forgets what was published after the backup, and no till can tell it again (fleet, seed 2, case 17).
    Nothing of that redemption has a figure of the server; but the result still has to give each use its amount."""
    said = '{"code":"%s","discount_minor":%d,"lines":[{"id":"1","discount_minor":%d}]}'
    tea, jam, less, rum = (
        said % one for one in (("tea", 100, 100), ("jam", 90, 90), ("jam", 80, 80), ("rum", 100, 100))
    )
    unknown = [Flag.UNKNOWN_REVISION, Flag.WITHOUT_COVER]
    for applied, reasons in (
        (f"{jam},{tea}", unknown),
        (f"{tea},{less}", [Flag.PRICE_MISMATCH, *unknown]),
        (f"{rum},{jam}", [Flag.PRICE_MISMATCH, *unknown]),
        (tea, [Flag.PRICE_MISMATCH, *unknown]),
    ):
        found, body = with_lease(facts(), lease()), body_of(result=f'{{"applied":[{applied}]}}'.encode())
        assert redeem(found, use(), use(minor=90, of=None, voucher_id=JAM), body=body).reasons == reasons
        assert [one.settled_minor for one in found.redemptions[SALE].uses.values()] == [None, None]


# 5. circumstances


@pytest.mark.parametrize(
    ("at", "reasons"),
    [
        (RULES.now + RULES.clock_ahead, []),
        (RULES.now + RULES.clock_ahead + SECOND, [Flag.TIME_UNCERTAIN]),
        (RULES.now - RULES.clock_back, []),
        (RULES.now - RULES.clock_back - SECOND, [Flag.TIME_UNCERTAIN]),
    ],
)
def test_5_a_time_is_uncertain_past_the_bound_and_not_at_it(at: datetime, reasons: list[Flag]) -> None:
    """Ahead of the server's clock, or behind the event before."""
    found = with_lease(facts(), lease())
    found.last_event_at = NOON
    assert redeem(found, at=at).reasons == reasons


@pytest.mark.parametrize(("after", "reasons"), [(timedelta(0), []), (SECOND, [Flag.LATE])])
def test_5_late_begins_after_the_cap(after: timedelta, reasons: list[Flag]) -> None:
    """At the end of the longest time offline a redemption is in time."""
    rules = Rules("store-1", NOON, 5 * MINUTE, 5 * MINUTE, NOON)
    assert redeem(with_lease(facts(), lease()), at=NOON + after, rules=rules).reasons == reasons


@pytest.mark.parametrize(
    ("fields", "revoked"),
    [
        ({"deactivated_at": NOON - SECOND}, True),
        ({"deactivated_at": NOON}, False),
        ({"sha256": "1" * 64, "revised_at": NOON - SECOND, "status": "deactivated"}, True),
        ({"sha256": "1" * 64, "revised_at": NOON, "status": "deactivated"}, False),
        ({"sha256": "1" * 64, "revised_at": NOON - SECOND}, False),
        ({"sha256": "1" * 64, "revised_at": NOON - SECOND, "valid_until": NOON - SECOND}, True),
        ({"sha256": "1" * 64, "revised_at": NOON - SECOND, "valid_until": NOON}, False),
        ({"revised_at": NOON - SECOND, "valid_until": NOON - SECOND}, False),
    ],
)
def test_5_withdrawn_begins_after_its_moment(fields: dict[str, Any], revoked: bool) -> None:
    """Deactivated, or revised so that it is over: past that moment, and only where it was not sold by that revision."""
    found = with_lease(facts(), lease())
    for name, value in fields.items():
        setattr(found.vouchers[TEA], name, value)
    assert redeem(found).reasons == ([Flag.REVOKED_VOUCHER] if revoked else [])


@pytest.mark.parametrize(("before", "over"), [(1, False), (2, True)])
def test_5_a_customer_has_as_many_as_the_limit_says(before: int, over: bool) -> None:
    """The last one is theirs, the next is flagged and counted."""
    found = with_lease(facts(per_customer=2), lease())
    found.customer_units[TEA, "anna"] = before
    assert redeem(found, body=body_of(ANNA)).reasons == ([Flag.CUSTOMER_LIMIT] if over else [])
    assert found.customer_moves == {(TEA, "anna"): 1}


def test_5_nobody_is_a_customer_within_no_limit() -> None:
    """Without a customer such a voucher is flagged, also for its price, and nobody's units are counted."""
    found = with_lease(facts(per_customer=2), lease())
    assert redeem(found).reasons == [Flag.CUSTOMER_LIMIT, Flag.PRICE_MISMATCH]
    assert found.customer_moves == {}
