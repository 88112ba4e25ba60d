"""The journal: its file, its constraints, its chain, and what it does when the disk is full or broken."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tallystick_client import Returned, StorageError, Till, schema
from tallystick_client.journal import FILE_NAME
from tallystick_client.schema import APPLICATION_ID, USER_VERSION, connect
from tests.client.conftest import ONCE, TEN, Shop, order

NOW = "2026-11-23T09:00:00+00:00"


@pytest.fixture
def till(shop: Shop) -> Till:
    """A till with a lease of two units of ONCE, and one redemption."""
    shop.server.publish(TEN, ONCE)
    till = shop.enroll()
    shop.server.grant(shop.server.device, "ONCE", units=2)
    till.sync()
    till.redeem(order(), ["ONCE"])
    return till


@pytest.fixture
def path(till: Till, shop: Shop) -> Path:
    return shop.work / "till" / FILE_NAME


def test_the_pragmas_are_read_back(path: Path) -> None:
    """WAL, synchronous FULL, and a file that says what it is; each connection of ours has them."""
    with closing(connect(path)) as connection:
        pragmas = ("journal_mode", "synchronous", "application_id", "user_version", "trusted_schema")
        read = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
    assert read == ["wal", 2, APPLICATION_ID, USER_VERSION, 0]


def test_a_journal_that_cannot_be_in_wal_mode_is_not_opened() -> None:
    """A pragma that does not take is one sentence, not a slower or less safe journal."""
    with pytest.raises(StorageError, match="journal_mode = wal"):
        connect(Path(":memory:"))


def test_the_files_are_private(path: Path) -> None:
    """Key and journal are 0600, with the log files of SQLite, and the directory is 0700."""
    for name in ("device.key", "config.json", FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm", "lock"):
        assert stat.S_IMODE((path.parent / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


LEASE = "INSERT INTO leases (id, number, voucher_id, units, minor, expires_at) VALUES "
EVENT = "INSERT INTO events SELECT"
FORBIDDEN = {
    "use above what was granted": "UPDATE leases SET used_units = units + 1",
    "minor above what was granted": "UPDATE leases SET minor = 100, used_minor = 101",
    "use that goes down": "UPDATE leases SET used_units = used_units - 1",
    "use after the close": "UPDATE leases SET state = 'closing', close_seq = 1;"
    "UPDATE leases SET used_units = used_units + 1",
    "a lease that opens again": "UPDATE leases SET state = 'closing', close_seq = 1;"
    "UPDATE leases SET state = 'active', close_seq = NULL",
    "a close without an event": "UPDATE leases SET state = 'closing'",
    "two open leases of a voucher": f"{LEASE} ('x', 99, (SELECT voucher_id FROM leases), 1, 1, '{NOW}')",
    "a lease number twice": f"{LEASE} ('x', 1, 'other', 1, 1, '{NOW}')",
    "a number in the chain twice": f"{EVENT} 1, 'x', type, at, ref, hash, envelope, body, 1, 1, NULL, '' FROM events",
    "an id twice": f"{EVENT} 2, id, type, at, ref, hash, envelope, body, 1, 1, NULL, '' FROM events",
    "another envelope": "UPDATE events SET envelope = x'00'",
    "another hash": f"UPDATE events SET hash = '{'0' * 64}'",
    "a head that goes back": "UPDATE state SET head_seq = 0",
    "acknowledged past the head": "UPDATE state SET acknowledged_seq = 9",
    "durable past acknowledged": "UPDATE state SET durable_seq = 1",
    "a lease number that goes down": "UPDATE state SET lease_number = 0",
    "a second state": "INSERT INTO state SELECT 2, * FROM (SELECT * FROM state)",
    "an unknown state": "UPDATE state SET device_state = 'happy'",
    "a floor that goes down": "UPDATE floors SET version = 0",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_database_forbids(path: Path, what: str) -> None:
    """No code, of this version or a later one, can write what must not be."""
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.Error):
        connection.executescript(FORBIDDEN[what])


def test_a_body_may_be_erased_and_the_chain_holds(till: Till, path: Path) -> None:
    """A customer's data can go without breaking a count or the chain."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE events SET body = x''")
    assert till._keeper.journal.verify() == 1
    assert till.sync().acknowledged == 1


def test_only_redemptions_are_counted_so_far(till: Till, path: Path) -> None:
    """Each event has the redemptions and their discounts up to it: a void takes from neither."""
    receipt = till.redeem(order(2), ["TEN"])
    till.void(receipt.id, returned=[Returned("1", 1)])
    till.void(receipt.id)
    till.redeem(order(3), ["TEN"])
    with closing(sqlite3.connect(path)) as connection:
        events = connection.execute("SELECT type, redemptions_so_far, minor_so_far FROM events ORDER BY seq").fetchall()
        head = connection.execute("SELECT head_redemptions, head_minor FROM state").fetchone()
    assert events == [("redeem", 1, 300), ("redeem", 2, 435), ("void", 2, 435), ("void", 2, 435), ("redeem", 3, 570)]
    assert head == (3, 570)


@pytest.mark.parametrize("damage", ["no database", "another database", "the chain", "the newest event", "the state"])
def test_a_damaged_journal_is_set_aside_and_reported(till: Till, path: Path, shop: Shop, damage: str) -> None:
    """It is renamed, kept whole, named in one sentence, and no empty one takes its place."""
    till.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TRIGGER events_never_change")
        connection.execute("DROP TRIGGER head_never_goes_back")
        match damage:
            case "another database":
                connection.execute("PRAGMA application_id = 1")
            case "the chain":
                connection.execute("UPDATE events SET envelope = x'00'")
            case "the newest event":
                connection.execute("DELETE FROM events")
            case "the state":
                connection.execute("DELETE FROM state")
        connection.commit()
    if damage == "no database":
        path.write_bytes(b"not a database at all " * 400)
    before = path.read_bytes()
    with pytest.raises(StorageError, match="is kept as") as caught:
        shop.open()
    assert caught.value.code == "JOURNAL_DAMAGED"
    (aside,) = path.parent.glob(f"{FILE_NAME}.damaged-*Z-??????")
    assert aside.read_bytes() == before
    with pytest.raises(StorageError, match="enrolled again") as caught:
        shop.open()
    assert caught.value.code == "NOT_A_TILL"
    assert not path.exists()


def test_damage_in_the_middle_is_found_before_it_is_sent(till: Till, path: Path) -> None:
    """A batch whose chain does not hold is not sent."""
    for number in (2, 3):
        till.redeem(order(number), ["TEN"])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TRIGGER events_never_change")
        connection.execute("UPDATE events SET envelope = x'00' WHERE seq = 2")
    with pytest.raises(StorageError, match="breaks at event 2"):
        till.sync()


def test_files_of_two_tills_are_not_mixed(till: Till, shop: Shop) -> None:
    """A journal under another till's config is refused, and so is enrolling over a till."""
    other = shop.enroll("other")
    other.close()
    till.close()
    shutil.copy(shop.work / "till" / FILE_NAME, shop.work / "other" / FILE_NAME)
    with pytest.raises(StorageError) as caught:
        shop.open("other")
    assert caught.value.code == "MIXED_DIRECTORY"
    with pytest.raises(StorageError, match="belongs to the till till already"):
        shop.enroll("till")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_till_of_somebody_else_is_refused_in_a_sentence(till: Till, path: Path, shop: Shop) -> None:
    """Directory and journal must be this user's own."""
    till.close()
    os.chown(path, 12345, -1)
    with pytest.raises(StorageError, match="belongs to user 12345"):
        shop.open()
    os.chown(path, 0, -1)
    os.chown(path.parent, 12345, -1)
    with pytest.raises(StorageError, match="belongs to user 12345"):
        shop.open()


def test_a_journal_of_a_newer_version_is_left_alone(till: Till, path: Path, shop: Shop) -> None:
    """An older program does not touch what it does not understand."""
    till.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {USER_VERSION + 1}")
    with pytest.raises(StorageError, match="newer Tallystick"):
        shop.open()
    assert path.exists()


# ---- a full disk


def fill(till: Till) -> tuple[int, StorageError]:
    """Redeems until the disk is full; how many it took, and what it said then."""
    for number in range(2, 5000):
        try:
            till.redeem(order(number), ["TEN"])
        except StorageError as error:
            return number - 1, error
    raise AssertionError("the disk was never full")


def test_a_database_that_may_not_grow_refuses_in_words(till: Till) -> None:
    """DISK_FULL, nothing half done, and it goes on as soon as there is room."""
    connection = till._keeper.journal._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 4}")
    taken, error = fill(till)
    assert error.code == "DISK_FULL"
    assert "disk is full" in str(error)
    assert till._keeper.journal.verify() == taken == till.status().head
    connection.execute("PRAGMA max_page_count = 1000000")
    assert till.redeem(order(9999), ["TEN"]).redeemed
    assert till._keeper.journal.verify() == taken + 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=0755", "tmpfs", str(disk)], capture_output=True)
    if done.returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_refuses_in_words_and_loses_nothing(shop: Shop, small_disk: Path) -> None:
    """ENOSPC from a real file system: every receipt is in the journal, and room makes it go on."""
    shop.server.publish(TEN)
    filler = small_disk / "filler"
    till = Till.enroll(small_disk / "till", shop.server.url, shop.server.token(), clock=shop.clock)
    try:
        till.sync()
        till.redeem(order(), ["TEN"])
        free = os.statvfs(small_disk)
        filler.write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - 64 * 1024))
        taken, error = fill(till)
        assert error.code == "DISK_FULL"
        assert till._keeper.journal.verify() == taken
        with pytest.raises(StorageError):
            till.redeem(order(9998), ["TEN"])
        filler.unlink()
        assert till.redeem(order(9999), ["TEN"]).redeemed
        assert till.sync().acknowledged == taken + 1
    finally:
        till.close()


def test_a_file_that_may_not_grow_refuses_in_words(till: Till) -> None:
    """A write that fails for another reason than a full disk loses nothing either."""
    before = till.status().head
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(one.stat().st_size for one in till._keeper.directory.path.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        taken, error = fill(till)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.code in ("DISK", "DISK_FULL")
    assert "nothing was written" in str(error)
    assert till._keeper.journal.verify() == taken >= before
    assert till.redeem(order(9999), ["TEN"]).redeemed


# ---- a disk that fails (found by `make prove-disk`, which makes real calls fail)


def failure(code: int, what: str) -> sqlite3.OperationalError:
    """As SQLite reports it."""
    error = sqlite3.OperationalError(what)
    error.sqlite_errorcode = code
    return error


class FailingSync:
    """A connection whose commits fail in their fdatasync, when all is in the log already."""

    in_transaction = True

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if statement == "COMMIT":
            raise failure(sqlite3.SQLITE_IOERR_FSYNC, "disk I/O error")
        return self._connection.execute(statement, *values)


def test_a_commit_that_fails_in_its_sync_is_uncertain(till: Till) -> None:
    """A crash may bring it back (disk row, seed 1, case 2), so it is not said that nothing was written; the sentence
    names the id to ask again with, which has one effect."""
    journal = till._keeper.journal
    sound = journal._connection
    for own in (None, "01920000-0000-7000-8000-000000000001"):
        journal._connection = FailingSync(sound)  # type: ignore[assignment]
        with pytest.raises(StorageError, match=r"ask again with the id [0-9a-f-]{36} \(") as caught:
            till.redeem(order(2), ["TEN"], id=own)
        assert caught.value.code == "UNCERTAIN"
        assert "nothing was written" not in str(caught.value)
        journal._connection = sound
        one = str(caught.value).partition("the id ")[2][:36]
        assert own in (None, one)
        assert till.redeem(order(2), ["TEN"], id=one) == till.redeem(order(2), ["TEN"], id=one)
    journal._connection = FailingSync(sound)  # type: ignore[assignment]
    with pytest.raises(StorageError, match=r"ask again \("), journal.write() as writing:
        writing.change(failures=3)
    journal._connection = sound
    assert journal.verify() == till.status().head == 3


def test_a_file_opened_to_read_it_alone_is_no_open_journal(
    till: Till, path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One `openat` that fails makes SQLite open the file read-only, which it tells nobody (disk row, seed 1, case 1):
    that is found when the till is opened, not at its first sale."""
    real = sqlite3.connect

    def read_only(database: Path, **given: object) -> sqlite3.Connection:
        return real(f"file:{database}?mode=ro", uri=True, **given)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with pytest.raises(StorageError, match="readonly") as caught:
        shop.open()
    assert caught.value.code == "DISK"
    monkeypatch.undo()
    assert path.exists()
    assert shop.open().redeem(order(2), ["TEN"]).redeemed


@pytest.mark.parametrize("passes", [True, False])
def test_a_journal_that_cannot_be_read_is_not_called_damaged(
    till: Till, path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch, passes: bool
) -> None:
    """SQLite says of EIO that the file is malformed (disk row, seed 1, case 2): it is tried again, and read byte for
    byte, before the journal of a till is taken from it."""
    till.close()
    errors = [failure(sqlite3.SQLITE_CORRUPT, "malformed")] * (1 if passes else 9)
    real = connect

    def failing(path: Path) -> sqlite3.Connection:
        if errors:
            raise errors.pop()
        return real(path)

    def unreadable(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(schema, "connect", failing)
    monkeypatch.setattr(os, "pread", unreadable)
    if passes:
        assert shop.open().redeem(order(2), ["TEN"]).redeemed
    else:
        with pytest.raises(StorageError, match="cannot be read") as caught:
            shop.open()
        assert caught.value.code == "DISK"
    assert path.exists()
    assert not list(path.parent.glob("*damaged*"))


# ---- one commit


PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from tallystick_client import Till
from tests.client.conftest import order
from tests.client.fake_clock import FakeClock
with Till.open({directory!r}, clock=FakeClock()) as till:
    till.redeem(order(1), ["TEN"])
    for number in range(int(sys.argv[1])):
        till.redeem(order(number), ["TEN"])
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_redemption_is_one_fdatasync(till: Till, shop: Shop, tmp_path: Path) -> None:
    """Twenty more redemptions in a process are twenty more fdatasyncs, and no other sync of any kind."""
    till.close()
    root = Path(__file__).parents[2]
    program = PROGRAM.format(root=str(root), directory=str(shop.work / "till"))

    def syncs(redemptions: int) -> int:
        log = tmp_path / f"strace-{redemptions}"
        command = ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync,sync,syncfs,msync", "-o", str(log)]
        done = subprocess.run(
            [*command, sys.executable, "-c", program, str(redemptions)], capture_output=True, text=True
        )
        if "ptrace" in done.stderr.lower():
            pytest.skip("this machine lets nobody trace")
        assert done.returncode == 0, done.stderr
        return sum("sync(" in line for line in log.read_text().splitlines())

    assert syncs(25) - syncs(5) == 20
