"""The details of refusals: what would have made a code work, for a program to read and as a `message` for people.

Source: engine.md, "Result". Lists of ids are given by their first five: a detail stays small whatever the voucher
lists. A message is one line of at most 200 characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final, TypeAlias

from msgspec import UNSET, structs

from .checks import NUMBER_FIELDS
from .errors import one_line
from .money import format_minor
from .terms import Condition, Items
from .values import kind_of

Detail: TypeAlias = dict[str, Any]

IDS_SHOWN: Final = 5
MESSAGE_MAX: Final = 200
_NAMES_SHOWN: Final = 3
_NAME_MAX: Final = 40


def sentence(text: str) -> str:
    """One line, cut to what a screen and a receipt can hold."""
    text = one_line(text)
    return text if len(text) <= MESSAGE_MAX else f"{text[: MESSAGE_MAX - 3]}..."


def named(values: Sequence[Any], last: str = "or") -> str:
    """ "a", "a or b", "a, b, c or 12 more"."""
    names = [_name(value) for value in values[:_NAMES_SHOWN]]
    if len(values) > _NAMES_SHOWN:
        names.append(f"{len(values) - _NAMES_SHOWN} more")
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def _name(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_name, value[:_NAMES_SHOWN]))}{', ...' if len(value) > _NAMES_SHOWN else ''}]"
    text = format(value, "f") if isinstance(value, Decimal) else str(value) or '""'
    return text if len(text) <= _NAME_MAX else f"{text[: _NAME_MAX - 3]}..."


def short(value: Any) -> Any:
    """A value as it is, but of a list no more than its first five."""
    return list(value[:IDS_SHOWN]) if isinstance(value, list | tuple) else value


# Items.


def short_items(items: Items | None) -> Items | None:
    """The selector by the first five of each of its lists; None where every line is meant."""
    if items is None or items == Items():
        return None
    return structs.replace(
        items,
        attributes={name: short(value) for name, value in list(items.attributes.items())[:IDS_SHOWN]},
        product_ids=items.product_ids[:IDS_SHOWN],
        category_ids=items.category_ids[:IDS_SHOWN],
        exclude_product_ids=items.exclude_product_ids[:IDS_SHOWN],
        exclude_category_ids=items.exclude_category_ids[:IDS_SHOWN],
    )


def items_text(items: Items | None) -> str:
    """ "of product a, b or 12 more", or nothing where every line is meant."""
    if items is None or items == Items():
        return ""
    includes = []
    if items.product_ids:
        includes.append(f"of product {named(items.product_ids)}")
    if items.category_ids:
        includes.append(f"of category {named(items.category_ids)}")
    if items.attributes:
        includes.append(
            "with " + " and ".join(f"{name[:40]} {_name(value)}" for name, value in items.attributes.items())
        )
    excludes = []
    if items.exclude_product_ids:
        excludes.append(f"of product {named(items.exclude_product_ids)}")
    if items.exclude_category_ids:
        excludes.append(f"of category {named(items.exclude_category_ids)}")
    if not excludes:
        return " or ".join(includes)
    return f"{' or '.join(includes)}{' but ' if includes else ''}not {' or '.join(excludes)}"


class Wanted:
    """The selector of a discount, within that of the `tiered` around it, as details give it."""

    __slots__ = ("items", "within")

    def __init__(self, items: Items | None, within: Items | None) -> None:
        self.items = items
        self.within = within

    def fields(self) -> Detail:
        pairs = (("items", short_items(self.items)), ("within", short_items(self.within)))
        return {name: items for name, items in pairs if items is not None}

    def text(self) -> str:
        parts = dict.fromkeys((items_text(self.items), items_text(self.within)))
        return " and ".join(part for part in parts if part)


def to_add(*wanted: tuple[int, Wanted], unit_price_minor: int | None = None, currency: str = "") -> Detail:
    """How many units of what would have to be in the order besides, where given at that price or more."""
    price = {} if unit_price_minor is None else {"unit_price_minor": unit_price_minor}
    parts = []
    for quantity, which in wanted:
        parts.append(f"{units(quantity)} {which.text() or 'of any product above price 0'}")
    text = f"add {' and '.join(parts)}"
    if unit_price_minor is not None:
        text += f" at {format_minor(unit_price_minor, currency)} or more" + (" each" if wanted[0][0] > 1 else "")
    add = [{"quantity": quantity, **which.fields(), **price} for quantity, which in wanted]
    return {"add": add, "message": sentence(text)}


def units(count: int) -> str:
    return "1 unit" if count == 1 else f"{count} units"


def more(missing: int, is_money: bool, of_what: str, currency: str) -> str:
    """What to spend or to add; where `missing` is below 0, what to spend or to take out less."""
    if is_money:
        text = f"spend {format_minor(abs(missing), currency)} {'more' if missing > 0 else 'less'}"
        return f"{text} on units {of_what}" if of_what else text
    text = f"add {units(missing)}" if missing > 0 else f"take out {units(-missing)}"
    return f"{text} {of_what}" if of_what else text


def without(codes: Sequence[str]) -> str:
    return f"leave out {named(codes, 'and')}"


# Conditions.


def to_change(leaves: Sequence[Detail]) -> Detail:
    """The details of one or more leaves as one: the first, and under `and` the others that have to change as well."""
    first, *others = leaves
    if not others:
        return first
    return {**first, "and": others[: IDS_SHOWN - 1], "message": sentence("; ".join(leaf["message"] for leaf in leaves))}


_OPPOSITE: Final = {
    "eq": "ne",
    "ne": "eq",
    "gt": "lte",
    "gte": "lt",
    "lt": "gte",
    "lte": "gt",
    "in": "not_in",
    "not_in": "in",
}
_PHRASES: Final = {
    "eq": "be {}",
    "ne": "not be {}",
    "gt": "be above {}",
    "gte": "be at least {}",
    "lt": "be below {}",
    "lte": "be at most {}",
    "in": "be {}",
    "not_in": "not be {}",
    "contains": "include {}",
    "contains_any": "include {}",
    "contains_all": "include {}",
    "not contains": "not include {}",
    "not contains_any": "not include {}",
    "not contains_all": "not include all of {}",
}


_KINDS: Final = {"number": "a number", "text": "text", "bool": "true or false", "list": "a list"}


def leaf_detail(leaf: Condition, actual: Any, currency: str, wanted: bool) -> Detail:
    """For a leaf that has to turn out as `wanted`: field, what it was, and what it should have been."""
    op = leaf.op if wanted else f"not {leaf.op}"
    if leaf.field == "customer.id" and leaf.op != "exists":
        # whom it is for is nobody else's business
        message = "use another code: this one is for other customers"
        return {"field": leaf.field, "actual": actual, "op": op, "message": message}
    detail: Detail = {"field": leaf.field, "expected": short(leaf.value), "actual": short(actual), "op": op}
    items = short_items(leaf.items or None)
    if items is not None:
        detail["items"] = items
    detail["message"] = sentence(_leaf_message(leaf, actual, currency, wanted))
    return detail


def _leaf_message(leaf: Condition, actual: Any, currency: str, wanted: bool) -> str:
    field, op = str(leaf.field), str(leaf.op)
    if op == "exists":
        return f"{_label(field)} must {'' if leaf.value is wanted else 'not '}be given"
    if not wanted:
        op = _OPPOSITE.get(op, f"not {op}")
    if field in NUMBER_FIELDS:
        return _number_message(leaf, field, op, actual, currency)
    values = leaf.value if isinstance(leaf.value, list) and op not in ("eq", "ne") else [leaf.value]
    last = "and" if op in ("contains_all", "not contains_all") else "or"
    phrase = _PHRASES[op].format(named(values, last))
    wanted_kind = "list" if "contains" in op else kind_of(values[0])
    if wanted and actual is not None and kind_of(actual) != wanted_kind:
        phrase = f"be {_KINDS[wanted_kind]} and {phrase}"
    return f"{_label(field)} must {phrase}"


def _number_message(leaf: Condition, field: str, op: str, actual: int, currency: str) -> str:
    is_money = field.endswith("_minor")
    of_what = items_text(leaf.items or None) if leaf.items is not UNSET else ""
    value = leaf.value
    if op in ("gt", "gte", "lt", "lte"):
        edge = value + (op == "gt") - (op == "lt")
        return more(edge - actual, is_money, of_what, currency)
    values = value if isinstance(value, list) else [value]
    amounts = named([format_minor(one, currency) if is_money else one for one in values])
    return f"{_label(field)} {of_what + ' ' if of_what else ''}must {_PHRASES[op].format(amounts)}"


_LABELS: Final = {
    "order.subtotal_minor": "the goods before discounts",
    "order.remaining_minor": "the goods after other discounts",
    "order.quantity": "the number of units",
    "order.currency": "the currency",
    "order.store_id": "the store",
    "order.channel": "the channel",
    "customer.id": "the customer",
    "customer.segments": "the customer's segments",
    "items.quantity": "the number of units",
    "items.subtotal_minor": "the price of units",
}


def _label(field: str) -> str:
    if field in _LABELS:
        return _LABELS[field]
    owner, _, name = field.partition(".attributes.")
    return f"the {owner}'s {_name(name)}"
