"""What a caller asks for, checked before anything is opened. Raises `InvalidInput`, which names the argument."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tallystick_client.errors import InvalidInput
from tallystick_shared.codes import fold
from tallystick_shared.journal import Returned
from tallystick_shared.model import Order, parse_order

CODES_MAX = 32
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

OrderInput = Order | bytes | str | Mapping[str, Any]


def as_order(order: OrderInput) -> Order:
    return order if isinstance(order, Order) else parse_order(order)


def as_codes(codes: Sequence[str]) -> list[str]:
    """At most `CODES_MAX`, each one that can be a code."""
    if isinstance(codes, str) or not isinstance(codes, Sequence) or not all(isinstance(code, str) for code in codes):
        raise InvalidInput("codes", "must be a list of text")
    if len(codes) > CODES_MAX:
        raise InvalidInput("codes", f"must be at most {CODES_MAX}", str(len(codes)))
    for index, code in enumerate(codes):
        try:
            fold(code)
        except InvalidInput as error:
            raise error.under(f"codes[{index}]") from None
    return list(codes)


def as_id(text: str, path: str = "id") -> str:
    if not isinstance(text, str) or not _UUID.fullmatch(text):
        raise InvalidInput(path, "must be a UUID in lower case, as in 01920000-0000-7000-8000-000000000000")
    return text


def as_returned(returned: Iterable[Returned]) -> list[Returned]:
    """Lines and units by their types: what is no whole number would be money that is none."""
    if not isinstance(returned, Iterable):
        raise InvalidInput("returned", "must be a list of lines with their units", repr(returned)[:80])
    lines = list(returned)
    for index, one in enumerate(lines):
        if not isinstance(one, Returned):
            raise InvalidInput(f"returned[{index}]", "must be a line with its units (Returned)", repr(one)[:80])
        if not isinstance(one.line_id, str):
            raise InvalidInput(f"returned[{index}].line_id", "must be text", repr(one.line_id)[:80])
        if type(one.units) is not int or one.units < 1:
            raise InvalidInput(f"returned[{index}].units", "must be a whole number from 1", repr(one.units)[:80])
    return lines


def as_reason(reason: str) -> str:
    """At most 500 characters; what is no text (half a surrogate pair, a byte of another encoding) becomes `?`."""
    if not isinstance(reason, str):
        raise InvalidInput("reason", "must be text", repr(reason)[:80])
    return reason[:500].encode("utf-8", "replace").decode("utf-8")
