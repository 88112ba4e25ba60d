"""SQLite's locks are those of the process, and go with any descriptor of the file that it closes."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from tallystick_server.database import Database
from tallystick_server.settings import Settings

READS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM devices").fetchone()
connection.close()
"""


def test_a_migration_keeps_the_locks_of_the_process(tmp_path: Path) -> None:
    """Another process that reads and closes then takes no log away from under the connections that are open here."""
    settings = Settings(data=tmp_path, default_currency="EUR")
    path = settings.sqlite_file
    assert path is not None

    async def migrate() -> None:
        database = Database(settings)
        await database.migrate()
        await database.close()

    asyncio.run(migrate())
    assert path.stat().st_mode & 0o077 == 0
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE sqlite_sequence SET seq = seq")
        asyncio.run(migrate())
        subprocess.run([sys.executable, "-c", READS, str(path)], check=True)
        assert path.with_name(f"{path.name}-wal").exists()
