"""A restore that nobody declared, and how far a journal is durable (protocol.md, section 7)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tallystick_shared.journal import StoredEvent
from tallystick_shared.wire import Outcome
from tests.server.conftest import ORDER, voucher
from tests.server.restoring import Backup
from tests.server.test_recovery import audited, begin, epoch_of, report, state
from tests.server.tiny_device import TinyDevice, digest, new_id

if TYPE_CHECKING:
    from tests.server.conftest import Shop


SIGNS = [
    ({"ledger_mark": 1_000}, "ledger mark 1000"),
    ({"server_epoch": 2}, "epoch 2"),
    ({"lease_number": 7}, "lease number 7"),
    ({}, "event 3"),
]


@pytest.mark.parametrize(("sign", "why"), SIGNS, ids=["ledger mark", "epoch", "leases", "journal"])
def test_what_a_device_has_seen_and_the_server_has_not_is_an_undeclared_restore(
    shop: Shop, sign: dict[str, Any], why: str
) -> None:
    """Each of the signs of an active device stops all grants; a suspended device is not believed."""
    shop.publish(voucher("tea", total=4))
    turned_away, device, other = (shop.device(store, synced=False) for store in "abc")
    shop.post(f"/v1/devices/{turned_away.id}/suspend")
    assert turned_away.post(with_head(turned_away, sign)).status_code == 200
    assert state(shop) == "normal"
    answer = device.post(with_head(device, sign))
    assert answer.status_code == 200
    assert state(shop) == "restore_suspected"
    assert shop.rows("SELECT 1 FROM leases") == []
    other.fetch()
    other.sync()
    assert other.active() == []
    assert shop.online(new_id(), "tea").json()["code"] == "RECOVERING"
    (row,) = audited(shop, "restore.suspect")
    assert row["object"] == device.id
    assert why in row["detail"]["why"]
    assert shop.rows("SELECT branches FROM devices WHERE id = :id", id=device.id) == [{"branches": 1}]


def with_head(device: TinyDevice, sign: dict[str, Any]) -> bytes:
    """A request without events whose head says this; or, if nothing, that three events were acknowledged."""
    if not sign:
        device.events, device.hashes = [StoredEvent(b"", b"")] * 3, [digest("x")] * 3
        device.acknowledged = 3
    return device.request(**sign)


def test_a_declaration_leads_out_of_a_suspicion(shop: Shop) -> None:
    """Status says what to do; the recovery begins, and the device that raised the suspicion reports like all others."""
    shop.publish(voucher("tea", total=4))
    device = shop.device(synced=False)
    device.fetch()
    backup = Backup(shop)
    device.sync()
    device.redeem(ORDER, "tea")
    device.sync()
    backup.restore()
    device.forgiving = True
    device.post(device.request())
    (note,) = [note for note in shop.get("/v1/status")["notes"] if device.id in note]
    assert "recovery begin" in note
    assert begin(shop)["server_epoch"] == epoch_of(shop)
    (row,) = audited(shop, "recovery.begin")
    assert row["detail"]["suspected_by"] == device.id
    assert any("0 of 1 devices" in note for note in shop.get("/v1/status")["notes"])
    device.forgiving = False
    report(device)
    assert state(shop) == "normal"
    assert shop.pool("tea")["held"] == 4


def test_a_suspicion_leaves_forgotten_leases_to_their_device(shop: Shop) -> None:
    """A device with leases that the server forgot is not told that it holds none: it would give them up."""
    shop.publish(voucher("tea", total=4))
    device = shop.device(synced=False)
    device.fetch()
    backup = Backup(shop)
    device.sync()
    backup.restore()
    device.forgiving, device.ledger_mark = True, 0
    answer = device.sync()
    assert (answer.leases_full, answer.leases, answer.recall) == (False, [], [])
    assert len(device.active()) == 1


def test_another_restore_while_it_recovers_is_suspected_too(shop: Shop) -> None:
    """A device that saw more in the new epoch than the database holds leads back to a suspicion."""
    shop.publish(voucher("jam"))
    one, _ = shop.devices("a", "b")
    begin(shop)
    backup = Backup(shop)
    report(one)
    backup.restore()
    one.post(one.request())
    assert state(shop) == "restore_suspected"
    assert begin(shop)["server_epoch"] == epoch_of(shop) + 1
    report(one)
    assert state(shop) == "recovering"


def test_an_event_that_was_acknowledged_in_this_epoch_proves_another_restore(shop: Shop) -> None:
    """Of a backup made while it recovered, whose marks the other devices have overtaken since."""
    shop.publish(voucher("jam"))
    one, other = shop.devices("a", "b")
    begin(shop)
    backup = Backup(shop)
    one.redeem(ORDER, "jam")
    report(one)
    backup.restore()
    for _ in range(4):
        other.sync()
    one.redeem(ORDER, "jam")
    one.forgiving = True
    one.post(one.request())
    assert state(shop) == "restore_suspected"
    begin(shop)
    report(one)
    assert len(shop.rows("SELECT 1 FROM redemptions")) == 2


def test_marks_of_an_epoch_that_is_over_prove_nothing(shop: Shop) -> None:
    """A device that has yet to hear of the new epoch has seen higher marks, of course."""
    device = shop.device()
    begin(shop)
    device.post(device.request(ledger_mark=1_000, lease_number=9))
    assert state(shop) == "recovering"


def test_a_copied_disk_is_no_undeclared_restore(shop: Shop) -> None:
    """The copy that reported knew none of the leases that the other one was granted before the restore: the device is
    forked and turned away, and all others go on (fleet, seed 2, cases 17 and 19)."""
    shop.publish(voucher("tea", total=4), voucher("jam"))
    device, other = shop.devices("a", "b")
    backup = Backup(shop)
    copied = TinyDevice(device.url, device.clock)
    copied.__dict__.update(device.__dict__ | {"events": [*device.events], "hashes": [*device.hashes]})
    copied.lease_number += 2
    copied.redeem(ORDER, "jam")
    device.redeem(ORDER, "jam", minor=1)
    backup.restore()
    begin(shop, all_known=True)
    for one in (device, other):
        report(one)
    assert state(shop) == "normal"
    copied.forgiving = True
    for _ in range(3):
        copied.sync()
    assert state(shop) == "normal"
    assert audited(shop, "restore.suspect") == []
    assert shop.rows("SELECT branches FROM devices WHERE id = :id", id=device.id) == [{"branches": 2}]


# durable


def test_durable_is_what_the_last_backup_holds(shop: Shop) -> None:
    """Never above what is acknowledged, and of a copy never what it does not share."""
    shop.publish(voucher("jam"))
    device = shop.device()
    for _ in range(3):
        device.redeem(ORDER, "jam")
    device.sync(through=2)
    shop.rows("UPDATE devices SET durable_seq = seq, durable_hash = hash")
    assert device.sync().durable == device.position(2)
    begin(shop)
    assert device.sync().durable == device.position(2)
    copied = TinyDevice(device.url, device.clock)
    copied.__dict__.update(device.__dict__ | {"events": device.events[:2], "hashes": device.hashes[:2]})
    copied.acknowledged = 2
    copied.redeem(ORDER, "jam", minor=1)
    assert copied.sync().durable == copied.position(2), "the branches differ after what is durable"
    shop.rows("UPDATE devices SET durable_seq = seq, durable_hash = hash")
    copied.redeem(ORDER, "jam")
    assert copied.sync().durable == copied.position(0)


def test_durable_is_never_above_what_is_acknowledged(shop: Shop) -> None:
    """A device that asks again for its first events hears that these are durable, not more."""
    shop.publish(voucher("jam"))
    device = shop.device()
    for _ in range(3):
        device.redeem(ORDER, "jam")
    device.sync()
    shop.rows("UPDATE devices SET durable_seq = seq, durable_hash = hash")
    answer = device.sync(after=0, through=1)
    assert (answer.acknowledged, answer.durable) == (device.position(1), device.position(1))


def test_outcomes_are_told_again_after_a_recovery(shop: Shop) -> None:
    """An event that the server did not forget is passed over, and what was said of it is said again."""
    shop.publish(voucher("jam"))
    device = shop.device()
    device.redeem(ORDER, "jam", minor=99)
    device.post(device.request())
    begin(shop)
    device.sync()
    device.acknowledged = 0
    assert [one.outcome for one in device.sync().exceptions] == [Outcome.FLAGGED]
    assert shop.clock() - timedelta(days=1) < device.answer.server_time
