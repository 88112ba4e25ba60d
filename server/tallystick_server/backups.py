"""Backups of an SQLite database, and what devices may purge because of them (protocol.md, section 6).

What is durable is what any backup that may be restored contains. So a backup is made, checked, and only then the end of
each journal in that copy becomes `durable_seq`; from then on only this or a later backup may be restored.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import msgspec
from sqlalchemy import bindparam, select, update

from tallystick_server import auditing
from tallystick_server.database import Database, Transaction
from tallystick_server.settings import Settings
from tallystick_server.tables import SCHEMA_REVISION, audit, devices
from tallystick_shared.errors import CallerError
from tallystick_shared.journal import Position

ACTION = "backup"
"""In the audit."""


@dataclass(frozen=True)
class Backup:
    """What a copy holds. `journals`: the end of each device's journal that has one branch, by device.

    A forked device is left out: which of its branches is its own is not known, so nothing of it is called durable.
    """

    file: Path
    server_id: str
    server_epoch: int
    ledger_mark: int
    events: int
    journals: Mapping[str, Position]


async def back_up(settings: Settings, file: Path, *, now: datetime) -> Backup:
    """Copies the database, which may be in use, to `file`, which must not be there yet. Steps:

    1. a consistent copy beside `file`, 0600, on the disk
    2. the copy is opened and checked: its pages, its migration, its server and ledger mark
    3. it gets its name: until here nothing was promised to anybody
    4. in one transaction: what it holds of each journal is durable, never less than before; and the audit

    Raises `CallerError` (`NOT_SQLITE`, `EXISTS`, `NOT_WRITABLE`, `BAD_BACKUP`, `NOT_INITIALISED`).
    """
    source = settings.sqlite_file
    if source is None:
        raise CallerError(
            "this database is PostgreSQL: back it up with pg_basebackup or pg_dump, and set "
            "TALLYSTICK_BACKUP=replicated once every commit is on a second machine, so that devices may purge",
            code="NOT_SQLITE",
        )
    database = Database(settings)
    try:
        await database.must_be_ready()
        made = _copy_and_check(source, file)
        await database.write(partial(_call_durable, backup=made, now=now))
    finally:
        await database.close()
    return made


def _copy_and_check(source: Path, file: Path) -> Backup:
    making = file.with_name(file.name + ".new")
    if file.exists():
        raise CallerError(f"{file} is there already; a backup overwrites nothing", code="EXISTS")
    try:
        # 1
        making.unlink(missing_ok=True)
        os.close(os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        _copy(source, making)
        # 2
        made = _check(making, file)
        _must_be_same_server(made, source)
        # 3
        making.rename(file)
        _sync(file.parent)
    except OSError as error:
        raise CallerError(f"{file} cannot be written: {error.strerror}", code="NOT_WRITABLE") from error
    except sqlite3.Error as error:
        raise CallerError(f"the database cannot be copied to {file}: {error}", code="NOT_WRITABLE") from error
    finally:
        making.unlink(missing_ok=True)
    return made


def _copy(source: Path, making: Path) -> None:
    """All of one moment, without the pages that are free: what was erased is not in it."""
    with closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=rw", uri=True, timeout=30)) as connection:
        connection.execute("VACUUM INTO ?", (str(making),))
    _sync(making)


def _check(making: Path, file: Path) -> Backup:
    """What the copy says when it is read again from the disk. Raises `CallerError` (`BAD_BACKUP`), `sqlite3.Error`."""
    with closing(sqlite3.connect(f"{making.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as copy:
        (sound,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
        (revision,) = copy.execute("SELECT version_num FROM alembic_version").fetchone()
        if sound != "ok" or revision != SCHEMA_REVISION:
            raise CallerError(
                f"the copy is not sound ({sound}, migration {revision}): check the disk", code="BAD_BACKUP"
            )
        server_id, epoch = copy.execute("SELECT server_id, server_epoch FROM server").fetchone()
        (mark,) = copy.execute("SELECT coalesce(max(id), 0) FROM syncs").fetchone()
        (count,) = copy.execute("SELECT count(*) FROM events").fetchone()
        rows = copy.execute("SELECT id, seq, hash FROM devices WHERE branches = 1")
        return Backup(file, server_id, epoch, mark, count, {one: Position(seq, digest) for one, seq, digest in rows})


def _must_be_same_server(made: Backup, source: Path) -> None:
    with closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=rw", uri=True, timeout=30)) as connection:
        server_id, epoch = connection.execute("SELECT server_id, server_epoch FROM server").fetchone()
        (mark,) = connection.execute("SELECT coalesce(max(id), 0) FROM syncs").fetchone()
    if (made.server_id, made.server_epoch) != (server_id, epoch) or made.ledger_mark > mark:
        raise CallerError("the database was changed for another while it was copied: try again", code="BAD_BACKUP")


async def _call_durable(transaction: Transaction, *, backup: Backup, now: datetime) -> None:
    # 4
    rows = [
        {"p_id": device_id, "p_seq": end.seq, "durable_seq": end.seq, "durable_hash": end.hash}
        for device_id, end in backup.journals.items()
    ]
    if rows:
        change = update(devices).where(
            devices.c.id == bindparam("p_id"),
            devices.c.branches == 1,
            devices.c.seq >= bindparam("p_seq"),
            devices.c.durable_seq < bindparam("p_seq"),
        )
        await transaction.execute(change, rows)
    detail = {"file": str(backup.file.resolve()), "ledger_mark": backup.ledger_mark, "events": backup.events}
    await auditing.note(
        transaction, who=auditing.OPERATOR, action=ACTION, about=backup.file.name[:256], now=now, detail=detail
    )


async def notes(transaction: Transaction, settings: Settings) -> list[str]:
    """For the status: what devices may purge, and what may be restored."""
    if settings.backup != "none":
        return []
    newest = select(audit.c.at, audit.c.detail).where(audit.c.action == ACTION).order_by(audit.c.id.desc()).limit(1)
    row = (await transaction.execute(newest)).one_or_none()
    if row is not None:
        file = msgspec.json.decode(row.detail)["file"]
        return [f"devices purge what the backup {file} of {row.at:%Y-%m-%d %H:%M} UTC holds: restore no earlier one"]
    how = "TALLYSTICK_BACKUP" if settings.sqlite_file is None else "tallystick-server backup FILE"
    return [f"no backup is configured, so devices keep everything they ever recorded ({how})"]


def _sync(path: Path) -> None:
    """What the operating system still has of this file or directory is on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
