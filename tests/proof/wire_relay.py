"""The fault proxy: a wire for each till, between its real sockets and the real server, which spoils what it is told to.

It knows of HTTP only where a request or an answer ends. A wire that is armed spoils one request, of the kind it is
armed for, and passes all others on. Everything runs on one event loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from tests.proof.wire_server import Server

HEAD_BYTES_MAX = 2**20
END = b"\r\n\r\n"
TRAP = b"/you/followed/a/redirect"
"""Where redirects lead; `Relay.trapped` counts who went there."""
_T = TypeVar("_T")


class Over(Exception):
    """This connection has come to its end."""


class Fault(NamedTuple):
    """`act` spoils one exchange; `calls`: the kinds of call that can meet it.

    `slow`: the till's deadlines are shortened for it. `fine`: the call must succeed all the same. `held`: it goes on
    only once a sale was made. `connects`: it is met by connecting, not by a request. `left`: whoever calls leaves it.
    """

    name: str
    act: Callable[[Exchange], Awaitable[None]]
    calls: frozenset[str]
    slow: bool = False
    fine: bool = False
    held: bool = False
    connects: bool = False
    left: bool = False


@dataclass
class Armed:
    """A fault that waits for its request. `met`: it did; `go_on`: whatever holds lets go."""

    fault: Fault
    call: str
    chance: random.Random
    met: threading.Event = field(default_factory=threading.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    forgotten: bool = False


class Request(NamedTuple):
    head: bytes
    body: bytes

    @property
    def raw(self) -> bytes:
        return self.head + self.body


class Reply(NamedTuple):
    head: bytes
    body: bytes

    @property
    def raw(self) -> bytes:
        return self.head + self.body


def kind_of(head: bytes) -> str:
    """Of which call this request is a part."""
    method, path = head.split(b" ", 2)[:2]
    match method, path.split(b"/")[2:]:
        case b"POST", [b"sync"]:
            return "sync"
        case b"POST", [b"redemptions"]:
            return "online"
        case b"POST", [b"devices"]:
            return "enrol"
        case b"POST", [b"devices", b"again"]:
            return "again"
        case b"GET", [b"roots", _]:
            return "root"
        case b"GET", [b"blobs", _]:
            return "blob"
        case b"GET", [b"scopes", _, b"manifest"]:
            return "manifest"
    return "other"


def length_of(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return 0


class Exchange:
    """One request that is to be spoilt, and the connection that it came by."""

    def __init__(self, wire: Wire, armed: Armed, head: bytes, streams: Streams) -> None:
        self.wire, self.armed, self.head, self.chance = wire, armed, head, armed.chance
        self._reader, self._writer = streams
        self._body: bytes | None = None

    async def request(self) -> Request:
        if self._body is None:
            self._body = await self._reader.readexactly(length_of(self.head))
        return Request(self.head, self._body)

    async def forward(self) -> Reply:
        return await self.wire.relay.ask((await self.request()).raw, self.wire, kind_of(self.head))

    async def forward_and_kill(self, after_s: float) -> None:
        """The server is killed while it may be at it."""
        forwarding = asyncio.ensure_future(self.forward())
        await asyncio.sleep(after_s)
        await self.wire.relay.kill()
        await asyncio.wait([forwarding])
        if error := forwarding.exception():
            raise error

    async def write(self, raw: bytes) -> None:
        self._writer.write(raw)
        await self._writer.drain()

    async def read_some(self) -> bytes:
        return await self._reader.read(65_536)

    def reset(self) -> None:
        """RST."""
        reset(self._writer)
        raise Over

    def close(self) -> None:
        """FIN, of both directions."""
        self._writer.close()
        raise Over

    async def half_close(self) -> None:
        """FIN of what is sent; what the till sends is still read, until it hangs up."""
        self._writer.write_eof()
        with contextlib.suppress(ConnectionError):
            while await self._or_go_on(self._reader.read(65_536)):
                pass
        raise Over

    async def hold(self) -> None:
        """Until whoever armed this lets go."""
        await self.armed.go_on.wait()

    async def hold_for(self, seconds: float) -> bool:
        """Whether it was let go until then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.hold()
        return self.armed.go_on.is_set()

    async def _or_go_on(self, reading: Coroutine[Any, Any, _T]) -> _T | None:
        one, other = asyncio.ensure_future(reading), asyncio.ensure_future(self.hold())
        await asyncio.wait([one, other], return_when=asyncio.FIRST_COMPLETED)
        other.cancel()
        if one.done():
            return one.result()
        one.cancel()
        return None


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Wire:
    """What one till takes for its server. `arm`, then a call of the till, then `disarm`."""

    def __init__(self, relay: Relay, name: str) -> None:
        self.relay, self.name = relay, name
        self.armed: Armed | None = None
        self.port = 0
        self.later: list[Request] = []
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._full: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def meant_for(self, call: str) -> Fault | None:
        """The fault that waits for a request of this kind."""
        armed = self.armed
        return armed.fault if armed is not None and armed.call == call else None

    async def listen(self) -> None:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        self._server = await asyncio.start_server(self._serve, sock=listening, limit=HEAD_BYTES_MAX)

    async def deafen(self, *, full: bool) -> None:
        """Nobody listens any more; `full`: somebody does, and never accepts, and the queue is full."""
        await self.hang_up()
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()
        self._server = None
        if full:
            listening = socket.socket()
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(("127.0.0.1", self.port))
            listening.listen(0)
            self._full.append(listening)
            for _ in range(3):
                waiting = socket.socket()
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.1", self.port))
                self._full.append(waiting)

    async def hang_up(self, *, rudely: bool = False) -> None:
        """Ends the connections that are open, as a server does with idle ones."""
        for writer in list(self._open):
            if rudely:
                reset(writer)
            else:
                writer.close()
        await asyncio.sleep(0)

    async def arm(self, armed: Armed) -> None:
        self.armed = armed
        if armed.fault.connects:
            await armed.fault.act(Exchange(self, armed, b"", (None, None)))  # type: ignore[arg-type]
            armed.met.set()

    async def let_go(self) -> None:
        if self.armed is not None:
            self.armed.go_on.set()

    async def disarm(self) -> None:
        """What is held goes on; and it listens again."""
        if self.armed is not None:
            self.armed.go_on.set()
            self.armed = None
        while self._full:
            self._full.pop().close()
        if self._server is None:
            await self.listen()

    async def end(self) -> None:
        await self.disarm()
        await self.hang_up(rudely=True)
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while True:
                await self._one(reader, writer)
        except (Over, OSError, asyncio.IncompleteReadError):
            return  # the connection is over, however it ended
        finally:
            self._open.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(END)
        kind, armed = kind_of(head), self.armed
        self.relay.trapped += TRAP in head
        if armed is not None and kind == armed.call and not armed.met.is_set():
            exchange = Exchange(self, armed, head, (reader, writer))
            armed.met.set()
            await armed.fault.act(exchange)
            return
        request = Request(head, await reader.readexactly(length_of(head)))
        if armed is not None and armed.call == "again" and kind == "sync" and not armed.forgotten:
            armed.forgotten = True
            writer.write(problem(401, "UNKNOWN_DEVICE", "this server was restored"))
        else:
            writer.write((await self.relay.ask(request.raw, self, kind)).raw)
        await writer.drain()


class Relay:
    """All wires of a case, in a thread; a context manager. `replies`: what the server answered, by kind of request."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.wires: dict[str, Wire] = {}
        self.replies: dict[str, list[tuple[Wire, Reply]]] = defaultdict(list)
        self.trapped = 0
        self._killing = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire-relay")

    def do(self, work: Coroutine[Any, Any, _T]) -> _T:
        """On its event loop, from another thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def wire(self, name: str) -> Wire:
        """The wire of this name, which is made where there is none."""
        if name not in self.wires:
            self.wires[name] = made = Wire(self, name)
            self.do(made.listen())
        return self.wires[name]

    async def ask(self, raw: bytes, wire: Wire | None = None, kind: str = "") -> Reply:
        """The server's answer. Raises `OSError`, `IncompleteReadError` where it dies."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port, limit=HEAD_BYTES_MAX)
        try:
            writer.write(raw)
            await writer.drain()
            head = await reader.readuntil(END)
            reply = Reply(head, await reader.readexactly(length_of(head)))
        finally:
            writer.close()
        if wire is not None and reply.head.startswith(b"HTTP/1.1 2"):
            self.replies[kind].append((wire, reply))
        return reply

    async def kill(self) -> None:
        """SIGKILL to the server; nothing where it is dead already."""
        async with self._killing:
            await asyncio.to_thread(self.server.kill)

    async def deliver_late(self) -> int:
        """The requests that were lost and now arrive after all, or once more; how many."""
        late = [request for wire in self.wires.values() for request in wire.later]
        for wire in self.wires.values():
            wire.later.clear()
        for request in late:
            await self.ask(request.raw)
        return len(late)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        for wire in self.wires.values():
            await wire.end()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_default_executor()
        await asyncio.sleep(0.01)  # a socket is closed one turn of the loop after its transport


def answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    """A whole answer, as somebody else than the server would write it."""
    lines = [f"HTTP/1.1 {status}", *headers, f"content-length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def problem(status: int, code: str, detail: str, *headers: str) -> bytes:
    import json

    body = json.dumps({"type": "about:blank", "title": code, "status": status, "detail": detail, "code": code})
    return answer(f"{status} X", body.encode(), "content-type: application/problem+json", *headers)
