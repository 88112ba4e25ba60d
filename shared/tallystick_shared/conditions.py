"""Conditions: what a `when` tree means, compiled once into a function, and what would have made it true.

Source: engine.md, "Conditions". Unlike types compare false, for `ne` and `not_in` too; a missing field (null is
missing) makes a leaf false, but for `exists: false`, `ne` and `not_in`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from msgspec import UNSET

from .basket import Basket, compile_items
from .checks import NUMBER_FIELDS, kind_of, same
from .money import format_minor
from .terms import Condition

Test: TypeAlias = Callable[[Basket, int], bool]
"""Whether it holds for a basket of which the goods still cost that much, in minor units."""
_Reader: TypeAlias = Callable[[Basket, int], Any]
_Compare: TypeAlias = Callable[[Any], bool]

_ORDERING: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


def compile_condition(condition: Condition) -> Test:
    """The tree as one function. It comes through the door, so that no node is of two kinds and none is too deep."""
    if condition.all_of is not UNSET:
        every = [compile_condition(inner) for inner in condition.all_of]
        return lambda basket, remaining: all(test(basket, remaining) for test in every)
    if condition.any_of is not UNSET:
        some = [compile_condition(inner) for inner in condition.any_of]
        return lambda basket, remaining: any(test(basket, remaining) for test in some)
    if condition.negated is not UNSET:
        negated = compile_condition(condition.negated)
        return lambda basket, remaining: not negated(basket, remaining)
    return _compile_leaf(condition)


def reads_remaining(condition: Condition | None) -> bool:
    """Whether it can turn out otherwise once other vouchers have been applied."""
    if condition is None:
        return False
    inner = [*(condition.all_of or ()), *(condition.any_of or ())]
    if condition.negated is not UNSET:
        inner.append(condition.negated)
    return condition.field == "order.remaining_minor" or any(map(reads_remaining, inner))


def _compile_leaf(leaf: Condition) -> Test:
    read, compare = _reader(leaf), _comparison(str(leaf.op), leaf.value)
    if leaf.field in NUMBER_FIELDS and leaf.op in _ORDERING:
        # never missing and of like type, as the door saw to: no need to look at types for each order
        ordering, value = _ORDERING[leaf.op], leaf.value
        return lambda basket, remaining: ordering(read(basket, remaining), value)
    return lambda basket, remaining: compare(read(basket, remaining))


def _reader(leaf: Condition) -> _Reader:
    field = str(leaf.field)
    if field.startswith("order.attributes."):
        name = field.removeprefix("order.attributes.")
        return lambda basket, _: basket.order.attributes.get(name)
    if field.startswith("customer.attributes."):
        name = field.removeprefix("customer.attributes.")
        return lambda basket, _: basket.order.customer and basket.order.customer.attributes.get(name)
    if field.startswith("items."):
        return _items_reader(leaf)
    return _READERS[field]


def _items_reader(leaf: Condition) -> _Reader:
    matcher = compile_items(leaf.items or None)

    def read(basket: Basket, _: int) -> int:
        # every line counts here, those of price 0 too: a condition is not a discount
        lines = range(len(basket.lines))
        column = basket.quantities if leaf.field == "items.quantity" else basket.totals
        return sum(column[index] for index in (matcher(basket, lines) if matcher else lines))

    return read


_READERS: Final[dict[str, _Reader]] = {
    "order.subtotal_minor": lambda basket, _: basket.subtotal,
    "order.remaining_minor": lambda _, remaining: remaining,
    "order.quantity": lambda basket, _: sum(basket.quantities),
    "order.currency": lambda basket, _: basket.order.currency,
    "order.store_id": lambda basket, _: basket.order.store_id,
    "order.channel": lambda basket, _: basket.order.channel,
    "customer.id": lambda basket, _: basket.order.customer and basket.order.customer.id,
    "customer.segments": lambda basket, _: basket.order.customer and basket.order.customer.segments,
}


def _comparison(op: str, value: Any) -> _Compare:
    kind = kind_of(value)
    if op == "exists":
        return lambda actual: (actual is not None) == value
    if op == "eq":
        return lambda actual: actual is not None and same(actual, value)
    if op == "ne":
        return lambda actual: actual is None or (kind_of(actual) == kind and not same(actual, value))
    if op in _ORDERING:
        ordering = _ORDERING[op]
        # "number" or "text" only: the door keeps true, false and lists out of `value`
        return lambda actual: kind_of(actual) == kind and ordering(actual, value)
    if op in ("in", "not_in"):
        return _membership(op, value)
    return _containment(op, value)


def _membership(op: str, values: list[Any]) -> _Compare:
    kind, among = kind_of(values[0]), frozenset(values)  # of one type: the door sees to it
    if op == "in":
        return lambda actual: kind_of(actual) == kind and actual in among
    return lambda actual: actual is None or (kind_of(actual) == kind and actual not in among)


def _containment(op: str, value: Any) -> _Compare:
    wanted = [value] if op == "contains" else value
    holds = any if op == "contains_any" else all
    if all(isinstance(one, str) for one in wanted):
        # text equals only text, so that the plain `in` is exact, and fast for segments
        return lambda actual: isinstance(actual, list | tuple) and holds(one in actual for one in wanted)

    def compare(actual: Any) -> bool:
        return isinstance(actual, list | tuple) and holds(any(same(one, inner) for inner in actual) for one in wanted)

    return compare


def explain(condition: Condition, basket: Basket, remaining: int) -> dict[str, Any]:
    """For a condition that does not hold: the first leaf in its way, and what would have made it work."""
    for inner in [*(condition.all_of or ()), *(condition.any_of or ())]:
        if not compile_condition(inner)(basket, remaining):
            return explain(inner, basket, remaining)
    if condition.negated is not UNSET:
        return _explain_negated(condition.negated, basket, remaining)
    return _explain_leaf(condition, basket, remaining, must_hold=True)


def _explain_negated(condition: Condition, basket: Basket, remaining: int) -> dict[str, Any]:
    """For a condition that holds and should not: the first leaf that makes it hold."""
    for inner in [*(condition.all_of or ()), *(condition.any_of or ())]:
        if compile_condition(inner)(basket, remaining):
            return _explain_negated(inner, basket, remaining)
    if condition.negated is not UNSET:
        return explain(condition.negated, basket, remaining)
    return _explain_leaf(condition, basket, remaining, must_hold=False)


def _explain_leaf(leaf: Condition, basket: Basket, remaining: int, *, must_hold: bool) -> dict[str, Any]:
    actual = _reader(leaf)(basket, remaining)
    detail: dict[str, Any] = {"field": leaf.field, "expected": leaf.value, "actual": actual}
    if not must_hold or leaf.op not in ("eq", "contains"):
        detail["op"] = leaf.op if must_hold else f"not {leaf.op}"
    if must_hold and leaf.field in NUMBER_FIELDS and leaf.op in ("gt", "gte"):
        detail["message"] = shortfall(
            leaf.value - actual + (leaf.op == "gt"), str(leaf.field).endswith("_minor"), basket.order.currency
        )
    return detail


def shortfall(missing: int, is_money: bool, currency: str) -> str:
    """ "spend 5.00 more" or "add 2 more"."""
    return f"spend {format_minor(missing, currency)} more" if is_money else f"add {missing} more"
