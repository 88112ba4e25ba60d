"""A journal of the first release, with a queue and open leases, opened by this one: nothing lost, whatever happens."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tallystick_client import LineError, StorageError, schema
from tallystick_client.journal import FILE_NAME, Journal
from tallystick_shared.journal import EventType, Returned
from tests.client import journal_v1
from tests.client.conftest import ONCE, TEN, Shop, arrived, order, rows, sell
from tests.client.fake_server import loses_the_request

QUOTA = [{**ONCE, "code": code} for code in ("ACTIVE", "CLOSING", "CLOSED")]
V1_TABLES = ("state", "events", "leases", "voucher_uses", "customer_uses", "wants", "voids", "returns", "attempts",
             "roots", "floors")  # fmt: skip


def downgrade(path: Path) -> None:
    """Puts the rows of a journal into one of version 1, as the first release made it, in its place."""
    old = path.with_name("v1")
    with closing(sqlite3.connect(old, isolation_level=None)) as made:
        made.executescript(journal_v1.TABLES)
        made.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        made.execute("PRAGMA user_version = 1")
        made.execute("ATTACH ? AS newer", (str(path),))
        for table in V1_TABLES:
            names = [name for _, name, *_ in made.execute(f"PRAGMA main.table_info({table})")]
            columns = ", ".join(names)
            made.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM newer.{table}")
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    old.chmod(0o600)
    old.rename(path)


def content(path: Path) -> dict[str, list[Any]]:
    """Every row of version 1's tables, in its columns."""
    found = {}
    with closing(sqlite3.connect(path)) as connection, closing(sqlite3.connect(":memory:")) as v1:
        v1.executescript(journal_v1.TABLES)
        for table in V1_TABLES:
            columns = ", ".join(name for _, name, *_ in v1.execute(f"PRAGMA table_info({table})"))
            found[table] = connection.execute(f"SELECT {columns} FROM {table} ORDER BY 1, 2").fetchall()
    return found


@pytest.fixture
def path(shop: Shop) -> Path:
    """A till of version 1: events of every type, some acknowledged and most not, and leases in each state."""
    shop.server.publish(TEN, *QUOTA)
    till = shop.enroll()
    for code, units in (("ACTIVE", 3), ("CLOSING", 1), ("CLOSED", 1)):
        shop.server.grant(shop.server.device, code, units=units)
    till.sync()
    sell(till, 1, "CLOSED")
    till.sync()
    sell(till, 2, "ACTIVE")
    sell(till, 1, "CLOSING")
    till.void(sell(till, 1)[0])
    till.void(sell(till, 1)[0], returned=[Returned("1", 1)])
    assert not till.redeem(order(7), ["CLOSED"]).redeemed
    shop.clock.turn(days=-3)
    sell(till, 1)
    shop.clock.turn(days=3)
    shop.server.script = [loses_the_request]
    assert not till.redeem_online(order(8), ["TEN"]).online
    shop.server.script = [loses_the_request]
    with pytest.raises(LineError):
        till.sync()
    till.close()
    path = shop.work / "till" / FILE_NAME
    downgrade(path)
    kinds = {kind for (kind,) in rows(shop, "SELECT DISTINCT type FROM events")}
    assert kinds == {kind.value for kind in EventType}
    assert {state for (state,) in rows(shop, "SELECT state FROM leases")} == {"active", "closing", "closed"}
    return path


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def test_nothing_is_lost_by_an_upgrade(path: Path, shop: Shop) -> None:
    """Every row of every table is as it was, the chain holds, and what is new says what was so all along."""
    before = content(path)
    till = shop.open()
    assert version(path) == schema.USER_VERSION
    assert content(path) == before
    assert till._keeper.journal.verify() == till.status().head == len(before["events"])
    state = till._keeper.journal.state()
    assert (state.recovering, state.retired) == (False, False)
    assert rows(shop, "SELECT * FROM enrolment") == []


def test_an_upgraded_till_sells_from_its_lease_and_syncs(path: Path, shop: Shop) -> None:
    """The queue arrives, the close that waited is acknowledged, and the open lease is still this till's."""
    till = shop.open()
    assert [lease.state for lease in till.status().leases] == ["active", "closing"]
    assert till.redeem(order(9), ["ACTIVE"]).redeemed
    till.sync()
    ids = [one for (one,) in rows(shop, "SELECT id FROM events WHERE type = 'redeem' ORDER BY seq")]
    assert arrived(shop) == ids
    assert till.status().waiting == 0
    closes = shop.server.device.envelopes(EventType.LEASE_CLOSE)
    assert [use.units for close in closes for use in close.uses] == [1, 1, 3]


def test_an_upgraded_journal_is_that_of_a_new_till(path: Path, shop: Shop) -> None:
    """The same tables, columns, indexes and triggers, whichever way it came there."""
    shop.open()
    new = shop.enroll("new")
    new.close()

    def shape(name: str) -> tuple[dict[str, Any], dict[str, str]]:
        with closing(sqlite3.connect(shop.work / name / FILE_NAME)) as connection:
            tables = [one for (one,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            columns = {one: connection.execute(f"PRAGMA table_info({one})").fetchall() for one in tables}
            others = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type <> 'table' AND sql IS NOT NULL")
            return columns, dict(others.fetchall())

    assert shape("till") == shape("new")
    for name in ("recovering", "retired"):
        for till in ("till", "new"):
            with closing(sqlite3.connect(shop.work / till / FILE_NAME)) as connection, pytest.raises(sqlite3.Error):
                connection.execute(f"UPDATE state SET {name} = 2")


def test_there_is_a_way_up_from_every_version() -> None:
    """A till may have slept through any number of releases."""
    assert sorted(schema.UPGRADES) == list(range(1, schema.USER_VERSION))


PROGRAM = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tallystick_client import schema
from tallystick_client.journal import Journal

left = int(sys.argv[2])
connect = schema.connect

def connected(path):
    connection = connect(path)
    def count(statement):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    connection.set_trace_callback(count)
    return connection

schema.connect = connected
sys.stdin.readline()
journal = Journal.open(Path(sys.argv[1]), label="test")
print(journal.verify(), flush=True)
"""


def opening(path: Path, statements: int) -> subprocess.Popen[str]:
    """A process that opens the journal once it is told to, and is killed before so many statements of its own."""
    program = PROGRAM.format(root=str(Path(__file__).parents[2]))
    command = [sys.executable, "-c", program, str(path), str(statements)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_kill_at_any_statement_leaves_one_version_or_the_other(path: Path, shop: Shop) -> None:
    """Whole, and the next opening goes on from there."""
    before = content(path)
    seen = set()
    for statements in range(1, 40):
        process = opening(path, statements)
        process.communicate("go\n", timeout=60)
        seen.add(version(path))
        with closing(sqlite3.connect(path)) as connection:
            names = {name for _, name, *_ in connection.execute("PRAGMA table_info(state)")}
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
        assert ("recovering" in names, "retired" in names, "enrolment" in tables) == (version(path) == 2,) * 3
        assert content(path) == before
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert process.returncode == 0, "the kills never came to an end"
    assert seen == {1, 2}
    assert statements > len(schema.UPGRADES[1]) + 4, "no kill met the upgrade"
    assert shop.open().sync().acknowledged > 0


def test_processes_that_open_at_once_upgrade_once(path: Path, shop: Shop) -> None:
    """Whoever comes second finds it done, and all of them can work."""
    count = len(content(path)["events"])
    processes = [opening(path, 0) for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == [str(count)] * 4
    assert version(path) == 2
    assert not list(path.parent.glob("*.damaged*"))


def test_a_full_disk_leaves_the_old_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused in words, nothing half done, and it goes on once there is room."""
    before = content(path)
    connect = schema.connect

    def small(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(schema, "connect", small)
        with pytest.raises(StorageError, match="disk is full") as caught:
            Journal.open(path, label="test")
    assert caught.value.code == "DISK_FULL"
    assert (version(path), content(path)) == (1, before)
    Journal.open(path, label="test").close()
    assert version(path) == 2
