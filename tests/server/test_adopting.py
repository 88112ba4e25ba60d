"""What a restored server takes from its devices: forgotten leases and events (protocol.md, section 7)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
import pytest

from tallystick_server.settings import Settings
from tallystick_shared.wire import DeviceState, Lease
from tests.server.conftest import ORDER, voucher
from tests.server.restoring import Backup
from tests.server.test_recovery import audited, begin, report, state
from tests.server.tiny_device import NONE, TinyDevice, new_id

if TYPE_CHECKING:
    from tests.server.conftest import Shop


def test_leases_that_make_no_sense_are_not_adopted(shop: Shop) -> None:
    """Of no voucher, with a measure that it has not, above its limit, or under a number or id that is known."""
    shop.publish(voucher("tea", total=5), voucher("jam"), voucher("coffee", total=5))
    one, other = shop.devices("a", "b")
    mine = {lease.voucher_id: lease for lease in one.active()}[one.vouchers["tea"].id]
    theirs = other.active()[0]
    begin(shop)
    one.sync()
    good = msgspec.structs.replace(mine, id=new_id(), number=50, voucher_id=one.vouchers["coffee"].id, units=5)
    bad = [
        msgspec.structs.replace(good, id=new_id(), number=51, voucher_id=NONE),
        msgspec.structs.replace(good, id=new_id(), number=52, voucher_id=one.vouchers["jam"].id),
        msgspec.structs.replace(good, id=new_id(), number=53, minor=100),
        msgspec.structs.replace(good, id=new_id(), number=54, units=None),
        msgspec.structs.replace(good, id=new_id(), number=55, units=6),
        msgspec.structs.replace(good, id=new_id(), number=mine.number),
        msgspec.structs.replace(theirs, number=56),
    ]
    one.forgiving = True
    one.sync(held=[mine, *bad, good], lease_number=60)
    adopted = [row["object"] for row in audited(shop, "lease.adopt")]
    assert adopted == [good.id]
    assert shop.rows("SELECT device_id FROM leases WHERE id = :id", id=theirs.id) == [{"device_id": other.id}]
    assert shop.rows("SELECT lease_number FROM devices WHERE id = :id", id=one.id) == [{"lease_number": 60}]


def test_after_its_report_a_device_adopts_nothing_more(shop: Shop) -> None:
    """What it tells once it has told everything is new, and so was never granted."""
    shop.publish(voucher("tea", total=5))
    one, _ = shop.devices("a", "b")
    begin(shop)
    report(one)
    invented = msgspec.structs.replace(one.active()[0], id=new_id(), number=1_000)
    one.forgiving = True
    one.sync(held=[invented], lease_number=one.lease_number)
    assert audited(shop, "lease.adopt") == []


def test_a_device_tells_its_leases_once_in_an_epoch(shop: Shop) -> None:
    """One that never comes to the end of its journal adds nothing with another list, whatever the numbers are."""
    shop.publish(voucher("tea", total=5))
    backup = Backup(shop)
    liar = shop.device("a")
    for _ in range(3):
        liar.redeem(ORDER, "tea")
    backup.restore()
    begin(shop)
    liar.enrol_again()
    liar.sync()
    (real,) = liar.active()
    liar.forgiving = True
    liar.sync(through=1)
    for number in (50, 60):
        invented = msgspec.structs.replace(real, id=new_id(), number=number)
        liar.sync(through=2, held=[real, invented], lease_number=number)
    assert [row["object"] for row in audited(shop, "lease.adopt")] == [real.id]
    assert shop.pool("tea")["free"] == 0


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return msgspec.structs.replace(settings, leases_per_device_max=8)


def test_numbers_and_counts_of_adopted_leases_are_bounded(shop: Shop) -> None:
    """No number beyond what the database holds, and no more leases than a device is ever granted."""
    shop.publish(*(voucher(f"tea{n}", total=5) for n in range(10)))
    backup = Backup(shop)
    liar = shop.device("a")
    ids = [liar.voucher_of(f"tea{n}").id for n in range(10)]
    backup.restore()
    begin(shop)
    liar.enrol_again()
    liar.forgiving = True
    liar.sync()
    ends = shop.clock() + timedelta(days=1)
    absurd = Lease(new_id(), 2**62, ids[9], 5, None, ends)
    held = [Lease(new_id(), 10 + n, ids[n], 5, None, ends) for n in range(9)]
    assert liar.post(liar.request(held=[absurd, *held], lease_number=10**15)).status_code == 200
    adopted = [row["object"] for row in audited(shop, "lease.adopt")]
    assert sorted(adopted) == sorted(one.id for one in held[:8])
    assert shop.rows("SELECT lease_number FROM devices") == [{"lease_number": 10**15}]


def test_what_a_device_is_known_to_hold_counts_for_how_many_it_can_claim(shop: Shop) -> None:
    """Three that the backup knows and eight more are three too many, whatever others hold."""
    shop.publish(*(voucher(f"jam{n}", total=9) for n in range(3)))
    liar, other = shop.devices("a", "b")
    shop.publish(*(voucher(f"tea{n}", total=5) for n in range(8)))
    liar.fetch()
    backup = Backup(shop)
    other.fetch()
    other.sync()
    backup.restore()
    known = liar.active()
    assert len(known) == 3
    begin(shop)
    liar.forgiving = True
    liar.sync()
    ends = shop.clock() + timedelta(days=1)
    told = [Lease(new_id(), 100 + n, liar.vouchers[f"tea{n}"].id, 5, None, ends) for n in range(8)]
    liar.sync(held=[*known, *told], lease_number=200)
    adopted = [row["object"] for row in audited(shop, "lease.adopt")]
    assert sorted(adopted) == sorted(one.id for one in told[:5])


def test_the_audit_of_an_adopted_lease_says_what_it_is_and_what_is_missing(shop: Shop) -> None:
    """Device, voucher, units and minor; and by how much more is out than there is, where others got it meanwhile."""
    shop.publish(voucher("tea", total=5, budget_minor=1_000), voucher("jam", total=5))
    device, other = shop.device("a", synced=False), shop.device("b", synced=False)
    device.fetch()
    other.fetch()
    backup = Backup(shop)
    device.sync()
    mine = {lease.voucher_id: lease for lease in device.active()}
    backup.restore()
    shop.rows("UPDATE pools SET free = 1, held = 4 WHERE measure = 'units' AND voucher_id = :id", id=min(mine))
    begin(shop)
    device.forgiving = True
    report(device)
    by_id = {row["object"]: row for row in audited(shop, "lease.adopt")}
    assert {row["who"] for row in by_id.values()} == {"server"}
    for voucher_id, lease in mine.items():
        missing = max(0, (lease.units or 0) - 1) if voucher_id == min(mine) else 0
        assert by_id[lease.id]["detail"] == {
            "device": device.id,
            "voucher": voucher_id,
            "units": lease.units,
            "minor": lease.minor,
            "overdrawn": {"units": missing} if missing else {},
        }


@pytest.mark.parametrize("granted_before", [True, False], ids=["the first is known", "both are forgotten"])
def test_two_leases_of_a_voucher_are_adopted_one_after_the_other(either_shop: Shop, granted_before: bool) -> None:
    """The second was granted after the close of the first, which is in the events that follow."""
    shop = either_shop
    shop.publish(voucher("tea", total=5))
    device = shop.device(synced=False)
    device.fetch()
    backup = Backup(shop)
    device.sync()
    if granted_before:
        backup = Backup(shop)
    (first,) = device.active()
    device.redeem(ORDER, "tea")
    device.close(first)
    device.sync()
    (second,) = device.active()
    for _ in range(2):
        device.redeem(ORDER, "tea")
    backup.restore()
    begin(shop)
    device.sync()
    device.forgiving = True  # it holds the second one only
    device.sync(through=1)
    device.forgiving = False
    states = {row["id"]: (row["state"], row["burned_by"]) for row in shop.rows("SELECT * FROM leases")}
    assert states == {first.id: ("open", None), second.id: ("burned", "lost")}
    assert device.sync().exceptions == []
    rows = {row["id"]: (row["state"], row["known_units"]) for row in shop.rows("SELECT * FROM leases")}
    assert rows == {first.id: ("closed", 1), second.id: ("open", 2)}
    pool = shop.pool("tea")
    assert (pool["free"], pool["held"], pool["closed_used"], pool["uncovered"]) == (0, 4, 1, 0)
    assert state(shop) == "normal"


def test_what_came_before_the_declaration_gets_its_cover_back(either_shop: Shop) -> None:
    """Uses of a forgotten lease are stored without cover first; the adopted lease then covers them, once."""
    shop = either_shop
    shop.publish(voucher("tea", total=5, budget_minor=1_000))
    backup = Backup(shop)
    device = shop.device()
    for _ in range(2):
        device.redeem(ORDER, "tea")
    backup.restore()
    device.forgiving = True
    begin(shop)
    device.enrol_again()
    device.sync()
    device.recovering = False
    device.sync()  # as a device of an older release, which tells no leases
    assert (shop.pool("tea")["uncovered"], shop.pool("tea", "minor")["uncovered"]) == (2, 200)
    device.redeem(ORDER, "tea")
    device.recovering = True
    device.sync()
    pool = shop.pool("tea")
    assert (pool["uncovered"], pool["held"], pool["free"]) == (0, 5, 0)
    assert shop.pool("tea", "minor")["uncovered"] == 0
    assert shop.rows("SELECT known_units, known_minor FROM leases") == [{"known_units": 3, "known_minor": 300}]
    assert {row["cover"] for row in shop.rows("SELECT cover FROM redemption_uses")} == {"lease"}


def test_a_forgotten_lease_of_a_lost_device_stays_burned(shop: Shop) -> None:
    """It was declared lost again after the restore: what it held counts as used up, and its late close returns it."""
    shop.publish(voucher("tea", total=5))
    device = shop.device(synced=False)
    device.fetch()
    backup = Backup(shop)
    device.sync()
    (lease,) = device.active()
    device.redeem(ORDER, "tea")
    backup.restore()
    shop.post(f"/v1/devices/{device.id}/lost")
    begin(shop)
    device.forgiving = True
    report(device)
    assert shop.rows("SELECT state, burned_by FROM leases") == [{"state": "burned", "burned_by": "lost"}]
    assert shop.pool("tea")["held"] == 5
    device.close(lease)
    device.sync()
    assert (shop.pool("tea")["held"], shop.pool("tea")["free"]) == (0, 4)


def test_what_is_sent_again_is_not_late(shop: Shop) -> None:
    """When the device last had contact was forgotten with its events, so nothing says that it was offline too long."""
    shop.publish(voucher("jam"))
    device = shop.device()
    backup = Backup(shop)
    for _ in range(3):
        shop.clock.advance(days=6)
        device.redeem(ORDER, "jam")
        device.sync()
    backup.restore()
    begin(shop)
    report(device)
    assert shop.flags() == []
    assert len(shop.rows("SELECT 1 FROM redemptions")) == 3


def test_the_same_request_of_an_old_epoch_gets_the_same_answer(shop: Shop) -> None:
    """Byte for byte, and nothing of it is stored either time."""
    shop.publish(voucher("jam"))
    device = shop.device()
    device.redeem(ORDER, "jam")
    begin(shop)
    body = device.request()
    first, repeat = device.post(body), device.post(body)
    assert (first.status_code, first.content) == (200, repeat.content)
    assert shop.rows("SELECT 1 FROM events") == []


def test_a_copy_that_hears_of_an_epoch_comes_to_light_as_a_fork(shop: Shop) -> None:
    """It is told of a place in its own journal, goes on from there, and its own event is kept on a branch."""
    shop.publish(voucher("jam"))
    device = shop.device()
    device.redeem(ORDER, "jam")
    device.sync()
    copied = TinyDevice(device.url, device.clock)
    copied.__dict__.update(device.__dict__ | {"events": [*device.events], "hashes": [*device.hashes]})
    for one in (device, copied):
        one.redeem(ORDER, "jam")
    device.sync()
    begin(shop)
    assert copied.sync().acknowledged == copied.position(1)
    assert copied.sync().state == DeviceState.SUSPENDED
    assert [row["branch"] for row in shop.rows("SELECT branch FROM events ORDER BY branch")] == [0, 0, 1]
