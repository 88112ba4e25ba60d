"""The oracle's small rules: rounding, splitting, codes, times, matching and comparing. Source: engine.md.

Like oracle.py it imports nothing of the package, and finds the zones of the tzdata package on its own.
"""

from __future__ import annotations

import unicodedata
from datetime import datetime
from fractions import Fraction
from functools import lru_cache
from importlib.resources import files
from typing import Any
from zoneinfo import ZoneInfo

Doc = dict[str, Any]
DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WHITE = "".join(map(chr, [*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029])) + (
    "\u202f\u205f\u3000"
)
ZERO = Fraction(0)

# numbers


@lru_cache(4096)
def rate(percent: Any) -> Fraction:
    return Fraction(str(percent)) / 100


def half_away(value: Fraction) -> int:
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)  # never negative here


def split(total: int, exact: list[Fraction]) -> list[int]:
    """Rounded down, and the missing units to the largest remainders, of equal ones to the earlier line."""
    floors = [part.numerator // part.denominator for part in exact]
    missing = total - sum(floors)
    assert 0 <= missing <= len(exact)
    if missing:
        order = sorted(range(len(exact)), key=lambda index: (floors[index] - exact[index], index))
        for index in order[:missing]:
            floors[index] += 1
    return floors


def in_proportion(amount: int, weights: dict[int, int]) -> dict[int, Fraction]:
    whole = sum(weights.values())
    return {index: Fraction(amount * weight, whole) if whole else ZERO for index, weight in weights.items()}


def refund(unit_price: int, quantity: int, share: int, returned: int, units: int) -> int:
    """What the units after the first `returned` pay back, one after the other."""
    assert returned + units <= quantity
    lowered = [share // quantity + (unit < share % quantity) for unit in range(returned, returned + units)]
    return sum(unit_price - low for low in lowered)


# codes and times


@lru_cache(4096)
def trimmed(code: str) -> str:
    return code.strip(WHITE)


@lru_cache(4096)
def fold(code: str) -> str:
    composed = unicodedata.normalize("NFC", trimmed(code))
    return unicodedata.normalize("NFC", composed.casefold())


@lru_cache(4096)
def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(microsecond=0)


@lru_cache(None)
def zone(name: str) -> ZoneInfo:
    with (files("tzdata") / "zoneinfo").joinpath(*name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


def is_open(hours: list[Doc], at: datetime) -> bool:
    """Whether the wall clock of one of the windows is in it; `days` are those on which the window opens."""
    for window in hours:
        wall = at.astimezone(zone(window["timezone"]))
        today, before = DAYS[wall.weekday()], DAYS[wall.weekday() - 1]
        clock, opens, closes = wall.strftime("%H:%M"), window["from"], window["to"]
        days = window.get("days", DAYS)
        if opens < closes:
            if today in days and opens <= clock < closes:
                return True
        elif (today in days and clock >= opens) or (before in days and clock < closes):
            return True
    return False


# matching and comparing


def kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "str" if isinstance(value, str) else "list" if isinstance(value, list) else "none"


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(kind(one) == kind(other) and one == other)


def matches(line: Doc, items: Doc | None) -> bool:
    if not items:
        return True
    product, categories = line["product_id"], line.get("category_ids") or []
    if product in items.get("exclude_product_ids", ()):
        return False
    if any(category in items.get("exclude_category_ids", ()) for category in categories):
        return False
    includes = []
    if items.get("product_ids"):
        includes.append(product in items["product_ids"])
    if items.get("category_ids"):
        includes.append(any(category in items["category_ids"] for category in categories))
    if items.get("attributes"):
        has = line.get("attributes") or {}
        includes.append(all(name in has and equal(has[name], value) for name, value in items["attributes"].items()))
    return not includes or any(includes)


def compares(op: str, value: Any, actual: Any) -> bool:
    """One leaf of a condition, given what the order has for its field; None is missing."""
    if op == "exists":
        return bool((actual is not None) is value)
    if actual is None:
        return op in ("ne", "not_in")
    if op.startswith("contains"):
        if kind(actual) != "list":
            return False
        wanted = [value] if op == "contains" else value
        found = [any(equal(one, inner) for inner in actual) for one in wanted]
        return any(found) if op == "contains_any" else all(found)
    if op in ("in", "not_in"):
        return kind(actual) == kind(value[0]) and any(equal(actual, one) for one in value) == (op == "in")
    if kind(actual) != kind(value):
        return False
    if op in ("eq", "ne"):
        return equal(actual, value) == (op == "eq")
    return bool(actual > value if op == "gt" else actual >= value if op == "gte" else _below(op, value, actual))


def _below(op: str, value: Any, actual: Any) -> bool:
    return bool(actual < value if op == "lt" else actual <= value)
