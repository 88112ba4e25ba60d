"""What an operator does to a server that need not be running; the command line and other programs call these.

Each opens what it needs and closes it again. `now` is the time, with an offset.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

from sqlalchemy import insert

from tallystick_server import bundles, devices, importing, operating, tables
from tallystick_server import keys as keys_of
from tallystick_server.database import Database, Transaction
from tallystick_server.server import FIRST_SCOPE, OPERATOR_KEY_PREFIX, Server, new_id, open_server, secret_digest
from tallystick_server.settings import Settings
from tallystick_shared.errors import CallerError


async def initialise(settings: Settings, *, root_keys: Path | None = None, now: datetime) -> str:
    """Make database, keys, the scope `main` and an operator key, which is returned and stored nowhere in clear.

    `root_keys`: see `keys.create`. Raises `CallerError`: `EXISTS` where this has been done already, `NOT_WRITABLE`,
    `NO_DATABASE`, and those of `keys.create`.
    """
    database = Database(settings)
    try:
        if await database.is_migrated():
            raise CallerError("this server is initialised already; its operator key is not shown again", code="EXISTS")
        server_id, operator_key = new_id(now), OPERATOR_KEY_PREFIX + secrets.token_urlsafe(32)
        keys_of.create(settings, server_id, root_keys=root_keys, now=now)
        await database.migrate()

        async def fill(transaction: Transaction) -> None:
            row = {"id": 1, "server_id": server_id, "server_epoch": 1, "state": "normal", "created_at": now}
            await transaction.execute(insert(tables.server), row)
            key = {"sha256": secret_digest(operator_key), "name": "first", "created_at": now}
            await transaction.execute(insert(tables.operator_keys), key)
            await bundles.create_scope(transaction, FIRST_SCOPE, now=now)

        await database.write(fill)
        return operator_key
    finally:
        await database.close()


async def upgrade(settings: Settings) -> bool:
    """Brings the database of an older release to this one, in one transaction; whether there was anything to do.

    Raises `CallerError`: `NOT_INITIALISED` where there is none, `NO_DATABASE`.
    """
    database = Database(settings)
    try:
        before = await database.revision()
        if before is None:
            raise CallerError("there is nothing to upgrade: run tallystick-server init first", code="NOT_INITIALISED")
        await database.migrate()
        return before != await database.revision()
    finally:
        await database.close()


async def import_vouchers(
    settings: Settings,
    path: Path,
    *,
    scope: str = FIRST_SCOPE,
    hidden: bool = False,
    now: datetime,
    on_line: Callable[[int], None] | None = None,
) -> int:
    """Publish every line of an NDJSON file (gzip or not) or none; how many. `on_line` hears how far reading is.

    `hidden`: the codes travel as their digests, and must be of 80 bits or more. Raises `BadFile`, `CallerError`
    (`NO_FILE`, `NOT_FOUND` for the scope, `NOT_INITIALISED`).
    """
    database = Database(settings)
    try:
        await database.must_be_ready()
        return await importing.import_into(
            database, settings, path, scope=scope, hidden=hidden, now=now, on_line=on_line
        )
    finally:
        await database.close()


async def create_token(
    settings: Settings, *, store_id: str, scope: str = FIRST_SCOPE, ttl_s: int | None = None, now: datetime
) -> str:
    """A one-time token for a new device of `store_id`, in the form the client takes.

    Raises `CallerError` (`NOT_FOUND` for the scope, `NOT_INITIALISED`, `NO_KEYS`).
    """
    async with opened(settings, now) as server:
        return str(await devices.make_token(server, store_id=store_id, scope=scope, ttl_s=ttl_s))


async def read_status(settings: Settings, *, now: datetime) -> operating.Status:
    """Raises `CallerError` (`NOT_INITIALISED`, `NO_KEYS`)."""
    async with opened(settings, now) as server, server.database.read() as connection:
        return await operating.status(server, connection)


@asynccontextmanager
async def opened(settings: Settings, now: datetime) -> AsyncIterator[Server]:
    server = open_server(settings, lambda: now)
    try:
        await server.database.must_be_ready()
        yield server
    finally:
        await server.database.close()
