"""A till with a fake clock, enrolled at a fake server; and no network for any test that does not ask for it."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tallystick_client import Till
from tallystick_client.journal import FILE_NAME
from tallystick_shared.journal import EventType
from tallystick_shared.wire import SyncAnswer
from tests.client.fake_clock import FakeClock
from tests.client.fake_server import FakeServer


class Shop:
    """One server, one clock, and tills in folders; `offline` cuts the line for real."""

    def __init__(self, work: Path, server: FakeServer, patch: pytest.MonkeyPatch) -> None:
        self.work, self.server, self.clock = work, server, server.clock
        self._patch = patch
        self._tills: list[Till] = []

    def enroll(self, name: str = "till", *, sync: bool = True) -> Till:
        till = Till.enroll(self.work / name, self.server.url, self.server.token(), name=name, clock=self.clock)
        self._tills.append(till)
        if sync:
            till.sync()
        return till

    def open(self, name: str = "till") -> Till:
        till = Till.open(self.work / name, clock=self.clock)
        self._tills.append(till)
        return till

    def offline(self) -> None:
        cut_the_line(self._patch)

    def back_online(self) -> None:
        self._patch.undo()

    def close(self) -> None:
        for till in self._tills:
            till.close()


def cut_the_line(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something asked for the network")

    for name in ("connect", "connect_ex", "sendto"):
        patch.setattr(socket.socket, name, refuse)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(clock: FakeClock) -> Iterator[FakeServer]:
    with FakeServer(clock).serving() as server:
        yield server


@pytest.fixture
def shop(tmp_path: Path, server: FakeServer) -> Iterator[Shop]:
    with pytest.MonkeyPatch.context() as patch:
        shop = Shop(tmp_path, server, patch)
        yield shop
        shop.close()


def order(number: int = 1, *, quantity: int = 3, price: int = 450, customer: str | None = "anna") -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": f"order-{number}",
        "currency": "EUR",
        "lines": [{"id": "1", "product_id": "tea", "quantity": quantity, "unit_price_minor": price}],
    }
    if customer is not None:
        made["customer"] = {"id": customer}
    return made


TEN = {"code": "TEN", "discount": {"type": "percentage", "percent": 10}}
ONCE = {
    "code": "Once",
    "discount": {"type": "fixed", "amount_minor": 300},
    "limits": {"total": 3},
    "stacking": {"mode": "stackable"},
}


def sell(till: Till, count: int, code: str = "TEN") -> list[str]:
    """Redeems so often; the ids."""
    receipts = [till.redeem(order(number), [code]) for number in range(count)]
    assert all(receipt.redeemed for receipt in receipts)
    return [receipt.id for receipt in receipts]


def arrived(shop: Shop) -> list[str]:
    """The redemptions that the server has of its only till."""
    return [one.id for one in shop.server.device.envelopes(EventType.REDEEM)]


def rows(shop: Shop, query: str) -> list[Any]:
    """What the journal on the disk says."""
    with closing(sqlite3.connect(shop.work / "till" / FILE_NAME)) as connection:
        return connection.execute(query).fetchall()


def replaced(**changed: Any) -> Callable[[SyncAnswer], SyncAnswer]:
    """For `tamper`: the answer, changed before it is signed."""
    return lambda answer: msgspec.structs.replace(answer, **changed)
