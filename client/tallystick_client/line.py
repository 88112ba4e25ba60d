"""The line to the server: HTTP for `Till` (`Line`) and `AsyncTill` (`AsyncLine`), as small a part of it as there is."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
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
"""For a whole answer: a server that sends a byte now and then is a line that is down."""

_C = TypeVar("_C")


class Line:
    """`config` is asked before each request, so that a till that runs takes up what was configured beside it."""

    def __init__(self, url: str, config: Callable[[], LineConfig], transport: httpx2.BaseTransport | None) -> None:
        self._url, self._config, self._transport = url, config, transport
        self._used: LineConfig | None = None
        self._clients: list[httpx2.Client] = []  # the last is in force; other threads may still use those before
        self._making = threading.Lock()

    def send(self, send: Send) -> Heard:
        import httpx2  # a quarter of a second, which no offline command should pay

        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        body = bytearray()
        try:
            with self._client().stream(**_request(self._url, send, httpx2.Timeout)) as response:
                for part in response.iter_raw():
                    body += part
                    if len(body) > send.bytes_max or time.monotonic() > deadline:
                        break
                return _answer(response, bytes(body), send, deadline), None
        except (httpx2.HTTPError, OSError, TallystickError) as error:
            return _down(error, self._url, self._used)

    def _client(self) -> httpx2.Client:
        import httpx2

        with self._making:
            config = self._config()
            if not self._clients or config != self._used:
                self._clients.append(_make(httpx2.Client, self._url, config, self._transport))
                self._used = config
            return self._clients[-1]

    def close(self) -> None:
        while self._clients:
            self._clients.pop().close()


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
        self._clients: list[httpx2.AsyncClient] = []
        self._making = asyncio.Lock()

    async def send(self, send: Send) -> Heard:
        import httpx2  # as above

        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        body = bytearray()
        try:
            client = await self._client()
            async with client.stream(**_request(self._url, send, httpx2.Timeout)) as response:
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > send.bytes_max or time.monotonic() > deadline:
                        break
                return _answer(response, bytes(body), send, deadline), None
        except (httpx2.HTTPError, OSError, TallystickError) as error:
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
    import httpx2

    if transport is not None:
        return {"transport": transport, "verify": False, "follow_redirects": False}
    verify = False if url.startswith("http://") else context_of(config, httpx2.create_ssl_context)
    arguments: dict[str, Any] = {"verify": verify, "follow_redirects": False}
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


def _answer(response: httpx2.Response, body: bytes, send: Send, deadline: float) -> Answer | LineDown:
    if time.monotonic() > deadline:
        return LineDown("the answer takes too long")
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, body[: send.bytes_max + 1])


def _down(error: Exception, url: str, config: LineConfig | None) -> Heard:
    if isinstance(error, TallystickError):
        return LineDown(str(error)), error
    untrusted = distrust(error, url)
    if untrusted is not None:
        return LineDown(str(untrusted)), untrusted
    proxy = None if config is None or config.proxy == DIRECT else config.proxy
    where = url if proxy is None else f"{url} by the proxy {without_password(proxy)}"
    why = f"{where}: {_words(error)}"
    return LineDown(why), LineError(why, code="PROXY") if _is_the_proxys(error, proxy) else None


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
