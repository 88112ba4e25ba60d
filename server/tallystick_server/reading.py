"""What an event of a till says, as far as it can be read: its envelope, and of a redemption its body."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec

from tallystick_shared.errors import InvalidInput, Untrusted
from tallystick_shared.journal import EVENT_BYTES_MAX, Envelope, RedeemBody, StoredEvent, read_envelope
from tallystick_shared.model import Order, order_json, parse_order
from tallystick_shared.signing import sha256_hex


class Applied(msgspec.Struct, frozen=True):
    code: str
    discount_minor: int
    lines: list[dict[str, str | int]]


class _Result(msgspec.Struct, frozen=True):
    applied: list[Applied]


_YEARS: Final = range(1970, 9999)
"""Of an event's time in UTC: further out a database or an arithmetic may not hold it."""
_BODY: Final = msgspec.json.Decoder(RedeemBody)
_RESULT: Final = msgspec.json.Decoder(_Result)


def open_envelope(stored: StoredEvent, seq: int) -> Envelope | None:
    """The envelope, or None where it cannot be read, is too large, of another place in the journal, or of no time."""
    try:
        envelope = read_envelope(stored.envelope)
    except Untrusted:
        return None
    too_large = len(stored.envelope) + len(stored.body) > EVENT_BYTES_MAX
    twice = len({use.voucher_id for use in envelope.uses}) != len(envelope.uses)
    return None if too_large or twice or envelope.seq != seq or not _is_a_time(envelope.at) else envelope


def _is_a_time(at: datetime) -> bool:
    try:
        return at.astimezone(UTC).year in _YEARS
    except OverflowError:
        return False


@dataclass(frozen=True)
class Sale:
    """The body of a redemption, as far as it can be read."""

    order: Order | None = None
    result: bytes = b"null"
    applied: tuple[Applied, ...] = ()
    content_sha256: str = ""


def content_digest(order: Order, codes: list[str]) -> str:
    """What was asked, the same for an online attempt and for the offline redemption it fell back to."""
    return sha256_hex(order_json(order) + b"\n" + "\n".join(codes).encode())


def read_body(stored: StoredEvent, envelope: Envelope) -> Sale | None:
    """None where it is not what the envelope has the digest of, or no redemption."""
    if sha256_hex(stored.body) != envelope.body_sha256:
        return None
    try:
        body = _BODY.decode(stored.body)
        order = parse_order(bytes(body.order))
        applied = tuple(_RESULT.decode(body.result).applied)
        return Sale(order, bytes(body.result), applied, content_digest(order, body.codes))
    except (msgspec.DecodeError, UnicodeError, InvalidInput, RecursionError):
        return None
