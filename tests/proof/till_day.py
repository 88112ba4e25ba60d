"""A till's day as a process of its own: sales, voids, returns and syncs made from a seed, and told line by line.

One line of JSON (`Said`) before each step, and one after it: what a cashier was told. What the second line says to be
redeemed is acknowledged, and nothing else is. Every redemption, void and return has its id beforehand, and can be asked
for again.
`python -m tests.proof.till_day DIR` does a day; `live` does the same in a process that was forked for it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from tallystick_client import Till
from tallystick_client.errors import TallystickError
from tallystick_client.exporting import export
from tallystick_client.forgetting import forget
from tallystick_shared.journal import Returned
from tests.client.fake_clock import START, FakeClock

VOUCHERS: list[dict[str, Any]] = [
    {"code": "OPEN", "discount": {"type": "percentage", "percent": 10}, "stacking": {"mode": "stackable"}},
    {"code": "UNITS", "discount": {"type": "fixed", "amount_minor": 300}, "limits": {"total": 400},
     "stacking": {"mode": "stackable"}},
    {"code": "MONEY", "discount": {"type": "percentage", "percent": 50, "cap_minor": 400},
     "limits": {"budget_minor": 90_000}},
    {"code": "FEW", "discount": {"type": "fixed", "amount_minor": 125}, "limits": {"total": 9}},
    {"code": "ALONE", "discount": {"type": "fixed", "amount_minor": 100}, "limits": {"total": 1},
     "offline": {"policy": "exclusive"}},
    {"code": "SOFT", "discount": {"type": "fixed", "amount_minor": 50}, "limits": {"total": 1000},
     "offline": {"policy": "soft", "max_units": 20, "max_minor": 900}},
    {"code": "ONCE-EACH", "discount": {"type": "fixed", "amount_minor": 70}, "limits": {"per_customer": 1}},
]  # fmt: skip
"""What the server of these days has: without a limit, with one in units and in money, single, soft, and by customer."""
SALES: list[list[str]] = [
    ["OPEN"], ["UNITS"], ["MONEY"], ["FEW"], ["ALONE"], ["SOFT"], ["ONCE-EACH"], ["OPEN", "UNITS"],
    ["UNITS", "OPEN", "FEW"], ["NOT-A-CODE"],
]  # fmt: skip
KINDS = {"redeem": 12, "void": 3, "return": 2, "sync": 3, "down": 1, "lost": 1, "online": 2, "close": 1, "forget": 1}
"""Steps, and how often: `down` and `lost` are a sync without a line, and one whose answers get lost; `close` opens the
till again; `online` asks the server."""


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """`id`: of the redemption, new or meant; `own`: of the void. `target`: a file to export to, or where to enrol with
    `token`."""

    number: int
    kind: str
    id: str = ""
    codes: list[str] = []
    customer: str = ""
    quantity: int = 2
    price: int = 500
    target: str = ""
    token: str = ""
    own: str = ""

    def returned(self) -> list[Returned]:
        return [Returned("1", 1)] if self.kind == "return" else []

    def order(self) -> dict[str, Any]:
        order: dict[str, Any] = {
            "id": f"order-{self.id}",
            "currency": "EUR",
            "lines": [
                {"id": "1", "product_id": "tea", "quantity": self.quantity, "unit_price_minor": self.price},
                {"id": "2", "product_id": "cup", "quantity": 1, "unit_price_minor": 333},
            ],
        }
        return order | ({"customer": {"id": self.customer}} if self.customer else {})


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """`done`: after the call has returned. `redeemed`: on the disk, as the caller was told; `minor` and `shares` (by
    code) of the discount, or what a void pays back. `error`: the code of what was raised, `INTERNAL` if it was none of
    the till's own; `why`: its sentence. `count`: events sent, written or erased."""

    number: int
    kind: str
    done: bool = False
    id: str = ""
    redeemed: bool = False
    minor: int = 0
    shares: dict[str, int] = {}
    error: str = ""
    why: str = ""
    count: int = 0


Say = Callable[[Said], None]


class Life(msgspec.Struct, frozen=True):
    """What one process does with one till, from `at` on, a minute a step.

    Steps `apart[0]` to `apart[1]` (excluded) of the list are done in a thread of their own: strace counts calls by
    thread, so that the n-th call is then the n-th of these steps. `broken`: `module:function`, called before anything
    else, which breaks the product on purpose. `abrupt`: it ends without closing the till.
    """

    directory: str
    steps: list[Step]
    apart: tuple[int, int] = (0, 0)
    at: datetime = START
    boot: str = "boot-1"
    ran_s: float = 1000.0
    broken: str = ""
    abrupt: bool = False


class Switch(httpx2.HTTPTransport):
    """The line: up, down, or losing the answers of a server that has done its work."""

    state = "up"

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if self.state == "down":
            raise httpx2.ConnectError("there is no line", request=request)
        response = super().handle_request(request)
        if self.state == "lost":
            response.close()
            raise httpx2.ReadError("the line went down", request=request)
        return response


class Day:
    """The till of a `Life`, opened when it is first needed."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.path = Path(life.directory)
        self.clock = FakeClock(life.at)
        self.clock.boot, self.clock.ran_s = life.boot, life.ran_s
        self.line = Switch(verify=False)
        self._till: Till | None = None

    @property
    def till(self) -> Till:
        if self._till is None:
            self._till = Till.open(self.path, clock=self.clock, transport=self.line)
        return self._till

    def close(self) -> None:
        till, self._till = self._till, None
        if till is not None:
            till.close()
            self.line = Switch(verify=False)

    def do(self, step: Step) -> Said:
        """Raises what the till raises."""
        said = Said(step.number, step.kind, True, step.id)
        replace = msgspec.structs.replace
        match step.kind:
            case "redeem" | "online":
                sell = self.till.redeem if step.kind == "redeem" else self.till.redeem_online
                receipt = sell(step.order(), step.codes, id=step.id)
                shares = {one.code: one.discount_minor for one in receipt.result.applied}
                return replace(
                    said, id=receipt.id, redeemed=receipt.redeemed, minor=sum(shares.values()), shares=shares
                )
            case "void" | "return":
                given_back = self.till.void(step.id, returned=step.returned(), id=step.own)
                return replace(said, redeemed=True, minor=given_back.refund_minor)
            case "sync" | "down" | "lost":
                with self._line_is({"sync": "up"}.get(step.kind, step.kind)):
                    return replace(said, count=self.till.sync().sent)
            case "export" | "final":
                made = export(self.till._keeper, Path(step.target), final=step.kind == "final")
                return replace(said, count=made.events)
            case "forget":
                return replace(said, count=forget(self.till._keeper.journal, step.customer).bodies)
            case "close" | "open":
                self.close()
                return replace(said, count=len(self.till.status().leases))
            case "enroll":
                given = {"name": self.path.name, "clock": self.clock, "transport": self.line}
                self._till = Till.enroll(self.path, step.target, step.token, **given)  # type: ignore[arg-type]
                return said
        raise ValueError(step.kind)

    @contextlib.contextmanager
    def _line_is(self, state: str) -> Iterator[None]:
        self.till  # noqa: B018 # opened on a line that is up
        self.line.state = state
        try:
            yield
        finally:
            self.line.state = "up"


def live(life: Life, say: Say, prepare: Callable[[], object] = lambda: None) -> None:
    """Does the steps one by one; an error is said, and the next step comes. `prepare`: first in the thread apart."""
    break_it(life.broken)
    day = Day(life)
    begin, end = life.apart

    def some(steps: Sequence[Step]) -> None:
        for step in steps:
            say(Said(step.number, step.kind, id=step.id))
            day.clock.run(minutes=1)
            say(attempt(day, step))

    def struck() -> None:
        prepare()
        some(life.steps[begin:end])

    some(life.steps[:begin])
    with ThreadPoolExecutor(1) as apart:
        if begin < end:
            apart.submit(struck).result()
    some(life.steps[max(begin, end) :])
    if not life.abrupt:
        day.close()


def attempt(day: Day, step: Step) -> Said:
    try:
        return day.do(step)
    except TallystickError as error:
        return Said(step.number, step.kind, True, step.id, error=error.code, why=str(error))
    except Exception as error:  # noqa: BLE001 - that nothing but the till's own errors comes is what is tried
        return Said(step.number, step.kind, True, step.id, error="INTERNAL", why=f"{type(error).__name__}: {error}")


def break_it(broken: str) -> None:
    """Calls `module:function`, which breaks the product of this process on purpose."""
    if broken:
        module, _, name = broken.partition(":")
        getattr(importlib.import_module(module), name)()


def plan(chance: random.Random, count: int, *, first: int = 1, known: Sequence[str] = ()) -> list[Step]:
    """`count` steps from number `first` on. `known`: redemptions of earlier days, which may be voided too."""
    ids = list(known)
    steps = []
    for number in range(first, first + count):
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        if kind in ("void", "return") and not ids:
            kind = "redeem"
        steps.append(make_step(chance, number, kind, ids))
    return steps


def make_step(chance: random.Random, number: int, kind: str, ids: list[str]) -> Step:
    """`ids`: redemptions so far; one that is made here is added."""
    customer = chance.choice(["anna", "ben", "carl", ""])
    match kind:
        case "redeem" | "online":
            ids.append(new_id(chance))
            codes, quantity = chance.choice(SALES), chance.randint(1, 4)
            return Step(number, kind, ids[-1], codes, customer, quantity, chance.randint(90, 900))
        case "void" | "return":
            meant = chance.choice(ids[-12:])
            return Step(number, kind, meant, own=new_id(random.Random(f"{meant} {number}")))
        case "forget":
            return Step(number, kind, customer=customer or "anna")
    return Step(number, kind)


def new_id(chance: random.Random) -> str:
    """A UUID of version 7, of the day that all this happens on."""
    digits = f"{int(START.timestamp() * 1000) + chance.randrange(10**7):012x}7{chance.getrandbits(76):019x}"
    digits = f"{digits[:16]}{'89ab'[chance.randrange(4)]}{digits[17:]}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def to_descriptor(descriptor: int) -> Say:
    """Says it with one `write` call, so that nothing of it is left in the process that dies."""
    return lambda said: _write(descriptor, msgspec.json.encode(said) + b"\n")


def _write(descriptor: int, line: bytes) -> None:
    os.write(descriptor, line)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof.till_day", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--at", type=datetime.fromisoformat, default=START)
    parser.add_argument("--life", help="a whole Life as JSON, instead of all the above but the directory")
    parser.add_argument("--broken", default="", help="module:function that breaks the product on purpose")
    given = parser.parse_args(arguments)
    if given.life:
        life = msgspec.json.decode(given.life, type=Life)
        life = msgspec.structs.replace(life, directory=str(given.directory), broken=given.broken or life.broken)
    else:
        steps = plan(random.Random(given.seed), given.steps)
        life = Life(str(given.directory), steps, given.at, broken=given.broken)
    live(life, to_descriptor(sys.stdout.fileno()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
