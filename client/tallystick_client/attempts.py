"""What this till knows of an id that was given out before: a redemption in the journal, or an attempt to redeem online.

An attempt is pending until the server's answer is kept, or until the same order is redeemed here under the same id.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tallystick_client.errors import CallerError
from tallystick_client.journal import Writing
from tallystick_client.reports import Receipt
from tallystick_shared.engine import Result
from tallystick_shared.journal import EventType, RedeemBody, encode, read_envelope
from tallystick_shared.model import Order, order_json
from tallystick_shared.signing import sha256_hex
from tallystick_shared.wire import RedeemAnswer


def fingerprint_of(order: bytes, codes: Sequence[str]) -> str:
    """Of one sale; `order` as `order_json` gives it."""
    return sha256_hex(order + b"\n" + encode(list(codes)))


def pending_id(view: Writing, order: Order, codes: Sequence[str]) -> str | None:
    """The id of an attempt at this sale that was cut off before its answer: the server may have it under this id."""
    fingerprint = fingerprint_of(order_json(order), codes)
    row = view.run("SELECT id FROM attempts WHERE fingerprint = ? AND state = 'pending'", (fingerprint,)).fetchone()
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
    """What this id gave for this sale, here or online. Raises `CallerError` (`IDENTIFIER_REUSED`) for another sale, and
    for one that was voided."""
    reused = CallerError(f"the id {redemption_id} was used for something else before", code="IDENTIFIER_REUSED")
    if is_voided(view, redemption_id):
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
        return None
    fingerprint, state, answer = row
    if fingerprint != fingerprint_of(order_json(order), codes):
        raise reused
    if state != "redeemed":
        return None
    said = msgspec.json.decode(answer, type=RedeemAnswer)
    return Receipt(redemption_id, said.at, True, msgspec.json.decode(said.result, type=Result), online=True)
