"""Leases: how units are spread, recalled and renewed, and that no sequence of events breaks I1 or a limit."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from tallystick_shared.wire import Want
from tests.server.conftest import ORDER, voucher
from tests.server.tiny_device import TinyDevice, new_id

if TYPE_CHECKING:
    from tests.server.conftest import Shop


def held(device: TinyDevice, code: str) -> int:
    return sum(one.units or 0 for one in device.active() if one.voucher_id == device.vouchers[code].id)


def test_devices_share_what_there_is(either_shop: Shop) -> None:
    """Four equal devices get a quarter each, and nothing is left over or handed out twice."""
    either_shop.publish(voucher("tea", total=12))
    devices = either_shop.devices("a", "b", "c", "d")
    assert [held(device, "tea") for device in devices] == [3, 3, 3, 3]
    assert either_shop.pool("tea")["free"] == 0


def test_of_equally_likely_devices_whoever_asks_gets_the_last_unit(shop: Shop) -> None:
    """A single unit goes to the first that asks, where nothing says who will sell it."""
    shop.publish(voucher("tea", total=1))
    assert [held(device, "tea") for device in shop.devices("a", "b", "c")] == [1, 0, 0]


def test_the_likelier_seller_is_waited_for(shop: Shop) -> None:
    """A single unit is not given to whoever asks while a device that sold the same campaign has yet to ask."""
    shop.publish(voucher("old", total=2, campaign_id="spring"))
    seller, _ = shop.devices("seller", "other")
    seller.redeem(ORDER, "old")
    seller.sync()
    shop.publish(voucher("new", total=1, campaign_id="spring"))
    other = shop.device("third")
    assert held(other, "new") == 0
    seller.fetch()
    seller.sync()
    assert held(seller, "new") == 1


def test_units_are_handed_out_before_the_first_day(shop: Shop) -> None:
    """Within the horizon before `valid_from` a device already gets its lease; earlier it does not."""
    soon, later = (shop.clock() + timedelta(days=days) for days in (13, 15))
    shop.publish(
        voucher("soon", total=5, valid_from=soon.isoformat()), voucher("later", total=5, valid_from=later.isoformat())
    )
    device = shop.device()
    assert [held(device, code) for code in ("soon", "later")] == [5, 0]


def test_a_lease_ends_with_its_voucher(shop: Shop) -> None:
    """`expires_at` is the earlier of the lease's own life and the voucher's last moment."""
    ends = shop.clock() + timedelta(days=3)
    shop.publish(voucher("brief", total=1, valid_until=ends.isoformat()), voucher("long", total=1))
    device = shop.device()
    lives = {one.voucher_id: one.expires_at - shop.clock() for one in device.active()}
    assert lives == {device.vouchers["brief"].id: timedelta(days=3), device.vouchers["long"].id: timedelta(days=14)}


def test_a_wanted_unit_is_recalled_and_reaches_the_customer(either_shop: Shop) -> None:
    """A device that had to refuse gets the unit after the idle holder's next contact, and nobody else does."""
    either_shop.publish(voucher("tea", total=1))
    holder, wanting, third = either_shop.devices("a", "b", "c")
    wanting.wants = [Want(wanting.vouchers["tea"].id, 1)]
    assert wanting.sync().leases == []
    answer = holder.sync_closing()
    assert held(holder, "tea") == 0
    assert answer.leases == []
    third.sync()
    assert held(third, "tea") == 0
    wanting.sync()
    assert held(wanting, "tea") == 1


def test_what_the_first_device_took_is_shared_with_those_that_come(shop: Shop) -> None:
    """The first device of a new server holds everything; each that comes asks a part of it back."""
    shop.publish(voucher("tea", total=10))
    first = shop.device("a")
    assert held(first, "tea") == 10
    second = shop.device("b")
    first.sync_closing()
    assert held(first, "tea") == 5
    second.sync()
    assert held(second, "tea") == 5


def test_a_lease_in_another_scope_is_not_asked_back_in_vain(shop: Shop) -> None:
    """Its holder was given the very same again in the same sync, with two events each time, for ever (fleet, seed 1,
    case 5): it is asked once, and waits for the likelier device."""
    for path, body in (("scopes", {"name": "harbour"}), ("vouchers?scope=main&scope=harbour", voucher("tea", total=1))):
        httpx2.post(f"{shop.url}/v1/{path}", json=body, headers=shop.headers).raise_for_status()
    holder, other = shop.device("a", scope="harbour"), shop.device("b")
    assert (held(holder, "tea"), held(other, "tea")) == (1, 0)
    other.sync(wants=[Want(other.vouchers["tea"].id, 1)])
    holder.sync_closing()
    for _ in range(3):
        other.sync(wants=[Want(other.vouchers["tea"].id, 1)])
        assert holder.sync().recall == other.sync().recall == []
        assert (held(holder, "tea"), held(other, "tea")) == (0, 1)


def test_a_lease_past_half_its_life_is_granted_anew(shop: Shop) -> None:
    """An ageing lease is closed and granted again in one contact, so that it never expires while a till is away."""
    shop.publish(voucher("tea", total=4))
    device = shop.device()
    (old,) = device.active()
    shop.clock.advance(days=6)
    assert device.sync_closing().recall == []
    shop.clock.advance(days=2)
    device.sync_closing()
    (new,) = device.active()
    assert (new.units, new.number) == (4, old.number + 1)
    assert new.expires_at == shop.clock() + timedelta(days=14)


def test_leases_of_a_withdrawn_voucher_are_recalled(shop: Shop) -> None:
    """A deactivated voucher is granted to nobody any more, and its leases are asked back."""
    shop.publish(voucher("tea", total=4))
    device = shop.device()
    shop.post(f"/v1/vouchers/{device.vouchers['tea'].id}/deactivate")
    assert device.sync().recall == [one.id for one in device.active()]
    device.sync_closing()
    assert (device.active(), shop.pool("tea")["free"]) == ([], 4)


def test_an_exclusive_voucher_goes_whole_to_one_device(shop: Shop) -> None:
    """The whole limit is one lease; another device gets it only after the close."""
    shop.publish(voucher("once", total=3, offline={"policy": "exclusive"}))
    one, other = shop.devices("a", "b")
    assert (held(one, "once"), held(other, "once")) == (3, 0)
    one.close(one.active()[0])
    shop.post(f"/v1/devices/{one.id}/suspend")
    one.sync()
    other.sync()
    assert held(other, "once") == 3


def test_soft_open_and_online_only_have_no_leases(shop: Shop) -> None:
    """Only what a lease must cover is leased."""
    soft = {"policy": "soft", "max_units": 1, "max_minor": 100}
    shop.publish(
        voucher("soft", total=3, offline=soft),
        voucher("open"),
        voucher("online", total=3, offline={"policy": "online_only"}),
    )
    assert shop.device().active() == []


def test_a_grant_of_budget_covers_the_largest_discount(shop: Shop) -> None:
    """A part of a budget that could not pay one whole discount is not granted."""
    shop.publish(voucher("tea", budget_minor=250))
    devices = shop.devices("a", "b", "c")
    granted = [sum(one.minor or 0 for one in device.active()) for device in devices]
    assert granted == [100, 100, 0]


def test_a_budget_without_a_largest_discount_is_shared(shop: Shop) -> None:
    """10 % of anything has no largest discount: each device gets its share of the budget."""
    shop.publish(voucher("ten", budget_minor=9_000, discount={"type": "percentage", "percent": 10}))
    granted = [sum(one.minor or 0 for one in device.active()) for device in shop.devices("a", "b", "c")]
    assert granted == [3_000, 3_000, 3_000]


def test_a_large_shop_is_granted_quickly(shop: Shop) -> None:
    """1,200 vouchers to a device among many others: well under a second a sync."""
    shop.publish(*(voucher(f"v{n}", total=100) for n in range(1_200)))
    devices = [shop.device(f"s{n}", synced=False) for n in range(12)]
    took = []
    for device in devices:
        body = device.request()
        started = time.perf_counter()
        device.send(body)
        took.append(time.perf_counter() - started)
    assert sum(len(device.active()) for device in devices) == 12 * 1_200
    assert min(took) < 1.0, took


# the rules as constraints


@pytest.mark.parametrize(
    "broken",
    [
        "UPDATE pools SET free = free + 1",
        "UPDATE leases SET known_units = units + 1",
        "UPDATE leases SET known_units = -1",
        "INSERT INTO leases SELECT 'x', device_id, number + 1, voucher_id, units, minor, 0, 0, state, granted_at,"
        " expires_at, NULL, NULL, NULL FROM leases",
        "INSERT INTO leases SELECT 'x', device_id, number, voucher_id, units, minor, 0, 0, 'closed', granted_at,"
        " expires_at, NULL, NULL, NULL FROM leases",
    ],
    ids=["I1", "k above q", "k below 0", "two open leases", "a number twice"],
)
def test_the_database_itself_refuses_what_breaks_a_rule(shop: Shop, broken: str) -> None:
    """I1, I2 and the leases' own rules are constraints, not only code."""
    shop.publish(voucher("tea", total=4))
    shop.device()
    engine = create_engine(f"sqlite:///{shop.settings.sqlite_file}")
    with engine.connect() as connection, pytest.raises(IntegrityError):
        connection.execute(text(broken))
    engine.dispose()


# any sequence


class Honest:
    """A device that keeps I2: it uses a lease only while there is something left of it, and forgets nothing."""

    def __init__(self, device: TinyDevice) -> None:
        self.device = device
        self.redeemed: list[tuple[str, str]] = []

    def redeem(self, code: str) -> bool:
        lease = self.device.lease_of(code)
        if lease is None:
            return False
        units, minor = self.device.used.get(lease.id, (0, 0))
        if (lease.units is not None and units >= lease.units) or (
            lease.minor is not None and minor + 100 > lease.minor
        ):
            return False
        self.redeemed.append((self.device.redeem(ORDER | {"id": new_id()}, code), code))
        return True

    def act(self, action: str, code: str, shop: Shop) -> None:
        if action == "redeem":
            self.redeem(code)
        elif action == "close" and (lease := self.device.lease_of(code)) is not None:
            self.device.close(lease)
        elif action == "void" and self.redeemed:
            ref, redeemed = self.redeemed[-1]
            self.device.void(ref, redeemed, minor=100)
        elif action == "sync":
            self.device.wants = [Want(self.device.vouchers[code].id, 1)]
            self.device.sync_closing()
        elif action == "lose the answer":
            self.device.post(self.device.request())
        elif action == "online":
            shop.online(new_id(), code)


ACTIONS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["redeem", "redeem", "sync", "sync", "close", "void", "online", "lose the answer"]),
        st.sampled_from(["tea", "jam"]),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS, total=st.integers(1, 5))
def test_no_sequence_exceeds_a_limit(shop: Shop, actions: list[tuple[int, str, str]], total: int) -> None:
    """Grants, uses, closes, voids, lost answers and online redemptions in any order keep I1 and never exceed L."""
    suffix = new_id()[-12:]
    tea, jam = f"tea{suffix}", f"jam{suffix}"
    shop.publish(voucher(tea, total=total), voucher(jam, total=9, budget_minor=total * 100))
    devices = [Honest(device) for device in shop.devices("a", "b", "c")]
    for index, action, code in actions:
        devices[index].act(action, {"tea": tea, "jam": jam}[code], shop)
    for one in devices:
        one.device.sync_closing()
    for code, limit in ((tea, total), (jam, total)):
        row = shop.rows(
            "SELECT coalesce(sum(u.units - u.voided_units), 0) AS used, coalesce(sum(u.cover = 'none'), 0) AS uncovered"
            " FROM redemption_uses u JOIN vouchers v ON v.id = u.voucher_id WHERE v.code = :code",
            code=code,
        )[0]
        assert row["used"] <= limit
        assert row["uncovered"] == 0
        assert shop.pool(code)["free"] >= 0
    assert shop.flags() == [flag for flag in shop.flags() if flag == "ALREADY_VOIDED"]
    for one in devices:
        shop.post(f"/v1/devices/{one.device.id}/revoke")
