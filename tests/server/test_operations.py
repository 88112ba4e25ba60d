"""The command line and what lies under it: init, import, token, status, serve, migrations and settings."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from tallystick_server.columns import metadata
from tallystick_server.database import Database
from tallystick_server.settings import Settings, from_environment
from tallystick_shared.errors import InvalidInput
from tests.server.conftest import voucher

if TYPE_CHECKING:
    from tests.server.conftest import Shop

COMMAND = str(Path(sys.executable).parent / "tallystick-server")


def run(data: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"TALLYSTICK_DEFAULT_CURRENCY": "USD"} | environment
    command = [COMMAND, "--data", str(data), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=60)


def check_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit 2 and one sentence with these words, no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def write(path: Path, *documents: dict[str, Any] | str) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in documents))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An initialised server's directory."""
    data = tmp_path / "data"
    assert run(data, "init").returncode == 0
    return data


def test_init_makes_a_server_once(tmp_path: Path) -> None:
    """The operator key is printed exactly once, keys are 0600, and a second run refuses and changes nothing."""
    data = tmp_path / "data"
    first = run(data, "init")
    assert first.returncode == 0
    assert re.fullmatch(r"tallyop_[\w-]{43}\n", first.stdout)
    assert "offline" in first.stderr
    for key in (data / "keys").glob("*.jwk"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = {path: path.read_bytes() for path in (data / "keys").iterdir()}
    check_refused(run(data, "init"), "initialised already")
    assert {path: path.read_bytes() for path in (data / "keys").iterdir()} == before
    assert first.stdout.strip().encode() not in (data / "tallystick.sqlite3").read_bytes()


def test_import_publishes_a_file_plain_or_zipped(data: Path, tmp_path: Path) -> None:
    """NDJSON with blank lines, and the same zipped, into a scope."""
    plain = write(tmp_path / "a.ndjson", voucher("a"), "", voucher("b"))
    assert "2 vouchers imported into main" in run(data, "import", str(plain)).stdout
    zipped = tmp_path / "c.ndjson.gz"
    zipped.write_bytes(gzip.compress(json.dumps(voucher("c")).encode()))
    done = run(data, "import", str(zipped))
    assert (done.returncode, done.stderr) == (0, ""), "no progress bar where nobody watches"
    status = json.loads(run(data, "status", "--json").stdout)
    assert status["scopes"][0] | {"vouchers": 3} == status["scopes"][0]


def test_import_is_all_or_nothing_and_names_every_line(data: Path, tmp_path: Path) -> None:
    """Bad lines, codes twice in the file and codes that exist: each with FILE:LINE, and nothing is published."""
    assert run(data, "import", str(write(tmp_path / "first.ndjson", voucher("there")))).returncode == 0
    bad = write(
        tmp_path / "bad.ndjson",
        voucher("fine"),
        "not json",
        voucher("x", colour="red"),
        voucher(" FINE "),
        voucher("There"),
        *(voucher(f"v{n}", status="odd") for n in range(30)),
    )
    done = run(data, "import", str(bad))
    check_refused(done, f"{bad}:2: ", f"{bad}:3: colour: ", f"{bad}:4: code: ", f"{bad}:5: code: ", "and 14 more")
    assert done.stderr.count(f"{bad}:") == 21
    assert json.loads(run(data, "status", "--json").stdout)["scopes"][0]["vouchers"] == 1


def test_import_says_what_it_cannot_read(data: Path, tmp_path: Path) -> None:
    """A missing file, a damaged one and a scope that is none: one sentence each."""
    check_refused(run(data, "import", str(tmp_path / "none")), "cannot be read")
    damaged = tmp_path / "damaged.gz"
    damaged.write_bytes(gzip.compress(os.urandom(10_000))[:5_000])
    check_refused(run(data, "import", str(damaged)), "cannot be read")
    check_refused(run(data, "import", "--scope", "none", str(write(tmp_path / "a", voucher("a")))), "no scope none")


def test_every_command_says_where_there_is_no_server(tmp_path: Path) -> None:
    """Without a database each command names `tallystick-server init`, and creates nothing."""
    data, file = tmp_path / "nothing", write(tmp_path / "a", voucher("a"))
    for command in (["status"], ["serve", "--port", "0"], ["token", "--store", "s"], ["import", str(file)]):
        check_refused(run(data, *command), "tallystick-server init")
    assert not data.exists()


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """`init` into something that is no directory is one sentence."""
    (tmp_path / "file").write_text("")
    check_refused(run(tmp_path / "file" / "data", "init"), "cannot be written to")


def test_serve_says_where_it_listens_and_stops_when_asked(data: Path) -> None:
    """Port 0 takes a free one and prints it; SIGTERM ends it with 0; a taken port is one sentence."""
    command = [COMMAND, "serve", "--data", str(data), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = re.fullmatch(r"listening on (http://127\.0\.0\.1:(\d+))\n", process.stdout.readline())
        assert said is not None
        assert httpx2.get(f"{said[1]}/health/live").json() == {"status": "ok"}
        check_refused(run(data, "serve", "--port", said[2]), f"port {said[2]}")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        logged = [json.loads(line) for line in process.stderr.read().splitlines()]
        assert [one["route"] for one in logged] == ["/health/live"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", int(said[2])))


def test_status_is_a_table_or_json(data: Path) -> None:
    """For people it says in words what needs doing."""
    shown = run(data, "status").stdout
    assert "scope main" in shown
    assert "no backup is configured" in shown
    assert "move" in shown


def test_a_token_names_the_root_it_trusts(data: Path) -> None:
    """The token carries the digest of the root that is served."""
    token = run(data, "token", "--store", "9", "--ttl-hours", "2").stdout.strip()
    digest = hashlib.sha256((data / "keys" / "root-1.json").read_bytes()).hexdigest()
    assert token.endswith(f".1.{digest}")


# settings


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    """Variables, files that hold a value, and `--data` before both."""
    secret = tmp_path / "url"
    secret.write_text("postgresql://u:p@h/n\n")
    variables = {"TALLYSTICK_DATABASE_URL_FILE": str(secret), "TALLYSTICK_LEASE_TTL_S": "60", "TALLYSTICK_DATA": "x"}
    found = from_environment(variables, data=tmp_path)
    assert found.database_url == "postgresql+asyncpg://u:p@h/n"
    assert (found.lease_ttl_s, found.data, found.sqlite_file) == (60, tmp_path, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [("LEASE_TTL_S", "soon"), ("LEASE_TTL_S", "0"), ("DEFAULT_CURRENCY", "ZZZ"), ("DATABASE_URL", "mysql://x"),
     ("BACKUP", "maybe")],
)  # fmt: skip
def test_a_bad_setting_names_its_variable(name: str, value: str) -> None:
    """The variable is named, whichever rule its value breaks."""
    with pytest.raises(InvalidInput, match=f"TALLYSTICK_{name}"):
        from_environment({f"TALLYSTICK_{name}": value})


# migrations


def test_migrations_make_the_tables(either_shop: Shop) -> None:
    """What the migrations made is what `tables` says: by Alembic's own comparison, on both databases."""

    async def compare() -> list[Any]:
        database = Database(either_shop.settings)
        try:
            async with database.read() as connection:
                return await connection.run_sync(_differences)
        finally:
            await database.close()

    assert asyncio.run(compare()) == []


def _differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, metadata))


def test_migrations_make_the_constraints(shop: Shop, tmp_path: Path) -> None:
    """Alembic does not compare CHECKs: the whole DDL of both ways is compared, table by table."""
    fresh = Settings(data=tmp_path / "fresh")
    fresh.data.mkdir()

    async def create() -> dict[str, tuple[str, ...]]:
        database = Database(fresh)
        async with database.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
            rows = await connection.execute(text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
            found = {name: _words(sql) for name, sql in rows}
        await database.close()
        return found

    migrated = {
        row["name"]: _words(row["sql"]) for row in shop.rows("SELECT * FROM sqlite_master WHERE sql IS NOT NULL")
    }
    del migrated["alembic_version"]
    assert migrated == asyncio.run(create())


def _words(sql: str) -> tuple[str, ...]:
    """The parts of a statement, whatever their order, white space and quotes: a table that was remade has its own."""
    return tuple(sorted(part.strip(" ()") for part in re.sub(r"\s+", " ", sql.replace('"', "")).split(",")))


def test_sqlite_is_as_durable_as_it_can_be(shop: Shop) -> None:
    """WAL, synchronous FULL and foreign keys, on the connections that are used."""

    async def read() -> list[Any]:
        database = Database(shop.settings)
        async with database.read() as connection:
            names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            found = [(await connection.execute(text(f"PRAGMA {name}"))).scalar() for name in names]
        await database.close()
        return found

    assert asyncio.run(read()) == ["wal", 2, 1, 30_000]
