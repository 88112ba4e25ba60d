"""Whom a redemption's body names, read without the rest of its order."""

from __future__ import annotations

import msgspec

from tallystick_shared.errors import Untrusted


class _Customer(msgspec.Struct):
    id: str | None = None


class _Order(msgspec.Struct):
    customer: _Customer | None = None


class _Body(msgspec.Struct):
    order: _Order | None = None


_BODY = msgspec.json.Decoder(_Body)


def customer_of(body: bytes) -> str | None:
    """The customer's id, as long and odd as it may be. Raises `Untrusted` (`UNREADABLE`) where this is no body."""
    try:
        order = _BODY.decode(body).order
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Untrusted(f"the body cannot be read: {error}", code="UNREADABLE") from error
    return None if order is None or order.customer is None else order.customer.id
