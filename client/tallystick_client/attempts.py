"""What this till knows of an id that was given out before: an event in the journal, or an attempt to redeem online.

An attempt is pending until the server's answer is kept, or until the same order is redeemed here under the same id.
A void whose event was purged is still known by its id where it was of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from tallystick_client.errors import CallerError
from tallystick_client.journal import Writing
from tallystick_client.reports import Receipt, VoidReceipt
from tallystick_shared.engine import Result
from tallystick_shared.journal import EventType, RedeemBody, VoidBody, encode, read_envelope
from tallystick_shared.model import Order, order_json
from tallystick_shared.signing import sha256_hex
from tallystick_shared.wire import RedeemAnswer


def fingerprint_of(order: bytes, codes: Sequence[str]) -> str:
    """Of one sale; `order` as `order_json` gives it."""
    return sha256_hex(order + b"\n" + encode(list(codes)))


def pending_id(view: Writing, order: Order, codes: Sequence[str]) -> str | None:
    """The id of an attempt at this sale that was cut off before its answer: the server may have it under this id."""
    fingerprint = fingerprint_of(order_json(order), codes)
    row = view.run(
        "SELECT id FROM attempts WHERE fingerprint = ? AND state = 'pending'"
        " AND id NOT IN (SELECT redemption_id FROM voids)",
        (fingerprint,),
    ).fetchone()
    return None if row is None else str(row[0])


def close_attempt(writing: Writing, redemption_id: str, state: str, answer: bytes | None = None) -> bool:
    """Whether it was pending; else it stays what it was."""
    closed = writing.execute(
        "UPDATE attempts SET state = ?, answer = ? WHERE id = ? AND state = 'pending' RETURNING id",
        (state, answer, redemption_id),
    )
    return bool(closed.fetchall())


def is_voided(view: Writing, redemption_id: str) -> bool:
    return view.run("SELECT 1 FROM voids WHERE redemption_id = ?", (redemption_id,)).fetchone() is not None


def earlier_receipt(view: Writing, redemption_id: str, order: Order, codes: list[str]) -> Receipt | None:
    """What this id gave for this sale, here or online. Raises `CallerError` (`IDENTIFIER_REUSED`) for another sale, for
    one that was voided, and for the id of a void."""
    reused = _reused(redemption_id)
    if view.run("SELECT 1 FROM voids WHERE redemption_id = ? OR void_id = ?", (redemption_id,) * 2).fetchone():
        raise reused
    row = view.run("SELECT type, envelope, body FROM events WHERE id = ?", (redemption_id,)).fetchone()
    if row is not None:
        kind, envelope, raw = row
        if kind == EventType.REDEEM.value and raw:
            body = msgspec.json.decode(raw, type=RedeemBody)
            if bytes(body.order) == order_json(order) and body.codes == codes:
                result = msgspec.json.decode(body.result, type=Result)
                return Receipt(redemption_id, read_envelope(envelope).at, True, result)
        raise reused
    row = view.run("SELECT fingerprint, state, answer FROM attempts WHERE id = ?", (redemption_id,)).fetchone()
    if row is None:
        if view.run("SELECT 1 FROM returns WHERE redemption_id = ?", (redemption_id,)).fetchone():
            raise reused  # it was redeemed, and what of is not known any more
        return None
    fingerprint, state, answer = row
    if fingerprint != fingerprint_of(order_json(order), codes):
        raise reused
    if state != "redeemed":
        return None
    said = msgspec.json.decode(answer, type=RedeemAnswer)
    return Receipt(redemption_id, said.at, True, msgspec.json.decode(said.result, type=Result), online=True)


class _Order(msgspec.Struct):
    currency: str


class _Sale(msgspec.Struct):
    """The body of a redemption, and a request to redeem online."""

    order: _Order


def earlier_void(view: Writing, void_id: str, redemption_id: str, returned: Mapping[str, int]) -> VoidReceipt | None:
    """What this id gave for a void of this redemption; `returned`: units by line, none for the whole of it.

    Raises `CallerError`: `IDENTIFIER_REUSED` for anything else, `ERASED` where what is left does not tell.
    """
    row = view.run("SELECT type, ref, body FROM events WHERE id = ?", (void_id,)).fetchone()
    if row is None:
        taken = view.run(
            "SELECT 1 FROM attempts WHERE id = ? UNION ALL SELECT 1 FROM returns WHERE redemption_id = ? UNION ALL"
            " SELECT 1 FROM voids WHERE redemption_id = ? OR (void_id = ? AND redemption_id <> ?)",
            (void_id, void_id, void_id, void_id, redemption_id),
        )
        if taken.fetchone():
            raise _reused(void_id)
        return None
    kind, ref, raw = row
    if kind != EventType.VOID.value or ref != redemption_id:
        raise _reused(void_id)
    made = f"{void_id} is a void of {redemption_id} that was made before"
    if not raw:
        raise CallerError(f"{made}; what it gave back was erased from this till", code="ERASED")
    body = msgspec.json.decode(raw, type=VoidBody)
    if {line.line_id: line.units for line in body.returned} != returned:
        raise _reused(void_id)
    sale = view.run(
        "SELECT body FROM events WHERE id = ? AND type = 'redeem' AND body <> x''"
        " UNION ALL SELECT request FROM attempts WHERE id = ?",
        (redemption_id, redemption_id),
    ).fetchone()
    if sale is None:
        paid = f"it gave back {body.refund_minor} minor units"
        raise CallerError(f"{made}: {paid}, of a currency that this till does not know any more", code="ERASED")
    return VoidReceipt(void_id, body.refund_minor, msgspec.json.decode(sale[0], type=_Sale).order.currency)


def _reused(used: str) -> CallerError:
    return CallerError(f"the id {used} was used for something else before", code="IDENTIFIER_REUSED")
