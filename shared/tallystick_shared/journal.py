"""The journal's events and their hash chain (I4), the same on the device and on the server.

An event is an **envelope** (all that the chain and the accounting read) and a **body** (the order, the result, a salt),
which the envelope names by digest only: a body can be unreadable or erased and no count breaks.
The exact bytes are stored, hashed and sent; nothing is ever hashed from a re-encoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tallystick_shared.errors import Untrusted
from tallystick_shared.signing import NOT_JSON, PublicKey, b64u_decode

ENVELOPE_VERSION = 1
EVENT_BYTES_MAX = 64 * 1024
"""Envelope and body together, in bytes."""
BATCH_EVENTS_MAX = 500
BATCH_BYTES_MAX = 1024 * 1024
"""Envelopes, bodies and their line ends, uncompressed."""

# `$` alone would let a line end follow; this form means the same in every language's regular expressions
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Id = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$(?!\n)")]
"""A UUID in its usual spelling; those made here are version 7."""
Seq = Annotated[int, Meta(ge=0, le=2**53)]
Count = Annotated[int, Meta(ge=0, le=10**15)]
"""Units or minor units."""
Instant = Annotated[datetime, Meta(tz=True)]


class EventType(StrEnum):
    REDEEM = "redeem"
    VOID = "void"
    LEASE_CLOSE = "lease_close"
    CLOCK_ANOMALY = "clock_anomaly"


class Use(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an event does to one voucher.

    `redeem`: `units` (1) and `minor` taken, from `lease` where the policy asks for one. `void`: `units` and `minor`
    given back (a partial return gives back `minor` only, and names every use; a void that names none gives back all
    that is left of the redemption, for a till that never learnt what the server redeemed). `lease_close`: `units` and
    `minor` are **u**, all that this device ever used of `lease`; the rest returns to the pool.
    """

    voucher_id: Id
    revision_sha256: Digest | None
    lease: Id | None
    units: Count
    minor: Count


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    type: EventType
    id: Id
    seq: Annotated[int, Meta(ge=1, le=2**53)]
    at: Instant
    boot_id: Annotated[str, Meta(max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)")]
    monotonic_s: Count
    bundle_version: Count
    engine_version: Annotated[str, Meta(max_length=64)]
    uses: Annotated[list[Use], Meta(max_length=64)]
    body_sha256: Digest
    ref: Id | None = None
    """For `void`: the id of the redemption that is voided."""


class RedeemBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `redeem`: what the engine read and what it said, frozen; `salt` keeps the digest from being guessed."""

    order: msgspec.Raw
    codes: list[str]
    result: msgspec.Raw
    salt: str


class Returned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Units of one line that came back."""

    line_id: str
    units: Annotated[int, Meta(ge=1)]


class VoidBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `void`; no `returned` means the whole redemption. `refund_minor` is what the customer gets back."""

    reason: str
    refund_minor: int
    returned: list[Returned]
    salt: str


class PlainBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `lease_close` and `clock_anomaly`."""

    salt: str
    note: str = ""


class Position(msgspec.Struct, frozen=True):
    """A place in a journal: the last event's number (0 = before the first) and the chain's hash there."""

    seq: Seq
    hash: Digest


class StoredEvent(msgspec.Struct, frozen=True):
    """One event as it is stored and sent: exact bytes. An erased body is empty."""

    envelope: bytes
    body: bytes


def chain_start(server_id: str, device_id: str, key: PublicKey) -> str:
    """`hash_0`: SHA-256 over the name of the format, both ids (36 ASCII characters each) and the key's 32 bytes."""
    raw = b64u_decode(key.jwk()["x"])
    return hashlib.sha256(b"tallystick-journal-v1" + server_id.encode() + device_id.encode() + raw).hexdigest()


def chain_next(previous: str, envelope: bytes) -> str:
    """`hash_n = SHA-256(hash_{n-1} || envelope_n)`, over the 32 bytes of the one before."""
    return hashlib.sha256(bytes.fromhex(previous) + envelope).hexdigest()


_ENVELOPE = msgspec.json.Decoder(Envelope)


def read_envelope(raw: bytes) -> Envelope:
    """Raises `Untrusted` (`UNREADABLE`) where the bytes are not an envelope of a version known here."""
    try:
        envelope = _ENVELOPE.decode(raw)
    except NOT_JSON as error:
        raise Untrusted(f"the envelope cannot be read: {error}", code="UNREADABLE") from error
    if envelope.v != ENVELOPE_VERSION:
        raise Untrusted(f"envelope version {envelope.v} is not known here", code="UNREADABLE")
    return envelope


def encode(message: Any) -> bytes:
    """Compact JSON. Never holds a line end, so one message is one line."""
    return msgspec.json.encode(message)


def join_events(events: Sequence[StoredEvent]) -> bytes:
    """The lines of a batch: envelope, body, envelope, body, each ended by a newline."""
    return b"".join(part + b"\n" for event in events for part in (event.envelope, event.body))


def split_events(raw: bytes) -> list[StoredEvent]:
    """Back from `join_events`; raises `Untrusted` (`MALFORMED`) where the lines do not pair up."""
    if not raw:
        return []
    lines = raw.split(b"\n")
    if lines.pop() != b"" or len(lines) % 2:
        raise Untrusted("the events are not pairs of lines, each ended by a newline", code="MALFORMED")
    return [StoredEvent(envelope, body) for envelope, body in zip(lines[::2], lines[1::2], strict=True)]
