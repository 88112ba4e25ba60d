"""Voids and partial returns, from the shares frozen in the redemption. Source: protocol.md, section 6; engine.md.

A void gives the voucher's unit back and what is left of its amount; a partial return gives back the amount of the units
that came back, and no unit. In cash no more is ever given back than was paid in cash: what the units that came back are
worth beyond that goes back to the gift cards that paid it. No cap and no state of the till ever stops one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence

import msgspec

from tallystick_client.arguments import as_id, as_reason, as_returned
from tallystick_client.attempts import close_attempt, earlier_void
from tallystick_client.errors import CallerError, InvalidInput
from tallystick_client.journal import Writing, new_id
from tallystick_client.reports import VoidReceipt
from tallystick_client.terminal import Terminal, count_customer, find_entries
from tallystick_shared.engine import Applied, Result, ResultLine
from tallystick_shared.journal import EventType, RedeemBody, Returned, Use, VoidBody, encode, read_envelope
from tallystick_shared.model import Order, parse_order
from tallystick_shared.money import refund_minor
from tallystick_shared.wire import RedeemAnswer, RedeemRequest


class _Redemption(msgspec.Struct, frozen=True):
    """What was redeemed. `uses` are one for each of `result.applied`, in that order."""

    id: str
    order: Order
    result: Result
    uses: list[Use]


def void(
    terminal: Terminal,
    redemption_id: str,
    returned: Iterable[Returned] = (),
    reason: str = "",
    *,
    void_id: str | None = None,
) -> VoidReceipt:
    """Voids a redemption of this till, or takes back some units of it; returns once it is committed. Steps:

    1. the same id with the same redemption and units again: the receipt it had; with others: `IDENTIFIER_REUSED`
    2. it must not be voided yet
    3. the redemption, as it was frozen; no more units come back than were sold
    4. what the customer gets back, and what each voucher gets back
    5. the event, and what this till remembers of it

    `reason` is no part of what is asked for. Raises `CallerError` (`UNKNOWN_REDEMPTION`, `ALREADY_VOIDED`,
    `IDENTIFIER_REUSED`, `ERASED`), `InvalidInput`, `StorageError`; then nothing was given back, but where that is
    `UNCERTAIN`: then asking again with the same id tells.
    """
    as_id(redemption_id, "redemption_id")
    returned = as_returned(returned)
    with terminal.journal.write() as writing:
        # 1
        if void_id is not None:
            earlier = earlier_void(writing, as_id(void_id), redemption_id, _by_line(returned))
            if earlier is not None:
                return earlier
        # 2
        if writing.run("SELECT 1 FROM voids WHERE redemption_id = ?", (redemption_id,)).fetchone():
            raise CallerError(f"{redemption_id} was voided before", code="ALREADY_VOIDED")
        # 3
        redemption = _find(terminal, writing, redemption_id)
        before = dict(
            writing.run("SELECT line_id, units FROM returns WHERE redemption_id = ?", (redemption_id,)).fetchall()
        )
        now = _merged(redemption.order, before, returned)
        if now and not redemption.result.lines:
            raise CallerError(
                f"no answer came for {redemption_id}, so what it gave is not known here: void it as a whole",
                code="UNKNOWN_REDEMPTION",
            )
        # 4
        refund, uses = _to_give_back(redemption, before, now)
        # 5
        judged = terminal.judged(writing)
        void_id = void_id or new_id(judged.at)
        lines = [Returned(line_id, units) for line_id, units in now.items()]
        body = VoidBody(as_reason(reason), refund, lines, salt=secrets.token_hex(16))
        writing.append(EventType.VOID, void_id, judged, encode(body), uses=uses, ref=redemption_id)
        for line in lines:
            writing.execute(
                "INSERT INTO returns VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET units = units + excluded.units",
                (redemption_id, line.line_id, line.units),
            )
        if not now:
            writing.execute("INSERT INTO voids VALUES (?, ?)", (redemption_id, void_id))
            close_attempt(writing, redemption_id, "refused")
            _forget_customer(terminal, writing, redemption)
        return VoidReceipt(void_id, refund, redemption.result.currency)


def _find(terminal: Terminal, view: Writing, redemption_id: str) -> _Redemption:
    row = view.run("SELECT envelope, body FROM events WHERE id = ? AND type = 'redeem'", (redemption_id,)).fetchone()
    erased = row is not None and not row[1]
    if row is not None:
        envelope = read_envelope(row[0])
        if row[1]:
            body = msgspec.json.decode(row[1], type=RedeemBody)
            result = msgspec.json.decode(body.result, type=Result)
            return _Redemption(redemption_id, parse_order(bytes(body.order)), result, envelope.uses)
    row = view.run(
        "SELECT state, request, answer FROM attempts WHERE id = ? AND state IN ('redeemed', 'pending')",
        (redemption_id,),
    ).fetchone()
    if row is not None and row[0] == "redeemed":
        return _redeemed_online(terminal, view, redemption_id, row[1], row[2])
    if row is not None:
        return _without_answer(redemption_id, row[1])
    if erased:
        raise CallerError(
            f"the order of {redemption_id} was erased from this till, which cannot void it", code="ERASED"
        )
    raise CallerError(
        f"this till does not know the redemption {redemption_id}: only the till that redeemed it can void it",
        code="UNKNOWN_REDEMPTION",
    )


def _redeemed_online(
    terminal: Terminal, view: Writing, redemption_id: str, request: bytes, answer: bytes
) -> _Redemption:
    order = parse_order(bytes(msgspec.json.decode(request, type=RedeemRequest).order))
    result = msgspec.json.decode(msgspec.json.decode(answer, type=RedeemAnswer).result, type=Result)
    bundle = terminal.bundle(view)
    uses = []
    for applied in result.applied:
        entry = None if bundle is None else next(iter(find_entries(bundle, [applied.code]).values()), None)
        if entry is None:
            raise CallerError(
                f"{applied.code} was redeemed online and is not on this till: the operator has to void it",
                code="UNKNOWN_REDEMPTION",
            )
        uses.append(Use(entry.id, entry.revision_sha256, None, 1, applied.discount_minor))
    return _Redemption(redemption_id, order, result, uses)


def _without_answer(redemption_id: str, request: bytes) -> _Redemption:
    """An attempt whose answer was lost: a void without uses, and the server voids all that it has of it, if anything.

    The customer got nothing for it here, so there is nothing to pay back.
    """
    order = parse_order(bytes(msgspec.json.decode(request, type=RedeemRequest).order))
    return _Redemption(redemption_id, order, Result(order.currency, 0, 0, 0, 0, 0, 0, (), (), ()), [])


def _by_line(returned: Sequence[Returned]) -> dict[str, int]:
    units: dict[str, int] = {}
    for one in returned:
        units[one.line_id] = units.get(one.line_id, 0) + one.units
    return units


def _merged(order: Order, before: dict[str, int], returned: Sequence[Returned]) -> dict[str, int]:
    """Units that come back now, by line; checked against what was sold and came back before."""
    quantities = {line.id: line.quantity for line in order.lines}
    now: dict[str, int] = {}
    for index, one in enumerate(returned):
        if one.line_id not in quantities:
            raise InvalidInput(f"returned[{index}].line_id", "must be a line of the redemption", repr(one.line_id)[:80])
        now[one.line_id] = now.get(one.line_id, 0) + one.units
        left = quantities[one.line_id] - before.get(one.line_id, 0)
        if now[one.line_id] > left:
            raise InvalidInput(f"returned[{index}].units", f"must be 1 to {left}, what is left of line {one.line_id}",
                               str(now[one.line_id]))  # fmt: skip
    return now


def _to_give_back(redemption: _Redemption, before: dict[str, int], now: dict[str, int]) -> tuple[int, list[Use]]:
    """To the customer, and to the voucher of each use; `before`, `now`: units by line, none now for all that is left.

    Of a partial return too every use, if with nothing: a void without uses is of all that the server has.
    """
    had, had_minors = _given(redemption, before)
    refund, minors = redemption.result.total_minor, [use.minor for use in redemption.uses]
    if now:
        refund, minors = _given(
            redemption, {line_id: before.get(line_id, 0) + now.get(line_id, 0) for line_id in {**before, **now}}
        )
    uses = [
        Use(use.voucher_id, use.revision_sha256, None, 0 if now else use.units, minor - had_minor)
        for use, minor, had_minor in zip(redemption.uses, minors, had_minors, strict=True)
    ]
    return refund - had, uses


def _given(redemption: _Redemption, back: dict[str, int]) -> tuple[int, list[int]]:
    """What was given back in all once these units of each line are back: in cash, and to the voucher of each use."""
    order, result = redemption.order, redemption.result
    worth = _worth(order, result.lines, back)
    minors = [_full_price(order, applied, back) - _worth(order, applied.lines, back) for applied in result.applied]
    cash = min(worth, result.total_minor)
    to_cards, card_minor = worth - cash, result.paid_by_gift_card_minor
    for index in reversed(range(len(minors))):  # gift cards are the last to be applied
        paid = min(card_minor, result.applied[index].discount_minor)
        minors[index] += min(to_cards, paid)
        to_cards, card_minor = max(0, to_cards - paid), card_minor - paid
    return cash, minors


def _worth(order: Order, shares: Sequence[ResultLine], back: dict[str, int]) -> int:
    """What these units cost after these shares, spread on a line's units as `refund_minor` does."""
    by_line = {line.id: line.discount_minor for line in shares}
    return sum(
        refund_minor(line.unit_price_minor, line.quantity, by_line[line.id], 0, back[line.id])
        for line in order.lines
        if line.id in back and line.id in by_line
    )


def _full_price(order: Order, applied: Applied, back: dict[str, int]) -> int:
    """What these units cost before any discount, of the lines that this voucher has a share of."""
    lines = {line.id for line in applied.lines}
    return sum(line.unit_price_minor * back[line.id] for line in order.lines if line.id in back and line.id in lines)


def _forget_customer(terminal: Terminal, writing: Writing, redemption: _Redemption) -> None:
    """A voided redemption is none of the customer's uses any more."""
    bundle = terminal.readable_bundle(writing)
    if bundle is not None:
        for entry in find_entries(bundle, [applied.code for applied in redemption.result.applied]).values():
            count_customer(writing, entry, redemption.order, -1)
