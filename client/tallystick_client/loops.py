"""The two loops that drive a machine, one for each kind of till; and how asyncio touches the disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

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
from tallystick_client.errors import LineError, TallystickError, Untrusted
from tallystick_client.reports import Receipt, SyncReport

_T = TypeVar("_T")

Heard = tuple[Answer | LineDown, TallystickError | None]
"""What became of a request; and where the line is down for a reason that time alone does not mend, that reason."""


class _Machine(Protocol):
    def step(self, event: Any, tick: Tick) -> Action: ...


class _Local(Protocol):
    def tick(self) -> Tick: ...
    def perform(self, change: Change) -> Event: ...


class _Line(Protocol):
    def send(self, send: Send) -> Heard: ...


class _AsyncLine(Protocol):
    async def send(self, send: Send) -> Heard: ...


class Disk(Protocol):
    """Runs what blocks on this machine's disk."""

    async def __call__(self, work: Callable[..., _T], *arguments: Any) -> _T: ...


def run(machine: _Machine, event: Event, local: _Local, line: _Line) -> SyncReport | Receipt | None:
    """Steps until the machine is done. Raises its error, or what was to blame for that."""
    cause: TallystickError | None = None
    while True:
        match machine.step(event, local.tick()):
            case Send() as send:
                event, cause = line.send(send)
            case Persist(change):
                event = _performed(local, change)
            case Wait(seconds):
                time.sleep(seconds)
                event = Woken()
            case Done(report, error):
                if error is not None:
                    raise _blamed(error, cause)
                return report


async def run_async(
    machine: _Machine, event: Event, local: _Local, line: _AsyncLine, disk: Disk
) -> SyncReport | Receipt | None:
    cause: TallystickError | None = None
    while True:
        match machine.step(event, await disk(local.tick)):
            case Send() as send:
                event, cause = await line.send(send)
            case Persist(change):
                event = await disk(_performed, local, change)
            case Wait(seconds):
                await asyncio.sleep(seconds)
                event = Woken()
            case Done(report, error):
                if error is not None:
                    raise _blamed(error, cause)
                return report


def _performed(local: _Local, change: Change) -> Event:
    """What became of it. That an answer is none to this journal is found only where it would be kept."""
    try:
        return local.perform(change)
    except Untrusted as error:
        if isinstance(change, Accept):
            return Unbelieved(error)
        raise


def _blamed(error: TallystickError, cause: TallystickError | None) -> TallystickError:
    """A `LineError` keeps its time and takes the code; anything else, as a wrong certificate, stands in its place."""
    if cause is None or not isinstance(error, LineError):
        return error
    if isinstance(cause, LineError):
        error.code = cause.code
        return error
    return cause


async def in_worker(work: Callable[..., _T], *arguments: Any, **named: Any) -> _T:
    """In a worker thread. A task that is cancelled meanwhile ends only after it: nothing is closed under it."""
    working = asyncio.ensure_future(asyncio.to_thread(work, *arguments, **named))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        if not working.cancelled():
            working.exception()  # looked at, so that nobody warns that it never was
        raise


async def in_place(work: Callable[..., _T], *arguments: Any) -> _T:
    """Here, on an event loop that has nothing else to do."""
    return work(*arguments)
