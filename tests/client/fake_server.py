"""A server for a few tills, built on the shared package alone: real HTTP on loopback, nothing behind it.

It believes nothing unsigned, grants only what a test tells it to, and `script` makes it fail as a line or server can.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import zstandard

from tallystick_shared.bundle import Caps, Manifest, Role, Roles, Root
from tallystick_shared.engine import compile_voucher, evaluate, result_json
from tallystick_shared.journal import (
    Envelope,
    EventType,
    Position,
    StoredEvent,
    chain_next,
    chain_start,
    encode,
    read_envelope,
    split_events,
)
from tallystick_shared.model import load_voucher, parse_order
from tallystick_shared.signing import (
    PublicKey,
    SigningKey,
    Typ,
    join_signatures,
    peek,
    sha256_hex,
    verify,
)
from tallystick_shared.wire import (
    DeviceRequest,
    DeviceState,
    EnrolAgain,
    Enrolled,
    EnrolmentToken,
    EnrolRequest,
    EventOutcome,
    Lease,
    Problem,
    RedeemAnswer,
    RedeemRequest,
    SyncAnswer,
    SyncHead,
    digest_of,
)
from tests.client.fake_clock import FakeClock
from tests.client.fake_scope import FakeScope

Reply = tuple[int, dict[str, str], bytes]


class Device(msgspec.Struct):
    """What the server knows of one till."""

    id: str
    key: PublicKey
    hashes: list[str]
    events: list[StoredEvent]
    leases: dict[str, Lease]
    number: int = 0
    fresh: list[Lease] = []
    recall: list[str] = []
    state: DeviceState = DeviceState.ACTIVE
    full: bool = False

    def envelopes(self, kind: EventType) -> list[Envelope]:
        return [one for one in (read_envelope(event.envelope) for event in self.events) if one.type is kind]


class FakeServer(FakeScope):
    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.id = str(uuid.uuid4())
        self.root_key, self.bundle_key, self.receipt_key = (SigningKey.generate() for _ in range(3))
        self.roots = [self.make_root(1)]
        self.scope = "main"
        self.epoch, self.mark = 1, 0
        self.ttl = timedelta(days=2)
        self.caps = Caps()
        self.devices: dict[str, Device] = {}
        self.tokens: dict[str, str] = {}
        self.redemptions: dict[str, RedeemAnswer] = {}
        self.exceptions: list[EventOutcome] = []
        self.recovering = False
        self.durable = False
        self.heads: list[SyncHead] = []
        self.requests: list[str] = []
        self.script: list[Callable[[str, Callable[[], Reply]], Reply | None]] = []
        self.tamper: Callable[[SyncAnswer], SyncAnswer] = lambda answer: answer
        self.url = ""

    # ---- what tests arrange

    def make_root(
        self,
        version: int,
        *,
        signers: list[SigningKey] | None = None,
        root_keys: list[SigningKey] | None = None,
        threshold: int = 1,
        expires_at: datetime | None = None,
        **changed: Any,
    ) -> bytes:
        keys = root_keys or [self.root_key]
        roles = Roles(
            root=Role([key.kid for key in keys], threshold),
            bundle=Role([self.bundle_key.kid], 1),
            receipt=Role([self.receipt_key.kid], 1),
        )
        root = Root(
            version=version,
            server_id=self.id,
            expires_at=expires_at or self.clock.now() + timedelta(days=365),
            keys={key.kid: key.jwk() for key in (*keys, self.bundle_key, self.receipt_key)},
            roles=roles,
        )
        payload = encode(msgspec.structs.replace(root, **changed))
        return join_signatures(payload, [key.sign_flat(Typ.ROOT, payload) for key in signers or keys])

    def token(self) -> str:
        secret = uuid.uuid4().hex
        self.tokens[secret] = ""
        return str(EnrolmentToken(secret, 1, sha256_hex(self.roots[0])))

    def grant(
        self, device: Device, code: str, *, units: int | None = 5, minor: int | None = None, days: int = 14
    ) -> Lease:
        device.number += 1
        expires_at = self.clock.now() + timedelta(days=days)
        lease = Lease(str(uuid.uuid4()), device.number, self.voucher_id(code), units, minor, expires_at)
        device.leases[lease.id] = lease
        device.fresh.append(lease)
        return lease

    @property
    def device(self) -> Device:
        """The only one."""
        (device,) = self.devices.values()
        return device

    # ---- what it signs

    def manifest(self, **changed: Any) -> bytes:
        now = self.clock.now()
        if "version" in changed and "deltas" not in changed:
            alone = msgspec.structs.replace(self.snapshot_ref(), version=changed["version"])
            changed = {"deltas": [], "snapshot": alone, **changed}
        manifest = Manifest(
            scope=self.scope,
            server_epoch=self.epoch,
            version=max(1, self.version),
            issued_at=now,
            expires_at=now + self.ttl,
            snapshot=self.snapshot_ref(),
            deltas=self.delta_refs(),
            state_digest=self.state(),
            code_salt=self.salt,
            engine_min="1",
            poll_after_s=3600,
            caps=self.caps,
        )
        return self.bundle_key.sign(Typ.MANIFEST, encode(msgspec.structs.replace(manifest, **changed)))

    # ---- what it answers

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        self.requests.append(f"{method} {path}")
        match method, path.split("/")[2:]:
            case "GET", ["roots", version] if 0 < int(version) <= len(self.roots):
                return 200, {}, self.roots[int(version) - 1]
            case "GET", ["blobs", digest] if digest in self.blobs:
                return 200, {}, self.blobs[digest]
            case "GET", ["scopes", scope, "manifest"] if scope == self.scope:
                return self._manifest(headers, path)
            case "POST", ["devices"]:
                return self._enrol(body)
            case "POST", ["devices", "again"]:
                return self._enrol_again(body)
            case "POST", ["sync"]:
                return self._sync(body)
            case "POST", ["redemptions"]:
                return self._redeem(body)
        return problem(404, "NOT_FOUND", "there is nothing here")

    def _manifest(self, headers: dict[str, str], path: str) -> Reply:
        proof = headers["authorization"].removeprefix("Tallystick ").encode()
        _, payload = peek(proof, Typ.REQUEST)
        device = self.devices[msgspec.json.decode(payload, type=DeviceRequest).device]
        request = msgspec.json.decode(verify(proof, {device.key.kid: device.key}, Typ.REQUEST), type=DeviceRequest)
        assert (request.method, request.path) == ("GET", path)
        raw = self.manifest()
        etag = f'"{self.epoch}-{self.version}"'
        if headers.get("if-none-match") == etag:
            return 304, {"etag": etag}, b""
        return 200, {"etag": etag}, raw

    def _enrol(self, body: bytes) -> Reply:
        _, payload = peek(body, Typ.ENROL)
        request = msgspec.json.decode(payload, type=EnrolRequest)
        key = PublicKey.from_jwk(request.jwk)
        verify(body, {key.kid: key}, Typ.ENROL)
        if self.tokens.get(request.token, key.kid) not in ("", key.kid) or request.token not in self.tokens:
            return problem(409, "TOKEN_USED", "this token was used by another device")
        self.tokens[request.token] = key.kid
        device = next((one for one in self.devices.values() if one.key.kid == key.kid), None)
        if device is None:
            name = str(uuid.uuid4())
            device = Device(name, key, [chain_start(self.id, name, key)], [], {})
            self.devices[name] = device
        return 201, {}, self._enrolled(device, body)

    def _enrol_again(self, body: bytes) -> Reply:
        """A device that it has forgotten, believed by the two messages of its enrolment."""
        asked = msgspec.json.decode(peek(body, Typ.ENROL_AGAIN)[1], type=EnrolAgain)
        key = PublicKey.from_jwk(msgspec.json.decode(peek(asked.request.encode(), Typ.ENROL)[1], type=EnrolRequest).jwk)
        verify(body, {key.kid: key}, Typ.ENROL_AGAIN)
        signed = verify(asked.enrolled.encode(), {self.receipt_key.kid: self.receipt_key}, Typ.ENROLLED)
        enrolled = msgspec.json.decode(signed, type=Enrolled)
        assert enrolled.request_sha256 == sha256_hex(asked.request.encode())
        device = Device(asked.device, key, [chain_start(self.id, asked.device, key)], [], {})
        self.devices[device.id] = device
        return 200, {}, self._enrolled(device, body)

    def _enrolled(self, device: Device, body: bytes) -> bytes:
        enrolled = Enrolled(
            device=device.id,
            server=self.id,
            store_id="309",
            scope=self.scope,
            request_sha256=sha256_hex(body),
            root_version=len(self.roots),
            server_epoch=self.epoch,
            ledger_mark=self.mark,
            server_time=self.clock.now(),
        )
        return self.receipt_key.sign(Typ.ENROLLED, encode(enrolled))

    def _sync(self, body: bytes) -> Reply:
        line, _, frame = body.partition(b"\n")
        _, payload = peek(line, Typ.SYNC)
        device = self.devices.get(msgspec.json.decode(payload, type=SyncHead).device)
        if device is None:
            return problem(401, "UNKNOWN_DEVICE", "this device is not enrolled here")
        head = msgspec.json.decode(verify(line, {device.key.kid: device.key}, Typ.SYNC), type=SyncHead)
        self.heads.append(head)
        assert head.events.sha256 == sha256_hex(frame)
        assert head.events.bytes == len(frame)
        events = split_events(zstandard.ZstdDecompressor().decompress(frame)) if frame else []
        assert len(events) == head.events.count
        for lease in head.held or ():
            device.leases.setdefault(lease.id, lease)
        if head.after.seq >= len(device.hashes):
            events = []  # restored from a backup: it has forgotten what the till goes on from
        else:
            assert device.hashes[head.after.seq] == head.after.hash
        for number, event in enumerate(events, head.after.seq + 1):
            digest = chain_next(device.hashes[number - 1], event.envelope)
            if number < len(device.hashes):
                assert device.hashes[number] == digest, "a number with two hashes"
                continue
            device.hashes.append(digest)
            device.events.append(event)
            self._settle(device, read_envelope(event.envelope))
        return 200, {"content-type": "application/jose"}, self._sign_answer(device, head, sha256_hex(body))

    def _settle(self, device: Device, envelope: Envelope) -> None:
        for use in envelope.uses:
            if envelope.type is EventType.LEASE_CLOSE and use.lease in device.leases:
                lease = device.leases.pop(use.lease)
                assert use.units <= (lease.units if lease.units is not None else use.units)

    def _sign_answer(self, device: Device, head: SyncHead, digest: str) -> bytes:
        before_grants = [lease for lease in device.leases.values() if lease not in device.fresh]
        full = device.full or digest_of(before_grants) != head.leases_digest
        self.mark += 1
        acknowledged = Position(seq := len(device.events), device.hashes[seq])
        answer = SyncAnswer(
            device=device.id,
            request_sha256=digest,
            state=device.state,
            acknowledged=acknowledged,
            durable=acknowledged if self.durable else Position(0, device.hashes[0]),
            exceptions=[one for one in self.exceptions if head.after.seq < one.seq <= seq],
            leases=list(device.leases.values()) if full else [one for one in device.fresh if one.id in device.leases],
            leases_full=full,
            leases_digest=digest_of(list(device.leases.values())),
            recall=device.recall,
            server_epoch=self.epoch,
            ledger_mark=self.mark,
            server_time=self.clock.now(),
            root_version=len(self.roots),
            scope=self.scope,
            manifest_version=self.version,
            retry_after_s=0,
            recovering=self.recovering,
        )
        device.fresh, device.recall = [], []
        return self.receipt_key.sign(Typ.ANSWER, encode(self.tamper(answer)))

    def _redeem(self, body: bytes) -> Reply:
        _, payload = peek(body, Typ.REDEEM)
        asked = msgspec.json.decode(payload, type=RedeemRequest)
        device = self.devices[asked.device or ""]
        verify(body, {device.key.kid: device.key}, Typ.REDEEM)
        if asked.id not in self.redemptions:
            compiled = [compile_voucher(load_voucher(bytes(one.voucher))) for one in self.vouchers.values()]
            result = evaluate(parse_order(bytes(asked.order)), compiled, asked.codes, at=self.clock.now())
            said = RedeemAnswer(asked.id, self.clock.now(), bool(result.applied), msgspec.Raw(result_json(result)))
            self.redemptions[asked.id] = said
        said = self.redemptions[asked.id]
        said = msgspec.structs.replace(said, device=device.id, request_sha256=sha256_hex(body))
        return 200, {}, self.receipt_key.sign(Typ.REDEEMED, encode(said))

    def says_instead(self, reply: Reply, change: Callable[[Any], Any]) -> Reply:
        """The same answer to an online redemption, changed and signed again."""
        status, headers, body = reply
        document = msgspec.json.decode(verify(body, {self.receipt_key.kid: self.receipt_key}, Typ.REDEEMED))
        return status, headers, self.receipt_key.sign(Typ.REDEEMED, encode(change(document)))

    # ---- HTTP

    @contextmanager
    def serving(self) -> Iterator[FakeServer]:
        lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                with lock:
                    reply = fake.scripted(self.path, lambda: fake.answer(self.command, self.path, headers, body))
                if reply is None:
                    self.close_connection = True
                    return
                status, extra, content = reply
                self.send_response(status)
                for name, value in {**extra, "content-length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def scripted(self, path: str, answer: Callable[[], Reply]) -> Reply | None:
        """What the test arranged for the next request, else the answer. None: the line goes down before it."""
        return self.script.pop(0)(path, answer) if self.script else answer()


def problem(status: int, code: str, detail: str, **headers: str) -> Reply:
    raw = encode(Problem(type="about:blank", title=code, status=status, detail=detail, code=code))
    return status, {"content-type": "application/problem+json", **headers}, raw


def says(status: int, code: str = "BUSY", **headers: str) -> Callable[[str, Callable[[], Reply]], Reply]:
    """For `script`: an error instead of the answer."""
    return lambda _path, _answer: problem(status, code, f"says {status}", **headers)


def loses_the_answer(_path: str, answer: Callable[[], Reply]) -> None:
    """For `script`: the server does its work, and the line goes down before the till hears of it."""
    answer()


def loses_the_request(_path: str, _answer: Callable[[], Reply]) -> None:
    """For `script`: it never arrives."""


def passes(_path: str, answer: Callable[[], Reply]) -> Reply:
    """For `script`: this one is left alone."""
    return answer()
