"""Doing what the `detail` of a refusal says: it reads the detail and the order, never the voucher.

`follow` changes the order, or leaves out codes. Source: engine.md, "Result": what would have made it work.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from tests.shared.oracle_rules import Doc, compares, fold, matches

CURRENCIES = ["EUR", "USD", "AED", "JPY", "ZAR"]
TEXTS = ["s1", "A", "a", "zz", "0", "\U0001f600"]
DEAR = 10**12  # the highest price the door lets in


class CannotFollow(Exception):
    """The detail does not say anything that could be done about the order."""


def follow(document: Doc, refusal: Doc, *, price: int = 500) -> Doc:
    """The document changed as the refusal's detail says; goods that may cost anything cost `price`.

    Raises `CannotFollow` where the detail names nothing that the customer or the till can change.
    """
    made = copy.deepcopy(document)
    detail: Doc = refusal["detail"]
    leave_out = detail.get("after", [detail["conflicts_with"]] if "conflicts_with" in detail else [])
    if leave_out:
        without = {fold(code) for code in leave_out}
        codes = made.get("codes", [voucher["code"] for voucher in made["vouchers"]])
        made["codes"] = [code for code in codes if fold(code) not in without]
        if len(made["codes"]) == len(codes):
            raise CannotFollow
        return made
    if "op" in detail:
        for leaf in leaves(detail):
            satisfy(made["order"], leaf)
    elif "basis" in detail:
        missing = detail["expected"] - detail["actual"]
        by_amount = detail["basis"] == "amount"
        add(made["order"], *((1, missing) if by_amount else (missing, price)), detail.get("items"))
    elif "add" in detail:
        for part in detail["add"]:
            cost = part.get("unit_price_minor", price)
            add(made["order"], part["quantity"], cost, part.get("items"), part.get("within"))
    elif "given_minor" in detail:
        _scale(made["order"], -(-detail["expected_minor"] // detail["given_minor"]), 1)
    elif "left_minor" in detail:
        _smaller(made["order"], detail["left_minor"])
    else:
        _set(made["order"], detail)
    return made


def _set(order: Doc, detail: Doc) -> None:
    field, expected = detail.get("field"), detail.get("expected")
    if field == "currency":
        order["currency"] = expected
    elif field == "customer.id":
        order["customer"] = {**(order.get("customer") or {}), "id": "c7"}
    elif field == "shipping_minor":
        order["shipping_minor"] = expected
    elif field in ("total_minor", "subtotal_minor"):
        add(order, 1, detail["expected"] - detail["actual"])
    else:
        raise CannotFollow


def _scale(order: Doc, times: int, parts: int) -> None:
    for line in order["lines"]:
        line["unit_price_minor"] = min(DEAR, line["unit_price_minor"] * times // parts)


def _smaller(order: Doc, left: int) -> None:
    """All of it together costs no more than what is left."""
    costs = sum(line["quantity"] * line["unit_price_minor"] for line in order["lines"]) + order.get("shipping_minor", 0)
    if not left:
        raise CannotFollow
    for line in order["lines"]:
        line["unit_price_minor"] = line["unit_price_minor"] * left // costs
    if "shipping_minor" in order:
        order["shipping_minor"] = order["shipping_minor"] * left // costs


# lines


def add(order: Doc, quantity: int, price: int, *items: Doc | None) -> None:
    """So many units of a new line that matches all of these items."""
    if price < 1 or quantity < 1:
        raise CannotFollow
    numbers = {line["id"] for line in order["lines"]}
    name = next(f"n{number}" for number in range(len(numbers) + 1) if f"n{number}" not in numbers)
    matching = next((line for line in _goods(items) if all(matches(line, one) for one in items)), None)
    if matching is None:
        raise CannotFollow
    order["lines"].append({"id": name, "quantity": quantity, "unit_price_minor": price, **matching})


def _goods(items: tuple[Doc | None, ...]) -> Iterator[Doc]:
    """Goods that may match: any product, category and attributes named, and none."""
    given = [one for one in items if one]
    products = ["new-product", *(name for one in given for name in one.get("product_ids", []))]
    named = sorted({name for one in given for name in one.get("category_ids", [])})
    categories = [list(some) for size in range(3) for some in combinations(named, size)]
    attributes: list[Doc] = [{}, *(one["attributes"] for one in given if "attributes" in one)]
    attributes.append({name: value for one in given for name, value in one.get("attributes", {}).items()})
    for has in attributes:
        for some in categories:
            for product in products:
                yield {"product_id": product, "category_ids": some, "attributes": has}


# conditions


def leaves(detail: Doc) -> list[Doc]:
    """Every leaf that has to change, as the detail names it."""
    return [{key: value for key, value in detail.items() if key != "and"}, *detail.get("and", [])]


def as_condition(leaf: Doc) -> Doc:
    """The condition that must hold once the leaf has been followed."""
    plain = {"field": leaf["field"], "op": leaf["op"].removeprefix("not "), "value": leaf["expected"]}
    if leaf["field"].startswith("items."):
        plain["items"] = leaf.get("items", {})
    return {"not": plain} if leaf["op"].startswith("not ") else plain


def satisfy(order: Doc, leaf: Doc) -> None:
    """Changes the one field so that the leaf is as it has to be."""
    if "expected" not in leaf:
        raise CannotFollow
    field: str = leaf["field"]
    value = _value(leaf, _candidates(field, leaf["expected"]))
    if field in ("order.quantity", "items.quantity"):
        _set_quantity(order, value, leaf.get("items"))
    elif field in ("order.subtotal_minor", "order.remaining_minor", "items.subtotal_minor"):
        _set_subtotal(order, value, leaf.get("items"))
    else:
        holder = order
        if field.startswith("customer."):
            holder = order["customer"] = order.get("customer") or {}
        name = field.split(".", 1)[1]
        if name.startswith("attributes."):
            holder = holder.setdefault("attributes", {})
            name = name.split(".", 1)[1]
        if value is None:
            holder.pop(name, None)
        else:
            holder[name] = value


def _value(leaf: Doc, candidates: list[Any]) -> Any:
    op, wanted = leaf["op"].removeprefix("not "), not leaf["op"].startswith("not ")
    fitting = [value for value in candidates if compares(op, leaf["expected"], value) == wanted]
    if not fitting:
        raise CannotFollow
    return fitting[0]


def _candidates(field: str, expected: Any) -> list[Any]:
    """Values worth trying for a field, the nearest to what is expected first; None takes the field away."""
    several = expected if isinstance(expected, list) else [expected]
    numbers = [one for one in several if isinstance(one, int | float) and not isinstance(one, bool)]
    near: list[Any] = [one + step for one in numbers for step in (0, 1, -1)]
    if field.endswith((".quantity", "_minor")):
        return [one for one in [*near, 0, 1, 5000, 7, 8, 9, 10] if one >= 0]
    if field == "order.currency":
        return [*several, *CURRENCIES]
    if field == "customer.segments":
        return [several, ["elsewhere"], [], None]
    texts = [one for one in several if isinstance(one, str)]
    texts += [text + "a" for text in texts] + TEXTS
    if ".attributes." not in field:
        return [*texts, None]
    return [*several, *near, *texts, several, [], [*several, "more"], 7, True, False, None]


def _matching(order: Doc, items: Doc | None) -> list[Doc]:
    return [line for line in order["lines"] if matches(line, items)]


def _set_quantity(order: Doc, value: int, items: Doc | None) -> None:
    matching = _matching(order, items)
    more = value - sum(line["quantity"] for line in matching)
    if more > 0:
        add(order, more, 500, items)
    for line in reversed(matching):
        fewer = min(line["quantity"], max(0, -more))
        line["quantity"] -= fewer
        more += fewer
    order["lines"] = [line for line in order["lines"] if line["quantity"]]


def _set_subtotal(order: Doc, value: int, items: Doc | None) -> None:
    matching = _matching(order, items)
    more = value - sum(line["quantity"] * line["unit_price_minor"] for line in matching)
    if more > 0:
        add(order, 1, more, items)
    for line in matching:
        less = min(line["unit_price_minor"], -(min(0, more) // line["quantity"]))
        line["unit_price_minor"] -= less
        more += less * line["quantity"]
        if more > 0 and less:  # lowered by a whole unit price, which was too much: one unit makes up for it
            add(order, 1, more, items)
            return
