"""Enrolling a till, as a state machine without I/O like `machine`. Source: protocol.md, section 4.

key kept -> pinned root -> later roots, up to the last -> `POST /v1/devices` -> verified answer kept. The key is on the
disk before it is used, so that after a crash the same token with the same key gives the same answer.
"""

from __future__ import annotations

from enum import Enum

from tallystick_client import requests
from tallystick_client.actions import (
    Action,
    Answer,
    Done,
    Event,
    KeepEnrolment,
    KeepKey,
    Kept,
    LineDown,
    Persist,
    Proof,
    Send,
    Tick,
    Woken,
    problem_of,
)
from tallystick_client.errors import TallystickError
from tallystick_client.trust import Trusted
from tallystick_shared.errors import CallerError, LineError, RemoteError
from tallystick_shared.journal import encode
from tallystick_shared.signing import SigningKey, Typ, sha256_hex
from tallystick_shared.wire import API, EnrolmentToken, EnrolRequest

_ANSWER_BYTES_MAX = 64 * 1024


class Phase(Enum):
    IDLE = "idle"
    KEEPING_KEY = "keeping key"
    PINNED_ROOT = "pinned root"
    LATER_ROOT = "later root"
    ENROLLING = "enrolling"
    KEEPING = "keeping"
    DONE = "done"


class Enrolment:
    """`key`: the till's own new key, or the one an earlier enrolment that was cut off left behind."""

    def __init__(self, token: EnrolmentToken, name: str, key: SigningKey) -> None:
        self.phase = Phase.IDLE
        self._token, self._name, self._key = token, name, key
        self._trusted: Trusted
        self._root = b""
        self._request = b""

    def step(self, event: Event, tick: Tick) -> Action:
        """The next action, `Done` at last; `Woken` starts it."""
        try:
            self.phase, action = self._handle(event, tick)
        except TallystickError as error:
            self.phase, action = Phase.DONE, Done(None, error)
        return action

    def _handle(self, event: Event, tick: Tick) -> tuple[Phase, Action]:
        match self.phase, event:
            case Phase.IDLE, Woken():
                return Phase.KEEPING_KEY, Persist(KeepKey(self._key.to_bytes()))
            case Phase.KEEPING_KEY, Kept():
                return Phase.PINNED_ROOT, requests.root(self._token.root_version)
            case Phase.KEEPING, Kept():
                return Phase.DONE, Done(None)
            case _, LineDown():
                raise LineError(f"there is no line to the server ({event.why})")
            case Phase.PINNED_ROOT, Answer(status=200):
                version, sha256 = self._token.root_version, self._token.root_sha256
                self._trusted = Trusted.pin(event.body, version=version, sha256=sha256)
                self._root = event.body
                return Phase.LATER_ROOT, requests.root(version + 1)
            case Phase.LATER_ROOT, Answer(status=200):
                self._trusted = self._trusted.next_root(event.body)
                self._root = event.body
                return Phase.LATER_ROOT, requests.root(self._trusted.root.version + 1)
            case Phase.LATER_ROOT, Answer(status=404):
                return Phase.ENROLLING, self._enrol()
            case Phase.ENROLLING, Answer(status=200 | 201):
                digest = sha256_hex(self._request)
                enrolled = self._trusted.enrolled(event.body, request_sha256=digest, now=tick.clock.at)
                version = self._trusted.root.version
                proof = Proof(self._request, event.body)
                return Phase.KEEPING, Persist(KeepEnrolment(enrolled, self._root, version, proof))
            case _, Answer():
                raise _refusal(event)
        raise RuntimeError(f"no way on from {self.phase.value}")

    def _enrol(self) -> Send:
        request = EnrolRequest(token=self._token.secret, jwk=self._key.jwk(), name=self._name)
        self._request = self._key.sign(Typ.ENROL, encode(request))
        headers = {"content-type": "application/jose", "accept": "application/jose"}
        return Send("POST", f"{API}/devices", headers, self._request, _ANSWER_BYTES_MAX)


def _refusal(answer: Answer) -> TallystickError:
    code, detail = problem_of(answer)
    if answer.status == 429 or answer.status >= 500:
        return LineError(f"the server cannot answer now: {detail}", code=code)
    if answer.status in (401, 403, 409, 410, 422, 400):
        return CallerError(f"the server refused the enrolment: {detail}", code=code)
    return RemoteError(f"there is no Tallystick server at this address: {detail}", code=code)
