"""Whether any order at all can meet a set of conditions, as far as that can be seen without trying orders.

What is said here to be impossible is impossible; not everything impossible is seen. Source: engine.md, "Conditions".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

from msgspec import UNSET

from .checks import NUMBER_FIELDS, TEXT_FIELDS
from .door import encode
from .terms import Condition, Items
from .values import key_of, kind_of

_Wanted: TypeAlias = tuple[Condition, bool]
"""A node, and whether it has to hold or must not."""
_OPPOSITE: Final = {"gt": "lte", "gte": "lt", "lt": "gte", "lte": "gt", "eq": "ne", "ne": "eq"}
_SUBTOTAL: Final = "order.subtotal_minor"
_QUANTITY: Final = "order.quantity"
_LOWEST: Final = -(10**30)
_ALWAYS_THERE: Final = NUMBER_FIELDS | {"order.currency"}


class Facts:
    """What is known of an order that meets some conditions. `possible` turns false where they contradict each other."""

    def __init__(self) -> None:
        self.possible = True
        self.least: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self._equal: dict[str, set[Any]] = {}
        self._unequal: dict[str, set[Any]] = {}
        self._has: dict[str, set[Any]] = {}
        self._lacks: dict[str, set[Any]] = {}
        self._there: dict[str, bool] = {}

    def copy(self) -> Facts:
        copied = Facts()
        copied.possible = self.possible
        copied.least, copied.most, copied._there = self.least.copy(), self.most.copy(), self._there.copy()
        for name in ("_equal", "_unequal", "_has", "_lacks"):
            setattr(copied, name, {field: values.copy() for field, values in getattr(self, name).items()})
        return copied

    def only(self, field: str, values: set[Any]) -> None:
        """The field is there, and is one of the values."""
        self.there(field, True)
        self._equal[field] = self._equal.get(field, values) & values

    def there(self, field: str, is_there: bool) -> None:
        always_there = field in _ALWAYS_THERE or field.startswith("items.")
        if self._there.setdefault(field, is_there) is not is_there or (always_there and not is_there):
            self.possible = False

    def between(self, field: str, least: int | None, most: int | None) -> None:
        if least is not None:
            self.least[field] = max(least, self.least.get(field, least))
        if most is not None:
            self.most[field] = min(most, self.most.get(field, most))

    def add(self, leaf: Condition, wanted: bool) -> None:
        field = _name(leaf)
        op, value = str(leaf.op), leaf.value
        if op == "exists":
            self.there(field, value is wanted)
        elif leaf.field in NUMBER_FIELDS:
            self._add_number(field, op if wanted else _OPPOSITE.get(op, f"not {op}"), value)
        elif op.startswith("contains"):
            self._add_members(field, op, value if isinstance(value, list) else [value], wanted)
        else:
            self._add_value(field, op, value, wanted, any_kind=leaf.field not in TEXT_FIELDS)

    def _add_number(self, field: str, op: str, value: Any) -> None:
        if op in ("gt", "gte"):
            self.between(field, value + (op == "gt"), None)
        elif op in ("lt", "lte"):
            self.between(field, None, value - (op == "lt"))
        elif op in ("eq", "in", "not not_in"):
            values = value if isinstance(value, list) else [value]
            self.only(field, set(values))
            self.between(field, min(values), max(values))
        else:
            self._unequal.setdefault(field, set()).update(value if isinstance(value, list) else [value])

    def _add_members(self, field: str, op: str, values: list[Any], wanted: bool) -> None:
        keys = {key_of(value) for value in values}
        if wanted:
            self.there(field, True)
            if op != "contains_any" or len(keys) == 1:
                self._has.setdefault(field, set()).update(keys)
        elif op != "contains_all" or len(keys) == 1:
            self._lacks.setdefault(field, set()).update(keys)

    def _add_value(self, field: str, op: str, value: Any, wanted: bool, any_kind: bool) -> None:
        keys = {key_of(one) for one in (value if op in ("in", "not_in") else [value])}
        if (op in ("eq", "in") and wanted) or (op in ("ne", "not_in") and not wanted and not any_kind):
            self.only(field, keys)
        elif (op in ("eq", "in") and not wanted) or (op in ("ne", "not_in") and wanted):
            self._unequal.setdefault(field, set()).update(keys)
        elif wanted or op in ("ne", "not_in"):  # an ordering holds only of what is there
            self.there(field, True)
        if wanted and op not in ("ne", "not_in", "in") and kind_of(value) == "number":
            # no closer, for between two numbers that are not whole there is always another
            self.between(field, None if op in ("lt", "lte") else value, None if op in ("gt", "gte") else value)

    def settle(self) -> bool:
        """Whether the facts go together."""
        for field in {*self.least, *self.most}:
            most = self._most(field)
            self.possible &= most is None or most >= self._least(field)
        for field in self._equal:
            self.possible &= any(map(self._within(field), self._equal[field] - self._unequal.get(field, set())))
        for field, values in self._has.items():
            self.possible &= values.isdisjoint(self._lacks.get(field, ()))
        return self.possible

    def _least(self, field: str) -> int:
        """What an order counts is never below 0; an attribute can be."""
        return max(_LOWEST if ".attributes." in field else 0, self.least.get(field, _LOWEST))

    def _most(self, field: str) -> int | None:
        """Some of the items are never more than the whole order."""
        bounds = [self.most.get(field)]
        if field.startswith("items."):
            bounds.append(self.most.get(_SUBTOTAL if field.startswith("items.subtotal_minor") else _QUANTITY))
        return min((bound for bound in bounds if bound is not None), default=None)

    def _within(self, field: str) -> Callable[[Any], bool]:
        least, most = self._least(field), self._most(field)
        return lambda one: not isinstance(one, int) or (one >= least and (most is None or one <= most))


def _name(leaf: Condition) -> str:
    """What is compared: a field, with its selector where it has one.

    Alone, where every condition has to hold first, nothing is applied yet and what remains is the subtotal.
    """
    if leaf.field == "order.remaining_minor":
        return _SUBTOTAL
    if leaf.items is UNSET:
        return str(leaf.field)
    if leaf.items == Items():  # every line
        return _QUANTITY if leaf.field == "items.quantity" else _SUBTOTAL
    return f"{leaf.field} {encode(leaf.items).decode()}"


def facts(condition: Condition | None, known: Facts) -> Facts:
    """What an order is like that meets the condition, and of which that much is known."""
    return _gathered([] if condition is None else [(condition, True)], known)


def possible(condition: Condition, holds: bool = True, known: Facts | None = None) -> bool:
    """Whether it can hold of an order, or not hold, as far as that can be seen."""
    return _gathered([(condition, holds)], known or Facts()).possible


def _gathered(wanted: list[_Wanted], known: Facts) -> Facts:
    found = known.copy()
    choices = []
    for node, holds in _conjuncts(wanted):
        if node.field is not UNSET:
            found.add(node, holds)
        else:
            choices.append((node.any_of if holds else node.all_of, holds))
    if found.settle():
        for branches, holds in choices:
            assert branches is not UNSET
            if not any(_gathered([(branch, holds)], found).possible for branch in branches):
                found.possible = False
    return found


def _conjuncts(wanted: list[_Wanted]) -> Iterator[_Wanted]:
    """Everything that has to be so, negations pushed down: leaves, and nodes of which one branch is enough."""
    waiting = wanted.copy()
    while waiting:
        node, holds = waiting.pop()
        if node.negated is not UNSET:
            waiting.append((node.negated, not holds))
        elif node.all_of is not UNSET and holds:
            waiting += [(inner, True) for inner in node.all_of]
        elif node.any_of is not UNSET and not holds:
            waiting += [(inner, False) for inner in node.any_of]
        else:
            yield node, holds
