"""The messages between device and server, and the problem details of every error answer.

Signed messages are compact JWS (`signing`), their `typ` is named at each. JSON, UTF-8; times RFC 3339 with offset;
money in minor units.

| route | request | answer |
|---|---|---|
| `GET /v1/roots/{version}` | | root, JWS in JSON serialisation |
| `POST /v1/devices` | `EnrolRequest` (`ENROL`, by the device's new key) | `Enrolled` (`ENROLLED`, by a receipt key) |
| `GET /v1/scopes/{scope}/manifest` | header `Authorization: Tallystick JWS`, the JWS a `DeviceRequest` | `Manifest` |
| `GET /v1/blobs/{sha256}` | the digest is the capability | zstd of NDJSON |
| `POST /v1/sync` | `SyncHead` (`SYNC`), newline, zstd of the events | `SyncAnswer` (`ANSWER`, by a receipt key) |
| `POST /v1/devices/again` | `EnrolAgain` (`ENROL_AGAIN`, by the device) | `Enrolled` (`ENROLLED`, by a receipt key) |
| `POST /v1/redemptions` | `RedeemRequest` by a device (`REDEEM`) | `RedeemAnswer` (`REDEEMED`, by a receipt key) |
| | `RedeemRequest` as JSON, with an operator key | `RedeemAnswer` as JSON |

Whoever reads a message ignores fields it does not know, so that a newer release can add some: what they say is only
what the older one can do without. What must not be ignored goes under a new `typ`, or, in the journal, a new `v`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from tallystick_shared.journal import Count, Digest, Id, Instant, Position, Seq
from tallystick_shared.signing import sha256_hex

API = "/v1"
AUTH_SCHEME = "Tallystick"
Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)")]
"""One line of text, without control characters."""
Nonce = Annotated[str, Meta(min_length=16, max_length=64)]
_TOKEN = re.compile(r"tally1\.([A-Za-z0-9_-]+)\.([1-9][0-9]{0,15})\.([0-9a-f]{64})")


class Outcome(StrEnum):
    """How the server classified one event. All of them are stored and advance the cursor."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    FLAGGED = "flagged"
    QUARANTINED = "quarantined"


class Flag(StrEnum):
    """Why an event waits for a person."""

    LATE = "LATE"
    WITHOUT_COVER = "WITHOUT_COVER"
    CUSTOMER_LIMIT = "CUSTOMER_LIMIT"
    PRICE_MISMATCH = "PRICE_MISMATCH"
    UNKNOWN_REVISION = "UNKNOWN_REVISION"
    TIME_UNCERTAIN = "TIME_UNCERTAIN"
    REVOKED_VOUCHER = "REVOKED_VOUCHER"
    ALREADY_VOIDED = "ALREADY_VOIDED"
    IDENTIFIER_REUSED = "IDENTIFIER_REUSED"
    UNREADABLE = "UNREADABLE"


class DeviceState(StrEnum):
    PENDING = "pending"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    REVOKED = "revoked"
    LOST = "lost"


class EnrolRequest(msgspec.Struct, frozen=True):
    """`token` is the secret part of an `EnrolmentToken`; `jwk` the device's own new public key, which also signs."""

    token: Annotated[str, Meta(min_length=16, max_length=128)]
    jwk: dict[str, str]
    name: Name


class Enrolled(msgspec.Struct, frozen=True):
    """`request_sha256` is the digest of the request's exact bytes."""

    device: Id
    server: Id
    store_id: Name
    scope: Name
    request_sha256: Digest
    root_version: Count
    server_epoch: Count
    ledger_mark: Count
    server_time: Instant


class EnrolAgain(msgspec.Struct, frozen=True):
    """How a device makes itself known again to a server that was restored from a backup older than its enrolment.

    `request` and `enrolled` are the two compact JWS of that enrolment, as they were sent: together they prove that the
    server took this key in. Signed by the device's key, the one that `request` holds.
    """

    device: Id
    request: Annotated[str, Meta(max_length=16_384)]
    enrolled: Annotated[str, Meta(max_length=16_384)]
    nonce: Nonce


class EnrolmentToken(msgspec.Struct, frozen=True):
    """What an operator hands to a device: a one-time secret, and the pin of the root it is to trust."""

    secret: str
    root_version: int
    root_sha256: str

    def __str__(self) -> str:
        return f"tally1.{self.secret}.{self.root_version}.{self.root_sha256}"

    @classmethod
    def parse(cls, text: str) -> EnrolmentToken:
        """Raises `ValueError` with one sentence, without echoing the secret."""
        found = _TOKEN.fullmatch(text.strip())
        if found is None or int(found[2]) > 2**53:
            raise ValueError("an enrolment token has the form tally1.SECRET.VERSION.DIGEST")
        return cls(found[1], int(found[2]), found[3])


class DeviceRequest(msgspec.Struct, frozen=True):
    """Proof of the device's key for a request without a body; `at` is for the log only, clocks of tills are bad."""

    device: Id
    method: str
    path: str
    at: Instant


class Lease(msgspec.Struct, frozen=True):
    """A part of a voucher's limit that this device alone may use. Null: the voucher has no limit of that kind.

    `number` rises with every lease of a device and is never accepted twice. `expires_at` ends new use on the device;
    the server holds the units until the device's own close, whatever the time.
    """

    id: Id
    number: Annotated[int, Meta(ge=1)]
    voucher_id: Id
    units: Count | None
    minor: Count | None
    expires_at: Instant


class LeaseUse(msgspec.Struct, frozen=True):
    """u of one lease that is not closed yet, as the device has it."""

    id: Id
    units: Count
    minor: Count


class Want(msgspec.Struct, frozen=True):
    """Demand this device met and could not serve since its last sync: refusals with `NO_ALLOWANCE`, in units."""

    voucher_id: Id
    units: Annotated[int, Meta(ge=0, le=1_000_000)]


class ClockReading(msgspec.Struct, frozen=True):
    at: Instant
    boot_id: Annotated[str, Meta(max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)")]
    monotonic_s: Count


class EventsRef(msgspec.Struct, frozen=True):
    """The events behind line 1: how many, and the digest and size of the bytes sent (after compression)."""

    count: Count
    bytes: Count
    sha256: Digest


class SyncHead(msgspec.Struct, frozen=True):
    """Line 1 of a sync. `after` and `through` bound the events that follow; `head` is the journal's newest event.

    `leases` lists u of each lease in use; `leases_digest` covers all leases the device holds open once the server has
    read up to `through` (`digest_of`), and `lease_number` is the highest number it ever accepted. `ledger_mark` is the
    highest it ever saw. `held`, only while the server recovers, are all leases it holds open at `after`: a server that
    was restored from a backup adopts those it has forgotten. `retired`: the device redeems no more, and is granted
    nothing. `nonce`: new for every request, or the `challenge` of a refusal with STALE_REQUEST.
    """

    device: Id
    nonce: Nonce
    server_epoch: Count
    ledger_mark: Count
    head: Position
    after: Position
    through: Position
    events: EventsRef
    leases: list[LeaseUse]
    leases_digest: Digest
    lease_number: Count
    wants: Annotated[list[Want], Meta(max_length=10_000)]
    clock: ClockReading
    manifest_version: Count
    held: Annotated[list[Lease], Meta(max_length=100_000)] | None = None
    retired: bool = False


class EventOutcome(msgspec.Struct, frozen=True):
    """`outcome` is an `Outcome`, `reasons` are `Flag`s; an older device may meet some that it does not know."""

    seq: Seq
    id: str
    outcome: str
    reasons: list[str]


class SyncAnswer(msgspec.Struct, frozen=True):
    """Bound to the request by the digest of its exact bytes. `state` is a `DeviceState`; one that a device does not
    know is not active.

    `acknowledged`: 1..n are stored. `durable`: 1..n are in any backup that may be restored; only those may be purged.
    `exceptions` names every event of this batch that is not `applied`. `leases` are those granted now, or, with
    `leases_full`, all that the server holds open for the device; `leases_digest` covers all of them. `recall` names
    leases the device is asked to close, because another store needs the units. `recovering`: the server was restored
    from a backup and grants nothing until its devices have sent again what it has forgotten.
    """

    device: Id
    request_sha256: Digest
    state: str
    acknowledged: Position
    durable: Position
    exceptions: list[EventOutcome]
    leases: list[Lease]
    leases_full: bool
    leases_digest: Digest
    recall: list[Id]
    server_epoch: Count
    ledger_mark: Count
    server_time: Instant
    root_version: Count
    scope: Name
    manifest_version: Count
    retry_after_s: Count
    recovering: bool = False


class RedeemRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An online redemption. `id` is made and stored by the caller before it is sent; a repeat has no second effect.

    `device` is set, and must be the signer, where a device asks; null where an operator key does. Programs of others
    write it, so here a field that does not exist is a mistake.
    """

    id: Id
    order: msgspec.Raw
    codes: Annotated[list[str], Meta(min_length=1, max_length=32)]
    device: Id | None = None


class RedeemAnswer(msgspec.Struct, frozen=True):
    """`redeemed` is false where nothing applied; `result` (see `engine`) then says why of each code.

    To a device it is bound to the request by `device` and the digest of the request's exact bytes; to an operator both
    are null.
    """

    id: Id
    at: Instant
    redeemed: bool
    result: msgspec.Raw
    device: Id | None = None
    request_sha256: Digest | None = None


class FieldError(msgspec.Struct, frozen=True, omit_defaults=True):
    path: str
    expected: str
    was: str | None = None


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """Problem details (RFC 9457); `code` is stable, `detail` one sentence.

    `challenge`, with STALE_REQUEST: a sync that carries it as its nonce was made after this answer, so that a journal
    that still ends too early is an older copy and not a message that the line delivered late.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str = ""
    errors: list[FieldError] = []
    challenge: str = ""


def digest_of(leases: list[Lease]) -> str:
    """One digest over a set of open leases, whatever their order."""
    lines = sorted(f"{one.id} {one.number} {one.units} {one.minor}\n" for one in leases)
    return sha256_hex("".join(lines).encode())
