"""How values of attributes and conditions compare: by type and value, as JSON has them and Python does not.

Source: engine.md, "Items" ("of equal type and value") and "Conditions".
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any


def kind_of(value: object) -> str:
    """The type of a value as conditions see it: whole and decimal numbers are one type, true is not a number."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | Decimal):
        return "number"
    if isinstance(value, str):
        return "text"
    return "list" if isinstance(value, list | tuple) else "nothing"


def key_of(value: Any) -> Any:
    """Equal for values that conditions hold to be equal, and made to be looked up: 1 is 1.0, neither true nor "1"."""
    if isinstance(value, list | tuple):
        return "list", tuple(map(key_of, value))
    return kind_of(value), value


def same(one: object, other: object) -> bool:
    """Of equal type and value, as conditions and `items.attributes` compare: 1 is not true and not "1"."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return kind_of(one) == kind_of(other) and one == other
