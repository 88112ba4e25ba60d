"""Ways to break the till's product on purpose, for the controls of the power cuts: each is called in the process whose
day is recorded."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

from tallystick_client import schema, store


def journal_normal() -> None:
    """A commit returns when the log is written; SQLite syncs it only before it writes it back."""
    connect = schema.connect

    def connected(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    schema.connect = connected


def cache_normal() -> None:
    store.SETTINGS["sqlite_synchronous"] = 1


def files_unsynced() -> None:
    _skip(stat.S_ISREG)


def folders_unsynced() -> None:
    _skip(stat.S_ISDIR)


def _skip(is_skipped: Callable[[int], bool]) -> None:
    """SQLite's own syncs are not Python's, and stay."""
    fsync = os.fsync

    def some(descriptor: int) -> None:
        if not is_skipped(os.fstat(descriptor).st_mode):
            fsync(descriptor)

    os.fsync = some  # type: ignore[assignment]
