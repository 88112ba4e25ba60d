"""The journal's tables, and how the file is opened. Source: protocol.md, sections 6 and 8.

What must hold is written as constraints, so that no code of this or a later version can break it: I2 is the CHECK of
`leases`, I4 the primary key of `events`, I6 the triggers on `state` and `floors`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tallystick_client.errors import StorageError

APPLICATION_ID = 0x54414C4C
"""`TALL`, so that `file` and a curious operator can tell what it is."""
USER_VERSION = 2
"""Of the tables below. A journal of an earlier one is upgraded where it lies by `UPGRADES`."""
BUSY_TIMEOUT_MS = 10_000

TABLES = """
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    server_id TEXT NOT NULL, device_id TEXT NOT NULL, store_id TEXT NOT NULL, scope TEXT NOT NULL,
    device_state TEXT NOT NULL CHECK (device_state IN ('pending', 'active', 'suspended', 'revoked', 'lost')),
    customer_salt TEXT NOT NULL,
    base_seq INTEGER NOT NULL, base_hash TEXT NOT NULL,
    durable_seq INTEGER NOT NULL,
    acknowledged_seq INTEGER NOT NULL, acknowledged_hash TEXT NOT NULL,
    acknowledged_redemptions INTEGER NOT NULL, acknowledged_minor INTEGER NOT NULL,
    head_seq INTEGER NOT NULL, head_hash TEXT NOT NULL,
    head_redemptions INTEGER NOT NULL, head_minor INTEGER NOT NULL,
    server_epoch INTEGER NOT NULL, ledger_mark INTEGER NOT NULL, lease_number INTEGER NOT NULL,
    bundle_version INTEGER NOT NULL, bundle_serial INTEGER NOT NULL,
    mark_at TEXT NOT NULL, mark_boot_id TEXT NOT NULL, mark_monotonic_s INTEGER NOT NULL,
    mark_gained_s INTEGER NOT NULL, mark_signed_at TEXT NOT NULL, mark_signed_boot_id TEXT NOT NULL,
    anomaly TEXT NOT NULL,
    batch_events_max INTEGER NOT NULL CHECK (batch_events_max BETWEEN 1 AND 500),
    failures INTEGER NOT NULL, next_attempt_at TEXT, not_before_at TEXT, last_sync_at TEXT,
    recovering INTEGER NOT NULL DEFAULT 0 CHECK (recovering IN (0, 1)),
    retired INTEGER NOT NULL DEFAULT 0 CHECK (retired IN (0, 1)),
    CHECK (0 <= base_seq AND base_seq <= durable_seq AND durable_seq <= acknowledged_seq
           AND acknowledged_seq <= head_seq),
    CHECK (acknowledged_redemptions <= head_redemptions AND acknowledged_minor <= head_minor)
) STRICT;

CREATE TRIGGER head_never_goes_back BEFORE UPDATE ON state
WHEN NEW.head_seq < OLD.head_seq OR NEW.base_seq < OLD.base_seq OR NEW.lease_number < OLD.lease_number
BEGIN SELECT RAISE(ABORT, 'head, base and lease number never go back'); END;

CREATE TABLE events (
    seq INTEGER PRIMARY KEY CHECK (seq >= 1),
    id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL CHECK (type IN ('redeem', 'void', 'lease_close', 'clock_anomaly')),
    at TEXT NOT NULL,
    ref TEXT,
    hash TEXT NOT NULL CHECK (length(hash) = 64),
    envelope BLOB NOT NULL,
    body BLOB NOT NULL,
    redemptions_so_far INTEGER NOT NULL,
    minor_so_far INTEGER NOT NULL,
    outcome TEXT CHECK (outcome IN ('applied', 'duplicate', 'flagged', 'quarantined')),
    reasons TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX events_of_bad_clocks ON events (seq) WHERE type = 'clock_anomaly';
CREATE INDEX events_to_look_at ON events (seq) WHERE outcome IN ('flagged', 'quarantined');

CREATE TRIGGER events_never_change BEFORE UPDATE OF seq, id, hash, envelope ON events
BEGIN SELECT RAISE(ABORT, 'an event never changes'); END;

CREATE TABLE leases (
    id TEXT PRIMARY KEY,
    number INTEGER NOT NULL UNIQUE CHECK (number >= 1),
    voucher_id TEXT NOT NULL,
    units INTEGER CHECK (units >= 0),
    minor INTEGER CHECK (minor >= 0),
    used_units INTEGER NOT NULL DEFAULT 0 CHECK (used_units >= 0),
    used_minor INTEGER NOT NULL DEFAULT 0 CHECK (used_minor >= 0),
    expires_at TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'closing', 'closed')),
    reason TEXT NOT NULL DEFAULT '',
    close_seq INTEGER,
    CHECK (units IS NULL OR used_units <= units),
    CHECK (minor IS NULL OR used_minor <= minor),
    CHECK ((state = 'active') = (close_seq IS NULL))
) STRICT;
CREATE UNIQUE INDEX one_open_lease_a_voucher ON leases (voucher_id) WHERE state <> 'closed';
CREATE INDEX leases_closing ON leases (close_seq) WHERE close_seq IS NOT NULL;
CREATE INDEX leases_of_voucher ON leases (voucher_id, number);

CREATE TRIGGER used_never_goes_down BEFORE UPDATE ON leases
WHEN NEW.used_units < OLD.used_units OR NEW.used_minor < OLD.used_minor
     OR (OLD.state <> 'active' AND (NEW.used_units <> OLD.used_units OR NEW.used_minor <> OLD.used_minor))
     OR (OLD.state <> 'active' AND NEW.state = 'active')
BEGIN SELECT RAISE(ABORT, 'use of a lease never goes down, and ends with its close'); END;

CREATE TABLE voucher_uses (
    voucher_id TEXT PRIMARY KEY, units INTEGER NOT NULL CHECK (units >= 0), minor INTEGER NOT NULL CHECK (minor >= 0)
) STRICT, WITHOUT ROWID;
CREATE TABLE customer_uses (
    voucher_id TEXT NOT NULL, customer TEXT NOT NULL, units INTEGER NOT NULL CHECK (units >= 0), ends_at TEXT,
    PRIMARY KEY (voucher_id, customer)
) STRICT, WITHOUT ROWID;
CREATE TABLE wants (
    voucher_id TEXT PRIMARY KEY, units INTEGER NOT NULL CHECK (units >= 1)
) STRICT, WITHOUT ROWID;

CREATE TABLE voids (redemption_id TEXT PRIMARY KEY, void_id TEXT NOT NULL UNIQUE) STRICT, WITHOUT ROWID;
CREATE TABLE returns (
    redemption_id TEXT NOT NULL, line_id TEXT NOT NULL, units INTEGER NOT NULL CHECK (units >= 1),
    PRIMARY KEY (redemption_id, line_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE attempts (
    id TEXT PRIMARY KEY, at TEXT NOT NULL, fingerprint TEXT NOT NULL, request BLOB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'redeemed', 'refused', 'offline')), answer BLOB
) STRICT, WITHOUT ROWID;
CREATE INDEX attempts_without_answer ON attempts (fingerprint) WHERE state = 'pending';

CREATE TABLE roots (version INTEGER PRIMARY KEY CHECK (version >= 1), raw BLOB NOT NULL) STRICT;
CREATE TABLE floors (
    scope TEXT PRIMARY KEY, server_epoch INTEGER NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TRIGGER floors_never_go_down BEFORE UPDATE ON floors
WHEN (NEW.server_epoch, NEW.version) < (OLD.server_epoch, OLD.version)
BEGIN SELECT RAISE(ABORT, 'a floor never goes down'); END;

CREATE TABLE enrolment (one INTEGER PRIMARY KEY CHECK (one = 1), request BLOB NOT NULL, answer BLOB NOT NULL) STRICT;
"""

UPGRADES: dict[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE state ADD COLUMN recovering INTEGER NOT NULL DEFAULT 0 CHECK (recovering IN (0, 1))",
        "ALTER TABLE state ADD COLUMN retired INTEGER NOT NULL DEFAULT 0 CHECK (retired IN (0, 1))",
        "CREATE TABLE enrolment"
        " (one INTEGER PRIMARY KEY CHECK (one = 1), request BLOB NOT NULL, answer BLOB NOT NULL) STRICT",
        "CREATE INDEX leases_of_voucher ON leases (voucher_id, number)",
    ),
}
"""The statements that lead from a version to the next. One that was ever released is never changed."""


@contextmanager
def on_disk(failed: str) -> Iterator[None]:
    """What the operating system says is wrong, as one sentence that begins with `failed`. Raises `StorageError`."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{failed}: {error.strerror or error}", code="DISK") from error


def create(path: Path) -> sqlite3.Connection:
    """A new journal, 0600, its tables in a transaction that the caller fills and commits. Raises `StorageError`."""
    with on_disk(f"{path} cannot be made"):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        connection = connect(path)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {USER_VERSION}")
        connection.executescript("BEGIN IMMEDIATE;" + TABLES)
    except sqlite3.Error as error:
        raise explained(error, path) from error
    return connection


def connect(path: Path) -> sqlite3.Connection:
    """A connection in WAL mode that commits with one fdatasync; its pragmas are read back. Raises `StorageError`."""
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_MS / 1000, cached_statements=256
    )
    wanted: dict[str, object] = {"journal_mode": "wal", "synchronous": 2, "trusted_schema": 0}
    try:
        for name, value in wanted.items():
            connection.execute(f"PRAGMA {name} = {value}")
        for name, value in wanted.items():
            (got,) = connection.execute(f"PRAGMA {name}").fetchone()
            if got != value:
                raise StorageError(f"{path} cannot be opened with {name} = {value}: it stays {got}", code="DISK")
        # where it may not write, SQLite opens a file to read it alone, and says so only when somebody writes; on a disk
        # that is read-only as a whole, what the journal holds must still be told
        with on_disk(f"{path} cannot be looked at"):
            read_only = os.statvfs(path).f_flag & os.ST_RDONLY
        if not read_only:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"PRAGMA user_version = {version}")
            connection.execute("ROLLBACK")
    except BaseException:
        connection.close()
        raise
    return connection


def open_existing(path: Path) -> sqlite3.Connection:
    """The connection to a journal that is there. Raises `StorageError`, `JOURNAL_DAMAGED` where it is not a journal."""
    with on_disk(f"{path} cannot be read"):
        if not path.exists():
            raise StorageError(f"there is no journal at {path}: this till has to be enrolled again", code="NOT_A_TILL")
        owner = path.stat().st_uid
    if owner != os.geteuid():
        raise StorageError(f"{path} belongs to user {owner}, this process runs as user {os.geteuid()}", code="NOT_OURS")
    connection = None
    try:
        connection = connect(path)
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application_id != APPLICATION_ID:
            raise StorageError(f"{path} is not a journal of Tallystick", code="JOURNAL_DAMAGED")
        if version < USER_VERSION:
            version = upgrade(connection)
        if version > USER_VERSION:
            raise StorageError(f"{path} was written by a newer Tallystick: update this one", code="NEEDS_UPDATE")
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise explained(error, path) from error
    except StorageError:
        if connection is not None:
            connection.close()
        raise
    return connection


def upgrade(connection: sqlite3.Connection) -> int:
    """Brings a journal to `USER_VERSION`, all of it in one transaction or nothing; its version now.

    Several processes may come at once.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        # again, now that no other process writes: one may have done it, and may be of a later release
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for earlier in range(version, USER_VERSION):
            for statement in UPGRADES[earlier]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {earlier + 1}")
        connection.execute("COMMIT")
        return max(int(version), USER_VERSION)
    except BaseException:
        # SQLite rolls back by itself on a full disk, and then says that there is nothing to roll back
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def explained(error: sqlite3.Error, path: Path) -> StorageError:
    """An error of SQLite as one sentence. A transaction it ended has written nothing."""
    if isinstance(error, sqlite3.ProgrammingError):
        return StorageError("this till was closed: open it again", code="CLOSED")
    primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF
    if primary == sqlite3.SQLITE_FULL:
        return StorageError("the disk is full, nothing was written: free some space and try again", code="DISK_FULL")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageError("another process of this till is writing: try again", code="BUSY")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StorageError(f"the journal {path} is damaged or cannot be read: {error}", code="JOURNAL_DAMAGED")
    if primary == sqlite3.SQLITE_CONSTRAINT:
        return StorageError(f"the journal refuses it, nothing was written: {error}", code="CONSTRAINT")
    return StorageError(f"the disk would not take it, nothing was written: {error}", code="DISK")


def sync_folder(folder: Path) -> None:
    """Puts the names in `folder` on the disk: files and folders that were made, renamed or removed. Raises `OSError`.

    Without it a power cut may take back the name of a file whose content was synced.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_READING: dict[tuple[int, int], int] = {}
"""Descriptors of databases, by device and inode. They stay open: to close any descriptor of a file drops all locks that
this process has on it (fcntl), those of SQLite too, and another process would then take the log away from under it."""


def demand_readable(path: Path) -> None:
    """Reads every byte of a database and its log: SQLite calls malformed what the disk fails to read. Raises
    `StorageError` (`DISK`)."""
    for part in (path, path.with_name(path.name + "-wal")):
        with on_disk(f"{part} cannot be read"), suppress(FileNotFoundError):
            found = part.stat()
            key = (found.st_dev, found.st_ino)
            if key not in _READING:
                _READING[key] = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
            position = 0
            while chunk := os.pread(_READING[key], 1024 * 1024, position):
                position += len(chunk)


def set_aside(path: Path, label: str) -> Path:
    """Renames a damaged journal, with its log files, so that nothing of it is lost; returns its new path.

    Raises `StorageError`.
    """
    aside = path.with_name(f"{path.name}.damaged-{label}")
    with on_disk(f"{path} cannot be set aside"):
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        sync_folder(path.parent)
    return aside
