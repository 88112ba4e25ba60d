"""The requests of a sync: bytes to send, and how much of an answer is read. Pure; source: protocol.md, 3 to 7."""

from __future__ import annotations

from urllib.parse import quote

import zstandard

from tallystick_client.actions import Held, Proof, Reading, Send, Tick
from tallystick_shared.bundle import MANIFEST_BYTES_MAX, BlobRef, DeltaRef
from tallystick_shared.journal import encode, join_events
from tallystick_shared.signing import COMPACT_BYTES_MAX, ROOT_BYTES_MAX, SigningKey, Typ, sha256_hex
from tallystick_shared.wire import API, AUTH_SCHEME, ClockReading, DeviceRequest, EnrolAgain, EventsRef, SyncHead

SYNC_TYPE = "application/vnd.tallystick.sync"
JOSE = "application/jose"
PROBLEM_BYTES = 16 * 1024
"""At least so much of any answer is read: a refusal may be longer than the blob that was asked for."""


def sync_body(device: str, key: SigningKey, reading: Reading, clock: ClockReading, nonce: str) -> bytes:
    """The body of a sync: line 1, signed, and the compressed events of `reading` behind it."""
    frame = zstandard.ZstdCompressor().compress(join_events(reading.events)) if reading.events else b""
    head = SyncHead(
        device=device,
        nonce=nonce,
        server_epoch=reading.server_epoch,
        ledger_mark=reading.ledger_mark,
        head=reading.head,
        after=reading.after,
        through=reading.through,
        events=EventsRef(len(reading.events), len(frame), sha256_hex(frame)),
        leases=reading.leases,
        leases_digest=reading.leases_digest,
        lease_number=reading.lease_number,
        wants=reading.wants,
        clock=clock,
        manifest_version=reading.bundle_version,
        held=reading.held,
        retired=reading.retired,
    )
    return key.sign(Typ.SYNC, encode(head)) + b"\n" + frame


def sync(body: bytes) -> Send:
    """`body` as `sync_body` makes it."""
    return Send("POST", f"{API}/sync", {"content-type": SYNC_TYPE, "accept": JOSE}, body, COMPACT_BYTES_MAX)


def enrol_again(device: str, key: SigningKey, proof: Proof, nonce: str) -> Send:
    """To a server that was restored from a backup older than this till's enrolment."""
    asked = EnrolAgain(device, proof.request.decode("ascii"), proof.answer.decode("ascii"), nonce)
    headers = {"content-type": JOSE, "accept": JOSE}
    return Send("POST", f"{API}/devices/again", headers, key.sign(Typ.ENROL_AGAIN, encode(asked)), ROOT_BYTES_MAX)


def root(version: int) -> Send:
    return Send("GET", f"{API}/roots/{version}", {"accept": "application/json"}, b"", ROOT_BYTES_MAX)


def manifest(device: str, key: SigningKey, scope: str, held: Held | None, tick: Tick) -> Send:
    """Asks for nothing where the server would give what is held again, and that is not to be signed anew."""
    path = f"{API}/scopes/{quote(scope, safe='')}/manifest"
    proof = key.sign(Typ.REQUEST, encode(DeviceRequest(device, "GET", path, tick.clock.at)))
    headers = {"authorization": f"{AUTH_SCHEME} {proof.decode('ascii')}", "accept": JOSE}
    if held is not None and held.etag and held.is_young(scope, tick.at):
        headers["if-none-match"] = held.etag
    return Send("GET", path, headers, b"", MANIFEST_BYTES_MAX)


def blob(ref: BlobRef | DeltaRef) -> Send:
    return Send("GET", f"{API}/blobs/{ref.sha256}", {}, b"", max(ref.bytes, PROBLEM_BYTES))
