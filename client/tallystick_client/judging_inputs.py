"""The inputs of the protocol's vectors, as docs/reference/protocol.md, "The line protocol", has them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from tallystick_client.granting import KnownLease
from tallystick_client.timekeeping import Mark
from tallystick_client.trust import Floor
from tallystick_shared.bundle import Manifest, Root
from tallystick_shared.journal import Digest, Seq
from tallystick_shared.signing import Typ
from tallystick_shared.wire import ClockReading, Lease


class Repeated(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    base64: bytes
    times: Annotated[int, Meta(ge=1, le=2**24)] = 1


Message = bytes | list[Repeated]
"""Bytes as base64, or parts of them, each so many times: a message of 8 MiB fits into a line."""


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="check"):
    """What every input is: `check` says which of them."""


class FirstRoot(Check, tag="first_root", frozen=True):
    message: Message
    version: int
    sha256: str


class NextRoot(Check, tag="next_root", frozen=True):
    """`floors`: the names of the scopes that have one."""

    message: Message
    root: Root
    floors: list[str] = []


class OfManifest(Check, tag="manifest", frozen=True):
    """`now` null: it is the one in force, read again."""

    message: Message
    root: Root
    scope: str
    floor: Floor | None
    now: datetime | None


class HeldVoucher(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`voucher`: the published revision, byte for byte."""

    id: str
    code: str
    voucher: Message


class HeldBundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The vouchers in force, and what they are of."""

    server_epoch: int
    version: int
    vouchers: list[HeldVoucher]


class OfBundle(Check, tag="bundle", frozen=True):
    """The blobs of a manifest that was accepted. `blobs`: what its addresses give, by the digest that it names."""

    manifest: Manifest
    held: HeldBundle | None
    blobs: dict[str, Message]


class HeldJournal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`hashes`: of the chain at `base`, below which all is purged, and at each event after it up to the head."""

    base: Seq
    acknowledged: Seq
    hashes: Annotated[list[Digest], Meta(min_length=1)]


class OfAnswer(Check, tag="answer", frozen=True):
    message: Message
    root: Root
    device: str
    request_sha256: str
    server_epoch: int
    ledger_mark: int
    journal: HeldJournal
    now: datetime


class OfEnrolled(Check, tag="enrolled", frozen=True):
    message: Message
    root: Root
    request_sha256: str
    now: datetime


class OfRedeemed(Check, tag="redeemed", frozen=True):
    message: Message
    root: Root
    device: str
    request_sha256: str
    now: datetime


class OfGrants(Check, tag="grants", frozen=True):
    """The leases of an accepted answer."""

    leases: list[Lease]
    known: list[KnownLease]
    lease_number: int


class OfSync(Check, tag="sync", frozen=True):
    """The whole body of a sync, as a server opens it."""

    message: Message
    key: dict[str, str]


class OfEnvelope(Check, tag="envelope", frozen=True):
    message: Message


class OfToken(Check, tag="token", frozen=True):
    text: str


class OfThumbprint(Check, tag="thumbprint", frozen=True):
    key: dict[str, str]


class ToSign(Check, tag="sign", frozen=True):
    """`key`: a private JWK."""

    key: dict[str, str]
    typ: Typ
    payload: Message


class OfChain(Check, tag="chain", frozen=True):
    server: str
    device: str
    key: dict[str, str]
    envelopes: list[Message]


class OfLeases(Check, tag="leases_digest", frozen=True):
    leases: list[Lease]


class OfState(Check, tag="state_digest", frozen=True):
    vouchers: list[HeldVoucher]


class OfCode(Check, tag="hidden_code", frozen=True):
    code_salt: str
    folded: str


class OfTime(Check, tag="time", frozen=True):
    mark: Mark
    clock: ClockReading
    step_s: int


class OfSignedTime(Check, tag="signed_time", frozen=True):
    mark: Mark | None
    clock: ClockReading
    server_time: datetime
    new_epoch: bool
