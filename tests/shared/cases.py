"""Generated requests for the comparison with the oracle: small numbers, few ids, so that everything meets everything.

One generator serves both a seed and hypothesis, see chance.py. A document is a request as `tallystick evaluate` reads
it, plus `allowance` as oracle.py reads it. Vouchers that the door refuses are dropped from it.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st

from tallystick_shared.errors import InvalidInput
from tallystick_shared.model import Request, parse_request, parse_voucher
from tests.shared.chance import Chance, Drawn, Seeded
from tests.shared.discount_cases import PRODUCTS, discount, plain, when

Doc = dict[str, Any]
CURRENCIES = ["EUR"] * 7 + ["USD", "JPY", "KWD"]
PRICES = [100, 0, 1, 3, 106, 200, 200, 333, 500, 500, 1000, 3490, 9990]
PREFIXES = ["A", "B", "a", "b", "Straße", "E\u0301te\u0301", "ÉTÉ", "σΣς", "\u1e9e", "ǅ", "\ufb03", "z \u017f\u0323"]
PADDING = ["", "", " ", "\u00a0", "\u2003\t", "\n"]
ZONES = {  # with instants at which the wall clock jumps, in UTC
    "Europe/Berlin": ["2026-03-29T01:00", "2026-10-25T01:00"],
    "America/New_York": ["2026-03-08T07:00", "2026-11-01T06:00"],
    "Australia/Lord_Howe": ["2026-04-04T15:00", "2026-10-03T15:30"],
    "Africa/Casablanca": ["2026-02-15T02:00", "2026-03-22T02:00"],
    "Pacific/Apia": ["2011-12-30T10:00"],
    "Europe/Dublin": ["2026-03-29T01:00"],
    "Asia/Kathmandu": ["2026-06-15T12:00"],
    "UTC": ["2026-06-15T12:00", "2026-12-31T23:30"],
}
JUMPS = [(name, instant) for name, instants in ZONES.items() for instant in instants]
MINUTES = [0, -1, 1, -30, 29, 30, 31, -60, -61, 59, 60, 61, 90, 119, 120, 1439, -1440]
CLOCKS = ["00:00", "00:30", "01:00", "01:30", "02:00", "02:30", "03:00", "12:00", "18:00", "23:59"]
DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


@dataclass(frozen=True)
class Case:
    """A document that the door lets in, as it was read, and how many vouchers it let in and refused."""

    document: Doc
    request: Request
    kept: int
    dropped: int


def case(seed: int) -> Case:
    return admitted(generated(Seeded(seed)))


def document(seed: int) -> Doc:
    """One request without an allowance; the same seed gives the same one."""
    made = case(seed).document
    made.pop("allowance", None)
    return made


@st.composite
def documents(draw: st.DrawFn) -> Doc:
    """The same documents, with `allowance`, drawn by hypothesis."""
    return admitted(generated(Drawn(draw))).document


def read(document: Doc) -> Request:
    """The document as the engine takes it; its allowance is no part of a request."""
    return parse_request(json.dumps({key: value for key, value in document.items() if key != "allowance"}))


def admitted(document: Doc) -> Case:
    vouchers: list[Doc] = document["vouchers"]
    try:
        return Case(document, read(document), len(vouchers), 0)
    except InvalidInput:
        kept = [voucher for voucher in vouchers if passes(voucher)]
    plain = {"code": vouchers[0]["code"], "discount": {"type": "percentage", "percent": 10}}
    document["vouchers"] = kept or [plain]
    return Case(document, read(document), len(kept), len(vouchers) - len(kept))


def passes(voucher: Doc) -> bool:
    try:
        parse_voucher(voucher)
    except InvalidInput:
        return False
    return True


# the request


def generated(chance: Chance) -> Doc:
    """A request as it comes, with vouchers that the door may refuse; half are calm, so that more vouchers meet."""
    home = chance.choice(CURRENCIES)
    if chance.maybe(4):
        return _rivals(chance, home)
    calm = chance.maybe(50)
    at = _at(chance)
    count = chance.choice([1, 1, 2, 3, 4, 5, 6])
    if chance.maybe(1):
        count = chance.integer(7, 10)
    names = [f"{chance.choice(PREFIXES)}{number}" for number in range(count)]
    made: Doc = {
        "order": order(chance, home),
        "vouchers": [voucher(chance, name, home, at, calm=calm) for name in names],
        "at": written(chance, at),
    }
    if chance.maybe(30):
        typed = [name for name in names if chance.maybe(85)]
        typed += [chance.choice(names) for _ in range(chance.integer(0, 2))]
        typed += chance.sample(["NOPE", " nöpe", "A"], chance.choice([0, 0, 1, 2]))
        made["codes"] = [respelled(chance, name) for name in typed]
    if chance.maybe(60):
        made["usage"] = {respelled(chance, name): _usage(chance) for name in names if chance.maybe(70)}
    if chance.maybe(4 if calm else 30):
        made["allowance"] = {respelled(chance, name): _allowance(chance) for name in names if chance.maybe(70)}
    return made


def _rivals(chance: Chance, home: str) -> Doc:
    """Vouchers that use up each other's units, so that a later one gives dearer units than it would alone."""
    prices = chance.sample([100, 200, 500, 1000], 2)
    lines = [_line(chance, index, prices, False, 1) for index in range(chance.integer(2, 4))]
    made: Doc = {"order": {"id": "o", "currency": home, "lines": lines}, "vouchers": [], "at": "2026-06-15T12:00:00Z"}
    for number in range(chance.integer(2, 4)):
        give = plain(chance, "bogo")
        if chance.maybe(70):
            give |= {"buy": {"quantity": 1}, "get": {"quantity": 1}, "max_applications": chance.integer(1, 2)}
        one = {"code": f"R{number}", "discount": give, "currency": home}
        one["stacking"] = {"mode": "stackable", "priority": chance.integer(0, 2)}
        if chance.maybe(60):
            one["limits"] = {"budget_minor": chance.choice(prices) * chance.integer(1, 2)}
        made["vouchers"].append(one)
    if chance.maybe(30):
        made["allowance"] = {f"R{number}": {"minor": chance.choice(prices)} for number in range(2)}
    return {**made, "usage": {}} if chance.maybe(80) else made


def respelled(chance: Chance, code: str) -> str:
    way = chance.integer(0, 5)
    if way == 1:
        code = code.upper()
    elif way == 2:
        code = code.lower()
    elif way == 3:
        code = unicodedata.normalize("NFD", code)
    return f"{chance.choice(PADDING)}{code}{chance.choice(PADDING)}" if way > 3 else code


def _usage(chance: Chance) -> Doc:
    used = {
        "total": chance.integer(0, 4),
        "customer": chance.integer(0, 2),
        "budget_minor": chance.choice([0, 100, 900, 2000]),
    }
    return {key: value for key, value in used.items() if chance.maybe(85)}


def _allowance(chance: Chance) -> Doc:
    return {
        "units": chance.choice([None, None, 1, 5, 0]),
        "minor": chance.choice([None, 5000, 500, 50, 0]),
        "needs_connection": chance.maybe(10),
    }


def _at(chance: Chance) -> datetime:
    """Mostly an instant near a jump of the wall clock of one of the zones."""
    _, jump = chance.choice(JUMPS)
    return datetime.fromisoformat(f"{jump}:00+00:00") + timedelta(minutes=chance.choice(MINUTES))


def written(chance: Chance, at: datetime) -> str:
    """The instant, or another of the same second, in any offset."""
    if chance.maybe(30):
        at += timedelta(microseconds=chance.choice([1, 500_000, 999_999]))
    if chance.maybe(50):
        return at.isoformat().replace("+00:00", "Z")
    return at.astimezone(timezone(timedelta(minutes=chance.choice([120, -300, 345, -570])))).isoformat()


# the order


def order(chance: Chance, home: str) -> Doc:
    count = chance.choice([1, 2, 3, 4, 6])
    if chance.maybe(2):
        count = chance.choice([0, 9, 14, 25])
    prices = chance.sample(PRICES[2:], 2) if chance.maybe(20) else PRICES
    many, scale = chance.maybe(2), 10**6 + 3 if chance.maybe(1) else 1
    lines = [_line(chance, index, prices, many, scale) for index in range(count)]
    made: Doc = {"id": "o", "currency": home, "lines": lines}
    if chance.maybe(5):
        made["currency"] = chance.choice(CURRENCIES)
    if chance.maybe(50):
        made["shipping_minor"] = chance.choice([490, 0, 1, 999])
    if chance.maybe(70):
        made["customer"] = None if chance.maybe(3) else _customer(chance)
    if chance.maybe(30):
        made["store_id"] = chance.choice(["s1", "s2", None])
    if chance.maybe(30):
        made["channel"] = chance.choice(["pos", "web"])
    if chance.maybe(30):
        made["attributes"] = {"pay": attribute(chance)}
    return made


def _customer(chance: Chance) -> Doc:
    made: Doc = {}
    if chance.maybe(80):
        made["segments"] = chance.sample(["vip", "new", "staff"], chance.integer(0, 2))
    if chance.maybe(80):
        made["id"] = chance.choice(["c1", "c2"])
    if chance.maybe(50):
        made["attributes"] = {"n": attribute(chance)}
    return made


def attribute(chance: Chance) -> Any:
    return chance.choice([1, 2, True, "1", None, 1.5, 1.0, False, "é", [1, 2], ["1"], [], [True, 1], 0])


def _line(chance: Chance, index: int, prices: list[int], many: bool, scale: int) -> Doc:
    line: Doc = {
        "id": f"l{index}",
        "product_id": chance.choice(PRODUCTS),
        "quantity": chance.choice([1, 1, 1, 2, 3, 5, 7]),
        "unit_price_minor": chance.choice(prices) * scale,
    }
    if many:
        line["quantity"] = chance.integer(1, 30_000)
    if chance.maybe(10):
        line["unit_price_minor"] = chance.integer(0, 2000)
    if chance.maybe(60):
        line["category_ids"] = chance.sample(["x", "y", "z"], chance.integer(1, 2))
    if chance.maybe(30):
        line["attributes"] = {"brand": chance.choice(["n", 1, True, "m", ["n"]])}
    return line


# vouchers


def voucher(chance: Chance, name: str, home: str, at: datetime, *, calm: bool = False) -> Doc:
    made: Doc = {"code": name, "discount": discount(chance), "currency": home}
    if chance.maybe(12 if calm else 35):
        made["when"] = when(chance, 3)
    elif chance.maybe(6):
        made["when"] = {"field": "order.remaining_minor", "op": "gte", "value": chance.choice([300, 1000, 3000])}
    if not calm:
        made |= _gates(chance, at)
    if not calm and chance.maybe(5):
        made["currency"] = chance.choice(CURRENCIES)
    elif chance.maybe(40) and "when" not in made and made["discount"].keys() <= {"type", "percent", "items"}:
        del made["currency"]
    if chance.maybe(10 if calm else 30):
        made["limits"] = _limits(chance)
    stacking = _stacking(chance)
    if made["discount"]["type"] in ("shipping", "gift_card"):
        stacking.pop("max_total_percent", None)
    if stacking:
        made["stacking"] = stacking
    return made


def _gates(chance: Chance, at: datetime) -> Doc:
    """What a voucher is refused for whatever the order."""
    made: Doc = {}
    for bound, sign in (("valid_from", -1), ("valid_until", 1)):
        if chance.maybe(15):
            made[bound] = written(chance, at + sign * timedelta(seconds=chance.choice([0, 1, 86_400, -1])))
    if chance.maybe(12):
        made["hours"] = [_window(chance) for _ in range(chance.integer(1, 2))]
    if chance.maybe(5):
        made["status"] = chance.choice(["active", "paused", "paused"])
    return made


def _window(chance: Chance) -> Doc:
    name, _ = chance.choice(JUMPS)
    made: Doc = {"from": chance.choice(CLOCKS), "to": chance.choice(CLOCKS), "timezone": name}
    if chance.maybe(60):
        made["days"] = chance.sample(DAYS, chance.integer(1, 5))
    return made


def _limits(chance: Chance) -> Doc:
    limits = {
        "total": chance.integer(3, 5),
        "per_customer": chance.integer(1, 3),
        "budget_minor": chance.choice([100, 1000, 2500]),
    }
    return {key: limits[key] for key in chance.sample(list(limits), chance.integer(1, 2))}


def _stacking(chance: Chance) -> Doc:
    stacking: Doc = {}
    if chance.maybe(85):
        stacking["mode"] = "stackable"
        if chance.maybe(20):
            stacking["group"] = chance.choice(["g", "h", None])
    if chance.maybe(30):
        stacking["priority"] = chance.integer(-1, 2)
    if chance.maybe(30):
        stacking["max_total_percent"] = chance.choice([30, 50, "12.5", 0.01, 100, None])
    return stacking
