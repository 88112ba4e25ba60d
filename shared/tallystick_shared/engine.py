"""The engine: which of the vouchers apply to an order, what each takes, and why the others do not.

Pure functions: the caller passes the time and what has been used so far; equal inputs give equal bytes. Source:
engine.md, "Applying several vouchers" (the steps are in `steps`) and "Result".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from . import codes as _codes
from .checks import plain_discounts
from .combinations import search
from .compiled import CompiledVoucher, compile_voucher
from .errors import InvalidInput
from .money import refund_minor
from .results import (
    Allowance,
    Applied,
    Best,
    Qualified,
    Reason,
    Refused,
    Result,
    ResultLine,
    best_json,
    brief,
    qualified_json,
    result_json,
)
from .steps import BY_TURN, Candidate, Run, apply, check_alone, result, stack
from .terms import Bogo, Fixed, GiftCard, Order, Percentage, PlainDiscount, Shipping, Usage, Voucher
from .validity import TZDATA_VERSION, epoch_second

__all__ = [
    "ENGINE_VERSION", "Allowance", "Applied", "Best", "CompiledVoucher", "Qualified", "Reason", "Refused", "Result",
    "ResultLine", "Usage", "best", "best_json", "brief", "compile_voucher", "evaluate", "max_discount_minor",
    "qualified_json", "qualify", "refund_minor", "result_json",
]  # fmt: skip

RULES_VERSION: Final = "2"
"""Rises whenever some input gives other bytes than before, be it only in `why` or `detail`."""
ENGINE_VERSION: Final[str] = f"{RULES_VERSION}+tzdata{TZDATA_VERSION}"
"""What a redemption names, so that it can be settled by the same rules, time zones included."""


def evaluate(
    order: Order,
    vouchers: Sequence[CompiledVoucher],
    codes: Sequence[str] | None = None,
    *,
    at: datetime,
    usage: Mapping[str, Usage] | None = None,
    allowance: Mapping[str, Allowance] | None = None,
) -> Result:
    """Apply the vouchers whose `codes` were given (None: all of them) to an order at the time `at`.

    `usage` and `allowance` are by folded code. Without `usage` limits are not checked; a code missing in it has used
    nothing. Without `allowance` the caller is connected, and a code missing in it is free to use. Amounts are in minor
    units of the order's currency. Raises `InvalidInput` where `at` has no offset, a code cannot be one, or two vouchers
    have equal codes. Refusals are in the result. Source: engine.md.
    """
    run = Run(order, epoch_second(at), usage, allowance)
    candidates = _candidates(run, vouchers, codes)
    kept = stack(run, candidates) if len(candidates) > 1 else candidates
    kept.sort(key=BY_TURN)
    for candidate in kept:
        apply(run, candidate)
    return result(run)


def best(
    order: Order,
    vouchers: Sequence[CompiledVoucher],
    codes: Sequence[str] | None = None,
    *,
    at: datetime,
    usage: Mapping[str, Usage] | None = None,
    allowance: Mapping[str, Allowance] | None = None,
) -> Best:
    """The combination of vouchers that saves the customer most, goods and shipping together; arguments as `evaluate`.

    A combination is a set of which `evaluate` refuses none. Gift cards are kept, not chosen: those that still find
    something to pay are in the answer. Every combination is looked at for up to 12 vouchers that apply (more where
    stacking leaves few sets); past that the answer is the best found step by step, and says so.
    """
    run = Run(order, epoch_second(at), usage, allowance)
    candidates = _candidates(run, vouchers, codes)
    chosen, exact = search(run, [candidate for candidate in candidates if not candidate.is_gift_card])
    final = Run(order, run.second, usage, allowance)
    cards = sorted((candidate for candidate in candidates if candidate.is_gift_card), key=BY_TURN)
    for candidate in (*chosen, *cards):
        apply(final, candidate)
    final.refused.clear()  # cards that find nothing left to pay
    outcome = result(final)
    saved = outcome.discount_minor + outcome.shipping_discount_minor
    return Best(tuple(applied.code for applied in outcome.applied), saved, exact, outcome)


def qualify(
    order: Order,
    vouchers: Sequence[CompiledVoucher],
    codes: Sequence[str] | None = None,
    *,
    at: datetime,
    usage: Mapping[str, Usage] | None = None,
    allowance: Mapping[str, Allowance] | None = None,
) -> tuple[Qualified, ...]:
    """Of every voucher whether it applies to the order alone, and if not why; arguments as `evaluate`.

    Ordered by folded code.
    """
    run = Run(order, epoch_second(at), usage, allowance)
    candidates = _candidates(run, vouchers, codes)
    found = [(one.compiled.folded, Qualified(one.compiled.voucher.code, one.alone)) for one in candidates]
    for folded, refused in run.refused:
        found.append((folded, Qualified(refused.code, None, refused.reason, refused.detail)))
    found.sort(key=lambda entry: entry[0])
    return tuple([qualified for _, qualified in found])


def _candidates(run: Run, vouchers: Sequence[CompiledVoucher], codes: Sequence[str] | None) -> list[Candidate]:
    """Step 1: what would apply alone; the others are refused."""
    candidates = []
    for compiled in _wanted(run, vouchers, codes):
        found = check_alone(run, compiled)
        if isinstance(found, Candidate):
            candidates.append(found)
        else:
            run.refuse(compiled, *found)
    return candidates


def _wanted(run: Run, vouchers: Sequence[CompiledVoucher], given: Sequence[str] | None) -> Sequence[CompiledVoucher]:
    """The vouchers to check, each once; unknown codes are refused as first typed, trimmed."""
    by_code = {compiled.folded: compiled for compiled in vouchers}
    if len(by_code) != len(vouchers):
        _refuse_equal(vouchers)
    if given is None:
        return vouchers
    wanted: dict[str, CompiledVoucher] = {}
    unknown: set[str] = set()
    for index, code in enumerate(given):
        try:
            folded = _codes.fold(code)
        except InvalidInput as error:
            raise error.under(f"codes[{index}]") from None
        if folded in by_code:
            wanted[folded] = by_code[folded]
        elif folded not in unknown:
            unknown.add(folded)
            detail = {"message": "check the spelling: there is no voucher with this code"}
            run.refused.append((folded, Refused(_codes.trimmed(code), Reason.UNKNOWN_CODE, detail)))
    return list(wanted.values())


def _refuse_equal(vouchers: Sequence[CompiledVoucher]) -> None:
    first: dict[str, int] = {}
    for index, compiled in enumerate(vouchers):
        earlier = first.setdefault(compiled.folded, index)
        if earlier != index:
            raise InvalidInput(f"vouchers[{index}].code", f"must not be equal to vouchers[{earlier}].code")


def max_discount_minor(voucher: Voucher) -> int | None:
    """The largest discount the voucher can give on any one order, in minor units, or None where nothing bounds it.

    From the discount alone: its amount, cap or balance. What is left of a budget bounds it too, but changes.
    """
    bounds = [_largest(discount) for discount in plain_discounts(voucher.discount)]
    known = [bound for bound in bounds if bound is not None]
    return max(known) if len(known) == len(bounds) else None


def _largest(discount: PlainDiscount) -> int | None:
    if isinstance(discount, Percentage | Shipping):
        return discount.cap_minor
    if isinstance(discount, Fixed):
        return discount.amount_minor if discount.per == "order" else None
    if isinstance(discount, GiftCard):
        return discount.balance_minor
    if isinstance(discount, Bogo) and discount.get.amount_minor is not None and discount.max_applications is not None:
        return discount.get.amount_minor * discount.get.quantity * discount.max_applications
    return None
