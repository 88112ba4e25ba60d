"""The client, broken on purpose in the process that calls one of these: each must be found by the disk errors."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tallystick_client import schema
from tallystick_client.journal import Journal


def answered_as_redeemed() -> None:
    """A commit that fails is taken for one that did not."""

    def commit(self: Journal, event_id: str) -> None:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    Journal._commit = commit  # type: ignore[method-assign]


def called_not_written() -> None:
    """Of a commit that failed in its sync it is said that nothing was written."""

    def commit(self: Journal, event_id: str) -> None:
        self._connection.execute("COMMIT")

    Journal._commit = commit  # type: ignore[method-assign]


def let_through() -> None:
    """What SQLite raises reaches the caller as it is."""

    def explained(error: sqlite3.Error, path: Path) -> Exception:
        return error

    schema.explained = explained  # type: ignore[assignment]
