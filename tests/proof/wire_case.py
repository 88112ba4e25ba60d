"""One case of the wire: a server, eight tills and the command line, each behind a wire of its own."""

from __future__ import annotations

import contextlib
import json
import multiprocessing.util
import random
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, TimeoutError
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.loopback import till_command
from tallystick_client import AsyncTill, Till
from tallystick_client.reports import Receipt
from tests.proof.tally import Tally
from tests.proof.wire_answers import FAULTS
from tests.proof.wire_books import Books, Clean
from tests.proof.wire_relay import Armed, Exchange, Fault, Relay
from tests.proof.wire_server import CODES, Prepared, Server, new_clock, token
from tests.proof.wire_tills import (
    OFFLINE,
    WATCHDOG_S,
    Counter,
    EventLoop,
    Sale,
    judged,
    sentence_wrong,
    short_deadlines,
)

COUNTERS = 8
COMMAND = "till-8"
ENROLS = ("enrol", "root")


@cache
def prepared() -> Prepared:
    """Made once a process, and removed when that ends."""
    work = Path(tempfile.mkdtemp(prefix="tallystick-wire-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    multiprocessing.util.Finalize(None, shutil.rmtree, args=(work, True), exitpriority=1)
    made = Prepared(work, COUNTERS + 1)
    made.enrol()
    return made


class Case:
    """A context manager. `broken`: what of the server is, on purpose, by its name in `wire_serving`."""

    def __init__(self, seed: int, case: int, work: Path, broken: str = "") -> None:
        self.tally, self.case, self.work = Tally(), case, work
        self.chance = random.Random(f"wire {seed} {case}")
        self._broken = broken
        self._made = 0
        self._counting = threading.Lock()
        self._fresh: list[tuple[Counter, Path, str]] = []  # tills whose enrolment met a fault
        self._ends = ExitStack()

    def __enter__(self) -> Case:
        base = prepared()
        base.copy(self.work)
        self._operator_key = base.operator_key
        self._clean = self._ends.enter_context(Clean(self))
        try:
            self._begin()
        except BaseException:
            self._ends.close()
            raise
        return self

    def _begin(self) -> None:
        self.clock = new_clock()
        self.clock.run(seconds=2)  # the last sync of these tills is over, for those that sync in the background
        self.server = Server(self.work / "server", self.clock, self._broken)
        self._ends.callback(self.server.kill)
        self.server.start()
        self.books = Books(self)
        self.relay = self._ends.enter_context(Relay(self.server))
        self.loop = EventLoop()
        self._ends.callback(self.loop.close)
        self.pool = self._ends.enter_context(ThreadPoolExecutor(COUNTERS + 2, "wire-case"))
        self._ends.enter_context(short_deadlines(self.relay.wires))
        self.counters = [self._counter(number) for number in range(COUNTERS)]
        self.command = Counter(COMMAND, self.work / COMMAND, self.relay.wire(COMMAND), self.clock, None, False)
        self._ends.callback(self.command.close)

    def _counter(self, number: int) -> Counter:
        name, loop = f"till-{number}", self.loop if number % 2 else None
        counter = Counter(name, self.work / name, self.relay.wire(name), self.clock, loop, number % 4 >= 2)
        self._ends.callback(counter.close)
        counter.open()
        return counter

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def see(self, kind: str, count: int = 1) -> None:
        with self._counting:
            self.tally.see(kind, count)

    def met(self, fault: Fault) -> None:
        with self._counting:
            self.tally.units += 1
            self.tally.fault(fault.name)

    def fail(self, sentence: str) -> None:
        self.tally.fail(self.case, sentence)

    # ---- rounds

    def round(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Each till meets a fault, all at once; then each redeems online and syncs as if nothing had been."""
        steps = [
            self.pool.submit(self._step, counter, call, FAULTS[name], self.chance.random())
            for counter, (call, name) in zip(self.counters, pairs, strict=False)
        ]
        self._wait(steps, "a step")
        self._made += 1
        self.clock.run(hours=2)
        self._publish(f"round-{self._made}")  # so that each plain sync fetches a bundle too
        plain = [self.pool.submit(self._plain, counter) for counter in self.counters]
        self._wait(plain, "a call on a whole wire")
        self._enrol_the_rest()
        self.see("requests that arrived late", self.relay.do(self.relay.deliver_late()))
        self.clock.run(hours=2)

    def _wait(self, futures: list[Future[None]], what: str) -> None:
        for future in futures:
            try:
                future.result(2 * WATCHDOG_S)
            except TimeoutError:
                self.fail(f"{what} hangs")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
                self.fail(f"{what}: {type(error).__name__}: {error}")

    def _step(self, counter: Counter, call: str, fault: Fault, draw: float) -> None:
        chance, counter.last = random.Random(draw), f"{fault.name}, {call}"
        for _ in range(chance.randint(1, 3)):
            counter.sell(chance.choice(OFFLINE))
        self.see("voids", counter.void_one(chance))
        if call in ("manifest", "blob"):
            self._publish(f"{counter.name}-{self._made}")
        armed = Armed(fault, call, chance)
        self.relay.do(counter.wire.arm(armed))
        future, sale = self._begin_call(counter, call, fault, chance)
        if fault.held and armed.met.wait(WATCHDOG_S):
            counter.sell("OPEN")  # while the call is under way
            if call == "online":
                counter.do("sync")
            elif call not in ENROLS:
                counter.ask(counter.new_sale("OPEN"))
            if future.done():
                self.fail(f"{fault.name}, {call}: it was over before anything was answered")
            if fault.left:
                self.see("calls left in the midst", counter.leave(future if call == "online" else None))
            else:
                self.see("sales during a call that was held")
        if fault.held:
            self.relay.do(counter.wire.let_go())
        self._end_call(counter, call, fault, future, sale)
        met = armed.met.is_set()
        self.relay.do(counter.wire.disarm())
        if not met:
            self.fail(f"{fault.name} was not met by {call} of {counter.name}")
            return
        self.met(fault)
        self.see(f"at {call}")

    def _begin_call(
        self, counter: Counter, call: str, fault: Fault, chance: random.Random
    ) -> tuple[Future[Any], Sale | None]:
        if call in ENROLS:
            name = f"new-{counter.name}-{self._made}"
            fresh = (counter, self.work / name, token(self.server.data))
            self._fresh.append(fresh)
            return self._enrol(*fresh), None
        if call == "online":
            sale = counter.new_sale(chance.choice(CODES), chance.randint(300, 900))
            sale.asked_online = True
            return counter.begin("redeem_online", sale.order, sale.codes), sale
        return counter.sync(leaves=fault.left), None

    def _end_call(self, counter: Counter, call: str, fault: Fault, future: Future[Any], sale: Sale | None) -> None:
        what = f"{fault.name}, {call} of {counter.name}"
        try:
            result = future.result(WATCHDOG_S)
        except (CancelledError, TimeoutError) as error:
            if isinstance(error, TimeoutError) and not future.done():
                self.fail(f"{what}: it hangs")
            return
        except Exception as error:  # noqa: BLE001 - what may escape is judged here
            wrong = judged(error)
            if wrong or fault.fine:
                self.fail(f"{what}: {wrong or f'it failed, and need not: {error}'}")
            self.see(f"ended by {type(error).__name__}")
            return
        self.see("ended well" if not isinstance(result, Receipt) or result.online else "ended offline")
        if sale is not None:
            sale.told.append(result)
        if call in ENROLS:
            self._take(counter, result)

    # ---- enrolments

    def _enrol(self, counter: Counter, directory: Path, secret: str) -> Future[Any]:
        given = (directory, counter.wire.url, secret)
        named = {"name": directory.name, "clock": self.clock}
        if counter.loop is None:
            return counter.submit(Till.enroll, *given, **named)

        async def enrolled() -> AsyncTill:
            return await AsyncTill.enroll(*given, **named)  # type: ignore[arg-type]

        return counter.loop.begin(enrolled())

    def _take(self, counter: Counter, till: Any) -> None:
        """An enrolled till is closed; at the end all are opened, sell and sync."""
        if isinstance(till, Till):
            till.close()
        else:
            self.loop.do(till.close())
        self._fresh = [one for one in self._fresh if one[0] is not counter]
        self.see("tills enrolled")

    def _enrol_the_rest(self) -> None:
        """The same token again, on a whole wire."""
        for counter, directory, secret in list(self._fresh):
            try:
                self._take(counter, self._enrol(counter, directory, secret).result(WATCHDOG_S))
            except Exception as error:  # noqa: BLE001 - it must not fail, whatever it is
                self.fail(f"{directory.name} cannot be enrolled with its token: {type(error).__name__}: {error}")
        self._fresh.clear()

    # ---- whole wires

    def _plain(self, counter: Counter) -> None:
        price = 500 + 10 * self._made
        sale = counter.new_sale("OPEN", price)
        try:
            receipt = counter.ask(sale)
            if not (receipt.redeemed and receipt.online) or receipt.result.discount_minor != price // 5:
                self.fail(f"{counter.name} after {counter.last}: online {receipt.online}, {receipt.result}")
            counter.do("sync")
        except Exception as error:  # noqa: BLE001 - it must not fail, whatever it is
            self.fail(f"{counter.name} after {counter.last}: {type(error).__name__}: {error}")

    def _publish(self, code: str) -> None:
        voucher = json.dumps({"code": code, "discount": {"type": "fixed", "amount_minor": 1}}).encode()
        head = "POST /v1/vouchers HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += f"authorization: Bearer {self._operator_key}\r\ncontent-length: {len(voucher)}\r\n\r\n"
        reply = self.relay.do(self.relay.ask(head.encode() + voucher))
        if not reply.head.startswith(b"HTTP/1.1 201"):
            self.fail(f"no voucher could be published: {reply.raw[:300]!r}")

    # ---- the command line

    def command_step(self) -> None:
        """One fault, and what a user reads: an exit code and one sentence."""
        chance, command = self.chance, self.command
        call = chance.choice(["sync", "online"])
        fault = chance.choice([one for one in FAULTS.values() if call in one.calls and not (one.slow or one.held)])
        command.point()
        armed = Armed(fault, call, chance)
        self.relay.do(command.wire.arm(armed))
        sale = command.new_sale("OPEN")
        asked = json.dumps({"order": sale.order, "codes": sale.codes})
        sale.asked_online = call == "online"
        arguments = ["redeem", "--online", "--json", "-"] if call == "online" else ["sync"]
        run = subprocess.run(
            [*till_command(command.directory), *arguments], input=asked, capture_output=True, text=True, timeout=60
        )
        self.relay.do(command.wire.disarm())
        what = f"{fault.name}, tallystick {arguments[0]}"
        if call == "online" and run.stdout:
            sale.told.append(msgspec.json.decode(run.stdout, type=Receipt))
        if call != "online":
            command.sales.remove(sale)
        if not armed.met.is_set():
            self.fail(f"{what}: it was not met")
        if run.returncode not in ((0, 1, 2, 3, 4) if call == "online" else (0, 3, 4)):
            self.fail(f"{what}: exit code {run.returncode}: {run.stderr[:300]}")
        if fault.fine and run.returncode:
            self.fail(f"{what}: it failed, and need not: {run.stderr[:300]}")
        if run.returncode > 1 or run.stderr:
            said, _, code = run.stderr.removesuffix(")\n").rpartition(" (")
            wrong = sentence_wrong(said, code) if said.startswith("tallystick: ") else run.stderr[:300]
            if wrong:
                self.fail(f"{what}: {wrong}")
        self.met(fault)
        self.see(f"exit code {run.returncode}")

    # ---- the server dies

    def kill_round(self) -> None:
        """All tills at it at once, and the server is killed before, while or after it commits what one of them sent."""
        steps = []
        for counter in self.counters:
            call = self.chance.choice(["sync", "online"])
            fault = Fault("server killed", _killed, frozenset([call]))
            steps.append(self.pool.submit(self._step, counter, call, fault, self.chance.random()))
        self._wait(steps, "a step while the server died")

    def heal(self) -> None:
        """The server is there again, and the wires are whole: everything must come to rest, and is counted."""
        self.server.kill()
        self.server.start()
        self.clock.run(hours=25)
        self.command.open()
        self.books.close([*self.counters, self.command])


async def _killed(x: Exchange) -> None:
    await x.request()
    when = x.chance.choice(["before", "within", "after"])
    with contextlib.suppress(OSError, EOFError):  # where another till's fault was quicker
        if when == "after":
            await x.forward()
        elif when == "within":
            await x.forward_and_kill(x.chance.uniform(0, 0.02))
    await x.wire.relay.kill()
    x.reset()
