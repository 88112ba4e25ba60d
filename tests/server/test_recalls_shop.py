"""Whose lease is asked back, on a server: devices without room, holders that are gone, vouchers of several scopes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any

import httpx2
import msgspec
import pytest
from sqlalchemy import Engine, Table, event, insert

from tallystick_server import tables
from tallystick_server.database import Database, Transaction
from tallystick_server.leases import Asking, allot
from tallystick_server.operations import initialise
from tallystick_server.settings import Settings
from tallystick_shared.wire import Want
from tests.server.conftest import ORDER, Shop, voucher
from tests.server.test_leases import held

if TYPE_CHECKING:
    from tests.server.fake_clock import FakeClock
    from tests.server.tiny_device import TinyDevice


@pytest.fixture
def tight(settings: Settings, clock: FakeClock) -> Iterator[Shop]:
    """A server on SQLite that grants a device one lease."""
    settings = msgspec.structs.replace(settings, leases_per_device_max=1)
    shop = Shop(settings, clock, asyncio.run(initialise(settings, now=clock())))
    with shop.serving():
        yield shop


def ask(device: TinyDevice, code: str, units: int = 10) -> None:
    device.sync(wants=[Want(device.vouchers[code].id, units)])


def recalled(shop: Shop) -> list[str]:
    return [row["device_id"] for row in shop.rows("SELECT device_id FROM leases WHERE recalled_at IS NOT NULL")]


def of_two_scopes(shop: Shop, *codes: str, other: str = "harbour", **fields: Any) -> None:
    for code in codes:
        path = f"{shop.url}/v1/vouchers?scope=main&scope={other}"
        httpx2.post(path, json=voucher(code, **fields), headers=shop.headers).raise_for_status()


def test_a_device_without_room_asks_nothing_back(tight: Shop) -> None:
    """It took the lease of another one, and then nobody had it."""
    tight.publish(voucher("tea", total=1))
    full = tight.device("a")
    tight.publish(voucher("jam", total=1))
    small = tight.device("b")
    full.fetch()
    ask(full, "jam")
    assert recalled(tight) == []
    assert (held(full, "tea"), held(small, "jam")) == (1, 1)


def test_no_more_is_asked_back_than_there_is_room_for(tight: Shop) -> None:
    """Two codes that customers wait for, and room for one lease: one is asked back, and nothing else is granted."""
    tight.publish(voucher("tea", total=1))
    first = tight.device("a")
    tight.publish(voucher("jam", total=1))
    second = tight.device("b", synced=False)
    second.fetch()
    second.sync()
    tight.publish(voucher("oil", total=1))
    third = tight.device("c", synced=False)
    third.fetch()
    third.sync(wants=[Want(third.vouchers[code].id, 10) for code in ("tea", "jam")])
    assert len(recalled(tight)) == 1
    assert (len(first.active()), len(second.active()), len(third.active())) == (1, 1, 0)


def test_a_free_unit_waits_for_no_device_without_room(tight: Shop) -> None:
    """However much likelier it is to sell it: all others were kept waiting for ever."""
    tight.post("/v1/campaigns", {"id": "spring"})
    tight.publish(*(voucher(f"v{n}", total=1, campaign_id="spring") for n in range(2)))
    full = tight.device("a")
    (code,) = (code for code in full.vouchers if held(full, code))
    ask(full, code)
    assert len(tight.device("b").active()) == 1


def test_a_holder_that_is_gone_is_waited_for_a_day(either_shop: Shop) -> None:
    """Then the next holder is asked."""
    shop = either_shop
    shop.publish(voucher("tea", total=100))
    holders = shop.devices("a", "b")
    for one in holders:
        one.sync()
    asking = shop.device("c", synced=False)
    asking.fetch()
    ask(asking, "tea")
    (gone,) = recalled(shop)
    shop.clock.advance(hours=23)
    ask(asking, "tea")
    assert recalled(shop) == [gone]
    shop.clock.advance(hours=2)
    ask(asking, "tea")
    assert sorted(recalled(shop)) == sorted(one.id for one in holders)


def test_a_lease_that_its_device_closed_is_not_asked_back(either_shop: Shop) -> None:
    """Closed over unreadable events, it waits for a person and not for its device: the other holder is asked."""
    shop = either_shop
    shop.publish(voucher("tea", total=100))
    closed, other = shop.devices("a", "b")
    lease = closed.lease_of("tea")
    assert lease is not None
    closed.append_raw(b"x")
    closed.close(lease)
    closed.forgiving = True
    closed.sync()
    other.redeem(ORDER, "tea")  # so that it is the likelier seller of the two
    other.sync()
    asking = shop.device("c", synced=False)
    asking.fetch()
    ask(asking, "tea")
    assert recalled(shop) == [other.id]
    other.sync_closing()
    asking.sync()
    assert held(asking, "tea") > 0


def test_rests_of_a_budget_reach_who_asks(shop: Shop) -> None:
    """Three devices have 300 left of 500 each, the largest discount is 500: a fourth one gets a use."""
    tea = {"discount": {"type": "percentage", "percent": 10, "cap_minor": 500}, "limits": {"budget_minor": 1_500}}
    shop.publish({"code": "tea"} | tea)
    devices = shop.devices("a", "b", "c")
    for one in devices:
        one.redeem(ORDER, "tea")
        one.sync()
    last = shop.device("d", synced=False)
    last.fetch()
    for _ in range(3):
        ask(last, "tea")
        for one in devices:
            one.sync_closing()
    last.sync()
    assert [one.minor for one in last.active() if (one.minor or 0) >= 500] != []


@pytest.mark.parametrize("total", [1, 1_000])
def test_demand_of_one_scope_reaches_a_holder_of_another(either_shop: Shop, total: int) -> None:
    """The holder waits for the likelier device too, whatever its scope: it kept everything for ever, as it competed
    with its own scope only."""
    shop = either_shop
    shop.post("/v1/scopes", {"name": "harbour"})
    of_two_scopes(shop, "tea", total=total)
    holder, others = shop.device("a", scope="harbour"), [shop.device("b"), shop.device("c")]
    ask(others[0], "tea")
    assert recalled(shop) == [holder.id]
    holder.sync_closing()
    ask(others[0], "tea")
    assert held(others[0], "tea") > held(holder, "tea")
    kept = [held(one, "tea") for one in (holder, *others)]
    for _ in range(5):
        for one in (holder, *others):
            one.sync_closing()
    assert sum(held(one, "tea") for one in (holder, *others)) == total
    assert held(others[0], "tea") >= kept[1]


def test_a_voucher_of_one_scope_is_not_waited_for_in_another(shop: Shop) -> None:
    """Nor is one of both scopes that it neither sold nor refused, however much it sells."""
    shop.post("/v1/scopes", {"name": "harbour"})
    of_two_scopes(shop, "tea", total=1)
    far = shop.device("a", scope="harbour")
    ask(far, "tea")
    shop.publish(voucher("jam", total=1))
    of_two_scopes(shop, "oil", total=1)
    near = shop.device("b")
    assert (held(near, "jam"), held(near, "oil")) == (1, 1)


@contextmanager
def counting() -> Iterator[list[str]]:
    """The statements of every engine of this process."""
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        found.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_the_queries_of_a_sync_grow_with_neither_vouchers_nor_scopes(shop: Shop) -> None:
    """One more scope with nine more vouchers in common adds no query to a device's first sync."""

    def queries() -> int:
        device = shop.device(synced=False)
        body = device.request()
        with counting() as found:
            device.send(body)
        return len(found)

    shop.post("/v1/scopes", {"name": "harbour"})
    of_two_scopes(shop, "tea", total=9)
    shop.device()
    of_two_scopes(shop, "jam", total=9)
    few = queries()  # one is recalled, one is granted
    shop.post("/v1/scopes", {"name": "north"})
    of_two_scopes(shop, *(f"v{n}" for n in range(9)), other="north", total=9)
    assert queries() <= few


def fleet_of(scopes: int, now: datetime) -> list[tuple[Table, list[dict[str, Any]]]]:
    """So many scopes that share 20 vouchers, of ten devices each, which sold other vouchers."""
    codes, names, zeros = [f"v{n}" for n in range(40)], [f"s{n}" for n in range(scopes)], "0" * 64
    devices = [
        {"id": f"{name}-{n}", "kid": f"{name}-{n}", "public_x": "x", "name": "", "store_id": "s", "scope": name,
         "state": "active", "enrolled_at": now, "seq": 0, "hash": zeros, "branches": 1, "lease_number": 0}
        for name in names for n in range(10)
    ]  # fmt: skip
    version = {"version": 1, "vouchers": 20, "state_digest": zeros, "created_at": now}
    document = {"revision": 1, "revised_at": now, "sha256": zeros, "status": "active", "created_at": now,
                "campaign_id": "", "policy": "quota"}  # fmt: skip
    pool = {"measure": "units", "limit": 9, "free": 9, "held": 0, "online": 0, "uncovered": 0, "voided": 0,
            "closed_used": 0, "released_known": 0}  # fmt: skip
    return [
        (tables.scopes, [version | {"name": name} for name in names]),
        (tables.vouchers, [document | {"id": code, "code": code, "folded": code} for code in codes]),
        (tables.scope_vouchers, [{"scope": name, "voucher_id": code} for name in names for code in codes[:20]]),
        (tables.pools, [pool | {"voucher_id": code} for code in codes]),
        (tables.devices, devices),
        (tables.demand, [{"device_id": one["id"], "voucher_id": code, "units": 1, "at": now}
                         for one in devices for code in codes[20:]]),
    ]  # fmt: skip


def lines_of_a_grant(settings: Settings, scopes: int, now: datetime) -> int:
    """Lines that the server runs to decide for one device of that fleet."""

    async def measure() -> int:
        (data := settings.data / str(scopes)).mkdir(parents=True)
        database = Database(Settings(data=data))
        count = 0

        async def fill(transaction: Transaction) -> None:
            for table, rows in fleet_of(scopes, now):
                await transaction.execute(insert(table), rows)

        async def work(transaction: Transaction) -> None:
            nonlocal count

            def traced(_frame: FrameType, event: str, _: object) -> Any:
                nonlocal count
                count += event == "line"
                return traced

            # the first one compiles the statements
            assert await allot(transaction, settings, Asking("s0-0", "s0", 0, set()), now=now)
            greenlet = sys.gettrace()
            sys.settrace(traced)
            try:
                assert await allot(transaction, settings, Asking("s0-1", "s0", 0, set()), now=now)
            finally:
                sys.settrace(greenlet)

        try:
            await database.migrate()
            await database.write(fill)
            await database.write(work)
        finally:
            await database.close()
        return count

    return asyncio.run(measure())


def test_other_scopes_that_sell_nothing_of_it_cost_nothing(settings: Settings, clock: FakeClock) -> None:
    """300 that share every voucher cost what three do; all their devices and all their demand were read, in every
    sync, while the next one waited."""
    few, many = (lines_of_a_grant(settings, scopes, clock()) for scopes in (4, 301))
    assert many <= few * 1.1
