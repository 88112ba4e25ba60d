"""What is one device's or one customer's is nobody else's: each query asks for its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystick_shared.wire import Flag, Outcome
from tests.server.conftest import ORDER, voucher
from tests.server.tiny_device import new_id

if TYPE_CHECKING:
    from tests.server.conftest import Shop


def test_a_customer_is_not_refused_for_what_another_one_used(shop: Shop) -> None:
    """Each has the limit for themselves."""
    shop.publish(voucher("gold", total=5, per_customer=1, offline={"policy": "online_only"}))
    answers = [shop.online(new_id(), "gold", order=ORDER | {"customer": {"id": name}}).json()
               for name in ("anna", "bert") for _ in range(2)]  # fmt: skip
    assert [answer["redeemed"] for answer in answers] == [True, False, True, False]
    assert shop.rows("SELECT units FROM customer_uses") == [{"units": 1}, {"units": 1}]


def test_what_one_device_sent_unreadable_blocks_no_close_of_another(shop: Shop) -> None:
    """The other's lease is closed, and its rest comes back."""
    shop.publish(voucher("tea", total=4))
    one, other = shop.devices("store-1", "store-2")
    one.append_raw(b"unreadable")
    one.sync()
    (lease,) = other.active()
    other.close(lease)
    assert other.sync().exceptions == []
    assert shop.rows("SELECT state FROM leases WHERE id = :id", id=lease.id) == [{"state": "closed"}]


def test_what_a_person_has_looked_at_blocks_no_later_close(shop: Shop) -> None:
    """Until then a close of that device waits; after it the next one returns its rest."""
    shop.publish(voucher("tea", total=4), voucher("jam", total=4))
    device = shop.device()
    device.append_raw(b"unreadable")
    device.sync()
    first, second = device.active()
    device.close(first)
    (waiting,) = device.sync().exceptions
    assert (waiting.outcome, waiting.reasons) == (Outcome.FLAGGED, [Flag.UNREADABLE])
    for flag in shop.get("/v1/flagged")["flagged"]:
        assert shop.post(f"/v1/flagged/{flag['id']}/resolve", {"note": "seen"}).status_code == 200
    device.close(second)
    assert device.sync().exceptions == []
    states = [shop.rows("SELECT state FROM leases WHERE id = :id", id=one.id)[0]["state"] for one in (first, second)]
    assert states == ["closed", "closed"]


def test_an_event_is_found_by_its_own_id(shop: Shop) -> None:
    """What is stored of an event names it as its device does; what cannot be read has no name."""
    shop.publish(voucher("tea", total=4))
    device = shop.device()
    sold = device.redeem(ORDER, "tea")
    device.append_raw(b"unreadable")
    device.sync()
    assert shop.rows("SELECT seq, event_id FROM events ORDER BY seq") == [
        {"seq": 1, "event_id": sold},
        {"seq": 2, "event_id": None},
    ]


def test_a_closed_lease_is_in_no_answer_any_more(shop: Shop) -> None:
    """A till is told of the leases it holds open, and of what it is granted."""
    shop.publish(voucher("tea", total=4), voucher("jam", total=4))
    device = shop.device()
    first, second = device.active()
    device.close(first)
    device.sync()
    assert first.id not in {lease.id for lease in device.sync().leases}
    assert shop.rows("SELECT state FROM leases WHERE id = :id", id=first.id) == [{"state": "closed"}]
    assert second in device.active()


def test_an_online_redemption_counts_for_the_store_of_its_device(shop: Shop) -> None:
    """Whatever the order says; for the store of the order where an operator asks."""
    shop.publish(voucher("gold", offline={"policy": "online_only"}))
    device = shop.device("store-7")
    elsewhere = ORDER | {"store_id": "store-9"}
    assert device.answer_online(elsewhere, ["gold"], new_id()).redeemed is True
    assert shop.online(new_id(), "gold", order=elsewhere).json()["redeemed"] is True
    stores = sorted(row["store_id"] for row in shop.rows("SELECT store_id FROM redemptions"))
    assert stores == ["store-7", "store-9"]
