"""The line to the server: HTTP for `Till` (`Line`) and `AsyncTill` (`AsyncLine`), as small a part of it as there is."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from tallystick_client.actions import Answer, LineDown, Send
from tallystick_client.directory import LineConfig
from tallystick_client.errors import LineError, TallystickError
from tallystick_client.loops import Disk, Heard, in_worker
from tallystick_client.tls import DIRECT, context_of, distrust, without_password

if TYPE_CHECKING:
    import httpx2

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 300.0
"""For a whole answer, from the look-up of the server's name: one that sends a byte now and then is a line that is down.
"""

_C = TypeVar("_C")
_TOO_LONG = "the answer takes too long"
_OPENED = (".connect_tcp.complete", ".start_tls.complete")
"""Of what `httpx2` traces: a connection that was opened, as `return_value`."""


class Line:
    """`config` is asked before each request, so that a till that runs takes up what was configured beside it."""

    def __init__(self, url: str, config: Callable[[], LineConfig], transport: httpx2.BaseTransport | None) -> None:
        self._url, self._config, self._transport = url, config, transport
        self._used: LineConfig | None = None
        self._idle: list[_Wire] = []
        self._taking = threading.Lock()

    def send(self, send: Send) -> Heard:
        try:
            wire = self._take()
        except TallystickError as error:
            return _down(error, self._url, self._used)
        call = wire.call = _Call(lambda: self._ask(wire, send))
        try:
            return call.within(send.within_s or ANSWER_TIMEOUT_S) or (LineDown(_TOO_LONG), None)
        finally:
            with self._taking:
                if wire.call is call:  # else it was given back just now, and may be another thread's already
                    wire.hang_up()

    def _ask(self, wire: _Wire, send: Send) -> Heard:
        import httpx2  # a quarter of a second, which no offline command should pay

        body = bytearray()
        request = _request(self._url, send, httpx2.Timeout) | {"extensions": {"trace": wire.trace}}
        try:
            with wire.client.stream(**request) as response:
                for part in response.iter_raw():
                    body += part
                    if len(body) > send.bytes_max:
                        break
                return _answer(response, bytes(body), send), None
        except (httpx2.HTTPError, OSError, ValueError) as error:  # ValueError: where a redirect would lead to
            return _down(error, self._url, wire.config)
        finally:
            self._give_back(wire)

    def _take(self) -> _Wire:
        """One that nobody uses, so that whoever hangs up does not end the call of another thread."""
        import httpx2

        with self._taking:
            config = self._config()
            if config != self._used:
                self._close_idle()
                self._used = config
            if self._idle:
                return self._idle.pop()
            return _Wire(_make(httpx2.Client, self._url, config, self._transport), config)

    def _give_back(self, wire: _Wire) -> None:
        with self._taking:
            wire.call = None
            if wire.over or wire.config != self._used:
                wire.client.close()
            else:
                self._idle.append(wire)

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().client.close()

    def close(self) -> None:
        with self._taking:
            self._used = None
            self._close_idle()


class _Wire:
    """A client that one thread at a time uses, and its connections, so that another thread can hang up."""

    call: _Call | None = None

    def __init__(self, client: httpx2.Client, config: LineConfig) -> None:
        self.client, self.config = client, config
        self.over = False
        self._sockets: list[socket.socket] = []

    def trace(self, name: str, info: Mapping[str, Any]) -> None:
        if not name.endswith(_OPENED):
            return
        opened = info["return_value"].get_extra_info("socket")
        self._sockets = [*(one for one in self._sockets if one.fileno() >= 0), opened]
        if self.over:
            self.hang_up()

    def hang_up(self) -> None:
        """Ends what is under way, and what its thread may begin yet; the thread itself closes everything."""
        self.over = True
        for one in self._sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)  # of the socket itself, also where TLS is over it


class _Call(threading.Thread):
    """A request in a thread of its own: a time for each read is none for all of them, nor for the look-up of a name."""

    def __init__(self, work: Callable[[], Heard]) -> None:
        super().__init__(name="tallystick-line", daemon=True)
        self._work = work
        self._heard: Heard | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._heard = self._work()
        except BaseException as error:  # noqa: BLE001 # it is raised where the answer is waited for
            self._error = error

    def within(self, seconds: float) -> Heard | None:
        """What was heard; None where nothing was until then."""
        self.start()
        self.join(seconds)
        if self._error is not None:
            raise self._error
        return self._heard


class AsyncLine:
    """The same for asyncio. `disk` runs what reads files."""

    def __init__(
        self,
        url: str,
        config: Callable[[], LineConfig],
        transport: httpx2.AsyncBaseTransport | None,
        disk: Disk = in_worker,
    ) -> None:
        self._url, self._config, self._transport, self._disk = url, config, transport, disk
        self._used: LineConfig | None = None
        self._clients: list[httpx2.AsyncClient] = []  # the last is in force; other tasks may still use those before
        self._making = asyncio.Lock()

    async def send(self, send: Send) -> Heard:
        import httpx2  # as above

        body = bytearray()
        try:
            async with asyncio.timeout(send.within_s or ANSWER_TIMEOUT_S):
                client = await self._client()
                async with client.stream(**_request(self._url, send, httpx2.Timeout)) as response:
                    async for part in response.aiter_raw():
                        body += part
                        if len(body) > send.bytes_max:
                            break
                    return _answer(response, bytes(body), send), None
        except TimeoutError:
            return LineDown(_TOO_LONG), None
        except (httpx2.HTTPError, OSError, ValueError, TallystickError) as error:
            return _down(error, self._url, self._used)

    async def _client(self) -> httpx2.AsyncClient:
        import httpx2

        async with self._making:
            config = await self._disk(self._config)
            if not self._clients or config != self._used:
                made = await self._disk(_make, httpx2.AsyncClient, self._url, config, self._transport)
                self._clients.append(made)
                self._used = config
            return self._clients[-1]

    async def close(self) -> None:
        while self._clients:
            await self._clients.pop().aclose()


# ---- both of them -------------------------------------------------------------------------------------------------


def _make(kind: Callable[..., _C], url: str, config: LineConfig, transport: Any) -> _C:
    import httpx2

    try:
        return kind(**_arguments(url, config, transport))
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        where = "of the environment" if config.proxy is None else without_password(config.proxy)
        raise LineError(f"the proxy {where} cannot be used, it must be one for HTTP: {error}", code="PROXY") from error


def _arguments(url: str, config: LineConfig, transport: Any) -> dict[str, Any]:
    """The certificates are read only where there is TLS: that is most of the time it takes to make a client."""
    from http.cookiejar import CookieJar, DefaultCookiePolicy

    import httpx2

    # No cookies: what a portal sets would go to the server with every request, until it refuses such a head.
    cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
    arguments: dict[str, Any] = {"follow_redirects": False, "cookies": cookies}
    if transport is not None:
        return arguments | {"transport": transport, "verify": False}
    arguments["verify"] = False if url.startswith("http://") else context_of(config, httpx2.create_ssl_context)
    # No connection is used twice: what a broken proxy says too much would be read as the answer to the next request.
    arguments["limits"] = httpx2.Limits(max_keepalive_connections=0)
    if config.proxy == DIRECT:
        return arguments | {"trust_env": False}
    return arguments if config.proxy is None else arguments | {"proxy": config.proxy}


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


def _answer(response: httpx2.Response, body: bytes, send: Send) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, body[: send.bytes_max + 1])


def _down(error: Exception, url: str, config: LineConfig | None) -> Heard:
    import httpx2

    if isinstance(error, TallystickError):
        return LineDown(str(error), sent=False), error
    shown = without_password(url)
    untrusted = distrust(error, shown)
    if untrusted is not None:
        return LineDown(str(untrusted), sent=False), untrusted
    proxy = None if config is None or config.proxy == DIRECT else config.proxy
    where = shown if proxy is None else f"{shown} by the proxy {without_password(proxy)}"
    why = f"{where}: {_words(error)}"
    sent = not isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError))
    return LineDown(why, sent), LineError(why, code="PROXY") if _is_the_proxys(error, proxy) else None


def _is_the_proxys(error: Exception, proxy: str | None) -> bool:
    """It refused, or cannot be reached: with a proxy, nothing else is ever connected to."""
    import httpx2

    return isinstance(error, httpx2.ProxyError) or (
        proxy is not None and isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout))
    )


def _words(error: Exception) -> str:
    """The system's own words, without its number for them."""
    said = re.sub(r"^.(Errno -?[0-9]+|SSL: [A-Z0-9_]+). ", "", str(error))
    return re.sub(r" \(_ssl\.c:[0-9]+\)$", "", said) or type(error).__name__
