"""A backup of a running server's database, and its restore, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from tallystick_server.columns import metadata

if TYPE_CHECKING:
    from tests.server.conftest import Shop

SERIALS = ("syncs", "flags", "audit")


class Backup:
    """The database as it is when this is made; `restore` brings it back, under the running server."""

    def __init__(self, shop: Shop) -> None:
        self.shop, self.file = shop, shop.settings.data / "backup.sqlite3"
        self.rows: dict[str, list[dict[str, Any]]] = {}
        if shop.settings.sqlite_file is None:
            asyncio.run(self._read())
        else:
            self.file.unlink(missing_ok=True)
            self._copy(str(shop.settings.sqlite_file), str(self.file))

    def restore(self) -> None:
        if self.shop.settings.sqlite_file is None:
            asyncio.run(self._write())
        else:
            self._copy(str(self.file), str(self.shop.settings.sqlite_file))

    def _copy(self, source: str, target: str) -> None:
        with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
            one.backup(other)

    async def _read(self) -> None:
        engine = create_async_engine(self.shop.settings.database_url)
        async with engine.connect() as connection:
            for table in metadata.sorted_tables:
                self.rows[table.name] = [dict(row) for row in (await connection.execute(select(table))).mappings()]
        await engine.dispose()

    async def _write(self) -> None:
        engine = create_async_engine(self.shop.settings.database_url)
        async with engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                await connection.execute(delete(table))
            for table in metadata.sorted_tables:
                if self.rows[table.name]:
                    await connection.execute(insert(table), self.rows[table.name])
            for name in SERIALS:
                top = f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), max(id)) FROM {name}"
                await connection.execute(text(top))
        await engine.dispose()
