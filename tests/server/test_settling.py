"""Settling, step by step: the numbers are those of `tallystick_server.settling`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tallystick_shared.journal import EventType, PlainBody, Use, encode
from tallystick_shared.wire import EventOutcome, Flag, Outcome
from tests.server.conftest import ORDER, voucher
from tests.server.tiny_device import NONE, TinyDevice, new_id

if TYPE_CHECKING:
    from tests.server.conftest import Shop


def only(device: TinyDevice) -> EventOutcome | None:
    """The one exception of a sync, or None where everything was applied."""
    exceptions = device.sync().exceptions
    assert len(exceptions) <= 1
    return exceptions[0] if exceptions else None


def reasons(device: TinyDevice) -> list[Flag]:
    found = only(device)
    return [] if found is None else [Flag(one) for one in found.reasons]


# 1. identifier


def test_1_the_same_redemption_again_is_a_duplicate(shop: Shop) -> None:
    """One id with the same content twice in a journal has one effect."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    first = device.redeem(ORDER, "tea")
    device.sync()
    device.redeem(ORDER, "tea", redemption_id=first)
    found = only(device)
    assert found is not None
    assert (found.outcome, found.reasons) == (Outcome.DUPLICATE, [])
    assert len(shop.rows("SELECT 1 FROM redemption_uses")) == 1


def test_1_an_id_used_for_something_else_is_flagged(shop: Shop) -> None:
    """One id with other content is flagged and has no effect."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    first = device.redeem(ORDER, "tea")
    device.redeem(ORDER | {"id": "order-2"}, "tea", redemption_id=first)
    assert reasons(device) == [Flag.IDENTIFIER_REUSED]
    assert shop.rows("SELECT known_units FROM leases") == [{"known_units": 1}]


def test_1_an_online_attempt_that_fell_back_counts_once(either_shop: Shop) -> None:
    """Asked online, no answer, redeemed offline under the same id: one use, of the lease and no longer of the pool."""
    either_shop.publish(voucher("tea", total=5, per_customer=1, budget_minor=1_000))
    either_shop.device("store-2", synced=False)  # its share stays free, and is there to be had online
    device = either_shop.device()
    before = either_shop.pool("tea")
    attempt = new_id()
    assert device.answer_online(ORDER, ["tea"], attempt).redeemed is True
    assert either_shop.pool("tea")["online"] == 1
    device.redeem(ORDER, "tea", redemption_id=attempt)
    assert only(device) is None
    assert either_shop.pool("tea") == before
    assert either_shop.rows("SELECT units FROM customer_uses") == [{"units": 1}]
    (use,) = either_shop.rows("SELECT cover FROM redemption_uses")
    assert use["cover"] == "lease"


def test_1_an_online_attempt_that_arrives_after_its_fallback_counts_once(shop: Shop) -> None:
    """The line held the attempt back until the offline redemption was settled: it gets that one's answer."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    attempt = device.redeem(ORDER, "tea")
    device.sync()
    assert device.answer_online(ORDER, ["tea"], attempt).redeemed is True
    assert shop.pool("tea")["online"] == 0


def test_1_an_online_attempt_for_another_order_keeps_its_effect(shop: Shop) -> None:
    """An offline redemption that reuses the id of an online one for another order is flagged."""
    shop.publish(voucher("tea", total=5))
    shop.device("store-2", synced=False)
    device = shop.device()
    attempt = new_id()
    assert device.answer_online(ORDER, ["tea"], attempt).redeemed is True
    device.redeem(ORDER | {"id": "order-2"}, "tea", redemption_id=attempt)
    assert reasons(device) == [Flag.IDENTIFIER_REUSED]


# 2. body


def test_2_a_body_that_is_not_the_envelopes_is_flagged_and_counted(shop: Shop) -> None:
    """The accounting reads the envelope only: an unreadable body breaks no count."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    device.redeem(ORDER, "tea")
    device.events[0] = type(device.events[0])(device.events[0].envelope, b"{}")
    assert reasons(device) == [Flag.UNREADABLE]
    assert shop.rows("SELECT known_units FROM leases") == [{"known_units": 1}]
    assert shop.rows("SELECT settled_minor FROM redemption_uses") == [{"settled_minor": None}]


def test_2_a_result_that_is_not_the_uses_is_flagged(shop: Shop) -> None:
    """A body whose result gives another amount than the envelope is a price mismatch."""
    shop.publish(voucher("jam"))
    device = shop.device()
    device.redeem(ORDER, "jam", body_result=b'{"applied":[]}')
    assert reasons(device) == [Flag.PRICE_MISMATCH]


# 3. cover


def test_3_a_use_beyond_the_lease_is_without_cover(either_shop: Shop) -> None:
    """k never passes q: what lies beyond is taken from the pool, below 0 if need be, and flagged."""
    either_shop.publish(voucher("tea", total=1))
    device = either_shop.device()
    device.redeem(ORDER, "tea")
    device.redeem(ORDER, "tea")
    assert reasons(device) == [Flag.WITHOUT_COVER]
    pool = either_shop.pool("tea")
    assert (pool["free"], pool["uncovered"], pool["held"]) == (-1, 1, 1)


def test_3_a_lease_of_another_device_covers_nothing(shop: Shop) -> None:
    """A device that names a lease which is not its own is without cover, and the other's lease is untouched."""
    shop.publish(voucher("tea", total=1))
    holder, thief = shop.device("store-1"), shop.device("store-2")
    (lease,) = holder.active()
    thief.redeem(ORDER, "tea", lease=lease.id)
    assert reasons(thief) == [Flag.WITHOUT_COVER]
    assert shop.rows("SELECT known_units FROM leases") == [{"known_units": 0}]


def test_3_an_open_voucher_needs_no_cover(shop: Shop) -> None:
    """A voucher without a limit is redeemed freely, and nothing is flagged."""
    shop.publish(voucher("jam"))
    device = shop.device()
    device.redeem(ORDER, "jam")
    assert only(device) is None


def test_3_a_soft_voucher_is_flagged_beyond_its_limit_only(shop: Shop) -> None:
    """Within the limit a soft voucher is free to use; the first use beyond it waits for a person."""
    shop.publish(voucher("soft", total=2, offline={"policy": "soft", "max_units": 9, "max_minor": 900}))
    device = shop.device()
    for _ in range(3):
        device.redeem(ORDER, "soft")
    found = device.sync().exceptions
    assert [(one.seq, one.reasons) for one in found] == [(3, [Flag.WITHOUT_COVER])]


def test_3_an_online_only_voucher_is_without_cover(shop: Shop) -> None:
    """Redeemed offline against its policy it is counted and flagged."""
    shop.publish(voucher("gold", offline={"policy": "online_only"}))
    device = shop.device()
    device.redeem(ORDER, "gold")
    assert reasons(device) == [Flag.WITHOUT_COVER]


def test_3_a_voucher_nobody_published_is_stored_and_flagged(shop: Shop) -> None:
    """A use of an unknown voucher is a fact like any other."""
    shop.publish(voucher("jam"))
    device = shop.device()
    device.append(EventType.REDEEM, [Use(NONE, None, None, 1, 50)], encode(PlainBody("salt")))
    found = only(device)
    assert found is not None
    assert Flag.WITHOUT_COVER in found.reasons
    assert shop.rows("SELECT minor FROM redemption_uses") == [{"minor": 50}]


# 4. price


def test_4_another_amount_is_flagged_and_both_are_kept(either_shop: Shop) -> None:
    """The figure frozen on the device counts; what this server's engine says stands beside it."""
    either_shop.publish(voucher("tea", budget_minor=10_000, total=5))
    device = either_shop.device()
    device.redeem(ORDER, "tea", minor=150)
    assert reasons(device) == [Flag.PRICE_MISMATCH]
    (use,) = either_shop.rows("SELECT minor, settled_minor FROM redemption_uses")
    assert use == {"minor": 150, "settled_minor": 100}
    assert either_shop.rows("SELECT known_minor FROM leases") == [{"known_minor": 150}]


def test_4_other_shares_are_flagged(shop: Shop) -> None:
    """The same amount on other lines is a price mismatch too."""
    shop.publish(voucher("jam"))
    device = shop.device()
    moved = b'{"applied":[{"code":"jam","discount_minor":100,"lines":[{"id":"2","discount_minor":100}]}]}'
    device.redeem(ORDER, "jam", body_result=moved)
    assert reasons(device) == [Flag.PRICE_MISMATCH]


# 5. circumstances


def test_5_after_the_lease_ended_is_late(shop: Shop) -> None:
    """A use after the lease's expiry is covered, counted, and flagged."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    shop.clock.advance(days=14, seconds=1)
    device.redeem(ORDER, "tea")
    assert Flag.LATE in reasons(device)


def test_5_past_the_offline_cap_is_late(shop: Shop) -> None:
    """Redeemed longer after the last contact than manifest and cap allow."""
    shop.publish(voucher("jam"))
    device = shop.device()
    shop.clock.advance(days=8, minutes=6)
    device.redeem(ORDER, "jam")
    assert reasons(device) == [Flag.LATE]


@pytest.mark.parametrize(("after", "expected"), [(-1, []), (1, [Flag.REVOKED_VOUCHER])])
def test_5_a_withdrawn_voucher_is_flagged_from_then_on(shop: Shop, after: int, expected: list[Flag]) -> None:
    """Before the operator deactivated it a redemption is good, however late it arrives; after it waits for a person."""
    shop.publish(voucher("jam"))
    device = shop.device()
    (row,) = shop.get("/v1/vouchers", code="JAM")["vouchers"]
    shop.clock.advance(minutes=2)
    assert shop.post(f"/v1/vouchers/{row['id']}/deactivate").status_code == 200
    device.redeem(ORDER, "jam", at=shop.clock() + timedelta(minutes=after))
    assert reasons(device) == expected


def test_5_a_customer_over_the_limit_is_flagged(either_shop: Shop) -> None:
    """Two devices, offline together, serve one customer: both are counted, the second waits for a person."""
    either_shop.publish(voucher("tea", total=10, per_customer=1))
    one, other = either_shop.devices("store-1", "store-2")
    one.redeem(ORDER, "tea")
    other.redeem(ORDER, "tea")
    assert reasons(one) == []
    assert reasons(other) == [Flag.CUSTOMER_LIMIT]
    assert either_shop.rows("SELECT units FROM customer_uses") == [{"units": 2}]


@pytest.mark.parametrize("minutes", [6, -6])
def test_5_an_uncertain_time_is_flagged(shop: Shop, minutes: int) -> None:
    """Ahead of the server's clock, or behind the event before, by more than some minutes."""
    shop.publish(voucher("jam"))
    device = shop.device()
    device.redeem(ORDER, "jam")
    device.sync()
    device.redeem(ORDER, "jam", at=shop.clock() + timedelta(minutes=minutes))
    assert reasons(device) == [Flag.TIME_UNCERTAIN]


# voids


def test_a_void_returns_unit_and_amount_once(either_shop: Shop) -> None:
    """The first full void gives back units and minor; the second is stored, flagged and gives nothing."""
    either_shop.publish(voucher("tea", total=5, budget_minor=1_000, per_customer=1))
    device = either_shop.device()
    ref = device.redeem(ORDER, "tea")
    device.sync()
    device.void(ref, "tea", minor=100)
    assert only(device) is None
    units, minor = either_shop.pool("tea"), either_shop.pool("tea", "minor")
    assert (units["voided"], minor["voided"]) == (1, 100)
    assert either_shop.rows("SELECT units FROM customer_uses") == [{"units": 0}]
    device.void(ref, "tea", minor=100)
    assert reasons(device) == [Flag.ALREADY_VOIDED]
    again = either_shop.pool("tea")
    assert (again["free"], again["voided"]) == (units["free"], 1)


def test_a_partial_return_gives_back_minor_only(shop: Shop) -> None:
    """Two partial returns give back their minor; a third that exceeds what was given is flagged."""
    shop.publish(voucher("tea", total=5, budget_minor=1_000))
    device = shop.device()
    ref = device.redeem(ORDER, "tea")
    device.void(ref, "tea", units=0, minor=60)
    device.void(ref, "tea", units=0, minor=40)
    assert only(device) is None
    assert (shop.pool("tea")["voided"], shop.pool("tea", "minor")["voided"]) == (0, 100)
    device.void(ref, "tea", units=0, minor=1)
    assert reasons(device) == [Flag.ALREADY_VOIDED]


def test_a_void_of_what_was_never_redeemed_is_flagged(shop: Shop) -> None:
    """A void of an unknown redemption, or of another device's, has no effect."""
    shop.publish(voucher("tea", total=5))
    one, other = shop.device("store-1"), shop.device("store-2")
    ref = one.redeem(ORDER, "tea")
    one.sync()
    other.void(ref, "tea", minor=100)
    assert reasons(other) == [Flag.WITHOUT_COVER]
    assert shop.pool("tea")["voided"] == 0


# closes


def test_a_close_returns_the_rest_once(either_shop: Shop) -> None:
    """q - u comes back, u stays used; a second close of the same lease is a duplicate."""
    either_shop.publish(voucher("tea", total=5, budget_minor=1_000))
    device = either_shop.device(synced=False)
    device.fetch()
    device.sync()
    device.redeem(ORDER, "tea")
    (lease,) = device.active()
    device.close(lease)
    device.close(lease)
    found = device.send(device.request()).exceptions
    assert [(one.seq, one.outcome) for one in found] == [(3, Outcome.DUPLICATE)]
    units, minor = either_shop.pool("tea"), either_shop.pool("tea", "minor")
    assert (units["closed_used"], minor["closed_used"]) == (1, 100)
    (row,) = either_shop.rows("SELECT state, known_units FROM leases WHERE id = :id", id=lease.id)
    assert row == {"state": "closed", "known_units": 1}


@pytest.mark.parametrize(("units", "minor"), [(0, 0), (6, 600)], ids=["u below k", "u above q"])
def test_a_close_that_cannot_be_true_keeps_the_lease_held(shop: Shop, units: int, minor: int) -> None:
    """A close with u below k or above q returns nothing until a person decides."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    device.redeem(ORDER, "tea")
    device.sync()
    (lease,) = device.active()
    device.close(lease, units=units, minor=minor)
    assert reasons(device) == [Flag.WITHOUT_COVER]
    assert shop.pool("tea")["held"] == 5


def test_a_close_over_an_unreadable_span_keeps_the_lease_until_resolved(either_shop: Shop) -> None:
    """Uses may lie in what cannot be read: the units stay held until a person resolves the close."""
    either_shop.publish(voucher("tea", total=5))
    device = either_shop.device()
    device.append_raw(b"unreadable")
    (lease,) = device.active()
    device.close(lease)
    found = device.sync().exceptions
    assert [(one.outcome, one.reasons) for one in found] == [
        (Outcome.QUARANTINED, [Flag.UNREADABLE]),
        (Outcome.FLAGGED, [Flag.UNREADABLE]),
    ]
    assert either_shop.pool("tea")["held"] == 5
    close = either_shop.get("/v1/flagged")["flagged"][1]
    assert either_shop.post(f"/v1/flagged/{close['id']}/resolve", {"note": "looked at it"}).status_code == 200
    assert (either_shop.pool("tea")["held"], either_shop.pool("tea")["free"]) == (0, 5)
    assert either_shop.post(f"/v1/flagged/{close['id']}/resolve").status_code == 409


def test_a_lost_devices_late_close_returns_the_rest(either_shop: Shop) -> None:
    """A lost till that turns up again gives back what it did not use; one that forked does not."""
    either_shop.publish(voucher("tea", total=5))
    device = either_shop.device()
    either_shop.post(f"/v1/devices/{device.id}/lost")
    assert either_shop.pool("tea")["held"] == 5
    device.redeem(ORDER, "tea")
    device.close(next(iter(device.leases.values())))
    assert only(device) is None
    pool = either_shop.pool("tea")
    assert (pool["held"], pool["closed_used"], pool["free"]) == (0, 1, 4)


def test_a_forked_devices_close_returns_nothing(shop: Shop) -> None:
    """Its leases are burned for good: another branch may have used what this one did not."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    device.boot_id = "boot-2"
    device.redeem(ORDER, "tea")
    device.sync()
    (lease,) = device.active()
    device.events, device.hashes, device.acknowledged = [], [], 0
    device.redeem(ORDER | {"id": "elsewhere"}, "tea")
    device.sync()
    device.close(lease)
    found = only(device)
    assert found is not None
    assert found.outcome == Outcome.DUPLICATE
    assert shop.pool("tea")["held"] == 5


def test_flagged_events_wait_in_order(shop: Shop) -> None:
    """The queue has one entry a reason, oldest first, page by page, and a resolved one leaves it."""
    shop.publish(voucher("jam"))
    device = shop.device()
    for _ in range(3):
        device.redeem(ORDER, "jam", minor=1)
    device.sync()
    page: dict[str, Any] = shop.get("/v1/flagged", limit=2)
    assert [one["seq"] for one in page["flagged"]] == [1, 2]
    rest = shop.get("/v1/flagged", limit=2, cursor=page["next"])
    assert [one["seq"] for one in rest["flagged"]] == [3]
    assert rest["next"] is None
    shop.post(f"/v1/flagged/{page['flagged'][0]['id']}/resolve", {"note": "fine"})
    assert len(shop.get("/v1/flagged")["flagged"]) == 2
    assert shop.get("/v1/flagged", state="resolved")["flagged"][0]["note"] == "fine"
