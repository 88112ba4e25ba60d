"""What waits for a person of earlier syncs: which leases it keeps from being closed, and until when."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from tallystick_server import settling, sync
from tallystick_server.posting import BLOCKED_PAGE
from tallystick_server.settling import Settled
from tallystick_shared.journal import EVENT_BYTES_MAX, StoredEvent
from tallystick_shared.wire import Flag, Lease, Outcome
from tests.server.conftest import ORDER, voucher
from tests.server.tiny_device import TinyDevice

if TYPE_CHECKING:
    from tests.server.conftest import Shop


def leased(shop: Shop) -> tuple[TinyDevice, Lease, Lease]:
    """A device with a lease of `tea` and one of `jam`."""
    shop.publish(voucher("tea", total=5), voucher("jam", total=5))
    device = shop.device()
    tea, jam = device.lease_of("tea"), device.lease_of("jam")
    assert tea is not None
    assert jam is not None
    return device, tea, jam


def closed(device: TinyDevice, lease: Lease) -> list[str]:
    """Closes it in a sync of its own; what that was flagged with."""
    device.close(lease)
    device.forgiving = True
    return [reason for one in device.sync().exceptions for reason in one.reasons]


@pytest.mark.parametrize("large", [False, True])
def test_what_could_not_be_read_earlier_blocks_every_close_until_it_is_resolved(shop: Shop, large: bool) -> None:
    """No envelope, or an event too large to be one: any lease may have been used in it."""
    device, tea, jam = leased(shop)
    if large:
        device.redeem(ORDER, "tea", lease=None)
        device.events[-1] = StoredEvent(device.events[-1].envelope, b"x" * EVENT_BYTES_MAX)
    else:
        device.append_raw(b"unreadable")
    assert [one.outcome for one in device.sync().exceptions] == [Outcome.QUARANTINED]
    assert closed(device, tea) == [Flag.UNREADABLE]
    assert shop.pool("tea")["held"] == 5
    (first, _) = shop.rows("SELECT id FROM flags ORDER BY id")
    assert shop.post(f"/v1/flagged/{first['id']}/resolve", {"note": "seen"}).status_code == 200
    assert closed(device, jam) == []
    assert shop.pool("jam")["closed_used"] == 0
    assert shop.rows("SELECT state FROM leases WHERE id = :id", id=jam.id) == [{"state": "closed"}]


def quarantine(monkeypatch: pytest.MonkeyPatch, first: int, last: int) -> None:
    """Settling fails on the events of these numbers."""

    def failing(stored: StoredEvent, seq: int, *rest: Any) -> Settled:
        if first <= seq <= last:
            raise RuntimeError("a way nobody thought of")
        return settling.settle(stored, seq, *rest)

    monkeypatch.setattr(sync, "settle", failing)


@pytest.mark.parametrize("before", [0, BLOCKED_PAGE - 1, BLOCKED_PAGE], ids=["alone", "last of a page", "next page"])
def test_a_quarantined_event_blocks_the_leases_that_it_names(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """However many came before it that name none; other leases close as ever."""
    device, tea, jam = leased(shop)
    quarantine(monkeypatch, 1, before + 1)
    for _ in range(before):
        device.redeem(ORDER, "jam", lease=None)
    device.redeem(ORDER, "tea")
    assert {one.outcome for one in device.sync().exceptions} == {Outcome.QUARANTINED}
    assert closed(device, tea) == [Flag.UNREADABLE]
    assert closed(device, jam) == []
    states = {row["id"]: row["state"] for row in shop.rows("SELECT id, state FROM leases")}
    assert (states[tea.id], states[jam.id]) == ("open", "closed")


def test_what_another_device_left_blocks_nothing(shop: Shop) -> None:
    """Each journal speaks for the leases of its own device."""
    shop.publish(voucher("tea", total=6))
    one, other = shop.devices("a", "b")
    one.append_raw(b"unreadable")
    one.sync()
    (lease,) = other.active()
    assert closed(other, lease) == []


def test_who_resolves_a_flagged_event_reads_what_it_says(shop: Shop) -> None:
    """Its place, id, kind, time and reason; of one that cannot be read its bytes, and nothing else is claimed."""
    device, tea, _ = leased(shop)
    event_id = device.redeem(ORDER, "tea", minor=99)
    device.append_raw(b"\xffunreadable")
    device.sync()
    said, raw = shop.get("/v1/flagged")["flagged"]
    assert (said["device_id"], said["branch"], said["seq"], said["reason"]) == (device.id, 0, 1, "PRICE_MISMATCH")
    assert (said["event_id"], said["type"]) == (event_id, "redeem")
    assert datetime.fromisoformat(said["at"]) == shop.clock()
    assert tea.id in said["envelope"]
    assert (raw["seq"], raw["reason"], raw["envelope"]) == (2, "UNREADABLE", "\ufffdunreadable")
    assert (raw["event_id"], raw["type"], raw["at"]) == (None, None, None)
    stored = shop.rows("SELECT outcome, received_at FROM events ORDER BY seq")
    assert [row["outcome"] for row in stored] == ["flagged", "quarantined"]
