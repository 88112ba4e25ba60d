"""The sync of a till as a state machine without I/O. Source: protocol.md, section 7.

`step(event, tick)` takes one event and gives one action; whoever drives it performs the action and comes back with
what became of it. Sending and storing are both actions, so a simulator can stop between any two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from typing import Any
from urllib.parse import quote

import zstandard

from tallystick_client.actions import (
    Accept,
    Action,
    Answer,
    Done,
    Event,
    Failed,
    Held,
    KeepBundle,
    KeepRoot,
    LineDown,
    Persist,
    Persisted,
    Prepare,
    Reading,
    Send,
    Start,
    Tick,
    Wait,
    Woken,
    is_the_servers_word,
    problem_of,
    retry_after_s,
)
from tallystick_client.errors import TallystickError, TryLater
from tallystick_client.reports import SyncReport
from tallystick_client.trust import Trusted, snapshot
from tallystick_shared.bundle import BLOB_BYTES_MAX, MANIFEST_BYTES_MAX, Manifest
from tallystick_shared.errors import RemoteError, Untrusted
from tallystick_shared.journal import BATCH_EVENTS_MAX, encode, join_events
from tallystick_shared.signing import COMPACT_BYTES_MAX, ROOT_BYTES_MAX, SigningKey, Typ, sha256_hex
from tallystick_shared.wire import (
    API,
    AUTH_SCHEME,
    DeviceRequest,
    DeviceState,
    EventsRef,
    Outcome,
    SyncHead,
)


class Phase(Enum):
    IDLE = "idle"
    WAITING = "waiting"
    PREPARING = "preparing"
    SYNCING = "syncing"
    ACCEPTING = "accepting"
    ROOT = "root"
    KEEPING_ROOT = "keeping root"
    MANIFEST = "manifest"
    SNAPSHOT = "snapshot"
    KEEPING_BUNDLE = "keeping bundle"
    FAILING = "failing"
    DONE = "done"


TRANSITIONS: dict[Phase, dict[type[Any], frozenset[Phase]]] = {
    Phase.IDLE: {Start: frozenset({Phase.WAITING, Phase.PREPARING, Phase.DONE})},
    Phase.WAITING: {Woken: frozenset({Phase.PREPARING})},
    Phase.PREPARING: {Persisted: frozenset({Phase.SYNCING})},
    Phase.SYNCING: {
        Answer: frozenset({Phase.ACCEPTING, Phase.PREPARING, Phase.ROOT, Phase.SYNCING, Phase.FAILING, Phase.DONE}),
        LineDown: frozenset({Phase.FAILING}),
    },
    Phase.ACCEPTING: {Persisted: frozenset({Phase.PREPARING, Phase.ROOT, Phase.MANIFEST, Phase.DONE})},
    Phase.ROOT: {
        Answer: frozenset({Phase.KEEPING_ROOT, Phase.ACCEPTING, Phase.MANIFEST, Phase.FAILING, Phase.DONE}),
        LineDown: frozenset({Phase.FAILING}),
    },
    Phase.KEEPING_ROOT: {Persisted: frozenset({Phase.ROOT, Phase.ACCEPTING, Phase.MANIFEST, Phase.DONE})},
    Phase.MANIFEST: {
        Answer: frozenset(
            {Phase.SNAPSHOT, Phase.KEEPING_BUNDLE, Phase.ROOT, Phase.MANIFEST, Phase.FAILING, Phase.DONE}
        ),
        LineDown: frozenset({Phase.FAILING}),
    },
    Phase.SNAPSHOT: {
        Answer: frozenset({Phase.KEEPING_BUNDLE, Phase.FAILING, Phase.DONE}),
        LineDown: frozenset({Phase.FAILING}),
    },
    Phase.KEEPING_BUNDLE: {Persisted: frozenset({Phase.DONE})},
    Phase.FAILING: {Persisted: frozenset({Phase.DONE})},
}
"""The protocol: in which phase which event may lead where. `step` allows nothing else."""

SYNC_TYPE = "application/vnd.tallystick.sync"
ROUNDS_MAX = 500
"""Of one sync: enough for 250,000 events, and an end whatever the server says."""
BACKOFF_BASE_S = 2
BACKOFF_MAX_S = 300
SPREAD_S = 60
"""A patient sync that has no appointment waits a random part of this first, so that a fleet does not come at once."""
HALVE_AFTER = 3
"""The same batch failing this often in a row is halved, in case it is the batch."""

_Resume = Callable[[Tick], tuple[Phase, Action]]


class Machine:
    """One sync of one till. `device` and `key` sign its requests; `step` until it gives `Done`."""

    def __init__(self, device: str, key: SigningKey) -> None:
        self.phase = Phase.IDLE
        self._device, self._key = device, key
        self._reading: Reading
        self._trusted: Trusted
        self._held: Held | None = None
        self._answer_root_version = 0
        self._answer_manifest: tuple[int, int] = (0, 0)
        self._raw = b""  # a signed message that waits for its root
        self._manifest_raw, self._etag = b"", ""
        self._manifest: Manifest | None = None
        self._request_sha256 = ""
        self._reauthenticated = False
        self._resume: _Resume
        self._unbelieved: Untrusted | None = None
        self._error: TallystickError | None = None
        self._sent = self._acknowledged = self._granted = self._closed = self._rounds = 0
        self._outcomes = {outcome.value: 0 for outcome in Outcome}

    def step(self, event: Event, tick: Tick) -> Action:
        """The next action. Raises nothing: what goes wrong is in `Done.error`, but for misuse (`RuntimeError`)."""
        allowed = TRANSITIONS.get(self.phase, {}).get(type(event))
        if allowed is None:
            raise RuntimeError(f"{type(event).__name__} is no event of phase {self.phase.value}")
        try:
            phase, action = self._handle(event, tick)
        except TallystickError as error:
            phase, action = Phase.DONE, Done(None, error)
        if phase not in allowed:
            raise RuntimeError(f"{self.phase.value} may not lead to {phase.value}")
        self.phase = phase
        return action

    def _handle(self, event: Event, tick: Tick) -> tuple[Phase, Action]:
        match self.phase, event:
            case Phase.IDLE, Start():
                return self._start(event, tick)
            case Phase.WAITING, Woken():
                return self._prepare(self._first_batch())
            case Phase.PREPARING, Persisted():
                self._take(event)
                return self._send_sync(tick)
            case Phase.ACCEPTING, Persisted():
                return self._accepted(event, tick)
            case Phase.KEEPING_ROOT, Persisted():
                self._reading = event.reading
                return self._resume(tick)
            case Phase.KEEPING_BUNDLE, Persisted():
                self._reading = event.reading
                return self._done()
            case Phase.FAILING, Persisted():
                return Phase.DONE, Done(None, self._error)
            case _, LineDown():
                return self._fail(f"there is no line to the server ({event.why})", "NO_CONNECTION", None, tick)
            case _, Answer():
                return self._answered(event, tick)
        raise RuntimeError(f"no way on from {self.phase.value}")

    # -- start and rounds

    def _start(self, start: Start, tick: Tick) -> tuple[Phase, Action]:
        reading = self._reading = start.reading
        self._trusted, self._held = start.trusted, start.held
        asked = tick.seconds_until(reading.not_before_at)
        if not start.patient:
            if reading.not_before_at is not None and asked > 0:
                when = reading.not_before_at
                message = f"the server asked not to be called before {when:%H:%M:%S} UTC"
                raise TryLater(message, next_attempt_at=when, code="ASKED_TO_WAIT")
            return self._prepare(self._first_batch())
        own = tick.seconds_until(reading.next_attempt_at) if reading.next_attempt_at else SPREAD_S * tick.jitter
        return Phase.WAITING, Wait(max(asked, own))

    def _first_batch(self) -> int | None:
        """Once batches get through again, they grow again."""
        return None if self._reading.failures else min(BATCH_EVENTS_MAX, 2 * self._reading.batch_events_max)

    def _prepare(self, batch_events_max: int | None) -> tuple[Phase, Action]:
        return Phase.PREPARING, Persist(Prepare(batch_events_max))

    def _take(self, persisted: Persisted) -> None:
        self._reading = persisted.reading
        self._granted += persisted.leases_granted
        self._closed += persisted.leases_closed

    def _send_sync(self, tick: Tick) -> tuple[Phase, Action]:
        reading = self._reading
        frame = b""
        if reading.events:
            frame = zstandard.ZstdCompressor().compress(join_events(reading.events))
        head = SyncHead(
            device=self._device,
            nonce=tick.nonce,
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
            clock=tick.clock,
            manifest_version=reading.bundle_version,
        )
        body = self._key.sign(Typ.SYNC, encode(head)) + b"\n" + frame
        self._request_sha256 = sha256_hex(body)
        self._rounds += 1
        self._sent += len(reading.events)
        headers = {"content-type": SYNC_TYPE, "accept": "application/jose"}
        return Phase.SYNCING, Send("POST", f"{API}/sync", headers, body, COMPACT_BYTES_MAX)

    def _accept(self, tick: Tick) -> tuple[Phase, Action]:
        reading = self._reading
        try:
            answer = self._trusted.answer(
                self._raw,
                device=self._device,
                request_sha256=self._request_sha256,
                epoch=reading.server_epoch,
                mark=reading.ledger_mark,
                head=reading.head,
                now=tick.at,
            )
        except Untrusted as error:
            return self._ask_for_root(error, self._accept)
        self._answer_root_version = answer.root_version
        self._answer_manifest = (answer.server_epoch, answer.manifest_version)
        for exception in answer.exceptions:
            self._outcomes[exception.outcome.value] += 1
        return Phase.ACCEPTING, Persist(Accept(answer, reading.wants))

    def _accepted(self, persisted: Persisted, tick: Tick) -> tuple[Phase, Action]:
        before, after = self._reading.after, persisted.reading.after
        self._take(persisted)
        self._acknowledged += max(0, after.seq - before.seq)
        moved = after != before or persisted.leases_closed > 0
        if after.seq < persisted.reading.head.seq and moved and self._rounds < ROUNDS_MAX:
            return self._prepare(None)
        return self._catch_up(tick)

    # -- roots

    def _catch_up(self, tick: Tick) -> tuple[Phase, Action]:
        """Up to the root that the server has, then to its bundle."""
        if self._trusted.root.version < self._answer_root_version:
            missing = Untrusted("the server does not serve the root that it names", code="ROOT_VERSION")
            return self._fetch_root(missing, self._catch_up)
        return self._want_bundle(tick)

    def _ask_for_root(self, error: Untrusted, resume: _Resume) -> tuple[Phase, Action]:
        """A key not known yet, or a root that is over, may only mean that there is a newer root."""
        if error.code not in ("UNKNOWN_KEY", "ROOT_EXPIRED"):
            raise error
        return self._fetch_root(error, resume)

    def _fetch_root(self, otherwise: Untrusted, resume: _Resume) -> tuple[Phase, Action]:
        self._unbelieved, self._resume = otherwise, resume
        path = f"{API}/roots/{self._trusted.root.version + 1}"
        return Phase.ROOT, Send("GET", path, {"accept": "application/json"}, b"", ROOT_BYTES_MAX)

    def _root_came(self, answer: Answer) -> tuple[Phase, Action]:
        old = self._trusted.root
        self._trusted = self._trusted.next_root(answer.body)
        new = self._trusted.root
        if set(old.roles.bundle.kids) != set(new.roles.bundle.kids):
            self._held = None  # what the old keys signed is not believed any more
        change = KeepRoot(
            answer.body,
            new.version,
            bundle_changed=set(old.roles.bundle.kids) != set(new.roles.bundle.kids),
            receipt_changed=set(old.roles.receipt.kids) != set(new.roles.receipt.kids),
        )
        return Phase.KEEPING_ROOT, Persist(change)

    # -- the bundle

    def _want_bundle(self, tick: Tick) -> tuple[Phase, Action]:
        epoch, version = self._answer_manifest
        if version == 0 or self._reading.device_state is not DeviceState.ACTIVE:
            return self._done()
        held = self._held
        young = held is not None and held.is_young(self._reading.scope, tick.at)
        if held is not None and young and (held.manifest.server_epoch, held.manifest.version) == (epoch, version):
            return self._done()
        return self._send_manifest(tick)

    def _send_manifest(self, tick: Tick) -> tuple[Phase, Action]:
        path = f"{API}/scopes/{quote(self._reading.scope, safe='')}/manifest"
        proof = self._key.sign(Typ.REQUEST, encode(DeviceRequest(self._device, "GET", path, tick.clock.at)))
        headers = {"authorization": f"{AUTH_SCHEME} {proof.decode('ascii')}", "accept": "application/jose"}
        if self._held is not None and self._held.is_young(self._reading.scope, tick.at) and self._held.etag:
            headers["if-none-match"] = self._held.etag
        return Phase.MANIFEST, Send("GET", path, headers, b"", MANIFEST_BYTES_MAX)

    def _manifest_came(self, tick: Tick) -> tuple[Phase, Action]:
        try:
            manifest = self._trusted.manifest(self._manifest_raw, self._reading.scope, now=tick.at)
        except Untrusted as error:
            return self._ask_for_root(error, self._manifest_came)
        self._manifest = manifest
        if self._held is not None and self._held.manifest.snapshot == manifest.snapshot:
            return self._keep_bundle(manifest, None)
        if manifest.snapshot.bytes > BLOB_BYTES_MAX:
            raise Untrusted(f"the snapshot would have {manifest.snapshot.bytes} bytes", code="TOO_LARGE")
        path = f"{API}/blobs/{manifest.snapshot.sha256}"
        return Phase.SNAPSHOT, Send("GET", path, {}, b"", manifest.snapshot.bytes)

    def _keep_bundle(self, manifest: Manifest, blob: bytes | None) -> tuple[Phase, Action]:
        if blob is not None:
            snapshot(blob, manifest.snapshot, manifest.state_digest)
        self._trusted = self._trusted.with_floor(manifest)
        change = KeepBundle(self._manifest_raw, manifest, self._etag, blob)
        return Phase.KEEPING_BUNDLE, Persist(change)

    # -- answers, and their absence

    def _answered(self, answer: Answer, tick: Tick) -> tuple[Phase, Action]:
        if answer.status == 200:
            self._reauthenticated = False
            return self._succeeded(answer, tick)
        if answer.status == 429 or answer.status >= 500:
            code, detail = problem_of(answer)
            return self._fail(f"the server cannot answer now: {detail}", code, answer, tick)
        if answer.status == 413 and self.phase is Phase.SYNCING and len(self._reading.events) > 1:
            return self._prepare(len(self._reading.events) // 2)
        if self.phase is Phase.MANIFEST and answer.status == 304 and self._held is not None:
            return self._done()
        if not is_the_servers_word(answer):
            code, _ = problem_of(answer)
            return self._fail(f"something else than the server answered, with {answer.status}", code, answer, tick)
        if self.phase is Phase.ROOT and answer.status == 404 and self._unbelieved is not None:
            raise self._unbelieved
        if answer.status == 401 and not self._reauthenticated and self.phase in (Phase.SYNCING, Phase.MANIFEST):
            self._reauthenticated = True
            return self._send_sync(tick) if self.phase is Phase.SYNCING else self._send_manifest(tick)
        code, detail = problem_of(answer)
        raise RemoteError(f"the server refused: {detail}", code=code)

    def _succeeded(self, answer: Answer, tick: Tick) -> tuple[Phase, Action]:
        match self.phase:
            case Phase.SYNCING:
                self._raw = answer.body
                return self._accept(tick)
            case Phase.ROOT:
                return self._root_came(answer)
            case Phase.MANIFEST:
                self._manifest_raw, self._etag = answer.body, answer.headers.get("etag", "")[:256]
                return self._manifest_came(tick)
            case _:
                if self._manifest is None:
                    raise RuntimeError("a snapshot without a manifest")
                return self._keep_bundle(self._manifest, answer.body)

    def _fail(self, message: str, code: str, answer: Answer | None, tick: Tick) -> tuple[Phase, Action]:
        failures = self._reading.failures + 1
        wait_s = tick.jitter * min(BACKOFF_MAX_S, BACKOFF_BASE_S * 2 ** min(failures, 20))
        asked_s = retry_after_s(answer, tick.at)
        next_attempt_at = tick.at + timedelta(seconds=max(wait_s, asked_s))
        not_before_at = tick.at + timedelta(seconds=asked_s) if asked_s else None
        halve = self.phase is Phase.SYNCING and failures % HALVE_AFTER == 0 and len(self._reading.events) > 1
        self._error = TryLater(message, next_attempt_at=next_attempt_at, code=code)
        change = Failed(next_attempt_at, not_before_at, len(self._reading.events) // 2 if halve else None)
        return Phase.FAILING, Persist(change)

    def _done(self) -> tuple[Phase, Action]:
        exceptions = sum(self._outcomes.values())
        outcomes = {**self._outcomes, Outcome.APPLIED.value: max(0, self._acknowledged - exceptions)}
        report = SyncReport(
            sent=self._sent,
            acknowledged=self._acknowledged,
            outcomes={name: count for name, count in outcomes.items() if count},
            leases_granted=self._granted,
            leases_closed=self._closed,
            bundle_version=self._reading.bundle_version,
            rounds=self._rounds,
            state=self._reading.device_state.value,
        )
        return Phase.DONE, Done(report)
