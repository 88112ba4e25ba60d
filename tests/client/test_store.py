"""The cache: what others plant in it is refused, and costs no more than fetching the bundle again."""

from __future__ import annotations

import os
import pickle
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import diskcache
import pytest

from tallystick_client import NotNow, StorageError
from tallystick_client.store import CHUNK_BYTES, SETTINGS, BytesDisk, Store
from tallystick_shared.errors import Untrusted
from tests.client.conftest import ONCE, TEN, Shop, order

EXPLODED: list[str] = []


class Explosive:
    """Unpickling one is the accident that must not happen."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return EXPLODED.append, ("boom",)


@pytest.fixture
def cache(shop: Shop) -> Path:
    """The cache of a till that has a bundle and is closed."""
    shop.server.publish(TEN, ONCE)
    shop.enroll().close()
    return shop.work / "till" / "cache"


def run(cache: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(cache / "cache.db")) as connection, connection:
        connection.execute(statement, values)


INSERT = "INSERT INTO Cache (key, raw, mode, filename, value) VALUES (?, ?, ?, ?, ?)"
PLANTED: dict[str, tuple[Any, ...]] = {
    "a pickled value": (INSERT, "manifest/other", 1, 4, None, pickle.dumps(Explosive())),
    "a pickled value in place": ("UPDATE Cache SET mode = 4, value = ?", pickle.dumps(Explosive())),
    "a pickled key": (INSERT, pickle.dumps(Explosive()), 0, 1, None, b"x"),
    "a file name": (INSERT, "manifest/other", 1, 2, "../../../../etc/passwd", None),
    "a file name in place": ("UPDATE Cache SET mode = 2, filename = ?", "../device.key"),
    "a key that is a number": (INSERT, 7, 1, 1, None, b"x"),
    "a value that is text": ("UPDATE Cache SET value = 'text'",),
    "an oversized value": (INSERT, "manifest/other", 1, 1, None, b"x" * (CHUNK_BYTES + 1)),
    "an expiry": ("UPDATE Cache SET expire_time = 1",),
    "a tag": ("UPDATE Cache SET tag = 'x'",),
    "a setting that is a method": ("INSERT INTO Settings VALUES ('close', 1)",),
    "a pragma of its own": ("INSERT INTO Settings VALUES ('sqlite_temp_store; VACUUM', 1)",),
    "a setting that is SQL": ("UPDATE Settings SET value = 'wal; DROP TABLE Cache' WHERE key = 'sqlite_journal_mode'",),
    "a trigger": ("CREATE TRIGGER planted AFTER DELETE ON Cache BEGIN DELETE FROM Settings; END",),
    "a view": ("CREATE VIEW planted AS SELECT 1",),
    "a table": ("CREATE TABLE planted (a)",),
    "another manifest": ("UPDATE Cache SET value = x'00' WHERE key LIKE 'manifest/%'",),
    "another snapshot": ("UPDATE Cache SET value = x'00' WHERE key LIKE 'blob/%'",),
    "no snapshot": ("DELETE FROM Cache WHERE key LIKE 'blob/%'",),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_set_aside_and_fetched_again(shop: Shop, cache: Path, what: str) -> None:
    """Nothing planted is run, opened or believed; the cache is kept aside, and the next sync fetches the bundle."""
    run(cache, *PLANTED[what])
    till = shop.open()
    with pytest.raises(NotNow, match="no vouchers yet"):
        till.preview(order(), ["TEN"])
    assert EXPLODED == []
    assert len(list(cache.parent.glob("cache.refused-*"))) == 1
    assert (cache.parent / "device.key").exists()
    assert any("could not be trusted" in note for note in till.status().notes)
    till.sync()
    assert till.preview(order(), ["TEN"]).discount_minor == 135


def test_an_empty_cache_is_no_bundle(shop: Shop, cache: Path) -> None:
    """A cache that somebody emptied is filled by the next sync."""
    run(cache, "DELETE FROM Cache")
    till = shop.open()
    assert till.status().freshness == "none"
    till.sync()
    assert till.preview(order(), ["TEN"]).discount_minor == 135


def test_a_file_that_is_no_database_is_set_aside(shop: Shop, cache: Path) -> None:
    """Bytes of something else are renamed aside like anything else."""
    (cache / "cache.db").write_bytes(b"not a database" * 1000)
    till = shop.open()
    till.sync()
    assert till.preview(order(), ["TEN"]).discount_minor == 135


@pytest.mark.parametrize(
    "call",
    [
        lambda disk: disk.put(b"bytes"),
        lambda disk: disk.put(7),
        lambda disk: disk.put("x" * 257),
        lambda disk: disk.put(""),
        lambda disk: disk.get("key", False),
        lambda disk: disk.get(b"key", True),
        lambda disk: disk.store("text", False),
        lambda disk: disk.store(Explosive(), False),
        lambda disk: disk.store(b"x" * (CHUNK_BYTES + 1), False),
        lambda disk: disk.store(b"x", True),
        lambda disk: disk.fetch(4, None, pickle.dumps(1), False),
        lambda disk: disk.fetch(2, "name", None, False),
        lambda disk: disk.fetch(1, "name", b"x", False),
        lambda disk: disk.fetch(1, None, "text", False),
        lambda disk: disk.fetch(1, None, b"x" * (CHUNK_BYTES + 1), False),
        lambda disk: disk.fetch(1, None, b"x", True),
        lambda disk: disk.filename(),
        lambda disk: disk.remove("../device.key"),
    ],
)
def test_the_disk_takes_and_gives_bytes_in_the_row_only(tmp_path: Path, call: Callable[[BytesDisk], object]) -> None:
    """No pickle, no file, no other key, in either direction, even where the look through the file saw nothing."""
    with pytest.raises(Untrusted) as caught:
        call(BytesDisk(str(tmp_path)))
    assert caught.value.code == "FOREIGN_CACHE"


def test_the_settings_are_those_of_the_design(cache: Path) -> None:
    """No eviction, no culling, no statistics, no tags, and a full fsync when a version is committed."""
    with closing(diskcache.Cache(str(cache), disk=BytesDisk)) as opened:
        assert {name: getattr(opened, name) for name in SETTINGS} == SETTINGS
        assert opened._sql("PRAGMA synchronous").fetchone() == (2,)
        assert all(type(opened[key]) is bytes for key in opened)


def test_the_cache_is_private_and_holds_few_values(shop: Shop, cache: Path) -> None:
    """0700, and one value for what the bundle is made of, one a manifest and one a chunk of a blob."""
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    shop.server.publish(*({**TEN, "code": f"CODE{number}"} for number in range(500)))
    shop.open().sync()
    with closing(sqlite3.connect(cache / "cache.db")) as connection:
        keys = [key for (key,) in connection.execute("SELECT key FROM Cache ORDER BY key")]
    assert [key.partition("/")[0] for key in keys] == ["blob", "bundle", "manifest"]
    cache.chmod(0o755)
    shop.open().preview(order(), ["TEN"])
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_cache_of_somebody_else_is_refused_in_a_sentence(cache: Path) -> None:
    """What another user owns another user can change: it is not even opened."""
    os.chown(cache, 12345, -1)
    with pytest.raises(StorageError, match="belongs to user 12345, this process runs as user 0") as caught:
        Store(cache, label=lambda: "x")
    assert caught.value.code == "NOT_OURS"


def test_a_link_in_place_of_the_cache_is_refused(cache: Path, tmp_path: Path) -> None:
    """A cache that is a link to elsewhere is not followed."""
    cache.rename(tmp_path / "elsewhere")
    cache.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="not a directory"):
        Store(cache, label=lambda: "x")


def test_a_voucher_of_a_newer_engine_breaks_nothing_but_itself(shop: Shop) -> None:
    """The till says that it needs an update for that one, and sells the others."""
    shop.server.publish(TEN, raw={"FUTURE": b'{"code":"FUTURE","discount":{"type":"telepathy","wishes":3}}'})
    till = shop.enroll()
    result = till.preview(order(), ["FUTURE", "TEN"])
    assert [applied.code for applied in result.applied] == ["TEN"]
    assert result.refused[0].detail["code"] == "NEEDS_UPDATE"


def test_another_process_of_the_till_sees_a_new_bundle_at_once(shop: Shop) -> None:
    """A till that was opened before another process synced sells from the new bundle, in its next redemption."""
    shop.server.publish(TEN)
    first = shop.enroll()
    assert first.preview(order(), ["TEN"]).discount_minor == 135
    shop.server.publish({**TEN, "discount": {"type": "percentage", "percent": 20}})
    shop.open().sync()
    receipt = first.redeem(order(), ["TEN"])
    assert receipt.result.discount_minor == 270
    assert first.status().bundle_version == 2
