"""One online redemption, as a state machine without I/O like `machine`. Source: protocol.md, section 6.

kept with its id -> sent -> what the server said is kept. Without an answer the same id is redeemed offline, and the
server counts it once. An answer that cannot be read, or that somebody else on the line gave, is no answer. A refusal
closes the attempt only where its code proves that the server has nothing under this id.
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
    is_the_servers_word,
    problem_of,
)
from tallystick_client.errors import TallystickError
from tallystick_client.reports import Receipt
from tallystick_client.trust import Trusted
from tallystick_shared.engine import Reason, Result
from tallystick_shared.errors import CallerError, RemoteError, Untrusted
from tallystick_shared.journal import encode
from tallystick_shared.model import Order, parse_order
from tallystick_shared.signing import NOT_JSON, SigningKey, Typ, sha256_hex
from tallystick_shared.wire import API, RedeemRequest

ANSWER_BYTES_MAX = 4 * 1024 * 1024
TIMEOUT_S = 8.0
"""For a whole answer: a customer stands at the till, and it can go on without one."""


class Phase(Enum):
    IDLE = "idle"
    BEGINNING = "beginning"
    ASKING = "asking"
    KEEPING = "keeping"
    DONE = "done"


class OnlineRedemption:
    """`request` has the id, and the device whose `key` signs it; `earlier`: what this id gave for this sale before."""

    def __init__(
        self, request: RedeemRequest, key: SigningKey, trusted: Trusted, earlier: Receipt | None = None
    ) -> None:
        self.phase = Phase.IDLE
        self._asked, self._id, self._device = request, request.id, request.device or ""
        self._body = key.sign(Typ.REDEEM, encode(request))
        self._trusted, self._earlier = trusted, earlier
        self._error: TallystickError | None = None
        self._unknown_key = False

    def step(self, event: Event, tick: Tick) -> Action:
        """The next action, `Done` with a `Receipt` at last; `Woken` starts it."""
        try:
            self.phase, action = self._handle(event, tick)
        except TallystickError as error:
            self.phase, action = Phase.DONE, Done(None, error)
        return action

    def _handle(self, event: Event, tick: Tick) -> tuple[Phase, Action]:
        match self.phase, event:
            case Phase.IDLE, Woken():
                if self._earlier is not None:
                    return Phase.DONE, Done(self._earlier)
                return Phase.BEGINNING, Persist(BeginOnline(self._id, encode(self._asked)))
            case Phase.BEGINNING, Kept():
                headers = {"content-type": "application/jose", "accept": "application/jose"}
                send = Send("POST", f"{API}/redemptions", headers, self._body, ANSWER_BYTES_MAX, TIMEOUT_S, TIMEOUT_S)
                return Phase.ASKING, send
            case Phase.ASKING, LineDown():
                return Phase.KEEPING, Persist(FallBack(self._id))
            case Phase.ASKING, Answer():
                return Phase.KEEPING, Persist(self._said(event, tick))
            case Phase.KEEPING, Kept():
                return Phase.DONE, Done(event.receipt, self._error or self._missed(event.receipt))
        raise RuntimeError(f"no way on from {self.phase.value}")

    def _said(self, answer: Answer, tick: Tick) -> FinishOnline | FallBack:
        """Raises `RemoteError` where the server may have the id all the same: then the attempt stays open."""
        if answer.status not in (200, 201):
            return self._refused(answer)
        try:
            digest = sha256_hex(self._body)
            said = self._trusted.redeemed(answer.body, device=self._device, request_sha256=digest, now=tick.at)
            result = msgspec.json.decode(said.result, type=Result)
        except (Untrusted, *NOT_JSON) as error:
            self._unknown_key = isinstance(error, Untrusted) and error.code == "UNKNOWN_KEY"
            return FallBack(self._id)  # nobody's word; the server counts the id once, whatever it has of it
        if said.id != self._id:
            return FallBack(self._id)
        demand_result_of(parse_order(bytes(self._asked.order)), result)
        return FinishOnline(self._id, said)

    def _missed(self, receipt: Receipt | None) -> RemoteError | None:
        """Where only the server can redeem, and may have, but its key is of a root that this till does not know yet."""
        if not self._unknown_key or receipt is None or receipt.redeemed:
            return None
        if all(one.reason is not Reason.NEEDS_CONNECTION for one in receipt.result.refused):
            return None
        sentence = (
            "the answer is signed with a key that this till does not know: sync this till first, then redeem the same "
            "order and codes again, online, and it is counted once"
        )
        return RemoteError(sentence, code="UNKNOWN_KEY")

    def _refused(self, answer: Answer) -> FinishOnline | FallBack:
        if answer.status == 429 or not is_the_servers_word(answer):
            return FallBack(self._id)
        code, detail = problem_of(answer)
        if code == "UNKNOWN_DEVICE":
            return FallBack(self._id)  # a server restored from a backup: the next sync makes this till known again
        family = CallerError if answer.status in (400, 409, 413, 422) else RemoteError
        error = family(f"the server refused: {detail}", code=code)
        if answer.status not in (400, 413, 422) and code != "IDENTIFIER_REUSED":
            raise error
        self._error = error
        return FinishOnline(self._id, None)


def demand_result_of(order: Order, result: Result) -> None:
    """That it can be a result of this order, whoever made it: voids reckon with it. Raises `Untrusted`."""
    prices = {line.id: line.quantity * line.unit_price_minor for line in order.lines}
    shares = [*result.lines, *(share for one in result.applied for share in one.lines)]
    amounts = [result.discount_minor, *(one.discount_minor for one in result.applied)]
    amounts += [result.shipping_discount_minor, result.paid_by_gift_card_minor, result.total_minor]
    off = result.discount_minor + result.shipping_discount_minor + result.paid_by_gift_card_minor
    if not (
        result.currency == order.currency
        and [line.id for line in result.lines] == list(prices)
        and all(0 <= share.discount_minor <= prices.get(share.id, -1) for share in shares)
        and min(amounts) >= 0
        and result.subtotal_minor == sum(prices.values()) >= result.discount_minor
        and result.shipping_minor == order.shipping_minor
        and result.total_minor == result.subtotal_minor + result.shipping_minor - off
        and off == sum(one.discount_minor for one in result.applied)
    ):
        raise Untrusted("what the server answered is no result of this order", code="NOT_THIS_ORDER")
