"""The sync of a till as a state machine without I/O. Source: protocol.md, section 7.

`step(event, tick)` takes one event and gives one action; whoever drives it performs the action and comes back with
what became of it. Sending and storing are both actions, so a simulator can stop between any two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import msgspec

from tallystick_client import requests
from tallystick_client.actions import (
    Accept,
    Action,
    Answer,
    Done,
    Event,
    Failed,
    Held,
    KeepRoots,
    LineDown,
    NewRoot,
    Persist,
    Persisted,
    Prepare,
    Proof,
    Reading,
    Start,
    Tick,
    Unbelieved,
    Wait,
    Woken,
    challenge_of,
    is_the_servers_word,
    problem_of,
)
from tallystick_client.errors import TallystickError, TryLater
from tallystick_client.fetching import Fetching
from tallystick_client.pausing import SPREAD_S, appointment, asked_wait_s, own_wait_s
from tallystick_client.phases import TRANSITIONS, Phase
from tallystick_client.reports import SyncReport
from tallystick_client.trust import Trusted
from tallystick_shared.errors import RemoteError, Untrusted
from tallystick_shared.journal import BATCH_EVENTS_MAX
from tallystick_shared.signing import SigningKey, sha256_hex
from tallystick_shared.wire import DeviceState, Outcome

ROUNDS_MAX = 500
"""Of one sync: enough for 250,000 events, and an end whatever the server says."""

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
        self._answered_at: datetime
        self._raw = b""  # a signed message that waits for its root
        self._etag = ""
        self._fetching: Fetching
        self._proof: Proof | None = None
        self._roots: list[NewRoot] = []  # taken, and kept together with what they verify
        self._request_sha256 = ""
        self._challenge = ""
        self._reauthenticated = False
        self._too_large = False  # a batch of this sync was
        self._closes_small = False  # leases too small for what was wanted of them: once the server has answered
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
        except RemoteError as error:  # also a portal that answers for the server: no loop may ask it without a pause
            phase, action = self._give_up(error, self._appointment(None, tick))
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
            case Phase.ACCEPTING, Unbelieved():
                raise event.error
            case ((Phase.KEEPING_BUNDLE | Phase.KEEPING_ROOTS), Persisted()):
                self._reading = event.reading
                return self._done()
            case Phase.FAILING, Persisted():
                return Phase.DONE, Done(None, self._error)
            case _, LineDown():
                message = f"there is no line to the server ({event.why})"
                return self._fail(message, "NO_CONNECTION", self._appointment(None, tick, suspect=event.sent))
            case _, Answer():
                return self._answered(event, tick)
        raise RuntimeError(f"no way on from {self.phase.value}")

    # -- start and rounds

    def _start(self, start: Start, tick: Tick) -> tuple[Phase, Action]:
        reading = self._reading = start.reading
        self._trusted, self._held, self._proof = start.trusted, start.held, start.proof
        asked = asked_wait_s(reading, tick)
        if not start.patient:
            if reading.not_before_at is not None and asked > 0:
                when = reading.not_before_at
                message = f"the server asked not to be called before {when:%H:%M:%S} UTC"
                raise TryLater(message, next_attempt_at=when, code="ASKED_TO_WAIT")
            return self._prepare(self._first_batch())
        own = own_wait_s(reading, tick) if reading.next_attempt_at else SPREAD_S * tick.jitter
        return Phase.WAITING, Wait(max(asked, own))

    def _first_batch(self) -> int | None:
        """Once batches get through again, they grow again."""
        return None if self._reading.failures else self._larger_batch()

    def _larger_batch(self) -> int:
        return min(BATCH_EVENTS_MAX, 2 * self._reading.batch_events_max)

    def _prepare(self, batch_events_max: int | None, *, too_small: bool = False) -> tuple[Phase, Action]:
        return Phase.PREPARING, Persist(Prepare(batch_events_max, too_small))

    def _take(self, persisted: Persisted) -> None:
        self._reading = persisted.reading
        self._granted += persisted.leases_granted
        self._closed += persisted.leases_closed

    def _send_sync(self, tick: Tick) -> tuple[Phase, Action]:
        body = requests.sync_body(self._device, self._key, self._reading, tick.clock, self._challenge or tick.nonce)
        self._request_sha256 = sha256_hex(body)
        self._rounds += 1
        self._sent += len(self._reading.events)
        return Phase.SYNCING, requests.sync(body)

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
        self._answered_at = answer.server_time
        for exception in answer.exceptions:
            self._outcomes[exception.outcome] = self._outcomes.get(exception.outcome, 0) + 1
        # with new bundle keys the bundle in force would be believed no more: such a root waits for the new bundle
        roots = [] if any(one.bundle_changed for one in self._roots) else self._taken_roots()
        wants = reading.wants
        if not self._closes_small:  # the others wait: a lease may be in their way that is too small for them
            granted = {lease.voucher_id for lease in answer.leases if lease.number > reading.lease_number}
            wants = [want for want in wants if want.voucher_id in granted]
        return Phase.ACCEPTING, Persist(Accept(answer, wants, roots))

    def _accepted(self, persisted: Persisted, tick: Tick) -> tuple[Phase, Action]:
        before, after = self._reading.after, persisted.reading.after
        new_epoch = persisted.reading.server_epoch != self._reading.server_epoch
        self._take(persisted)
        self._acknowledged += max(0, after.seq - before.seq)
        moved = after != before or persisted.leases_closed > 0
        # a restored server waits for what is told in its new epoch, even where nothing else waits
        more = new_epoch or (moved and after.seq < persisted.reading.head.seq)
        too_small = bool(self._reading.wants) and not self._closes_small
        if (more or too_small) and self._rounds < ROUNDS_MAX:
            self._closes_small = self._closes_small or too_small
            return self._prepare(None if self._too_large else self._larger_batch(), too_small=too_small)
        return self._catch_up(tick)

    # -- a server that has forgotten this till

    def _enrol_again(self, proof: Proof, tick: Tick) -> tuple[Phase, Action]:
        self._proof = None  # once a sync is enough
        send = requests.enrol_again(self._device, self._key, proof, tick.nonce)
        self._request_sha256 = sha256_hex(send.body)
        return Phase.AGAIN, send

    def _known_again(self, tick: Tick) -> tuple[Phase, Action]:
        try:
            enrolled = self._trusted.enrolled(self._raw, request_sha256=self._request_sha256, now=tick.at)
        except Untrusted as error:
            return self._ask_for_root(error, self._known_again)
        if enrolled.device != self._device:
            raise Untrusted("the server takes this till for another one", code="NOT_OUR_REQUEST")
        return self._send_sync(tick)

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

    def _taken_roots(self) -> list[NewRoot]:
        taken, self._roots = self._roots, []
        return taken

    def _fetch_root(self, otherwise: Untrusted, resume: _Resume) -> tuple[Phase, Action]:
        self._unbelieved, self._resume = otherwise, resume
        return Phase.ROOT, requests.root(self._trusted.root.version + 1)

    def _root_came(self, answer: Answer, tick: Tick) -> tuple[Phase, Action]:
        old = self._trusted.root
        self._trusted = self._trusted.next_root(answer.body)
        new = self._trusted.root
        if set(old.roles.bundle.kids) != set(new.roles.bundle.kids):
            self._held = None  # what the old keys signed is not believed any more
        taken = NewRoot(
            answer.body,
            new.version,
            bundle_changed=set(old.roles.bundle.kids) != set(new.roles.bundle.kids),
            receipt_changed=set(old.roles.receipt.kids) != set(new.roles.receipt.kids),
        )
        self._roots.append(taken)
        if taken.receipt_changed:  # what the old keys signed binds no longer, nor is it told to the server
            self._reading = msgspec.structs.replace(self._reading, server_epoch=0, ledger_mark=0)
        return self._resume(tick)

    # -- the bundle

    def _want_bundle(self, tick: Tick) -> tuple[Phase, Action]:
        epoch, version = self._answer_manifest
        if version == 0 or self._reading.device_state is not DeviceState.ACTIVE:
            return self._finish()
        held = self._held
        young = held is not None and held.is_young(self._reading.scope, tick.at)
        newest = held is not None and (held.manifest.server_epoch, held.manifest.version) == (epoch, version)
        if newest and young and self._is_in_the_journal(held):
            return self._finish()
        return self._send_manifest(tick)

    def _is_in_the_journal(self, held: Held | None) -> bool:
        """Not where this till died after its cache had a bundle and before its journal did; then it is kept again."""
        return held is not None and held.manifest.version == self._reading.bundle_version

    def _send_manifest(self, tick: Tick) -> tuple[Phase, Action]:
        held = self._held if self._is_in_the_journal(self._held) else None
        return Phase.MANIFEST, requests.manifest(self._device, self._key, self._reading.scope, held, tick)

    def _manifest_came(self, tick: Tick) -> tuple[Phase, Action]:
        try:
            # by the time that the server has just signed: a clock that is days ahead must not shut the bundle out
            manifest = self._trusted.manifest(self._raw, self._reading.scope, now=min(tick.at, self._answered_at))
        except Untrusted as error:
            return self._ask_for_root(error, self._manifest_came)
        self._fetching = Fetching(self._raw, manifest, self._etag, self._held)
        return self._fetch_blob()

    def _fetch_blob(self) -> tuple[Phase, Action]:
        try:
            ref = self._fetching.wanted()
            if ref is not None:
                return Phase.BLOB, requests.blob(ref)
            change = self._fetching.change(self._roots)
        except Untrusted as error:
            return self._take_snapshot(error)
        self._roots = []
        self._trusted = self._trusted.with_floor(self._fetching.manifest)
        return Phase.KEEPING_BUNDLE, Persist(change)

    def _blob_came(self, raw: bytes) -> tuple[Phase, Action]:
        try:
            self._fetching.take(raw)
        except Untrusted as error:
            return self._take_snapshot(error)
        return self._fetch_blob()

    def _take_snapshot(self, error: TallystickError) -> tuple[Phase, Action]:
        """Where the deltas do not lead on from what is held, the whole does; where that fails too, there is no way."""
        if not self._fetching.from_held:
            raise error
        self._held = None
        self._fetching = self._fetching.anew()
        return self._fetch_blob()

    # -- answers, and their absence

    def _answered(self, answer: Answer, tick: Tick) -> tuple[Phase, Action]:
        if answer.status in (200, 201):
            self._reauthenticated = False
            return self._succeeded(answer, tick)
        if answer.status == 429 or answer.status >= 500:
            code, detail = problem_of(answer)
            failed = self._appointment(answer, tick, suspect=answer.status >= 500)
            return self._fail(f"the server cannot answer now: {detail}", code, failed)
        if answer.status == 413 and self.phase is Phase.SYNCING and len(self._reading.events) > 1:
            self._too_large = True
            return self._prepare(len(self._reading.events) // 2)
        if self.phase is Phase.MANIFEST and answer.status == 304 and self._held is not None:
            return self._finish()
        if not is_the_servers_word(answer):
            code, _ = problem_of(answer)
            message = f"something else than the server answered, with {answer.status}"
            return self._fail(message, code, self._appointment(answer, tick))
        if self.phase is Phase.ROOT and answer.status == 404 and self._unbelieved is not None:
            raise self._unbelieved
        if challenge := challenge_of(answer) if self.phase is Phase.SYNCING and not self._challenge else "":
            self._challenge = challenge
            return self._send_sync(tick)
        code, detail = problem_of(answer)
        if code == "UNKNOWN_DEVICE" and self.phase is Phase.SYNCING and self._proof is not None:
            return self._enrol_again(self._proof, tick)
        if answer.status == 401 and not self._reauthenticated and self.phase in (Phase.SYNCING, Phase.MANIFEST):
            self._reauthenticated = True
            return self._send_sync(tick) if self.phase is Phase.SYNCING else self._send_manifest(tick)
        refusal = RemoteError(f"the server refused: {detail}", code=code)
        if self.phase is Phase.BLOB:
            return self._take_snapshot(refusal)
        raise refusal

    def _succeeded(self, answer: Answer, tick: Tick) -> tuple[Phase, Action]:
        match self.phase:
            case Phase.ROOT:
                return self._root_came(answer, tick)
            case Phase.BLOB:
                return self._blob_came(answer.body)
        self._raw = answer.body
        match self.phase:
            case Phase.SYNCING:
                self._challenge = ""
                return self._accept(tick)
            case Phase.AGAIN:
                return self._known_again(tick)
            case _:
                etag = answer.headers.get("etag", "")
                self._etag = etag if etag.isascii() and len(etag) <= 256 else ""  # it is sent back as it came
                return self._manifest_came(tick)

    def _appointment(self, answer: Answer | None, tick: Tick, *, suspect: bool = False) -> Failed:
        return appointment(self._reading, answer, tick, suspect=suspect and self.phase is Phase.SYNCING)

    def _fail(self, message: str, code: str, failed: Failed) -> tuple[Phase, Action]:
        return self._give_up(TryLater(message, next_attempt_at=failed.next_attempt_at, code=code), failed)

    def _give_up(self, error: TallystickError, failed: Failed) -> tuple[Phase, Action]:
        self._error = error
        return Phase.FAILING, Persist(failed)

    def _finish(self) -> tuple[Phase, Action]:
        """The end, once roots that nothing else was kept with are kept."""
        if self._roots:
            return Phase.KEEPING_ROOTS, Persist(KeepRoots(self._taken_roots()))
        return self._done()

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
