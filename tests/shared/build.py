"""Short ways to write orders and vouchers in tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import FrameType
from typing import Any, TypeVar

from tallystick_shared.codes import fold
from tallystick_shared.engine import Allowance, Result, Usage, compile_voucher, evaluate, result_json
from tallystick_shared.model import Order, parse_order, parse_voucher

T = TypeVar("T")
Doc = dict[str, Any]
NOON = datetime.fromisoformat("2026-06-15T12:00:00+00:00")


def line(price: int, quantity: int = 1, **fields: Any) -> Doc:
    return {"product_id": "p", "quantity": quantity, "unit_price_minor": price, **fields}


def order(*lines: Doc | int, **fields: Any) -> Order:
    """An order in EUR; a line may be just its price, and is then one unit. Ids are 1, 2, 3."""
    full = [
        {"id": str(number), **(line(one) if isinstance(one, int) else one)} for number, one in enumerate(lines, start=1)
    ]
    return parse_order({"id": "o", "currency": "EUR", "lines": full, **fields})


def voucher(discount: Doc, code: str = "CODE", **fields: Any) -> Doc:
    return {"code": code, "discount": discount, **fields}


def stackable(discount: Doc, code: str, *, priority: int = 0, **fields: Any) -> Doc:
    stacking = {"mode": "stackable", "priority": priority, **fields.pop("stacking", {})}
    return voucher(discount, code, stacking=stacking, **fields)


def percentage(percent: Any, **fields: Any) -> Doc:
    return {"type": "percentage", "percent": percent, **fields}


def fixed(amount: int, **fields: Any) -> Doc:
    return {"type": "fixed", "amount_minor": amount, **fields}


def bogo(buy: int, get: int, **fields: Any) -> Doc:
    """`buy_items`, `get_items`, `percent` and `amount_minor` go where they belong, the rest to the discount."""
    bought: Doc = {"quantity": buy}
    given: Doc = {"quantity": get}
    if "buy_items" in fields:
        bought["items"] = fields.pop("buy_items")
    if "get_items" in fields:
        given["items"] = fields.pop("get_items")
    for name in ("percent", "amount_minor"):
        if name in fields:
            given[name] = fields.pop(name)
    return {"type": "bogo", "buy": bought, "get": given, **fields}


def run(
    of: Order,
    *vouchers: Doc,
    codes: Sequence[str] | None = None,
    at: datetime = NOON,
    usage: Mapping[str, Usage] | None = None,
    allowance: Mapping[str, Allowance] | None = None,
) -> Result:
    compiled = [compile_voucher(parse_voucher(one, default_currency="EUR")) for one in vouchers]
    by_fold = None if usage is None else {fold(code): used for code, used in usage.items()}
    allowed = None if allowance is None else {fold(code): one for code, one in allowance.items()}
    return evaluate(of, compiled, codes, at=at, usage=by_fold, allowance=allowed)


def taken(result: Result) -> dict[str, int]:
    """What each voucher applied took, in the order of application."""
    return {applied.code: applied.discount_minor for applied in result.applied}


def shares(result: Result) -> list[int]:
    """What each line of the order is lowered by."""
    return [line.discount_minor for line in result.lines]


def reasons(result: Result) -> dict[str, str]:
    return {refused.code: refused.reason.value for refused in result.refused}


def document(result: Result) -> Doc:
    """The result as its JSON says it."""
    found: Doc = json.loads(result_json(result))
    return found


def calls_of(name: str, call: Callable[[], T]) -> tuple[int, T]:
    """How often functions of that name are called while `call` runs, and what it returns."""
    count = 0

    def counted(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_name == name

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        result = call()
    finally:
        sys.setprofile(before)
    return count, result
