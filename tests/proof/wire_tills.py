"""The tills of a case: real ones, of both kinds, and their cashiers, who remember what they were told."""

from __future__ import annotations

import asyncio
import json
import queue
import random
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tallystick_client import AsyncTill, Till, line, syncing
from tallystick_client.actions import Send
from tallystick_client.errors import CallerError, LineError, RemoteError, TallystickError
from tallystick_client.reports import Receipt
from tests.proof.wire_relay import Wire, kind_of
from tests.proof.wire_server import CODES, Clock, order

WATCHDOG_S = 60.0
STEP_S, WHOLE_S = 0.25, 0.5
"""The deadlines of a call that is to be too slow: for one read, and for a whole answer."""
OFFLINE = [code for code in CODES if code != "ONLINE"]
_T = TypeVar("_T")


@dataclass
class Sale:
    """One customer's order. `told`: the receipts the cashier saw; `asked_online`: whether the server may know of it."""

    till: str
    order: dict[str, Any]
    codes: list[str]
    asked_online: bool = False
    told: list[Receipt] = field(default_factory=list)

    @property
    def redeemed(self) -> bool:
        return any(receipt.redeemed for receipt in self.told)


class EventLoop:
    """One for all asynchronous tills of a case, in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.complaints: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(str(context)))
        self._thread = threading.Thread(target=self.loop.run_forever, name="wire-tills")
        self._thread.start()

    def begin(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def do(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.begin(work).result(WATCHDOG_S)

    def close(self) -> None:
        async def rest() -> None:
            await self.loop.shutdown_asyncgens()
            await self.loop.shutdown_default_executor()

        self.do(rest())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Counter:
    """One till and its cashier. `background`: it syncs in the background, where it is asked to sync."""

    def __init__(
        self, name: str, directory: Path, wire: Wire, clock: Clock, loop: EventLoop | None, background: bool
    ) -> None:
        self.name, self.directory, self.wire, self.clock = name, directory, wire, clock
        self.loop, self.background = loop, background
        self.sales: list[Sale] = []
        self.last = ""
        self._voided: set[str] = set()
        self._pool = ThreadPoolExecutor(2, f"wire-{name}")
        self._till: Till | AsyncTill | None = None
        self._leave = threading.Event()

    # ---- the till

    def point(self) -> None:
        """At its wire."""
        config = self.directory / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"server_url": self.wire.url}))

    def open(self) -> None:
        self.point()
        if self.loop is None:
            self._till = Till.open(self.directory, clock=self.clock)
        else:
            self._till = self.loop.do(self._opened())

    async def _opened(self) -> AsyncTill:
        return await AsyncTill.open(self.directory, clock=self.clock)

    @property
    def is_open(self) -> bool:
        return self._till is not None

    def close(self) -> None:
        till, self._till = self._till, None
        if isinstance(till, Till):
            till.close()
        elif till is not None and self.loop is not None:
            self.loop.do(till.close())
        self._pool.shutdown()

    def submit(self, work: Callable[..., _T], *arguments: Any, **named: Any) -> Future[_T]:
        return self._pool.submit(work, *arguments, **named)

    def begin(self, call: str, *arguments: Any, **named: Any) -> Future[Any]:
        """A method of the till, whichever kind it is, without waiting for it."""
        method = getattr(self._till, call)
        if self.loop is None:
            return self._pool.submit(method, *arguments, **named)
        return self.loop.begin(method(*arguments, **named))

    def do(self, call: str, *arguments: Any, **named: Any) -> Any:
        return self.begin(call, *arguments, **named).result(WATCHDOG_S)

    # ---- selling

    def new_sale(self, code: str, price_minor: int = 500) -> Sale:
        sale = Sale(self.name, order(f"{self.name}-{len(self.sales)}", price_minor), [code])
        self.sales.append(sale)
        return sale

    def sell(self, code: str) -> Receipt:
        """Offline."""
        sale = self.new_sale(code)
        sale.told.append(self.do("redeem", sale.order, sale.codes))
        return sale.told[-1]

    def ask(self, sale: Sale) -> Receipt:
        """Online, or once more."""
        sale.asked_online = True
        sale.told.append(self.do("redeem_online", sale.order, sale.codes))
        return sale.told[-1]

    def void_one(self, chance: random.Random) -> bool:
        """Sometimes, one of those that were redeemed, here or online."""
        mine = [one.id for sale in self.sales for one in sale.told[-1:] if one.redeemed and one.id not in self._voided]
        if not mine or chance.random() < 0.75:
            return False
        chosen = chance.choice(mine)
        self._voided.add(chosen)
        self.do("void", chosen)
        return True

    # ---- syncing

    def sync(self, *, leaves: bool = False) -> Future[Any]:
        """In the background where this till does so; `leaves`: until `leave`."""
        self._leave.clear()
        if self.background:
            return self._pool.submit(self._sync_in_background)
        if leaves and self.loop is not None:
            return self.loop.begin(self._sync_until_left())
        return self.begin("sync")

    def leave(self, asked: Future[Any] | None = None) -> bool:
        """Whoever called does not wait any more. Whether that can be: not of a synchronous till that was called."""
        self._leave.set()
        if asked is not None:
            return self.loop is not None and asked.cancel()
        return self.loop is not None or self.background

    def _sync_in_background(self) -> Any:
        heard: queue.Queue[Any] = queue.Queue()
        if self.loop is None:
            assert isinstance(self._till, Till)
            self._till.start_syncing(on_report=heard.put, every_s=1)
        else:
            self.loop.do(self._start(heard.put))
        try:
            done = None
            while done is None and not self._leave.is_set():
                try:
                    done = heard.get(timeout=0.02)
                except queue.Empty:
                    continue
        finally:
            self.do("stop_syncing")
        if done is not None and done.error is not None:
            raise done.error
        return None if done is None else done.report

    async def _start(self, heard: Any) -> None:
        assert isinstance(self._till, AsyncTill)
        self._till.start_syncing(on_report=heard, every_s=1)

    async def _sync_until_left(self) -> Any:
        assert isinstance(self._till, AsyncTill)
        task = asyncio.ensure_future(self._till.sync())
        while not task.done() and not self._leave.is_set():
            await asyncio.wait([task], timeout=0.01)
        if self._leave.is_set():
            task.cancel()
        await asyncio.wait([task])
        return None if task.cancelled() else task.result()

    def converge(self, rounds: int = 4) -> bool:
        """Whether the server has all of it, after as many plain syncs as it takes."""
        for _ in range(rounds):
            self.do("sync")
            if self.do("status").waiting == 0:
                return True
        return False


def judged(error: BaseException) -> str:
    """What is wrong with an error that a caller sees; empty: it is one of the client's own, as it must be."""
    if not isinstance(error, LineError | RemoteError | CallerError):
        return f"{type(error).__name__} escapes: {str(error)[:200]}"
    if not isinstance(error, TallystickError) or error.code == "INTERNAL":
        return f"an internal error escapes: {str(error)[:200]}"
    return sentence_wrong(str(error), error.code)


def sentence_wrong(sentence: str, code: str) -> str:
    if not code or not code.replace("_", "").isalnum() or not code.isascii() or code.upper() != code:
        return f"the code {code[:80]!r} is none"
    if not sentence or len(sentence) > 2_000 or not sentence.isprintable() or "Traceback" in sentence:
        return f"the sentence is none: {sentence[:200]!r}"
    return ""


@contextmanager
def short_deadlines(wires: dict[str, Wire]) -> Iterator[None]:
    """Deadlines of parts of a second, for the requests that a slow fault is aimed at.

    And background syncing looks for its turn often, without a random pause: a case's clock stands still.
    """
    sends = line.Line.send, line.AsyncLine.send

    def shortened(send: Send, url: str) -> Send:
        call = kind_of(f"{send.method} {send.path} ".encode())
        fault = next((wire.meant_for(call) for wire in list(wires.values()) if wire.url == url), None)
        if fault is not None and fault.slow:
            return msgspec.structs.replace(send, timeout_s=STEP_S, within_s=WHOLE_S)
        if fault is not None and fault.held:  # until a sale is made, however busy this machine is
            return msgspec.structs.replace(send, timeout_s=WATCHDOG_S, within_s=WATCHDOG_S)
        return send

    def plain(self: line.Line, send: Send) -> Any:
        return sends[0](self, shortened(send, self._url))

    async def asynchronous(self: line.AsyncLine, send: Send) -> Any:
        return await sends[1](self, shortened(send, self._url))

    quick = {"LOOK_S": 0.01, "PAUSE_S": 0.01, "SPREAD_S": 0.0}
    with changed(line.Line, send=plain), changed(line.AsyncLine, send=asynchronous), changed(syncing, **quick):
        yield


@contextmanager
def changed(owner: Any, **values: Any) -> Iterator[None]:
    """Attributes of a class or a module, for a while."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
