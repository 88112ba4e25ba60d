"""The model's face: every struct, and the functions that read and write them.

Whatever comes through `parse_order`, `parse_voucher` or `parse_request` is complete and consistent; the engine checks
nothing again. All of them raise `InvalidInput` and nothing else, naming the exact path. Source: engine.md.

In JSON a key repeated in one object is refused. A `null` for an optional field is the same as leaving it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec

from . import codes
from .checks import check_order, checked_voucher, policy_by_default
from .contradictions import refuse_contradictions
from .door import Door, encode, schema_hook, shown
from .errors import InvalidInput
from .terms import (
    OFFLINE_BY_DEFAULT,
    Bogo,
    BundlePrice,
    Buy,
    Case,
    Condition,
    Conditional,
    Customer,
    Discount,
    Fixed,
    FixedPrice,
    Get,
    GiftCard,
    Hours,
    Items,
    Limits,
    Line,
    Moment,
    Offline,
    Order,
    Percent,
    Percentage,
    PlainDiscount,
    Policy,
    Shipping,
    Stacking,
    Tier,
    Tiered,
    Usage,
    Voucher,
)

__all__ = [
    "Bogo", "BundlePrice", "Buy", "Case", "Condition", "Conditional", "Customer", "Discount", "Fixed", "FixedPrice",
    "Get", "GiftCard", "Hours", "Items", "Limits", "Line", "Moment", "Offline", "Order", "Percent", "Percentage",
    "PlainDiscount", "Policy", "Request", "Shipping", "Stacking", "Tier", "Tiered", "Usage", "Voucher", "load_voucher",
    "order_json", "parse_order", "parse_request", "parse_voucher", "schema_hook", "voucher_json",
]  # fmt: skip

REQUEST_VOUCHERS_MAX: Final = 100_000
REQUEST_CODES_MAX: Final = 10_000

Raw: TypeAlias = bytes | bytearray | memoryview | str | Mapping[str, Any]
"""JSON text, or the plain Python objects it would give."""


class Request(msgspec.Struct, frozen=True):
    """The document of `tallystick evaluate`. `codes` None: all vouchers; `usage` None: limits are not checked.

    `usage` is by folded code, as `engine.evaluate` takes it.
    """

    order: Order
    vouchers: tuple[Voucher, ...]
    at: datetime
    codes: tuple[str, ...] | None = None
    usage: dict[str, Usage] | None = None


class _RequestDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    order: Order
    vouchers: tuple[Voucher, ...]
    at: Moment
    codes: tuple[str, ...] | None = None
    usage: dict[str, Any] | None = None


_ORDERS: Final = Door(Order)
_VOUCHERS: Final = Door(Voucher)
_REQUESTS: Final = Door(_RequestDocument)
_USAGES: Final = Door(Usage)


def parse_order(raw: Raw) -> Order:
    """An order from JSON text or a plain dict; money in minor units of its `currency`. Raises `InvalidInput`."""
    order: Order = _ORDERS.read(raw)
    check_order(order)
    return order


def parse_voucher(raw: Raw, *, default_currency: str | None = None) -> Voucher:
    """A voucher from JSON text or a plain dict, its code trimmed, its offline policy filled in.

    `default_currency` is filled in where a currency is needed and missing; without it that is an error at `currency`.
    Raises `InvalidInput`.
    """
    voucher: Voucher = _VOUCHERS.read(raw)
    return _publishable(voucher, default_currency)


def _publishable(voucher: Voucher, default_currency: str | None) -> Voucher:
    voucher = checked_voucher(voucher, default_currency)
    if codes.fold(voucher.code).startswith(codes.HIDDEN_PREFIX):
        expected = f"must not begin with {codes.HIDDEN_PREFIX}, which only the digest of a hidden code does"
        raise InvalidInput("code", expected, shown(voucher.code))
    refuse_contradictions(voucher)
    return voucher


def load_voucher(raw: bytes | memoryview) -> Voucher:
    """A voucher from bytes that `voucher_json` wrote and a signature or digest vouches for.

    The same checks as `parse_voucher`, but for repeated keys, which `voucher_json` never writes and which are costly to
    look for, and for contradictions, which concern whoever publishes it.
    """
    voucher: Voucher = _VOUCHERS.read_trusted(raw)
    return checked_voucher(voucher, None)


def parse_request(raw: Raw) -> Request:
    """The document of `tallystick evaluate`: order, vouchers, at, and optionally codes and usage.

    Raises `InvalidInput`, for two vouchers of equal codes too.
    """
    document: _RequestDocument = _REQUESTS.read(raw)
    try:
        check_order(document.order)
    except InvalidInput as error:
        raise error.under("order") from None
    if len(document.vouchers) > REQUEST_VOUCHERS_MAX:
        raise InvalidInput("vouchers", f"must be at most {REQUEST_VOUCHERS_MAX}", str(len(document.vouchers)))
    vouchers = []
    seen: dict[str, int] = {}
    for index, voucher in enumerate(document.vouchers):
        try:
            voucher = _publishable(voucher, None)
        except InvalidInput as error:
            raise error.under(f"vouchers[{index}]") from None
        earlier = seen.setdefault(codes.fold(voucher.code), index)
        if earlier != index:
            where = f"vouchers[{index}].code"
            raise InvalidInput(where, f"must not be equal to vouchers[{earlier}].code", shown(voucher.code))
        vouchers.append(voucher)
    return Request(
        order=document.order,
        vouchers=tuple(vouchers),
        at=document.at,
        codes=_checked_codes(document.codes),
        usage=_checked_usage(document.usage),
    )


def _checked_codes(given: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if given is not None and len(given) > REQUEST_CODES_MAX:
        raise InvalidInput("codes", f"must be at most {REQUEST_CODES_MAX}", str(len(given)))
    for index, code in enumerate(given or ()):
        try:
            codes.trimmed(code)
        except InvalidInput as error:
            raise error.under(f"codes[{index}]") from None
    return given


def _checked_usage(given: dict[str, Any] | None) -> dict[str, Usage] | None:
    if given is None:
        return None
    usage: dict[str, Usage] = {}
    for code, counts in given.items():
        where = f"usage[{shown(code)}]"
        try:
            folded = codes.fold(code)
            counted: Usage = _USAGES.read_trusted(encode(counts))
        except InvalidInput as error:
            raise error.under(where) from None
        if folded in usage:
            raise InvalidInput(where, "must not be equal to an earlier code of usage")
        usage[folded] = counted
    return usage


def voucher_json(voucher: Voucher) -> bytes:
    """Compact JSON of a voucher, defaults left out: `parse_voucher` of it gives the voucher again, byte for byte."""
    offline = voucher.offline
    if offline == Offline(policy=policy_by_default(voucher.discount, voucher.limits)):
        voucher = msgspec.structs.replace(voucher, offline=OFFLINE_BY_DEFAULT)
    return encode(voucher)


def order_json(order: Order) -> bytes:
    """Compact JSON of an order, defaults left out: `parse_order` of it gives the order again."""
    return encode(order)
