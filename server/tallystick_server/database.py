"""One way to read and one way to write, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, event, inspect, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from tallystick_server.logs import LOG
from tallystick_server.settings import Settings
from tallystick_server.tables import SCHEMA_REVISION
from tallystick_shared.errors import CallerError, InvalidInput, LineError

T = TypeVar("T")
Transaction = AsyncConnection
ATTEMPTS: Final = 8
CHUNK: Final = 5_000
"""Values in one IN list: SQLite takes 32,766 parameters in a statement, PostgreSQL 32,767."""
_TRANSIENT: Final = ("40001", "40P01")
"""Serialisation failure and deadlock, by SQLSTATE."""
UNREACHABLE: Final = "the database cannot be reached just now, try again in a moment"
_UNAVAILABLE: Final = ("08", "53", "57")
"""Connection lost, too few resources, and an operator's intervention as a shutdown, by class of SQLSTATE."""


class Again(Exception):
    """Somebody else committed first: the transaction is to be run once more from its start. Never leaves `write`."""


class Database:
    """The engine, and its only two doors: `read` and `write`. Raises `InvalidInput` for the address."""

    def __init__(self, settings: Settings) -> None:
        self._sqlite_file = settings.sqlite_file
        _check_address(settings.database_url)
        # an error of the database goes to the log, and its parameters are customers and what they bought
        self.engine: AsyncEngine = create_async_engine(
            settings.database_url,
            connect_args={"timeout": 30} if settings.sqlite_file else {},
            hide_parameters=True,
            # PostgreSQL may have been restarted since the last request
            pool_pre_ping=settings.sqlite_file is None,
        )
        # SQLite has one writer: waiting for it here is fair, waiting in its busy handler is not
        self._one_writer = asyncio.Lock() if settings.sqlite_file else nullcontext()
        if settings.sqlite_file:
            event.listen(self.engine.sync_engine, "connect", _sqlite_pragmas)
            event.listen(self.engine.sync_engine, "begin", _sqlite_begin)

    async def close(self) -> None:
        await self.engine.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Raises `LineError` (`DATABASE_BUSY`) where the database cannot be reached."""
        async with self._connect() as connection:
            yield connection

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[AsyncConnection]:
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(self.engine.connect())
            except OSError as error:  # of the driver, as it is: nobody listens there, or the line is down
                LOG.error("database unavailable", error=str(error))
                raise LineError(UNREACHABLE, code="DATABASE_BUSY") from error
            yield connection

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """What `work` returns, committed. `work` runs again where another transaction came between.

        Raises what `work` raises, rolled back, and `LineError` (`DATABASE_BUSY`) where it never came through or there
        is no database to be reached.
        """
        for attempt in range(ATTEMPTS):
            try:
                async with self._one_writer, self._connect() as plain:
                    connection = await plain.execution_options(tallystick_write=True)
                    async with connection.begin():
                        return await work(connection)
            except Again:
                continue
            except DBAPIError as error:
                # the same key inserted twice at once: the second run finds the first one's row and says so
                lost_a_race = isinstance(error, IntegrityError) and attempt == 0
                if not lost_a_race and getattr(error.orig, "sqlstate", None) not in _TRANSIENT:
                    raise
        raise LineError("the database is busy, try again in a moment", code="DATABASE_BUSY")

    async def migrate(self) -> None:
        """Every migration up to the newest, in one transaction. A new SQLite file is for its owner alone."""
        try:
            if self._sqlite_file is not None:
                # SQLite gives -wal and -shm the mode of the file. One that is there is left alone: to close a
                # descriptor of it would drop the locks of all connections of this process (fcntl)
                with suppress(FileExistsError):
                    os.close(os.open(self._sqlite_file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            async with self._one_writer, self.engine.connect() as plain:
                connection = await plain.execution_options(tallystick_write=True)
                async with connection.begin():
                    await connection.run_sync(_upgrade)
        except (OSError, SQLAlchemyError) as error:
            raise CallerError("the database cannot be reached or written to", code="NO_DATABASE") from error

    async def revision(self) -> str | None:
        """The migration it is at; None: there is no database of this program. Raises `CallerError` (`NO_DATABASE`)."""
        if self._sqlite_file is not None and not self._sqlite_file.exists():
            return None
        try:
            async with self.read() as connection:
                return await connection.run_sync(_revision)
        except (OSError, SQLAlchemyError, LineError) as error:
            raise CallerError("the database cannot be reached", code="NO_DATABASE") from error

    async def is_migrated(self) -> bool:
        """Whether it is at the newest migration. Raises `CallerError` (`NO_DATABASE`) where it cannot be reached."""
        return await self.revision() == SCHEMA_REVISION

    async def must_be_ready(self) -> None:
        """Raises `CallerError`: `NOT_INITIALISED` where there is none, `NOT_UPGRADED` where the release is another."""
        found = await self.revision()
        where = self._sqlite_file or "TALLYSTICK_DATABASE_URL"
        if found is None:
            raise CallerError(
                f"there is no database ({where}): run tallystick-server init first", code="NOT_INITIALISED"
            )
        if found > SCHEMA_REVISION:
            raise CallerError(
                f"the database ({where}) is of a newer release than this program: update the program",
                code="NOT_UPGRADED",
            )
        if found < SCHEMA_REVISION:
            raise CallerError(
                f"the database ({where}) is of an older release: back it up, then run tallystick-server upgrade",
                code="NOT_UPGRADED",
            )


def is_unavailable(error: Exception) -> bool:
    """Whether the database is gone, shut down or has no connection left: nobody's request is at fault.

    A connection that is refused by PostgreSQL itself has the driver's own error, which is known by its SQLSTATE.
    """
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(cause, "sqlstate", None) or "").startswith(_UNAVAILABLE)


def _check_address(url: str) -> None:
    try:
        port = make_url(url).port
        fits = port is None or 0 < port < 2**16
    except (ArgumentError, ValueError):
        fits = False
    if not fits:
        raise InvalidInput("TALLYSTICK_DATABASE_URL", "must be like postgresql://USER:PASSWORD@HOST:PORT/NAME")


def chunks(values: Sequence[T]) -> list[Sequence[T]]:
    return [values[start : start + CHUNK] for start in range(0, len(values), CHUNK)]


def _upgrade(connection: Connection) -> None:
    # only `init` needs Alembic, and it takes half a second to import
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "tallystick_server:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _sqlite_pragmas(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    any_connection: Any = connection
    any_connection.isolation_level = None  # the driver begins nothing by itself, `_sqlite_begin` does
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("tallystick_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
