"""The shop that the API row asks: a real server in this process, filled once, and copied for every case."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tallystick_server.operations import initialise
from tallystick_server.settings import Settings
from tallystick_shared.bundle import Manifest
from tests.server.conftest import ORDER, Shop, voucher
from tests.server.fake_clock import FakeClock
from tests.server.tiny_device import TinyDevice

STRONG = "K7QX-2M9T-WD4R-8HZC-5VNB"
TOKENS = 24


class Filled(NamedTuple):
    """A filled server that nobody serves: its files, and what strangers do not know of it."""

    data: Path
    operator_key: str
    devices: list[TinyDevice]
    tokens: list[str]
    known: dict[str, list[Any]]
    """Path parameter -> values of it that are there."""
    suspended: list[str]
    """Ids of devices that can be resumed."""


def _publish(shop: Shop) -> None:
    for scope in ("web", "gate"):
        assert shop.post("/v1/scopes", {"name": scope}).status_code == 201
    shop.publish(
        voucher("tea", total=40, budget_minor=20_000, per_customer=5),
        voucher("jam", total=200),
        voucher("one", total=1, offline={"policy": "exclusive"}),
        voucher("open", campaign_id="spring"),
        voucher("half", discount={"type": "percentage", "percent": "12.5"}),
    )
    hidden = shop.post("/v1/vouchers?hidden=true&scope=web", voucher(STRONG, total=9))
    assert hidden.status_code == 201, hidden.text


def _trade(device: TinyDevice) -> None:
    """Redemptions that are applied, voids, and some that wait for a person."""
    for code in ("tea", "jam", "open", "half"):
        device.redeem(ORDER, code)
    event = device.redeem(ORDER, "jam")
    device.void(event, "jam", minor=100)
    for _ in range(4):
        device.redeem(ORDER, "tea", minor=1)
        device.void(event, "jam", minor=100)
    device.sync()
    device.redeem(ORDER, "jam")


def _known(data: Path) -> dict[str, list[Any]]:
    queries = {
        "voucher_id": "SELECT id FROM vouchers ORDER BY code",
        "device_id": "SELECT id FROM devices ORDER BY id",
        "lease_id": "SELECT id FROM leases ORDER BY id",
        "flag_id": "SELECT id FROM flags ORDER BY id",
        "sha256": "SELECT sha256 FROM blobs ORDER BY sha256",
        "scope_name": "SELECT name FROM scopes ORDER BY name",
        "code": "SELECT code FROM vouchers ORDER BY code",
    }
    with closing(sqlite3.connect(database_of(data))) as connection:
        found = {name: [row[0] for row in connection.execute(query)] for name, query in queries.items()}
    return found | {"version": [1]}


def database_of(data: Path) -> Path:
    (found,) = data.glob("*.sqlite3")
    return found


@cache
def filled() -> Filled:
    """Made once a process."""
    logging.getLogger("tallystick_server").setLevel(logging.CRITICAL)
    base = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(dir=base if base.is_dir() else None, prefix="tallystick-api-")
    _FOLDERS.append(folder)
    work = Path(folder.name)
    clock = FakeClock()
    settings = Settings(data=work / "server", default_currency="USD")
    shop = Shop(settings, clock, asyncio.run(initialise(settings, now=clock())))
    with shop.serving():
        _publish(shop)
        devices = shop.devices("store-1", "store-2", "store-3")
        for device in devices:
            _trade(device)
        web = shop.device("store-4", scope="web")
        manifests: list[Manifest] = [device.manifest() for device in (devices[0], web)]
        assert all(one.version for one in manifests)
        suspended = [shop.device(f"store-{number}").id for number in (5, 6, 7)]
        for device_id in suspended:
            assert shop.post(f"/v1/devices/{device_id}/suspend").status_code == 200
        tokens = [shop.token() for _ in range(TOKENS)]
    with closing(sqlite3.connect(database_of(settings.data))) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    known = _known(settings.data)
    return Filled(settings.data, shop.operator_key, [*devices, web], tokens, known, suspended)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
"""Removed with the process."""
