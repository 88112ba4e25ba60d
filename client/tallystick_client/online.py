"""One online redemption, as a state machine without I/O like `machine`. Source: protocol.md, section 6.

kept with its id -> sent -> what the server said is kept. Without an answer the same id is redeemed offline, and the
server counts it once. An answer that cannot be read is no answer.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from tallystick_client.actions import (
    Action,
    Answer,
    BeginOnline,
    Done,
    Event,
    FallBack,
    FinishOnline,
    Kept,
    LineDown,
    Persist,
    Send,
    Tick,
    Woken,
    problem_of,
)
from tallystick_client.errors import TallystickError
from tallystick_shared.engine import Result
from tallystick_shared.errors import CallerError, RemoteError
from tallystick_shared.signing import SigningKey, Typ
from tallystick_shared.wire import API, RedeemAnswer

ANSWER_BYTES_MAX = 4 * 1024 * 1024
TIMEOUT_S = 8.0
"""A customer stands at the till, and it can go on without an answer."""


class Phase(Enum):
    IDLE = "idle"
    BEGINNING = "beginning"
    ASKING = "asking"
    KEEPING = "keeping"
    DONE = "done"


class OnlineRedemption:
    """`request` is the encoded `RedeemRequest` with the id."""

    def __init__(self, redemption_id: str, request: bytes, key: SigningKey) -> None:
        self.phase = Phase.IDLE
        self._id, self._request, self._key = redemption_id, request, key
        self._error: TallystickError | None = None

    def step(self, event: Event, tick: Tick) -> Action:
        """The next action, `Done` with a `Receipt` at last; `Woken` starts it."""
        try:
            self.phase, action = self._handle(event)
        except TallystickError as error:
            self.phase, action = Phase.DONE, Done(None, error)
        return action

    def _handle(self, event: Event) -> tuple[Phase, Action]:
        match self.phase, event:
            case Phase.IDLE, Woken():
                return Phase.BEGINNING, Persist(BeginOnline(self._id, self._request))
            case Phase.BEGINNING, Kept():
                headers = {"content-type": "application/jose", "accept": "application/json"}
                body = self._key.sign(Typ.REDEEM, self._request)
                return Phase.ASKING, Send("POST", f"{API}/redemptions", headers, body, ANSWER_BYTES_MAX, TIMEOUT_S)
            case Phase.ASKING, LineDown():
                return Phase.KEEPING, Persist(FallBack(self._id))
            case Phase.ASKING, Answer():
                return Phase.KEEPING, Persist(self._said(event))
            case Phase.KEEPING, Kept():
                return Phase.DONE, Done(event.receipt, self._error)
        raise RuntimeError(f"no way on from {self.phase.value}")

    def _said(self, answer: Answer) -> FinishOnline | FallBack:
        if answer.status == 429 or answer.status >= 500:
            return FallBack(self._id)
        if answer.status not in (200, 201):
            code, detail = problem_of(answer)
            family = CallerError if answer.status in (400, 409, 413, 422) else RemoteError
            self._error = family(f"the server refused: {detail}", code=code)
            return FinishOnline(self._id, None)
        try:
            said = msgspec.json.decode(answer.body, type=RedeemAnswer)
            msgspec.json.decode(said.result, type=Result)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return FallBack(self._id)
        return FallBack(self._id) if said.id != self._id else FinishOnline(self._id, said)
