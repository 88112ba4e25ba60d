"""A till of a simulated fleet: the real client on a real directory, driven step by step, with a clock of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from tallystick_client.actions import (
    Accept,
    Action,
    Answer,
    Change,
    Done,
    Event,
    LineDown,
    Persist,
    Send,
    Tick,
    Unbelieved,
    Wait,
    Woken,
)
from tallystick_client.errors import TallystickError, Untrusted
from tallystick_client.keeper import Enroller, Keeper
from tallystick_client.reports import Receipt, SyncReport

Heard = Callable[[Answer | LineDown], None]
Later = Callable[[float, Callable[[], None]], None]


class Machine(Protocol):
    def step(self, event: Any, tick: Tick) -> Action: ...


class Local(Protocol):
    def tick(self) -> Tick: ...
    def perform(self, change: Change) -> Event: ...


class TillClock:
    """The clocks of one machine: wall and monotonic, as wrong as they were made. `truth` is the time of the world."""

    def __init__(self, name: str, truth: Callable[[], datetime]) -> None:
        self._name, self.truth = name, truth
        self._boots, self._drift = 1, 0.0
        self._since, self._wall, self._ran_s = truth(), truth(), 60.0

    def now(self) -> datetime:
        return self._wall + (self.truth() - self._since) * (1 + self._drift)

    def monotonic(self) -> float:
        return self._ran_s + (self.truth() - self._since).total_seconds() * (1 + self._drift)

    def boot_id(self) -> str:
        return f"{self._name}-{self._boots}"

    def set_ahead(self, seconds: float) -> None:
        """Somebody sets the wall clock, to so far ahead of the truth; behind it, if that is negative."""
        self._go_on()
        self._wall = self._since + timedelta(seconds=seconds)

    def drift(self, rate: float) -> None:
        """From now on both clocks run faster than the truth by this part of it."""
        self._go_on()
        self._drift = rate

    def reboot(self) -> None:
        self._go_on()
        self._boots, self._ran_s = self._boots + 1, 5.0

    def mend(self) -> None:
        self.drift(0)
        self.set_ahead(0)

    def _go_on(self) -> None:
        self._wall, self._ran_s, self._since = self.now(), self.monotonic(), self.truth()


@dataclass
class Flow:
    """One machine on its way: a sync or an online redemption."""

    machine: Machine
    local: Local
    done: Callable[[SyncReport | Receipt | None, TallystickError | None], None]
    life: int = 0


@dataclass
class Device:
    """What is true of a device, whatever client and server think. `faults`: what was done to it, by kind."""

    name: str
    id: str = ""
    disks: int = 1
    older_copies: int = 0
    faults: set[str] = field(default_factory=set)


class FleetTill:
    """`later` runs something after so many seconds of the world. `send` gives a request to the network."""

    def __init__(
        self,
        device: Device,
        path: Path,
        clock: TillClock,
        later: Later,
        send: Callable[[FleetTill, Send, Heard], None],
    ) -> None:
        self.device, self.path, self.clock = device, path, clock
        self.keeper: Keeper | None = None
        self.syncing = False
        self.errors: list[TallystickError] = []
        self.offline_until = clock.truth()
        self.lively = 1.0
        self.last_error: TallystickError | None = None
        self._later, self._send = later, send
        self._life = 0

    @property
    def is_offline(self) -> bool:
        return self.clock.truth() < self.offline_until

    def offline_for(self, seconds: float) -> None:
        self.offline_until = self.clock.truth() + timedelta(seconds=seconds)

    def open(self) -> Keeper:
        if self.keeper is None:
            self.keeper = Keeper(self.path, self.clock)
        return self.keeper

    def close(self) -> None:
        self._life += 1
        self.syncing = False
        if self.keeper is not None:
            self.keeper.close()
            self.keeper = None

    def crash(self) -> None:
        """The process ends at once: nothing is closed, so the files stay as they are at this moment."""
        left = self.path.with_name(self.path.name + ".left")
        shutil.copytree(self.path, left)
        self.close()
        shutil.rmtree(self.path)
        left.rename(self.path)

    # -- machines

    def enrol(self, url: str, token: str, then: Callable[[TallystickError | None], None]) -> None:
        enroller = Enroller(self.path, url, token, self.device.name, self.clock)
        self.start(enroller.machine(), Woken(), enroller, lambda _, error: then(error))

    def sync(self, then: Callable[[SyncReport | None, TallystickError | None], None]) -> None:
        """Nothing where this till is syncing already: the lock of its directory is taken."""
        if self.syncing:
            return
        keeper = self.open()

        def over(report: Any, error: TallystickError | None) -> None:
            self.syncing = False
            then(report, error)

        machine, start = keeper.sync_machine(False)
        self.syncing = True
        self.start(machine, start, keeper, over)

    def redeem_online(
        self, order: Any, codes: Sequence[str], then: Callable[[Receipt | None, TallystickError | None], None]
    ) -> None:
        """Raises `TallystickError` where it does not even begin."""
        keeper = self.open()
        machine = keeper.online_machine(order, codes)
        self.start(machine, Woken(), keeper, then)

    def start(
        self, machine: Machine, event: Event, local: Local, done: Callable[[Any, TallystickError | None], None]
    ) -> None:
        self._step(Flow(machine, local, done, self._life), event)

    def _step(self, flow: Flow, event: Event) -> None:
        if flow.life != self._life:
            return  # the process that waited for this has ended
        match flow.machine.step(event, flow.local.tick()):
            case Send() as send:
                self._send(self, send, lambda heard: self._step(flow, heard))
            case Persist(change):
                self._later(0.01, lambda: self._persist(flow, change))
            case Wait(seconds):
                self._later(seconds, lambda: self._step(flow, Woken()))
            case Done(report, error):
                flow.done(report, error)

    def _persist(self, flow: Flow, change: Change) -> None:
        if flow.life != self._life:
            return
        try:
            kept = flow.local.perform(change)
        except Untrusted as error:
            if not isinstance(change, Accept):
                flow.done(None, error)
                return
            kept = Unbelieved(error)
        except TallystickError as error:
            flow.done(None, error)
            return
        self._later(0.01, lambda: self._step(flow, kept))
