"""What a server meets when the line of a whole fleet comes back at once: `make bench-spread`. Virtual time, seeded.

The tills are the real sync machine (`tallystick_client.machine`), patient as a till in the background is: half of them
never failed and wait U(0, spread) first, half have tried through the outage and keep their next attempt. Against them,
in the same run, a naive client: it calls as soon as the line is back and retries with exponential backoff, without
jitter. The server answers so many requests a second, and any more with 503. An announced outage is one in which a
server or a proxy still answers: 503, and the same moment to come back for everybody. Only counts of requests are
compared.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from math import ceil
from typing import Final, Protocol

import msgspec
from rich.console import Console
from rich.table import Table

from tallystick_client.actions import (
    PROBLEM_TYPE,
    Action,
    Answer,
    Done,
    Event,
    Failed,
    LineDown,
    Persist,
    Persisted,
    Reading,
    Send,
    Start,
    Tick,
    Wait,
    Woken,
)
from tallystick_client.machine import Machine
from tallystick_client.pausing import BACKOFF_BASE_S, BACKOFF_MAX_S, SPREAD_S
from tallystick_client.trust import Trusted
from tallystick_shared.bundle import Role, Roles, Root
from tallystick_shared.journal import BATCH_EVENTS_MAX, Position
from tallystick_shared.signing import SigningKey, Typ
from tallystick_shared.wire import ClockReading, DeviceState, digest_of

BACK_AT: Final = datetime(2026, 11, 23, 9, tzinfo=UTC)
OUTAGE_S: Final = 900
LONGEST_S: Final = 12 * 3_600


class _Unsigned(SigningKey):
    """Nobody looks at these requests, and 100,000 signatures would be most of the time."""

    def sign(self, typ: Typ, payload: bytes) -> bytes:
        return payload


_KEY: Final = _Unsigned.generate()
_ROLE: Final = Role([_KEY.kid], 1)
_DEVICE: Final = "00000000-0000-7000-8000-000000000001"
_TRUSTED: Final = Trusted(
    Root(1, _DEVICE, BACK_AT + timedelta(days=365), {_KEY.kid: _KEY.jwk()}, Roles(_ROLE, _ROLE, _ROLE))
)
_BUSY: Final = b'{"type": "about:blank", "title": "", "status": 503, "detail": "", "code": "BUSY"}'
_NOWHERE: Final = Position(0, "0" * 64)
_READING: Final = msgspec.convert(
    {
        **{field.name: None for field in msgspec.structs.fields(Reading) if field.required},
        "scope": "default",
        "device_state": DeviceState.ACTIVE,
        **dict.fromkeys(("server_epoch", "ledger_mark", "lease_number", "bundle_version", "failures"), 0),
        **dict.fromkeys(("head", "after", "through"), _NOWHERE),
        **{name: [] for name in ("events", "leases", "wants")},
        "leases_digest": digest_of([]),
        "batch_events_max": BATCH_EVENTS_MAX,
    },
    Reading,
)


class Till(Protocol):
    """`start` is the first wait; `ask` begins a request; `told` ends it with a status (0: no line). Waits in seconds,
    from then; None ends it."""

    def start(self, at_s: float) -> float: ...

    def ask(self, at_s: float) -> None: ...

    def told(self, status: int, retry_after_s: int, at_s: float) -> float | None: ...


class RealTill:
    """The machine as a loop of patient syncs drives it; what it asks to be kept is kept here."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._reading = _READING
        self._machine: Machine

    def start(self, at_s: float) -> float:
        self._machine = Machine(_DEVICE, _KEY)
        action = self._step(Start(self._reading, _TRUSTED, None, True), at_s)
        if not isinstance(action, Wait):
            raise RuntimeError(f"a patient sync began with {action}")
        return action.seconds

    def ask(self, at_s: float) -> None:
        self._step(Woken(), at_s)
        action = self._step(Persisted(self._reading), at_s)
        if not isinstance(action, Send):
            raise RuntimeError(f"nothing was sent, but {action}")

    def told(self, status: int, retry_after_s: int, at_s: float) -> float | None:
        if status == 200:
            return None
        headers = {"content-type": PROBLEM_TYPE} | ({"retry-after": str(retry_after_s)} if retry_after_s else {})
        action = self._step(Answer(status, headers, _BUSY) if status else LineDown("no route"), at_s)
        if not (isinstance(action, Persist) and isinstance(action.change, Failed)):
            raise RuntimeError(f"a failure was not kept, but led to {action}")
        failed = action.change
        self._reading = msgspec.structs.replace(
            self._reading,
            failures=self._reading.failures + 1,
            next_attempt_at=failed.next_attempt_at,
            not_before_at=failed.not_before_at,
        )
        done = self._step(Persisted(self._reading), at_s)
        if not isinstance(done, Done):
            raise RuntimeError(f"a failed sync did not end, but led to {done}")
        return self.start(at_s)

    def _step(self, event: Event, at_s: float) -> Action:
        at = BACK_AT + timedelta(seconds=at_s)
        clock = ClockReading(at, "boot", int(at_s) + 10**6)
        return self._machine.step(event, Tick(at, clock, "nonce", self._chance.random()))


class NaiveTill:
    """At once, then after 4, 8, 16 ... seconds, as long as the real one would at most."""

    def __init__(self) -> None:
        self._failures = 0

    def start(self, at_s: float) -> float:
        return 0

    def ask(self, at_s: float) -> None:
        return

    def told(self, status: int, retry_after_s: int, at_s: float) -> float | None:
        if status == 200:
            return None
        self._failures += 1
        return max(retry_after_s, min(BACKOFF_MAX_S, BACKOFF_BASE_S << min(self._failures, 20)))


@dataclass(frozen=True)
class Met:
    """What the server met from the moment the line was back: requests by whole second, and when tills were done."""

    tills: int
    arrivals: Counter[int]
    synced_at_s: list[float]

    @property
    def peak(self) -> int:
        """Of any one second."""
        return max(self.arrivals.values())

    @property
    def p99(self) -> int:
        """Of the seconds in which somebody came."""
        ordered = sorted(self.arrivals.values())
        return ordered[(len(ordered) * 99 - 1) // 100]

    @property
    def requests(self) -> int:
        return self.arrivals.total()

    def done_s(self, share: float = 1.0) -> float | None:
        """When this share of all tills was through; None: it never was."""
        wanted = ceil(self.tills * share)
        return sorted(self.synced_at_s)[wanted - 1] if wanted <= len(self.synced_at_s) else None


def meet(tills: list[tuple[Till, float]], capacity: int, retry_after_s: int = 0, *, announced: bool = False) -> Met:
    """Each till with the second at which it starts (the line is back at 0) against a server that answers `capacity`
    requests a second; `retry_after_s` goes with a 503, 0 for none. `announced`: before 0 there is an answer, see above.
    """
    order = count()
    queue = [(from_s + till.start(from_s), next(order), till) for till, from_s in tills]
    heapq.heapify(queue)
    arrivals: Counter[int] = Counter()
    synced: list[float] = []
    while queue and queue[0][0] < LONGEST_S:
        at_s, _, till = heapq.heappop(queue)
        till.ask(at_s)
        if at_s >= 0:
            arrivals[int(at_s)] += 1
            status = 200 if arrivals[int(at_s)] <= capacity else 503
            wait_s = till.told(status, retry_after_s, at_s)
        else:
            wait_s = till.told(503, ceil(-at_s), at_s) if announced else till.told(0, 0, at_s)
        if wait_s is None:
            synced.append(at_s)
        else:
            heapq.heappush(queue, (at_s + wait_s, next(order), till))
    return Met(len(tills), arrivals, synced)


def real(tills: int, seed: int, *, failed: float = 0.5) -> list[tuple[Till, float]]:
    """`failed`: the share of those that have tried since the outage began; the others never failed."""
    chance = random.Random(seed)
    return [(RealTill(chance), -OUTAGE_S if number < tills * failed else 0) for number in range(tills)]


def naive(tills: int) -> list[tuple[Till, float]]:
    return [(NaiveTill(), 0) for _ in range(tills)]


@dataclass(frozen=True)
class Case:
    """`failed` as in `real`; the others as in `meet`."""

    name: str
    capacity: int
    retry_after_s: int = 0
    failed: float = 0.5
    announced: bool = False


def cases(tills: int, capacity: int) -> list[Case]:
    return [
        Case("answers everybody", tills),
        Case(f"{capacity} a second", capacity),
        Case(f"{capacity} a second, nobody had failed", capacity, failed=0),
        Case(f"{capacity // 2} a second, Retry-After 30", capacity // 2, 30),
        Case(f"{capacity} a second, announced outage", capacity, failed=1, announced=True),
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spread", description=__doc__)
    parser.add_argument("--tills", type=int, default=10_000)
    parser.add_argument("--capacity", type=int, default=200, help="requests that the server answers in a second")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    table = Table(
        "server", "tills", "peak in a second", "p99", "requests", "99 % synced", "all synced",
        title=f"{options.tills:,} tills, one line that comes back, seed {options.seed}, spread {SPREAD_S} s",
    )  # fmt: skip
    for case in cases(options.tills, options.capacity):
        plain = meet(naive(options.tills), case.capacity, case.retry_after_s)
        ours = meet(
            real(options.tills, options.seed, failed=case.failed),
            case.capacity,
            case.retry_after_s,
            announced=case.announced,
        )
        for kind, met in (("naive", plain), ("Tallystick", ours)):
            table.add_row(
                case.name, kind, f"{met.peak:,}", f"{met.p99:,}", f"{met.requests:,}", _after(met.done_s(0.99)),
                _after(met.done_s()),
            )  # fmt: skip
        table.add_row("", f"ratio {plain.peak / ours.peak:.1f}", end_section=True)
    Console(width=120).print(table)
    return 0


def _after(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:,.0f} s"


if __name__ == "__main__":
    sys.exit(main())
