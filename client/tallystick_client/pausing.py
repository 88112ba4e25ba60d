"""When a till comes again after a sync that did not succeed. Pure; source: protocol.md, section 7."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Protocol

from tallystick_client.actions import Answer, Failed, Reading, Tick, retry_after_s

BACKOFF_BASE_S = 2
BACKOFF_MAX_S = 300
SPREAD_S = 60
"""A patient sync that has no appointment waits a random part of this first, so that a fleet does not come at once."""
BINDING_S_MAX = 3_600
"""So long a `Retry-After`, which nobody signed, binds a person too who asks for a sync."""
HALVE_AFTER = 3
"""The same batch failing this often in a row is halved, in case it is the batch."""


class Kept(Protocol):
    """What a journal holds of the last failure: its state, or what a sync reads of it."""

    @property
    def failures(self) -> int: ...
    @property
    def next_attempt_at(self) -> datetime | None: ...
    @property
    def not_before_at(self) -> datetime | None: ...


def asked_wait_s(kept: Kept, tick: Tick) -> float:
    """Seconds to the time that the server named, which binds a person too; 0 where a clock that was wrong then wrote it
    down: it is never further off than `BINDING_S_MAX`."""
    ahead_s = tick.seconds_until(kept.not_before_at)
    return 0.0 if ahead_s > BINDING_S_MAX else ahead_s


def own_wait_s(kept: Kept, tick: Tick) -> float:
    """Seconds to the appointment that a till made with itself; 0 where a clock that was wrong then made it: without the
    server's word it is never further off than `BACKOFF_MAX_S`."""
    ahead_s = tick.seconds_until(kept.next_attempt_at)
    leapt = kept.failures and kept.not_before_at is None and ahead_s > BACKOFF_MAX_S
    return 0.0 if leapt else ahead_s


def appointment(reading: Reading, answer: Answer | None, tick: Tick, *, suspect: bool) -> Failed:
    """What is kept of a failure. `suspect`: it may be the batch of `reading` that failed."""
    failures = reading.failures + 1
    asked_s = retry_after_s(answer, tick.at)
    # the lot is drawn after the cap, and after the time that the server named: it named the same one to everybody
    cap_s = max(min(BACKOFF_MAX_S, BACKOFF_BASE_S * 2 ** min(failures, 20)), SPREAD_S if asked_s else 0)
    halve = suspect and failures % HALVE_AFTER == 0 and len(reading.events) > 1
    return Failed(
        next_attempt_at=tick.at + timedelta(seconds=asked_s + tick.jitter * cap_s),
        not_before_at=tick.at + timedelta(seconds=min(asked_s, BINDING_S_MAX)) if asked_s else None,
        batch_events_max=len(reading.events) // 2 if halve else None,
    )
