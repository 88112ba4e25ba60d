"""Backups: a whole copy or none, checked, and only what it holds is durable for devices."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from tallystick_server import backups
from tallystick_server.database import Database
from tallystick_server.settings import Settings
from tallystick_server.tables import SCHEMA_REVISION
from tallystick_shared.errors import CallerError
from tests.server.conftest import ORDER, Shop, voucher
from tests.server.tiny_device import TinyDevice

COMMAND = str(Path(sys.executable).parent / "tallystick-server")


@pytest.fixture
def device(shop: Shop) -> TinyDevice:
    """Three sales that the server has, and one that it has not."""
    shop.publish(voucher("OPEN"))
    device = shop.device()
    for _ in range(3):
        device.redeem(ORDER, "open")
    device.sync()
    device.redeem(ORDER, "open")
    return device


def back_up(shop: Shop, name: str = "copy") -> backups.Backup:
    return asyncio.run(backups.back_up(shop.settings, shop.settings.data / name, now=shop.clock()))


def durable(shop: Shop) -> list[tuple[int, str | None]]:
    rows = shop.rows("SELECT durable_seq, durable_hash FROM devices ORDER BY id")
    return [(row["durable_seq"], row["durable_hash"]) for row in rows]


def test_what_a_backup_holds_becomes_durable_and_no_more(shop: Shop, device: TinyDevice) -> None:
    """The next answer calls durable what the copy has, not what came after it; a later backup moves it on."""
    assert device.answer.durable.seq == 0
    made = back_up(shop)
    device.sync()
    assert device.answer.acknowledged.seq == 4
    assert device.answer.durable == device.position(3)
    assert (made.events, made.journals[device.id]) == (3, device.position(3))
    back_up(shop, "later")
    device.sync()
    assert device.answer.durable == device.position(4)
    assert durable(shop) == [(4, device.hashes[3])]


def test_a_copy_is_private_whole_and_can_be_restored(shop: Shop, device: TinyDevice, tmp_path: Path) -> None:
    """0600, one file without a log, sound, of this migration, and a server that starts from it knows its events."""
    made = back_up(shop)
    assert stat.S_IMODE(made.file.stat().st_mode) == 0o600
    assert [one.name for one in shop.settings.data.glob("copy*")] == ["copy"]
    with closing(sqlite3.connect(made.file)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("SELECT version_num FROM alembic_version").fetchone() == (SCHEMA_REVISION,)
        assert copy.execute("SELECT seq, hash FROM devices").fetchall() == [(3, device.hashes[2])]
        assert copy.execute("SELECT max(id) FROM syncs").fetchone() == (made.ledger_mark,)
    restored = msgspec.structs.replace(shop.settings, data=tmp_path / "restored", database_url="")
    shutil.copytree(shop.settings.keys, restored.keys)
    shutil.copy(made.file, restored.data / "tallystick.sqlite3")
    again = Shop(restored, shop.clock, shop.operator_key)
    with again.serving():
        device.url = again.url
        device.sync()
    assert device.answer.acknowledged.seq == 4


def test_durable_never_goes_back(shop: Shop, device: TinyDevice) -> None:
    """An older copy finished late, or one of a forked device, lowers and raises nothing."""
    first = back_up(shop)
    device.sync()
    back_up(shop, "second")
    now = durable(shop)
    assert now[0][0] == 4

    async def late() -> None:
        database = Database(shop.settings)
        await database.write(lambda transaction: backups._call_durable(transaction, backup=first, now=shop.clock()))
        await database.close()

    asyncio.run(late())
    assert durable(shop) == now
    shop.rows("UPDATE devices SET branches = 2, durable_seq = 0, durable_hash = NULL")
    assert back_up(shop, "third").journals == {}
    assert durable(shop) == [(0, None)]


def test_a_backup_is_audited_with_its_file_and_ledger_mark(shop: Shop, device: TinyDevice) -> None:
    """So that somebody who restores knows which one is the last that may be."""
    made = back_up(shop)
    (row,) = shop.rows("SELECT * FROM audit WHERE action = 'backup'")
    detail = json.loads(row["detail"])
    assert (row["object"], detail["file"]) == ("copy", str(made.file.resolve()))
    assert (detail["ledger_mark"], detail["events"]) == (made.ledger_mark, 3)
    assert made.ledger_mark == shop.rows("SELECT max(id) AS n FROM syncs")[0]["n"]


def test_a_copy_of_a_busy_server_is_of_one_moment(shop: Shop, device: TinyDevice) -> None:
    """While events come in: what a copy says of a journal's end is in its events, every time."""
    stop = threading.Event()

    def sell() -> None:
        while not stop.is_set():
            device.redeem(ORDER, "open")
            device.sync()

    selling = threading.Thread(target=sell)
    selling.start()
    try:
        for number in range(5):
            made = back_up(shop, f"copy-{number}")
            with closing(sqlite3.connect(made.file)) as copy:
                rows = copy.execute("SELECT max(seq), count(*) FROM events").fetchall()
            assert rows == [(made.journals[device.id].seq, made.events)]
    finally:
        stop.set()
        selling.join()
    assert device.answer.durable.seq <= device.answer.acknowledged.seq


def _truncated(making: Path) -> None:
    with making.open("r+b") as file:
        file.truncate(making.stat().st_size // 2)


def _older(making: Path) -> None:
    with closing(sqlite3.connect(making)) as copy, copy:
        copy.execute("UPDATE alembic_version SET version_num = '0000'")


def _of_another_server(making: Path) -> None:
    with closing(sqlite3.connect(making)) as copy, copy:
        copy.execute("UPDATE server SET server_id = 'another'")


@pytest.mark.parametrize("spoil", [_truncated, _older, _of_another_server])
def test_a_copy_that_is_not_sound_is_no_backup(
    shop: Shop, device: TinyDevice, spoil: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the disk did to it: no file is left, nothing is durable, and nothing is audited."""
    copy = backups._copy

    def spoiled(source: Path, making: Path) -> None:
        copy(source, making)
        spoil(making)

    monkeypatch.setattr(backups, "_copy", spoiled)
    with pytest.raises(CallerError):
        back_up(shop)
    assert list(shop.settings.data.glob("copy*")) == []
    assert durable(shop) == [(0, None)]
    assert shop.rows("SELECT * FROM audit WHERE action = 'backup'") == []


def test_what_is_refused_leaves_everything_as_it_was(shop: Shop, device: TinyDevice) -> None:
    """A file that is there, a folder that is not, a database that no copy here can be made of."""
    kept = shop.settings.data / "kept"
    kept.write_text("mine")
    with pytest.raises(CallerError, match="overwrites nothing") as caught:
        back_up(shop, "kept")
    assert (caught.value.code, kept.read_text()) == ("EXISTS", "mine")
    with pytest.raises(CallerError) as caught:
        back_up(shop, "nowhere/copy")
    assert caught.value.code == "NOT_WRITABLE"
    postgresql = Settings(data=shop.settings.data, database_url="postgresql://u:p@localhost/db")
    with pytest.raises(CallerError, match="TALLYSTICK_BACKUP=replicated") as caught:
        asyncio.run(backups.back_up(postgresql, shop.settings.data / "pg", now=shop.clock()))
    assert caught.value.code == "NOT_SQLITE"
    assert durable(shop) == [(0, None)]


def test_the_command_says_what_may_be_restored_from_now_on(shop: Shop, device: TinyDevice) -> None:
    """And the status stops saying that no backup is configured, and names the last one."""
    assert "no backup is configured" in " ".join(shop.get("/v1/status")["notes"])
    file = shop.settings.data / "copy"
    command = [COMMAND, "--data", str(shop.settings.data), "backup", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{file} holds 3 events of 1 devices, up to ledger mark ")
    assert "restore only this or a later backup" in done.stderr
    notes = " ".join(shop.get("/v1/status")["notes"])
    assert "no backup is configured" not in notes
    assert f"{file.resolve()}" in notes
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
