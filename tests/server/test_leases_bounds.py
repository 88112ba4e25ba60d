"""Leases at their bounds: how long, how many, for whom, and what is told of them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
import pytest

from tallystick_server.settings import Settings
from tallystick_shared.wire import Want
from tests.server.conftest import ORDER, voucher
from tests.server.test_revise import check_revised, put
from tests.server.tiny_device import NONE, TinyDevice

if TYPE_CHECKING:
    from tests.server.conftest import Shop

SECOND, DAY = timedelta(seconds=1), timedelta(days=1)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return msgspec.structs.replace(settings, leases_per_device_max=3)


def asked_back(shop: Shop) -> list[str]:
    return [row["device_id"] for row in shop.rows("SELECT device_id FROM leases WHERE recalled_at IS NOT NULL")]


def codes(device: TinyDevice) -> list[str]:
    by_id = {one.id: code for code, one in device.vouchers.items()}
    return sorted(by_id[one.voucher_id] for one in device.active())


def test_a_device_that_lost_an_answer_is_told_each_lease_as_it_was_granted(shop: Shop) -> None:
    """Id, number, voucher, units, minor and end; in the order of their numbers."""
    shop.publish(voucher("tea", total=4), voucher("pot", budget_minor=500))
    device = shop.device()
    granted = sorted(device.active(), key=lambda one: one.number)
    assert [(one.units, one.minor) for one in granted] in ([(4, None), (None, 500)], [(None, 500), (4, None)])
    answer = device.sync(leases_digest="0" * 64)
    assert (answer.leases_full, answer.leases) == (True, granted)
    assert device.sync().leases_full is False


def test_a_lease_grows_old_where_its_voucher_lasts_longer(shop: Shop) -> None:
    """By a day too: at half its life it is asked back, a second before that it is not."""
    end = shop.clock() + timedelta(days=15)
    shop.publish(voucher("tea", total=4, valid_until=end.isoformat()))
    device = shop.device()
    (lease,) = device.active()
    shop.clock.advance(days=7, seconds=-1)
    assert device.sync().recall == []
    shop.clock.advance(seconds=1)
    assert device.sync().recall == [lease.id]


def test_a_voucher_is_leased_from_the_horizon_to_its_last_moment(shop: Shop) -> None:
    """14 days before its first day it is, a second earlier not; nor is one whose last moment is over."""
    now = shop.clock()
    soon, later, end = now + 14 * DAY, now + 14 * DAY + SECOND, now + DAY
    shop.publish(
        voucher("soon", total=2, valid_from=soon.isoformat()),
        voucher("later", total=2, valid_from=later.isoformat()),
        voucher("ends", total=2, valid_until=end.isoformat()),
    )
    device = shop.device(synced=False)
    device.fetch()
    device.sync()
    assert codes(device) == ["ends", "soon"]
    shop.clock.advance(days=1)
    other = shop.device("b")
    assert codes(other) == ["later"]


def test_a_paused_voucher_is_not_leased(shop: Shop) -> None:
    """It can be active again, and is leased then."""
    shop.publish(voucher("tea", total=2, status="paused"), voucher("jam", total=2))
    assert codes(shop.device()) == ["jam"]


def test_each_device_is_asked_for_its_own_leases(shop: Shop) -> None:
    """Both hold a part of a voucher that is withdrawn; neither hears of the other's."""
    shop.publish(voucher("tea", total=4))
    devices = shop.devices("a", "b")
    shop.post(f"/v1/vouchers/{devices[0].vouchers['tea'].id}/deactivate")
    for device in devices:
        (mine,) = device.active()
        assert device.sync().recall == [mine.id]


def test_a_device_has_one_lease_of_a_voucher(shop: Shop) -> None:
    """Where more is free than when it was granted, it gets more only after it has closed that one."""
    shop.publish(voucher("tea", total=2))
    device = shop.device()
    (lease,) = device.active()
    check_revised(put(shop, "tea", total=9))
    assert device.sync().leases == []
    assert shop.pool("tea")["free"] == 7
    device.close(lease)
    device.sync()
    assert [one.units for one in device.active()] == [9]


def test_where_there_is_room_for_some_the_likeliest_come_first(shop: Shop) -> None:
    """A device with room for three leases of five gets those of the campaign that it sold; a closed one makes room."""
    shop.publish(voucher("old", campaign_id="spring"))
    device = shop.device()
    device.redeem(ORDER, "old")
    device.sync()
    fields = {"b": {}, "d": {"campaign_id": "spring"}, "a": {}, "e": {"campaign_id": "spring"}}
    shop.publish(*(voucher(code, total=4, **more) for code, more in fields.items()))
    device.fetch()
    device.sync()
    held = codes(device)
    assert (len(held), held[-2:]) == (3, ["d", "e"])
    shop.publish(voucher("f", total=4, campaign_id="spring"))
    device.fetch()
    assert device.sync().leases == []
    device.close(next(one for one in device.active() if one.voucher_id == device.vouchers[held[0]].id))
    device.sync()
    assert codes(device) == ["d", "e", "f"]


def test_a_device_that_was_not_heard_of_for_the_life_of_a_lease_keeps_no_share(shop: Shop) -> None:
    """At 14 days it still has one, a second later all is for those that are there."""
    shop.device("gone")
    shop.clock.advance(days=14)
    shop.publish(voucher("tea", total=4))
    device = shop.device("a")
    assert [one.units for one in device.active()] == [2]
    shop.clock.advance(seconds=1)
    shop.publish(voucher("jam", total=4))
    device.fetch()
    device.sync()
    assert {one.units for one in device.active() if one.voucher_id == device.vouchers["jam"].id} == {4}


def test_what_was_sold_sixty_days_ago_still_counts(shop: Shop) -> None:
    """A second later it says nothing any more: both are as likely."""
    shop.publish(voucher("old", campaign_id="spring"))
    device = shop.device("a")
    device.redeem(ORDER, "old")
    device.sync()
    shop.clock.advance(days=60)
    other = shop.device("b")
    device.sync()
    for code, units in (("tea", 2), ("jam", 19)):
        shop.publish(voucher(code, total=38, campaign_id="spring"))
        other.fetch()
        other.sync()
        mine = [one.units for one in other.active() if one.voucher_id == other.vouchers[code].id]
        assert mine == [units]
        shop.clock.advance(seconds=1)


def test_a_release_is_told_and_audited_in_full(shop: Shop) -> None:
    """Whose lease it was, of what, what is known to be used of it, and what is free again, by both measures."""
    shop.publish(voucher("tea", total=4, budget_minor=1_000))
    device = shop.device()
    device.redeem(ORDER, "tea")
    device.sync()
    (lease,) = device.active()
    answer = shop.post(f"/v1/leases/{lease.id}/release")
    assert answer.status_code == 200, answer.text
    told = {
        "id": lease.id,
        "device_id": device.id,
        "voucher_id": lease.voucher_id,
        "was": "open",
        "known_units": 1,
        "known_minor": 100,
        "freed_units": 3,
        "freed_minor": (lease.minor or 0) - 100,
    }
    assert answer.json() == told
    (row,) = shop.rows("SELECT who, object, detail FROM audit WHERE action = 'lease.release'")
    assert (row["who"], row["object"], msgspec.json.decode(row["detail"])) == ("operator", lease.id, told)
    units, minor = shop.pool("tea"), shop.pool("tea", "minor")
    assert (units["free"], units["held"], units["released_known"]) == (3, 0, 1)
    assert (minor["free"], minor["held"], minor["released_known"]) == (900, 0, 100)
    again = shop.post(f"/v1/leases/{lease.id}/release")
    assert (again.status_code, again.json()["code"]) == (409, "WRONG_STATE")
    assert "this lease is released: nothing is held for it any more" in again.json()["detail"]
    assert shop.post(f"/v1/leases/{NONE}/release").status_code == 404


@pytest.mark.parametrize("again", [True, False], ids=["asks again", "asked once"])
def test_what_a_customer_waits_for_comes_before_what_is_free(either_shop: Shop, again: bool) -> None:
    """A device with less room than there are free vouchers never asked it back; room is kept until it comes, however
    many syncs that takes, and the rest is filled meanwhile."""
    shop = either_shop
    shop.publish(voucher("tea", total=1))
    holder = shop.device("a")
    shop.publish(*(voucher(f"v{n}", total=1) for n in range(6)))
    asking = shop.device("b", synced=False)
    asking.fetch()
    asking.sync(wants=[Want(asking.vouchers["tea"].id, 1)])
    assert asked_back(shop) == [holder.id]
    for _ in range(3):
        asking.sync(wants=[Want(asking.vouchers["tea"].id, 1)] if again else [])
        assert ("tea" in codes(asking), len(codes(asking))) == (False, 2)
    holder.fetch()
    holder.sync_closing()
    asking.sync()
    assert ("tea" in codes(asking), "tea" in codes(holder)) == (True, False)
    for _ in range(3):
        assert holder.sync_closing().recall == asking.sync_closing().recall == []


def test_no_room_is_kept_for_what_nobody_brings(either_shop: Shop) -> None:
    """The customer's voucher is used up, or its holder was asked more than a day ago."""
    shop = either_shop
    shop.publish(voucher("tea", total=1))
    holder = shop.device("a")
    shop.publish(*(voucher(f"v{n}", total=1) for n in range(6)))
    asking = shop.device("b", synced=False)
    asking.fetch()
    asking.sync(wants=[Want(asking.vouchers["tea"].id, 1)])
    assert len(asking.active()) == 2
    shop.clock.advance(hours=25)
    asking.sync(wants=[Want(asking.vouchers["tea"].id, 1)])
    assert (len(asking.active()), asked_back(shop)) == (3, [holder.id])
