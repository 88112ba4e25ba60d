"""The two tills: `Till` and `AsyncTill`, over the same machines and the same files; `loops` drives them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from tallystick_client.actions import Woken
from tallystick_client.arguments import OrderInput
from tallystick_client.clock import SystemClock
from tallystick_client.directory import Directory, LineConfig
from tallystick_client.errors import CallerError
from tallystick_client.keeper import Enroller, Keeper
from tallystick_client.line import AsyncLine, Line
from tallystick_client.loops import in_place, in_worker, run, run_async
from tallystick_client.reports import Receipt, Status, SyncReport, VoidReceipt
from tallystick_client.status import status
from tallystick_client.syncing import BackgroundSync, OnReport, Syncing, SyncThread, patience
from tallystick_client.timekeeping import Clock
from tallystick_client.tls import Tls, checked_url, demand_tls, line_config
from tallystick_client.voids import void
from tallystick_shared.engine import Result
from tallystick_shared.journal import Returned

if TYPE_CHECKING:
    import httpx2

_T = TypeVar("_T")


class Till:
    """One till on this machine's disk. Offline but for `enroll`, `sync` and `redeem_online`.

    Threads may share it. Several processes may open the same directory, each its own `Till`.
    """

    def __init__(self, keeper: Keeper, transport: httpx2.BaseTransport | None = None) -> None:
        self._keeper = keeper
        self._transport = transport
        self._line = Line(keeper.config.server_url, keeper.directory.line, transport)
        self._background: SyncThread | None = None

    @classmethod
    def enroll(
        cls,
        directory: str | Path,
        server_url: str,
        token: str,
        *,
        name: str | None = None,
        tls: Tls | None = None,
        proxy: str | None = None,
        clock: Clock | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> Self:
        """Makes this directory a till of the server that made `token`, and opens it. Sync it before it can sell.

        `tls` and `proxy` (an address, "direct", or None for what the environment says) are kept; `tls.configure`
        changes them. Where there is a `transport` they are its business. Raises `CallerError` (a token used up or over,
        a directory in use), `Untrusted`, `LineError`; it can be repeated with the same token after any of them.
        """
        clock = clock or SystemClock()
        url, config = _way(server_url, tls or Tls(), proxy)
        enroller = Enroller(Path(directory), url, token, name, clock)
        Directory(Path(directory)).keep_line(config)
        line = Line(url, lambda: config, transport)
        try:
            run(enroller.machine(), Woken(), enroller, line)
        finally:
            line.close()
        return cls.open(directory, clock=clock, transport=transport)

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        clock: Clock | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> Self:
        """Opens an enrolled till. Raises `StorageError`."""
        return cls(Keeper(Path(directory), clock or SystemClock()), transport)

    def close(self) -> None:
        self.stop_syncing()
        self._line.close()
        self._keeper.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def preview(self, order: OrderInput, codes: Sequence[str]) -> Result:
        """What these codes do to this order on this till, now; writes nothing. See `Terminal.preview`."""
        return self._keeper.terminal.preview(order, codes)

    def redeem(self, order: OrderInput, codes: Sequence[str], *, id: str | None = None) -> Receipt:
        """Redeems without the network; returns when it is on the disk. See `Terminal.redeem`.

        `id`: a UUID of the caller's own, so that asking again after a crash has no second effect.
        """
        return self._keeper.terminal.redeem(order, codes, redemption_id=id)

    def redeem_online(self, order: OrderInput, codes: Sequence[str], *, id: str | None = None) -> Receipt:
        """Asks the server; without an answer, redeems offline under the same id, and the server counts it once.

        `id` as for `redeem`. Raises as `redeem` does, and `RemoteError`.
        """
        machine = self._keeper.online_machine(order, codes, id)
        return cast(Receipt, run(machine, Woken(), self._keeper, self._line))

    def void(
        self, redemption_id: str, *, returned: Iterable[Returned] = (), reason: str = "", id: str | None = None
    ) -> VoidReceipt:
        """Voids a redemption of this till, or takes back the `returned` units of it. See `voids.void`.

        `id`: a UUID of the caller's own, so that asking again after a crash gives nothing back twice.
        """
        return void(self._keeper.terminal, redemption_id, returned, reason, void_id=id)

    def status(self) -> Status:
        return status(self._keeper.config, self._keeper.terminal)

    def sync(self, *, patient: bool = False) -> SyncReport:
        """Sends what waits, takes what is new. Waits where another process of this till is syncing.

        `patient` waits for the kept time of the next attempt first, for callers that sync in a loop. Raises `TryLater`
        and other `LineError`, `Untrusted` and other `RemoteError`, `StorageError`; what was acknowledged stays so.
        """
        if patient:
            for pause_s in patience(self._keeper):
                time.sleep(pause_s)
        lock = self._keeper.directory.lock()
        try:
            for pause_s in lock.turns():
                time.sleep(pause_s)
            machine, start = self._keeper.sync_machine(False)
            return cast(SyncReport, run(machine, start, self._keeper, self._line))
        finally:
            lock.release()

    def start_syncing(self, *, on_report: OnReport | None = None, every_s: float | None = None) -> None:
        """Syncs in a thread of its own from now on, when it is time to (see `syncing`); no sale waits for it.

        `on_report` is called in that thread with each `BackgroundSync`, errors too; what it raises ends up in
        `last_sync`. `every_s`: at most so long after the last sync, where the manifest's `poll_after_s` is longer.
        Raises `CallerError` where it runs already.
        """
        _demand_idle(self._background)
        line = AsyncLine(
            self._keeper.config.server_url, self._keeper.directory.line, _for_asyncio(self._transport), in_place
        )
        self._background = SyncThread(Syncing(self._keeper, line, in_place, on_report, every_s))

    def stop_syncing(self) -> None:
        """Ends it, also in the midst of a request, and returns then; what was acknowledged stays so."""
        background, self._background = self._background, None
        if background is not None:
            background.stop()

    def last_sync(self) -> BackgroundSync | None:
        """How the last sync in the background ended; None before the first, and after `stop_syncing`."""
        return None if self._background is None else self._background.syncing.last


class AsyncTill:
    """The same till for asyncio: what touches the disk runs in a worker thread, and the event loop never waits for it.

    Any number of customers at once; of those that write, one at a time.
    """

    def __init__(self, keeper: Keeper, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self._keeper = keeper
        self._transport = transport
        self._line = AsyncLine(keeper.config.server_url, keeper.directory.line, transport)
        self._syncing: Syncing | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def enroll(
        cls,
        directory: str | Path,
        server_url: str,
        token: str,
        *,
        name: str | None = None,
        tls: Tls | None = None,
        proxy: str | None = None,
        clock: Clock | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> Opening[Self]:
        """As `Till.enroll`; await it, or enter it with `async with`."""

        async def enrolled() -> Self:
            given = clock or SystemClock()
            path = Path(directory)
            url, config = await in_worker(_way, server_url, tls or Tls(), proxy)
            enroller = await in_worker(Enroller, path, url, token, name, given)
            await in_worker(Directory(path).keep_line, config)
            line = AsyncLine(url, lambda: config, transport)
            try:
                await run_async(enroller.machine(), Woken(), enroller, line, in_worker)
            finally:
                await line.close()
            return await cls.open(path, clock=given, transport=transport)

        return Opening(enrolled)

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        clock: Clock | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> Opening[Self]:
        """As `Till.open`; await it, or enter it with `async with`."""

        async def opened() -> Self:
            return cls(await in_worker(Keeper, Path(directory), clock or SystemClock()), transport)

        return Opening(opened)

    async def close(self) -> None:
        await self.stop_syncing()
        await self._line.close()
        await in_worker(self._keeper.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def preview(self, order: OrderInput, codes: Sequence[str]) -> Result:
        return await in_worker(self._keeper.terminal.preview, order, codes)

    async def redeem(self, order: OrderInput, codes: Sequence[str], *, id: str | None = None) -> Receipt:
        return await in_worker(self._keeper.terminal.redeem, order, codes, redemption_id=id)

    async def redeem_online(self, order: OrderInput, codes: Sequence[str], *, id: str | None = None) -> Receipt:
        machine = await in_worker(self._keeper.online_machine, order, codes, id)
        return cast(Receipt, await run_async(machine, Woken(), self._keeper, self._line, in_worker))

    async def void(
        self, redemption_id: str, *, returned: Iterable[Returned] = (), reason: str = "", id: str | None = None
    ) -> VoidReceipt:
        return await in_worker(void, self._keeper.terminal, redemption_id, returned, reason, void_id=id)

    async def status(self) -> Status:
        return await in_worker(status, self._keeper.config, self._keeper.terminal)

    async def sync(self, *, patient: bool = False) -> SyncReport:
        if patient:
            pauses = patience(self._keeper)
            pause_s = await in_worker(next, pauses, None)
            while pause_s is not None:
                await asyncio.sleep(pause_s)
                pause_s = await in_worker(next, pauses, None)
        lock = self._keeper.directory.lock()
        try:
            for pause_s in lock.turns():
                await asyncio.sleep(pause_s)
            machine, start = await in_worker(self._keeper.sync_machine, False)
            return cast(SyncReport, await run_async(machine, start, self._keeper, self._line, in_worker))
        finally:
            lock.release()

    def start_syncing(self, *, on_report: OnReport | None = None, every_s: float | None = None) -> None:
        """As `Till.start_syncing`, in a task of the running event loop; `on_report` is called there."""
        _demand_idle(self._task)
        line = AsyncLine(self._keeper.config.server_url, self._keeper.directory.line, self._transport)
        self._syncing = Syncing(self._keeper, line, in_worker, on_report, every_s)
        self._task = asyncio.get_running_loop().create_task(self._syncing.run(), name="tallystick-sync")

    async def stop_syncing(self) -> None:
        task, self._task, self._syncing = self._task, None, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def last_sync(self) -> BackgroundSync | None:
        return None if self._syncing is None else self._syncing.last


class Opening(Generic[_T]):
    """What `AsyncTill.open` and `enroll` give: `await` it for the till, or `async with` it to have the till closed."""

    def __init__(self, start: Callable[[], Awaitable[_T]]) -> None:
        self._start = start
        self._till: Any = None

    def __await__(self) -> Generator[Any, None, _T]:
        return self._start().__await__()

    async def __aenter__(self) -> _T:
        self._till = await self._start()
        return cast(_T, self._till)

    async def __aexit__(self, *failure: object) -> None:
        await self._till.close()


def _way(server_url: str, tls: Tls, proxy: str | None) -> tuple[str, LineConfig]:
    """The address and how it is reached, checked; reads the CA's file. Raises `InvalidInput`."""
    url = checked_url(server_url)
    config = line_config(LineConfig(), ca=tls.ca_file, pins=tls.pins, proxy=proxy)
    demand_tls(url, tls, config)
    return url, config


def _demand_idle(running: object) -> None:
    if running is not None:
        raise CallerError("this till is syncing in the background already: stop_syncing first")


def _for_asyncio(transport: httpx2.BaseTransport | None) -> httpx2.AsyncBaseTransport | None:
    """Raises `CallerError` for one that cannot do both."""
    import httpx2

    if transport is None or isinstance(transport, httpx2.AsyncBaseTransport):
        return transport
    raise CallerError("syncing in the background needs a transport that is an httpx2.AsyncBaseTransport too")
