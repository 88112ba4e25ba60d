"""The two tills: `Till` and `AsyncTill`. Two short loops over the same machines; everything else is not here twice."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, cast
from urllib.parse import urlsplit

from tallystick_client.actions import Action, Answer, Change, Done, Event, LineDown, Persist, Send, Tick, Wait, Woken
from tallystick_client.clock import SystemClock
from tallystick_client.errors import InvalidInput
from tallystick_client.keeper import Enroller, Keeper
from tallystick_client.reports import Receipt, Status, SyncReport, VoidReceipt
from tallystick_client.status import status
from tallystick_client.terminal import OrderInput
from tallystick_client.timekeeping import Clock
from tallystick_client.voids import void
from tallystick_shared.engine import Result
from tallystick_shared.journal import Returned

if TYPE_CHECKING:
    import httpx2

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 300.0
"""For a whole answer: a server that sends a byte now and then is a line that is down."""
_T = TypeVar("_T")


class _Machine(Protocol):
    def step(self, event: Any, tick: Tick) -> Action: ...


class _Local(Protocol):
    def tick(self) -> Tick: ...
    def perform(self, change: Change) -> Event: ...


class Till:
    """One till on this machine's disk. Offline but for `enroll`, `sync` and `redeem_online`.

    Threads may share it. Several processes may open the same directory, each its own `Till`.
    """

    def __init__(self, keeper: Keeper, transport: httpx2.BaseTransport | None = None) -> None:
        self._keeper = keeper
        self._line = _Line(keeper.config.server_url, transport)

    @classmethod
    def enroll(
        cls,
        directory: str | Path,
        server_url: str,
        token: str,
        *,
        name: str | None = None,
        clock: Clock | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> Self:
        """Makes this directory a till of the server that made `token`, and opens it. Sync it before it can sell.

        Raises `CallerError` (a token used up or over, a directory in use), `Untrusted`, `LineError`; it can be
        repeated with the same token after any of them.
        """
        clock = clock or SystemClock()
        enroller = Enroller(Path(directory), checked_url(server_url), token, name, clock)
        line = _Line(server_url, transport)
        try:
            _run(enroller.machine(), Woken(), enroller, line)
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

    def redeem_online(self, order: OrderInput, codes: Sequence[str]) -> Receipt:
        """Asks the server; without an answer, redeems offline under the same id, and the server counts it once.

        Raises as `redeem` does, and `RemoteError`.
        """
        machine = self._keeper.online_machine(order, codes)
        return cast(Receipt, _run(machine, Woken(), self._keeper, self._line))

    def void(self, redemption_id: str, *, returned: Sequence[Returned] = (), reason: str = "") -> VoidReceipt:
        """Voids a redemption of this till, or takes back the `returned` units of it. See `voids.void`."""
        return void(self._keeper.terminal, redemption_id, returned, reason)

    def status(self) -> Status:
        return status(self._keeper.config, self._keeper.terminal)

    def sync(self, *, patient: bool = False) -> SyncReport:
        """Sends what waits, takes what is new. Waits where another process of this till is syncing.

        `patient` waits for the kept time of the next attempt first, for callers that sync in a loop. Raises `TryLater`
        and other `LineError`, `Untrusted` and other `RemoteError`, `StorageError`; what was acknowledged stays so.
        """
        lock = self._keeper.directory.lock()
        try:
            for pause_s in lock.turns():
                time.sleep(pause_s)
            machine, start = self._keeper.sync_machine(patient)
            return cast(SyncReport, _run(machine, start, self._keeper, self._line))
        finally:
            lock.release()


class AsyncTill:
    """The same till for asyncio: what touches the disk runs in a worker thread, and the event loop never waits for it.

    Any number of customers at once; of those that write, one at a time.
    """

    def __init__(self, keeper: Keeper, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self._keeper = keeper
        self._line = _AsyncLine(keeper.config.server_url, transport)

    @classmethod
    def enroll(
        cls,
        directory: str | Path,
        server_url: str,
        token: str,
        *,
        name: str | None = None,
        clock: Clock | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> Opening[Self]:
        """As `Till.enroll`; await it, or enter it with `async with`."""

        async def enrolled() -> Self:
            given = clock or SystemClock()
            path, url = Path(directory), checked_url(server_url)
            enroller = await asyncio.to_thread(Enroller, path, url, token, name, given)
            line = _AsyncLine(url, transport)
            try:
                await _run_async(enroller.machine(), Woken(), enroller, line)
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
            return cls(await asyncio.to_thread(Keeper, Path(directory), clock or SystemClock()), transport)

        return Opening(opened)

    async def close(self) -> None:
        await self._line.close()
        await asyncio.to_thread(self._keeper.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def preview(self, order: OrderInput, codes: Sequence[str]) -> Result:
        return await asyncio.to_thread(self._keeper.terminal.preview, order, codes)

    async def redeem(self, order: OrderInput, codes: Sequence[str], *, id: str | None = None) -> Receipt:
        return await asyncio.to_thread(self._keeper.terminal.redeem, order, codes, redemption_id=id)

    async def redeem_online(self, order: OrderInput, codes: Sequence[str]) -> Receipt:
        machine = await asyncio.to_thread(self._keeper.online_machine, order, codes)
        return cast(Receipt, await _run_async(machine, Woken(), self._keeper, self._line))

    async def void(self, redemption_id: str, *, returned: Sequence[Returned] = (), reason: str = "") -> VoidReceipt:
        return await asyncio.to_thread(void, self._keeper.terminal, redemption_id, returned, reason)

    async def status(self) -> Status:
        return await asyncio.to_thread(status, self._keeper.config, self._keeper.terminal)

    async def sync(self, *, patient: bool = False) -> SyncReport:
        lock = self._keeper.directory.lock()
        try:
            for pause_s in lock.turns():
                await asyncio.sleep(pause_s)
            machine, start = await asyncio.to_thread(self._keeper.sync_machine, patient)
            return cast(SyncReport, await _run_async(machine, start, self._keeper, self._line))
        finally:
            lock.release()


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


# ---- the two loops ------------------------------------------------------------------------------------------------


def _run(machine: _Machine, event: Event, local: _Local, line: _Line) -> SyncReport | Receipt | None:
    while True:
        match machine.step(event, local.tick()):
            case Send() as send:
                event = line.send(send)
            case Persist(change):
                event = local.perform(change)
            case Wait(seconds):
                time.sleep(seconds)
                event = Woken()
            case Done(report, error):
                if error is not None:
                    raise error
                return report


async def _run_async(machine: _Machine, event: Event, local: _Local, line: _AsyncLine) -> SyncReport | Receipt | None:
    while True:
        match machine.step(event, await asyncio.to_thread(local.tick)):
            case Send() as send:
                event = await line.send(send)
            case Persist(change):
                event = await asyncio.to_thread(local.perform, change)
            case Wait(seconds):
                await asyncio.sleep(seconds)
                event = Woken()
            case Done(report, error):
                if error is not None:
                    raise error
                return report


# ---- HTTP ---------------------------------------------------------------------------------------------------------


def checked_url(url: str) -> str:
    """`http://` or `https://` and a host; raises `InvalidInput`."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        whole = False
    if not whole:
        raise InvalidInput("server_url", "must be the address of a server, as in https://vouchers.example.org")
    return url.rstrip("/")


def _arguments(url: str, transport: Any) -> dict[str, Any]:
    """The certificates are read only where there is TLS: that is most of the time it takes to make a client."""
    return {"transport": transport, "verify": not url.startswith("http://"), "follow_redirects": False}


def _request(base_url: str, send: Send, timeout: Any) -> dict[str, Any]:
    # no compression below the messages: what is capped and verified are the bytes of the message
    headers = {**send.headers, "accept-encoding": "identity"}
    return {
        "method": send.method,
        "url": base_url.rstrip("/") + send.path,
        "headers": headers,
        "content": send.body,
        "timeout": timeout(send.timeout_s, connect=min(CONNECT_TIMEOUT_S, send.timeout_s)),
    }


class _Line:
    def __init__(self, url: str, transport: httpx2.BaseTransport | None) -> None:
        self._url, self._transport = url, transport
        self._client: httpx2.Client | None = None

    def send(self, send: Send) -> Answer | LineDown:
        import httpx2  # a quarter of a second, which no offline command should pay

        if self._client is None:
            self._client = httpx2.Client(**_arguments(self._url, self._transport))
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        body = bytearray()
        try:
            with self._client.stream(**_request(self._url, send, httpx2.Timeout)) as response:
                for part in response.iter_raw():
                    body += part
                    if len(body) > send.bytes_max or time.monotonic() > deadline:
                        break
                return _answer(response, bytes(body), send, deadline)
        except httpx2.HTTPError as error:
            return LineDown(_why(error, self._url))

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class _AsyncLine:
    def __init__(self, url: str, transport: httpx2.AsyncBaseTransport | None) -> None:
        self._url, self._transport = url, transport
        self._client: httpx2.AsyncClient | None = None

    async def send(self, send: Send) -> Answer | LineDown:
        import httpx2  # as above

        if self._client is None:
            self._client = httpx2.AsyncClient(**_arguments(self._url, self._transport))
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        body = bytearray()
        try:
            async with self._client.stream(**_request(self._url, send, httpx2.Timeout)) as response:
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > send.bytes_max or time.monotonic() > deadline:
                        break
                return _answer(response, bytes(body), send, deadline)
        except httpx2.HTTPError as error:
            return LineDown(_why(error, self._url))

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _answer(response: httpx2.Response, body: bytes, send: Send, deadline: float) -> Answer | LineDown:
    if time.monotonic() > deadline:
        return LineDown("the answer takes too long")
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, body[: send.bytes_max + 1])


def _why(error: Exception, url: str) -> str:
    """The address and the system's own words, without its number for them."""
    return f"{url}: {re.sub(r'^.Errno -?[0-9]+. ', '', str(error)) or type(error).__name__}"
