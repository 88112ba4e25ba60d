"""What every part of a running server is given: settings, database, keys and a clock."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import uuid_utils
from sqlalchemy import select

from tallystick_server import keys as keys_of
from tallystick_server import tables
from tallystick_server.database import Database, Transaction
from tallystick_server.keys import Keys
from tallystick_server.revisions import Revisions
from tallystick_server.settings import Settings
from tallystick_shared.errors import CallerError

Clock = Callable[[], datetime]
FIRST_SCOPE = "main"
OPERATOR_KEY_PREFIX = "tallyop_"


@dataclass(frozen=True)
class Server:
    """`clock` gives the time now, with an offset; nothing here reads the wall clock by itself.

    `grants`: whether leases are granted; not where nobody takes the answer to the device.
    """

    settings: Settings
    database: Database
    keys: Keys
    clock: Clock
    revisions: Revisions = field(default_factory=Revisions)
    grants: bool = True


def open_server(settings: Settings, clock: Clock) -> Server:
    """Loads the keys and makes the engine; connects to nothing yet. Raises `CallerError` (`NO_KEYS`)."""
    return Server(settings, Database(settings), keys_of.load(settings), clock)


@dataclass(frozen=True)
class Ledger:
    """The one row about the server itself, and the highest ledger mark."""

    server_id: str
    server_epoch: int
    state: str
    mark: int
    suspected_by: str | None = None
    """The device whose answers are later than what the database holds."""


async def read_ledger(transaction: Transaction) -> Ledger:
    row = (await transaction.execute(select(tables.server))).one()
    newest = select(tables.syncs.c.id).order_by(tables.syncs.c.id.desc()).limit(1)
    mark = (await transaction.execute(newest)).scalar_one_or_none()
    return Ledger(row.server_id, row.server_epoch, row.state, mark or 0, row.suspected_by)


def not_found(what: str) -> CallerError:
    return CallerError(f"there is no such {what}", code="NOT_FOUND")


def new_id(now: datetime) -> str:
    """A UUID of version 7, its time taken from `now`."""
    seconds = int(now.timestamp())
    return str(uuid_utils.uuid7(nanoseconds=seconds * 10**9 + now.microsecond * 1000))


def secret_digest(secret: str) -> str:
    """How a secret of 128 bits or more is stored: guessing it back is out of reach without any salt."""
    return hashlib.sha256(secret.encode()).hexdigest()
