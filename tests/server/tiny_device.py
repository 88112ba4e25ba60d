"""A device made of the shared package alone: the server is tested against the protocol, not against the client."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import httpx2
import msgspec
import uuid_utils
import zstandard

from tallystick_shared.bundle import (
    HIDDEN_PREFIX,
    BlobRef,
    BundleVoucher,
    DeltaRef,
    Manifest,
    Root,
    hidden_code,
    read_lines,
    state_digest,
    voucher_digest,
)
from tallystick_shared.codes import fold
from tallystick_shared.engine import ENGINE_VERSION, compile_voucher, evaluate, result_json
from tallystick_shared.journal import (
    Envelope,
    EventType,
    PlainBody,
    Position,
    RedeemBody,
    StoredEvent,
    Use,
    VoidBody,
    chain_next,
    chain_start,
    encode,
    join_events,
)
from tallystick_shared.model import load_voucher, parse_order
from tallystick_shared.signing import PublicKey, SigningKey, Typ, open_general, sha256_hex, verify
from tallystick_shared.wire import (
    ClockReading,
    DeviceRequest,
    EnrolAgain,
    Enrolled,
    EnrolmentToken,
    EnrolRequest,
    EventsRef,
    Lease,
    LeaseUse,
    RedeemAnswer,
    RedeemRequest,
    SyncAnswer,
    SyncHead,
    Want,
    digest_of,
)
from tests.server.fake_clock import FakeClock

NONE = "00000000-0000-7000-8000-000000000000"


def new_id() -> str:
    return str(uuid_utils.uuid7())


class TinyDevice:
    """Keeps its journal and leases in memory; every sync is one request, and nothing is retried by itself."""

    def __init__(self, url: str, clock: FakeClock) -> None:
        self.url, self.clock = url, clock
        self.key = SigningKey.generate()
        self.events: list[StoredEvent] = []
        self.hashes: list[str] = []
        self.acknowledged = 0
        self.leases: dict[str, Lease] = {}
        self.used: dict[str, tuple[int, int]] = {}
        self.closing: set[str] = set()
        self.lease_number = self.ledger_mark = 0
        self.server_epoch = 1
        self.recovering = False
        self.close_seq: dict[str, int] = {}
        self.forgiving = False
        """Whether the server may know other leases than it does."""
        self.vouchers: dict[str, BundleVoucher] = {}
        self.wants: list[Want] = []
        self.boot_id, self.run_since = "boot-1", clock()
        self.receipt: dict[str, PublicKey] = {}
        self.answer: SyncAnswer

    # enrolment and bundles

    def enrol(self, token: str, name: str = "till") -> Enrolled:
        self.enrolled = self.ask_to_enrol(EnrolmentToken.parse(token), name)
        self.id, self.start, self.scope = self.enrolled.device, "", self.enrolled.scope
        self.start = chain_start(self.enrolled.server, self.id, self.key)
        return self.enrolled

    def ask_to_enrol(self, token: EnrolmentToken, name: str = "till") -> Enrolled:
        root = httpx2.get(f"{self.url}/v1/roots/{token.root_version}").content
        assert sha256_hex(root) == token.root_sha256
        document = msgspec.json.decode(open_general(root), type=Root)
        self.receipt = {kid: PublicKey.from_jwk(document.keys[kid]) for kid in document.roles.receipt.kids}
        self.bundle = {kid: PublicKey.from_jwk(document.keys[kid]) for kid in document.roles.bundle.kids}
        body = self.key.sign(Typ.ENROL, encode(EnrolRequest(token.secret, self.key.jwk(), name)))
        response = httpx2.post(f"{self.url}/v1/devices", content=body)
        if response.status_code != 201:
            raise Refused(response)
        self.enrolment = body, response.content
        enrolled = msgspec.json.decode(verify(response.content, self.receipt, Typ.ENROLLED), type=Enrolled)
        assert enrolled.request_sha256 == sha256_hex(body)
        return enrolled

    def enrol_again(self, **fields: Any) -> Enrolled:
        """Shows the server its own answer to the enrolment; `fields` lie in the message."""
        request, answer = (part.decode() for part in self.enrolment)
        values = {"device": self.id, "request": request, "enrolled": answer, "nonce": new_id()}
        body = self.key.sign(Typ.ENROL_AGAIN, encode(EnrolAgain(**(values | fields))))
        response = httpx2.post(f"{self.url}/v1/devices/again", content=body)
        if response.status_code != 201:
            raise Refused(response)
        enrolled = msgspec.json.decode(verify(response.content, self.receipt, Typ.ENROLLED), type=Enrolled)
        assert (enrolled.device, enrolled.request_sha256) == (self.id, sha256_hex(body))
        return enrolled

    def authorization(self, path: str, method: str = "GET") -> dict[str, str]:
        request = DeviceRequest(self.id, method, path, self.clock())
        return {"Authorization": f"Tallystick {self.key.sign(Typ.REQUEST, encode(request)).decode()}"}

    def get_manifest(self, scope: str = "main", etag: str = "") -> httpx2.Response:
        path = f"/v1/scopes/{scope}/manifest"
        headers = self.authorization(path) | ({"If-None-Match": etag} if etag else {})
        return httpx2.get(self.url + path, headers=headers)

    def fetch(self) -> Manifest:
        """The newest bundle, by the snapshot and what came after it; `vouchers` by the code they travel under."""
        manifest, by_id = self.manifest(), dict[str, BundleVoucher]()
        self.salt = manifest.code_salt
        assert self.apply(manifest.snapshot, by_id) == manifest.snapshot.vouchers
        bounds = [*(one.from_version for one in manifest.deltas), manifest.version]
        for delta, end in zip(manifest.deltas, bounds[1:], strict=True):
            if end > manifest.snapshot.version:
                self.apply(delta, by_id)
        assert digest_of_state(by_id) == manifest.state_digest
        self.vouchers = {one.code: one for one in by_id.values()}
        return manifest

    def manifest(self) -> Manifest:
        signed = self.get_manifest(self.scope).content
        return msgspec.json.decode(verify(signed, self.bundle, Typ.MANIFEST), type=Manifest)

    def apply(self, ref: BlobRef | DeltaRef, by_id: dict[str, BundleVoucher]) -> int:
        """Fetches a blob and puts and drops what its lines say; how many lines it has."""
        blob = httpx2.get(f"{self.url}/v1/blobs/{ref.sha256}").content
        assert (sha256_hex(blob), len(blob)) == (ref.sha256, ref.bytes)
        lines = list(read_lines(zstandard.decompress(blob)))
        for line in lines:
            if isinstance(line, str):
                by_id.pop(line, None)
            else:
                by_id[line.id] = line
        return len(lines)

    def voucher_of(self, code: str) -> BundleVoucher:
        """The voucher that this code is typed for, whether it travels in clear or as its digest."""
        return self.vouchers.get(code) or self.vouchers[hidden_code(self.salt, fold(code))]

    # the journal

    def lease_of(self, code: str) -> Lease | None:
        voucher_id = self.voucher_of(code).id
        return next(
            (one for one in self.leases.values() if one.voucher_id == voucher_id and one.id not in self.closing), None
        )

    def redeem(
        self,
        order: dict[str, Any],
        *codes: str,
        at: datetime | None = None,
        redemption_id: str = "",
        lease: str | None = "",
        minor: int | None = None,
        body_result: bytes | None = None,
    ) -> str:
        """Writes a redemption, whatever the rules say about it: what a till would refuse is a test's to try."""
        at = at or self.clock()
        known = [self.voucher_of(code) for code in codes]
        read = [load_voucher(bytes(one.voucher)) for one in known]
        typed = [
            msgspec.structs.replace(one, code=code) if one.code.startswith(HIDDEN_PREFIX) else one
            for one, code in zip(read, codes, strict=True)
        ]
        compiled = [compile_voucher(one) for one in typed]
        result = evaluate(parse_order(json.dumps(order)), compiled, at=at)
        amounts = {one.code.casefold(): one.discount_minor for one in result.applied}
        uses = []
        for code, one in zip(codes, known, strict=True):
            held = self.lease_of(code)
            lease_id = lease if lease != "" else held.id if held is not None else None
            amount = amounts.get(code, 0) if minor is None else minor
            uses.append(Use(one.id, sha256_hex(bytes(one.voucher)), lease_id, 1, amount))
            if lease_id is not None:
                units, spent = self.used.get(lease_id, (0, 0))
                self.used[lease_id] = (units + 1, spent + amount)
        raw = body_result if body_result is not None else result_json(result)
        body = RedeemBody(msgspec.Raw(json.dumps(order).encode()), list(codes), msgspec.Raw(raw), "salt")
        return self.append(EventType.REDEEM, uses, encode(body), at=at, event_id=redemption_id)

    def void(self, ref: str, code: str, *, units: int = 1, minor: int) -> str:
        uses = [Use(self.voucher_of(code).id, None, None, units, minor)]
        return self.append(EventType.VOID, uses, encode(VoidBody("", 0, [], "salt")), ref=ref)

    def close(self, lease: Lease, *, units: int | None = None, minor: int | None = None) -> str:
        """Closes a lease with what was used of it, or with what a lying till would say."""
        used = self.used.get(lease.id, (0, 0))
        u = (used[0] if units is None else units, used[1] if minor is None else minor)
        self.closing.add(lease.id)
        self.close_seq[lease.id] = len(self.events) + 1
        uses = [Use(lease.voucher_id, None, lease.id, *u)]
        return self.append(EventType.LEASE_CLOSE, uses, encode(PlainBody("salt")))

    def append(
        self,
        kind: EventType,
        uses: list[Use],
        body: bytes,
        *,
        at: datetime | None = None,
        event_id: str = "",
        ref: str | None = None,
    ) -> str:
        event_id = event_id or new_id()
        envelope = Envelope(
            v=1,
            type=kind,
            id=event_id,
            seq=len(self.events) + 1,
            at=at or self.clock(),
            boot_id=self.boot_id,
            monotonic_s=self.monotonic_s(),
            bundle_version=1,
            engine_version=ENGINE_VERSION,
            uses=uses,
            body_sha256=sha256_hex(body),
            ref=ref,
        )
        self.append_raw(encode(envelope), body)
        return event_id

    def append_raw(self, envelope: bytes, body: bytes = b"{}") -> None:
        self.events.append(StoredEvent(envelope, body))
        self.hashes.append(chain_next(self.position(len(self.hashes)).hash, envelope))

    def monotonic_s(self) -> int:
        return int((self.clock() - self.run_since) / timedelta(seconds=1))

    def position(self, seq: int) -> Position:
        return Position(seq, self.start if seq == 0 else self.hashes[seq - 1])

    # sync

    def active(self) -> list[Lease]:
        return [one for one in self.leases.values() if one.id not in self.closing]

    def held(self, after: int) -> list[Lease]:
        """All leases it holds open at this place in its journal, and those it was granted later."""
        return [one for one in self.leases.values() if one in self.active() or self.close_seq.get(one.id, 0) > after]

    def request(self, *, after: int | None = None, through: int | None = None, **fields: Any) -> bytes:
        """The bytes of a sync request over the events after `after` up to `through`; `fields` lie in its head."""
        after = self.acknowledged if after is None else after
        through = len(self.events) if through is None else through
        packed: bytes | None = fields.pop("packed", None)
        if packed is None:
            chosen = self.events[after:through]
            packed = zstandard.compress(join_events(chosen)) if chosen else b""
        values: dict[str, Any] = {
            "device": self.id,
            "nonce": new_id(),
            "server_epoch": self.server_epoch,
            "ledger_mark": self.ledger_mark,
            "head": self.position(len(self.events)),
            "after": self.position(after),
            "through": self.position(through),
            "events": EventsRef(through - after, len(packed), sha256_hex(packed)),
            "leases": [LeaseUse(one.id, *self.used.get(one.id, (0, 0))) for one in self.leases.values()],
            "leases_digest": digest_of(self.active()),
            "lease_number": self.lease_number,
            "wants": self.wants,
            "clock": ClockReading(self.clock(), self.boot_id, self.monotonic_s()),
            "manifest_version": 1,
            "held": self.held(after) if self.recovering else None,
        }
        head = SyncHead(**(values | fields))
        return self.key.sign(Typ.SYNC, encode(head)) + b"\n" + packed

    def post(self, body: bytes) -> httpx2.Response:
        return httpx2.post(f"{self.url}/v1/sync", content=body)

    def send(self, body: bytes) -> SyncAnswer:
        """Sends it and believes the answer, as a device would."""
        response = self.post(body)
        if response.status_code != 200:
            raise Refused(response)
        answer = msgspec.json.decode(verify(response.content, self.receipt, Typ.ANSWER), type=SyncAnswer)
        assert answer.request_sha256 == sha256_hex(body)
        assert answer.device == self.id
        if answer.acknowledged.seq <= len(self.events):
            assert answer.acknowledged == self.position(answer.acknowledged.seq)
        self.acknowledged, self.answer = answer.acknowledged.seq, answer
        again = answer.server_epoch > self.server_epoch
        self.ledger_mark = answer.ledger_mark if again else max(self.ledger_mark, answer.ledger_mark)
        self.server_epoch, self.recovering = answer.server_epoch, answer.recovering
        for lease in answer.leases:
            if lease.number > self.lease_number:
                self.leases[lease.id], self.lease_number = lease, lease.number
        if answer.leases_full:
            told = {lease.id for lease in answer.leases}
            self.closing.update(one.id for one in self.active() if one.id not in told)
        if not (self.forgiving or again):
            assert digest_of(self.active()) == answer.leases_digest
        self.wants = []
        return answer

    def sync(self, **fields: Any) -> SyncAnswer:
        return self.send(self.request(**fields))

    def sync_closing(self) -> SyncAnswer:
        """Syncs, closes what was recalled, and syncs again, as a device does while it has the line."""
        answer = self.sync()
        by_id = {one.id: one for one in self.active()}
        for lease_id in answer.recall:
            self.close(by_id[lease_id])
        return self.sync() if answer.recall else answer

    def redeem_online(self, order: dict[str, Any], codes: Sequence[str], redemption_id: str) -> httpx2.Response:
        request = RedeemRequest(redemption_id, msgspec.Raw(json.dumps(order).encode()), list(codes), self.id)
        body = self.key.sign(Typ.REDEEM, encode(request))
        return self.post_online(body)

    def post_online(self, body: bytes) -> httpx2.Response:
        return httpx2.post(f"{self.url}/v1/redemptions", content=body, headers={"Content-Type": "application/jose"})

    def answer_online(self, order: dict[str, Any], codes: Sequence[str], redemption_id: str) -> RedeemAnswer:
        """Asks and believes the answer, as a device would."""
        response = self.redeem_online(order, codes, redemption_id)
        if response.status_code != 200:
            raise Refused(response)
        assert response.headers["content-type"] == "application/jose"
        answer = msgspec.json.decode(verify(response.content, self.receipt, Typ.REDEEMED), type=RedeemAnswer)
        assert (answer.id, answer.device) == (redemption_id, self.id)
        return answer


class Refused(Exception):
    """The server answered with problem details."""

    def __init__(self, response: httpx2.Response) -> None:
        super().__init__(f"{response.status_code}: {response.text}")
        self.status = response.status_code
        self.code: str = response.json()["code"]
        self.challenge: str = response.json().get("challenge", "")


def digest_of_state(by_id: dict[str, BundleVoucher]) -> str:
    return state_digest(sum(voucher_digest(one.id, sha256_hex(bytes(one.voucher))) for one in by_id.values()))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
