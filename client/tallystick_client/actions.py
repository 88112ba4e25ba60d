"""What goes into the machines (`machine`, `enrolment`) and what comes out: events and actions, all plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

from tallystick_client.blobs import Changes, Part, Vouchers
from tallystick_client.errors import TallystickError, Untrusted
from tallystick_client.reports import Receipt, SyncReport
from tallystick_client.trust import Trusted
from tallystick_shared.bundle import BlobRef, DeltaRef, Manifest
from tallystick_shared.journal import Position, StoredEvent
from tallystick_shared.signing import NOT_JSON
from tallystick_shared.wire import (
    ClockReading,
    DeviceState,
    Enrolled,
    Lease,
    LeaseUse,
    Problem,
    RedeemAnswer,
    SyncAnswer,
    Want,
)

# ---- what goes in -------------------------------------------------------------------------------------------------


class Tick(msgspec.Struct, frozen=True):
    """Time and chance, given with every event. `at` is what `timekeeping` holds for true; `jitter` is in [0, 1)."""

    at: datetime
    clock: ClockReading
    nonce: str
    jitter: float

    def seconds_until(self, when: datetime | None) -> float:
        """0 where that is past, or further off than any time that is ever kept: then a wrong clock kept it."""
        ahead_s = 0.0 if when is None else (when - self.at).total_seconds()
        return ahead_s if 0 < ahead_s <= 86_400 else 0.0


class Reading(msgspec.Struct, frozen=True):
    """What a sync needs to know of the journal, read in one transaction. `events` are those in (after, through].

    `held`: all leases open at `after`, where the server recovers from a backup; else None.
    """

    scope: str
    device_state: DeviceState
    server_epoch: int
    ledger_mark: int
    lease_number: int
    bundle_version: int
    head: Position
    after: Position
    through: Position
    events: list[StoredEvent]
    leases: list[LeaseUse]
    leases_digest: str
    held: list[Lease] | None
    wants: list[Want]
    batch_events_max: int
    failures: int
    next_attempt_at: datetime | None
    not_before_at: datetime | None
    retired: bool = False


class Proof(msgspec.Struct, frozen=True):
    """The two messages of this till's enrolment, as they were sent: `EnrolAgain` needs them."""

    request: bytes
    answer: bytes


class Held(msgspec.Struct, frozen=True):
    """The bundle in force. `digest` is of its signed manifest; `vouchers` is changed only by who keeps it."""

    manifest: Manifest
    digest: str
    etag: str
    vouchers: Vouchers
    parts: list[Part]

    def is_young(self, scope: str, at: datetime) -> bool:
        """Whether it is of this scope and not past its half-life, when the server signs it again."""
        issued_at, expires_at = self.manifest.issued_at, self.manifest.expires_at
        return self.manifest.scope == scope and at < issued_at + (expires_at - issued_at) / 2


class Start(msgspec.Struct, frozen=True):
    """`patient`: wait for the kept time of the next attempt first; else only a time the server asked for is kept."""

    reading: Reading
    trusted: Trusted
    held: Held | None
    patient: bool = False
    proof: Proof | None = None


class Woken(msgspec.Struct, frozen=True):
    pass


class Persisted(msgspec.Struct, frozen=True):
    """What was asked is on the disk; how the journal reads now, and what became of leases."""

    reading: Reading
    leases_granted: int = 0
    leases_closed: int = 0


class Kept(msgspec.Struct, frozen=True):
    """What was asked is on the disk."""

    receipt: Receipt | None = None


class Answer(msgspec.Struct, frozen=True):
    """`headers` in lower case. `body` may be cut off one byte past what was allowed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class LineDown(msgspec.Struct, frozen=True):
    """No answer. `sent`: False where nothing of the request left this machine."""

    why: str
    sent: bool = True


class Unbelieved(msgspec.Struct, frozen=True):
    """A verified answer was not kept: it is none to this till's journal."""

    error: Untrusted


Event = Start | Woken | Persisted | Kept | Answer | LineDown | Unbelieved


# ---- what comes out -----------------------------------------------------------------------------------------------


class Send(msgspec.Struct, frozen=True):
    """`path` starts with a slash and is below the server's address; no more than `bytes_max` of an answer are read.

    `timeout_s`: for each step, as connecting and reading on. `within_s`: for all of it; None: what the line allows.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    bytes_max: int
    timeout_s: float = 30.0
    within_s: float | None = None


class Prepare(msgspec.Struct, frozen=True):
    """Close the leases that are done, durably, then read the next batch.

    `too_small`: those that could not serve what was wanted of them too; only once the server has answered, for without
    a line what is left of them is better than nothing.
    """

    batch_events_max: int | None = None
    too_small: bool = False


class NewRoot(msgspec.Struct, frozen=True):
    """`receipt_changed`: new receipt keys, so marks the old ones signed bind no longer; `bundle_changed`: so floors."""

    raw: bytes
    version: int
    bundle_changed: bool
    receipt_changed: bool


class Accept(msgspec.Struct, frozen=True):
    """A verified answer, with the roots that it needed. `wants`: those of the request that it has done with."""

    answer: SyncAnswer
    wants: list[Want]
    roots: list[NewRoot] = []


class KeepRoots(msgspec.Struct, frozen=True):
    """Roots that nothing was verified with."""

    roots: list[NewRoot]


class Blob(msgspec.Struct, frozen=True):
    """A verified blob, and what in its manifest names it."""

    ref: BlobRef | DeltaRef
    raw: bytes


class KeepBundle(msgspec.Struct, frozen=True):
    """A verified manifest, with the verified blobs that are new and the roots that it needed.

    `vouchers`: the new state where the first blob is a snapshot; else None, and `changes` with `parts_sum` are what
    the deltas do to the one in force, which is made of `base`: nothing where the manifest was only signed again.
    """

    raw: bytes
    manifest: Manifest
    etag: str
    blobs: list[Blob]
    vouchers: Vouchers | None
    changes: Changes
    parts_sum: int
    base: list[Part] = []
    roots: list[NewRoot] = []


class Failed(msgspec.Struct, frozen=True):
    """No answer, or none to go on with: when to come again. `not_before_at`: the server's own wish, for any sync."""

    next_attempt_at: datetime
    not_before_at: datetime | None
    batch_events_max: int | None = None


class KeepKey(msgspec.Struct, frozen=True):
    """The new till's private key, before anything that needs it is sent."""

    key: bytes


class KeepEnrolment(msgspec.Struct, frozen=True):
    """A verified enrolment, the root it rests on, and the proof of it for a server that forgets it."""

    enrolled: Enrolled
    root: bytes
    root_version: int
    proof: Proof


class BeginOnline(msgspec.Struct, frozen=True):
    """An online redemption, before it is sent."""

    id: str
    request: bytes


class FinishOnline(msgspec.Struct, frozen=True):
    """What the server said of it; None: it would not have it, so there is nothing to take up again."""

    id: str
    answer: RedeemAnswer | None


class FallBack(msgspec.Struct, frozen=True):
    """No answer: redeem here, with the same id."""

    id: str


Change = (
    Prepare | Accept | KeepRoots | KeepBundle | Failed | KeepKey | KeepEnrolment | BeginOnline | FinishOnline | FallBack
)


class Persist(msgspec.Struct, frozen=True):
    change: Change


class Wait(msgspec.Struct, frozen=True):
    seconds: float


class Done(msgspec.Struct, frozen=True):
    """The end, with a report, or with the error to raise."""

    report: SyncReport | Receipt | None
    error: TallystickError | None = None


Action = Send | Persist | Wait | Done


# ---- reading an answer that is no success ---------------------------------------------------------------------------


PROBLEM_TYPE = "application/problem+json"
_CODE = re.compile("[A-Z][A-Z0-9_]{0,63}")
"""Of a problem, as every Tallystick server writes it: programs branch on it, and it is shown to people as it is."""


def is_the_servers_word(answer: Answer) -> bool:
    """Whether a refusal is the server's own: a problem document with a code. A captive portal or a proxy sends none."""
    return 400 <= answer.status < 500 and _is_a_problem(answer)


def may_ask_to_wait(answer: Answer) -> bool:
    """Whether its `Retry-After` is the server's own; a captive portal or a proxy has no say in when a till syncs."""
    return answer.status in (429, 503) and _is_a_problem(answer)


def _is_a_problem(answer: Answer) -> bool:
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == PROBLEM_TYPE and _problem(answer) is not None


def problem_of(answer: Answer) -> tuple[str, str]:
    """Code and sentence of an error answer, whatever it holds."""
    problem = _problem(answer)
    if problem is None:
        return f"HTTP_{answer.status}", f"it answered {answer.status} without saying why"
    return problem.code, problem.detail[:500] or problem.title[:500]


def _problem(answer: Answer) -> Problem | None:
    try:
        problem = msgspec.json.decode(answer.body, type=Problem)
    except NOT_JSON:
        return None
    return problem if _CODE.fullmatch(problem.code) else None


def retry_after_s(answer: Answer | None, now: datetime) -> float:
    """The server's `Retry-After` in seconds from now, as a number or a date (RFC 9110, 10.2.3); 0 without one, at most
    a day.
    """
    text = answer.headers.get("retry-after", "").strip() if answer is not None and may_ask_to_wait(answer) else ""
    if not text:
        return 0
    if text.isdecimal():
        return min(86_400, int(text[:9]))
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # no date, or one with a number that no calendar has
        return 0
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return min(86_400, max(0, (when - now).total_seconds()))


def challenge_of(answer: Answer) -> str:
    """What a sync has to carry as its nonce to show that it is newer than this refusal; empty: it may not."""
    problem = _problem(answer)
    return "" if problem is None or problem.code != "STALE_REQUEST" else problem.challenge[:64]
