"""The cache of a till between two processes, two commits and two roots: there are always vouchers to sell.

Each was found by trying to break it.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import Any

import diskcache
import msgspec
import pytest

from tallystick_client import StorageError, Till, TryLater
from tallystick_shared.signing import SigningKey
from tests.client.conftest import ONCE, TEN, Shop, order, rows, sell
from tests.client.fake_server import loses_the_request, passes

MANY = [{**TEN, "code": f"CODE{number}"} for number in range(200)]


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN, ONCE, *MANY)
    return shop.enroll()


def applies(till: Till, code: str) -> bool:
    return bool(till.preview(order(), [code]).applied)


def set_aside(shop: Shop) -> int:
    return len(list((shop.work / "till").glob("cache.refused-*")))


def test_a_bundle_is_read_in_one_view(till: Till, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process keeps the next bundle while this one reads: it has to wait, and nothing good is set aside."""
    second = shop.open()
    store = second._keeper.store
    read = store._manifest
    shop.clock.run(days=1, hours=2)

    def between(sha256: str) -> bytes:
        monkeypatch.setattr(store, "_manifest", read)
        with pytest.raises(StorageError) as caught:
            till.sync()
        assert caught.value.code == "BUSY"
        return read(sha256)

    monkeypatch.setattr("tallystick_client.store.TIMEOUT_S", 0.2)
    till._keeper.store.close()
    monkeypatch.setattr(store, "_manifest", between)
    assert applies(second, "TEN")
    assert set_aside(shop) == 0
    till.sync()
    assert applies(shop.open(), "TEN")


@pytest.mark.parametrize("what", ["renamed", "removed", "emptied"])
def test_a_cache_that_is_gone_is_filled_by_the_next_sync(till: Till, shop: Shop, what: str) -> None:
    """What this process has in memory is no reason to fetch a delta only; whether there is something new or not."""
    cache = shop.work / "till" / "cache"
    for number in range(2):
        if what == "emptied":
            with closing(sqlite3.connect(cache / "cache.db")) as connection, connection:
                connection.execute("DELETE FROM Cache")
        elif what == "renamed":
            cache.rename(cache.with_name(f"cache.elsewhere-{number}"))
        else:
            shutil.rmtree(cache)
        if number:
            shop.server.publish({**TEN, "code": "NEW"})
        till.sync()
        assert applies(shop.open(), "TEN")
    assert applies(shop.open(), "NEW")
    assert set_aside(shop) == 0


def cuts_before_the_journal(till: Till, patch: pytest.MonkeyPatch) -> None:
    """The power goes after the cache has committed and before the journal does."""

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    patch.setattr(till._keeper.terminal, "take", dies)


def test_a_delta_that_only_the_cache_has_is_not_added_twice(till: Till, shop: Shop) -> None:
    """The journal's commit failed once; the next sync and the next start are as if it had not."""
    shop.server.publish({**TEN, "code": "NEW"})
    with pytest.MonkeyPatch.context() as patch:
        cuts_before_the_journal(till, patch)
        with pytest.raises(KeyboardInterrupt):
            till.sync()
    till.sync()
    till.close()
    again = shop.open()
    assert applies(again, "NEW")
    shop.server.publish({**TEN, "code": "NEWER"})
    again.sync()
    again.close()
    assert applies(shop.open(), "NEWER")
    assert set_aside(shop) == 0


def test_new_bundle_keys_may_fail_to_be_kept_twice(till: Till, shop: Shop) -> None:
    """However often the journal's commit fails, the bundle in force is there at the next start."""
    shop.server.bundle_key = SigningKey.generate()
    shop.server.roots.append(shop.server.make_root(2))
    for number in range(3):
        shop.server.publish({**TEN, "code": f"NEW{number}"})
        with pytest.MonkeyPatch.context() as patch:
            cuts_before_the_journal(till, patch)
            with pytest.raises(KeyboardInterrupt):
                till.sync()
        till.close()
        till = shop.open()
        assert applies(till, "TEN")
        assert not applies(till, "NEW0")
    till.sync()
    assert applies(shop.open(), "NEW2")
    assert set_aside(shop) == 0


def test_new_keys_and_then_no_line_leave_the_bundle_in_force(till: Till, shop: Shop) -> None:
    """Bundle and receipt keys change together, the answer is taken, and the manifest does not come: it sells on."""
    server = shop.server
    server.bundle_key, server.receipt_key = SigningKey.generate(), SigningKey.generate()
    server.roots.append(server.make_root(2))
    server.script = [passes, passes, loses_the_request]
    sell(till, 1)
    with pytest.raises(TryLater):
        till.sync()
    assert till.status().waiting == 0
    assert applies(till, "TEN")
    till.close()
    till = shop.open()
    assert applies(till, "TEN")
    till.sync()
    assert rows(shop, "SELECT max(version) FROM roots") == [(2,)]
    assert applies(shop.open(), "TEN")


def test_a_planted_size_is_not_followed(till: Till, shop: Shop) -> None:
    """A part of 10^18 bytes would be looked for chunk by chunk for ever: it is refused where it is read."""
    till.close()
    with closing(sqlite3.connect(shop.work / "till" / "cache" / "cache.db")) as connection, connection:
        (raw,) = connection.execute("SELECT value FROM Cache WHERE key = 'bundle/main'").fetchone()
        parts = msgspec.json.decode(raw)
        parts["blobs"][0]["bytes"] = 10**18
        connection.execute("UPDATE Cache SET value = ? WHERE key = 'bundle/main'", (msgspec.json.encode(parts),))
    again = shop.open()
    assert again.status().freshness == "none"
    again.sync()
    assert applies(again, "TEN")


def test_a_customer_is_remembered_when_a_campaign_is_extended(till: Till, shop: Shop) -> None:
    """Until the voucher ends, not until it would have ended when the customer came; then it is forgotten."""
    ends = shop.clock.now() + timedelta(days=1)
    mine: dict[str, Any] = {"code": "MINE", "discount": {"type": "fixed", "amount_minor": 100},
                            "limits": {"per_customer": 1}}  # fmt: skip
    shop.server.publish({**mine, "valid_until": ends.isoformat()})
    till.sync()
    assert till.redeem(order(1), ["MINE"]).redeemed
    shop.server.publish({**mine, "valid_until": (ends + timedelta(days=9)).isoformat()})
    till.sync()
    shop.clock.run(days=2)
    till.sync()
    assert not till.redeem(order(2), ["MINE"]).redeemed
    shop.clock.run(days=9)
    till.sync()
    assert rows(shop, "SELECT * FROM customer_uses") == []


def test_a_lease_too_small_is_kept_while_there_is_no_line(till: Till, shop: Shop) -> None:
    """A large order wanted more than is left: without a line what is left still serves small ones."""
    budget = {"code": "BUDGET", "discount": {"type": "percentage", "percent": 50}, "limits": {"budget_minor": 5000}}
    shop.server.publish(budget)
    shop.server.grant(shop.server.device, "BUDGET", units=None, minor=2000)
    till.sync()
    assert not till.redeem(order(1, price=10_000), ["BUDGET"]).redeemed
    shop.server.script = [loses_the_request]
    with pytest.raises(TryLater):
        till.sync()
    assert till.redeem(order(2, price=100), ["BUDGET"]).redeemed
    assert not till.redeem(order(3, price=10_000), ["BUDGET"]).redeemed
    till.sync()
    assert rows(shop, "SELECT reason FROM leases") == [("too small",)]


def test_what_waits_is_counted_after_a_restore_to_the_purge(till: Till, shop: Shop) -> None:
    """The server knows the journal up to where it was purged: what waits beyond counts towards the caps."""
    shop.server.durable = True
    sell(till, 3)
    till.sync()
    shop.clock.run(days=91)
    till.sync()
    assert rows(shop, "SELECT base_seq FROM state") == [(3,)]
    sell(till, 2)
    till.sync()
    device = shop.server.device
    del device.events[3:], device.hashes[4:]
    shop.server.epoch, shop.server.recovering = 2, True
    shop.server.script = [passes, loses_the_request]
    with pytest.raises(TryLater):
        till.sync()
    assert (till.status().waiting_redemptions, till.status().waiting_minor) == (2, 2 * 135)


def test_a_cache_that_is_no_text_is_set_aside(till: Till, shop: Shop) -> None:
    """A disk that lost a bit within a letter is no reason to open no till any more."""
    till.close()
    with closing(sqlite3.connect(shop.work / "till" / "cache" / "cache.db")) as connection, connection:
        connection.execute("UPDATE Cache SET value = ? WHERE key = 'bundle/main'", (b'{"manifest":"\xe1","etag":""}',))
    again = shop.open()
    assert again.status().freshness == "none"
    again.sync()
    assert applies(again, "TEN")


def test_a_cache_that_the_disk_fails_to_read_stays(till: Till, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite says of EIO that the file is malformed (disk row, seed 1, case 2): what is sound is not set aside, and a
    till without a line goes on selling when the disk does."""
    till.close()

    def failing(*_: object) -> object:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    shop.offline()
    till = shop.open()
    with monkeypatch.context() as patch:
        patch.setattr(diskcache.Cache, "get", failing)
        with pytest.raises(StorageError, match="failed to read") as caught:
            till.redeem(order(1), ["TEN"])
    assert caught.value.code == "DISK"
    assert not list((shop.work / "till").glob("cache.refused*"))
    assert till.redeem(order(1), ["TEN"]).redeemed
