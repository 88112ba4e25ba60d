"""Syncing in the background of a till's process: one sync after the other, and no sale ever waits for one.

The same loop for both kinds of till: `Till` runs it in a thread of its own, `AsyncTill` as a task. It keeps the
appointment of the journal (the time of the next attempt, and the server's `Retry-After`), or comes `poll_after_s` of
the manifest after the last sync, whichever process made that. It waits without the lock, and skips its turn where
another process of this till has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import cast

import msgspec

from tallystick_client.actions import Tick
from tallystick_client.errors import InvalidInput, TallystickError, TryLater
from tallystick_client.journal import State
from tallystick_client.keeper import Keeper
from tallystick_client.line import AsyncLine
from tallystick_client.loops import Disk, run_async
from tallystick_client.pausing import SPREAD_S, asked_wait_s, own_wait_s
from tallystick_client.reports import SyncReport

LOOK_S = 20.0
"""How often it looks whether another process or a turned clock moved the appointment."""
PAUSE_S = 300.0
"""After an error for which the journal holds no appointment, as of a disk; half of it and a random part of the rest."""
POLL_S = 300.0
"""Between syncs of a till that has no bundle yet."""
_DAY_S = 86_400.0


class BackgroundSync(msgspec.Struct, frozen=True):
    """How one sync in the background ended: with a report or with an error, one of them None."""

    at: datetime
    report: SyncReport | None
    error: TallystickError | None


OnReport = Callable[[BackgroundSync], None]


class _Due(msgspec.Struct, frozen=True):
    """When to sync. `spread_s`: to wait after that, where nobody drew the time by lot: a fleet would come at once."""

    seconds: float
    spread_s: float


class Syncing:
    """`run` until it is cancelled. `last` is how the last sync ended."""

    def __init__(
        self, keeper: Keeper, line: AsyncLine, disk: Disk, on_report: OnReport | None, every_s: float | None
    ) -> None:
        if every_s is not None and not every_s >= 1:
            raise InvalidInput("every_s", "must be at least 1 second", str(every_s))
        self.last: BackgroundSync | None = None
        self._keeper, self._line, self._disk = keeper, line, disk
        self._on_report, self._every_s = on_report, every_s

    async def run(self) -> None:
        """Never returns, and raises nothing but `CancelledError`."""
        try:
            while True:
                pause_s = await self._round()
                await asyncio.sleep(pause_s)
        finally:
            await self._line.close()

    async def _round(self) -> float:
        """One sync when it is due; the seconds for which not even to look for the next."""
        try:
            await self._until_due()
            report = await self._sync()
        except TryLater as error:
            self._tell(None, error)
            return 0
        except TallystickError as error:
            self._tell(None, error)
            return random.uniform(PAUSE_S / 2, PAUSE_S)
        except Exception as error:  # noqa: BLE001 # a bug must not end the syncing unseen: it is reported
            self._tell(None, _unexpected(error))
            return random.uniform(PAUSE_S / 2, PAUSE_S)
        if report is None:
            return LOOK_S
        self._tell(report, None)
        return 0

    def _tell(self, report: SyncReport | None, error: TallystickError | None) -> None:
        self.last = BackgroundSync(self._keeper.clock.now(), report, error)
        if self._on_report is None:
            return
        try:
            self._on_report(self.last)
        except Exception as raised:  # noqa: BLE001 # what the caller's own code raises is kept where it will look
            self.last = msgspec.structs.replace(self.last, error=_unexpected(raised))

    async def _until_due(self) -> None:
        due = await self._disk(self._due)
        while due.seconds > 0:
            await asyncio.sleep(min(due.seconds, LOOK_S))
            due = await self._disk(self._due)
        await asyncio.sleep(due.spread_s)

    def _due(self) -> _Due:
        tick = self._keeper.tick()
        with self._keeper.journal.read() as view:
            bundle, state = self._keeper.terminal.readable_bundle(view), view.state
        due = _appointment(state, tick)
        if state.next_attempt_at is not None or state.last_sync_at is None:
            return due
        poll_s = min(POLL_S if bundle is None else bundle.manifest.poll_after_s, self._every_s or _DAY_S, _DAY_S)
        next_s = tick.seconds_until(state.last_sync_at + timedelta(seconds=poll_s))
        return msgspec.structs.replace(due, seconds=max(due.seconds, next_s))

    async def _sync(self) -> SyncReport | None:
        """None where another process of this till is at it, or was a moment ago."""
        lock = self._keeper.directory.lock()
        try:
            if not lock.take() or (await self._disk(self._due)).seconds > 0:
                return None
            machine, start = await self._disk(self._keeper.sync_machine, False)
            return cast(SyncReport, await run_async(machine, start, self._keeper, self._line, self._disk))
        finally:
            lock.release()


def patience(keeper: Keeper) -> Iterator[float]:
    """The pauses of a patient sync, in seconds, before it is its turn: it waits without the lock too. Reads the journal
    before each.
    """
    while (due := _appointment(keeper.journal.state(), keeper.tick())).seconds > 0:
        yield min(due.seconds, LOOK_S)
    yield due.spread_s


def _appointment(state: State, tick: Tick) -> _Due:
    asked_s = asked_wait_s(state, tick)
    if state.next_attempt_at is None:
        return _Due(asked_s, SPREAD_S * tick.jitter)
    return _Due(max(asked_s, own_wait_s(state, tick)), 0)


class SyncThread:
    """Runs a `Syncing` beside a program that knows no asyncio. It can end in the midst of a request, as a task can."""

    def __init__(self, syncing: Syncing) -> None:
        self.syncing = syncing
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(syncing.run())
        self._thread = threading.Thread(target=self._run, name="tallystick-sync", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when it has ended; at once where it is called by `on_report` itself."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
            self._loop.call_soon_threadsafe(self._task.cancel)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._task)
        finally:
            # not `asyncio.run`, which would wait for a look-up of the server's name that nobody answers
            self._loop.close()


def _unexpected(error: Exception) -> TallystickError:
    sentence = f"something went wrong that should not have: {type(error).__name__}: {error}"
    made = TallystickError(sentence, code="INTERNAL")
    made.__cause__ = error
    return made
