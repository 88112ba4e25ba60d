"""A second engine, written from engine.md alone: plain documents and exact fractions, and little care for speed.

It shares nothing with the package, not even its model, so that a misreading in one shows as a difference. It knows
nothing of `why` and `detail`. A document is a request as `tallystick evaluate` reads it, and may hold `allowance`:
{CODE: {"units": n, "minor": n, "needs_connection": bool}}, what a device may still give away on its own.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from tests.shared.oracle_basket import GIFT, Entry, Oracle
from tests.shared.oracle_rules import Doc, trimmed


def evaluate(document: Doc) -> Doc:
    """The result without `why` and `detail`."""
    return _evaluated(Oracle(document))


def exact_shares(document: Doc) -> dict[str, dict[str, Fraction]]:
    """By folded code and line id what each voucher applied takes before rounding."""
    oracle = Oracle(document)
    _evaluated(oracle)
    return oracle.exact


def beaten(document: Doc) -> dict[str, str]:
    """By folded code of each voucher with a STACKING_CONFLICT, the folded code of the best it conflicts with."""
    entries, _ = _alone(Oracle(document))
    return _stacked(entries)[1]


def holds(document: Doc, when: Doc) -> bool:
    """Whether a condition holds on an order from which nothing was taken."""
    return Oracle(document).holds(when)


def actual(document: Doc, leaf: Doc) -> Any:
    """What the order has for the field of a leaf, before anything was taken."""
    return Oracle(document).actual(leaf)


def qualify(document: Doc) -> list[Doc]:
    """By folded code: what each voucher takes alone, or why it does not apply alone."""
    oracle = Oracle(document)
    entries, refused = _alone(oracle)
    found: dict[str, Doc] = {entry.code: {"discount_minor": entry.amount, "reason": None} for entry in entries}
    found |= {code: {"discount_minor": None, "reason": reason} for code, reason in refused.items()}
    return [{"code": _spelled(oracle, code), **found[code]} for code in sorted(found)]


def best(document: Doc) -> Doc:
    """Of all sets of vouchers of which none is refused, the one that saves most: by trying all of them."""
    oracle = Oracle(document)
    entries, _ = _alone(oracle)
    gift_cards = [entry for entry in entries if entry.lane == GIFT]
    chosen: list[Entry] = []
    saved = 0
    for some in _without_conflict([entry for entry in entries if entry.lane != GIFT]):
        answers = [answer for _, answer in oracle.turns(some)]
        saves = sum(0 if isinstance(answer, str) else answer["discount_minor"] for answer in answers)
        if any(isinstance(answer, str) for answer in answers) or saves < saved:
            continue
        if saves > saved or _tie(some) < _tie(chosen):
            chosen, saved = some, saves
    applied = [entry for entry, answer in oracle.turns([*chosen, *gift_cards]) if not isinstance(answer, str)]
    codes = [trimmed(entry.voucher["code"]) for entry in applied]
    return {"codes": codes, "saved_minor": saved, "exact": True, "result": evaluate({**document, "codes": codes})}


def _tie(entries: list[Entry]) -> tuple[int, list[str]]:
    return len(entries), sorted(entry.code for entry in entries)


def _without_conflict(entries: list[Entry]) -> list[list[Entry]]:
    sets: list[list[Entry]] = [[]]
    for entry in entries:
        sets += [[*some, entry] for some in sets if not any(entry.conflicts(other) for other in some)]
    return sets


def _spelled(oracle: Oracle, code: str) -> str:
    return trimmed(oracle.known[code]["code"]) if code in oracle.known else oracle.unknown[code]


def _alone(oracle: Oracle) -> tuple[list[Entry], dict[str, str]]:
    refused = dict.fromkeys(oracle.unknown, "UNKNOWN_CODE")
    entries = []
    for code, voucher in oracle.known.items():
        found = oracle.alone(code, voucher)
        if isinstance(found, str):
            refused[code] = found
        else:
            entries.append(found)
    return entries, refused


def _stacked(entries: list[Entry]) -> tuple[list[Entry], dict[str, str]]:
    """Those that are kept, and by code of each other one the best that it conflicts with."""
    kept: list[Entry] = []
    lost: dict[str, str] = {}
    for entry in sorted(entries, key=lambda entry: entry.rank):
        better = next((other.code for other in kept if entry.conflicts(other)), None)
        if better is None:
            kept.append(entry)
        else:
            lost[entry.code] = better
    return kept, lost


def _evaluated(oracle: Oracle) -> Doc:
    entries, refused = _alone(oracle)
    kept, lost = _stacked(entries)
    refused |= dict.fromkeys(lost, "STACKING_CONFLICT")
    applied: list[Any] = []
    for entry, answer in oracle.turns(kept):
        if isinstance(answer, str):
            refused[entry.code] = answer
        else:
            applied.append(answer)
    shipping: int = oracle.order.get("shipping_minor", 0)
    goods = sum(oracle.left)
    lowered = zip(oracle.lines, oracle.totals, oracle.left, strict=True)
    return {
        "currency": oracle.order["currency"],
        "subtotal_minor": oracle.subtotal,
        "discount_minor": oracle.subtotal - goods,
        "shipping_minor": shipping,
        "shipping_discount_minor": shipping - oracle.shipping,
        "paid_by_gift_card_minor": oracle.paid,
        "total_minor": goods + oracle.shipping - oracle.paid,
        "lines": [{"id": line["id"], "discount_minor": total - left} for line, total, left in lowered],
        "applied": applied,
        "refused": [{"code": _spelled(oracle, code), "reason": refused[code]} for code in sorted(refused)],
    }
