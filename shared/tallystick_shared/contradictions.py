"""What is well formed and can still never do what it says: refused when a voucher is published, with what to do.

Source: engine.md, "Fields below are the contract": contradictory settings are refused at the door. A till that reads a
signed voucher does not ask here: what was once published is not called wrong by a newer version.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET

from .checks import condition_nodes, plain_discounts
from .discounts import percent_of, percent_text
from .door import encode
from .errors import InvalidInput
from .feasible import Facts, facts, possible
from .terms import (
    Bogo,
    BundlePrice,
    Conditional,
    Fixed,
    FixedPrice,
    GiftCard,
    Items,
    Percentage,
    PlainDiscount,
    Shipping,
    Tiered,
    Voucher,
)
from .validity import OpeningHours, epoch_second

CODE = "CONTRADICTION"


def refuse_contradictions(voucher: Voucher) -> None:
    """Raises `InvalidInput` with the code CONTRADICTION where a setting can never have an effect, or never apply.

    The voucher has come through `checks`.
    """
    _check_numbers(voucher)
    _check_hours(voucher)
    for items, path in _selectors(voucher):
        _check_items(items, path)
    known = _known(voucher)
    whole = facts([voucher.when], known)
    if not whole.possible:
        raise _contradiction("when", "can never hold: let no two of its conditions exclude each other")
    discount = voucher.discount
    if isinstance(discount, Tiered):
        _check_tiers(discount, whole)
    elif isinstance(discount, Conditional):
        _check_cases(discount, voucher, known)
    elif isinstance(discount, Percentage):
        _check_cap(discount, whole.most.get("order.subtotal_minor"), "discount")


def _contradiction(path: str, text: str, was: object = None) -> InvalidInput:
    return InvalidInput(path, text, None if was is None else str(was), code=CODE)


def _check_numbers(voucher: Voucher) -> None:
    limits, offline = voucher.limits, voucher.offline
    pairs = (
        ("limits.per_customer", limits.per_customer, "limits.total", limits.total),
        ("offline.max_units", offline.max_units, "limits.total", limits.total),
        ("offline.max_minor", offline.max_minor, "limits.budget_minor", limits.budget_minor),
    )
    for path, value, of, most in pairs:
        if value is not None and most is not None and value > most:
            raise _contradiction(path, f"must be at most {most}, which is {of}, or be left out", value)
    for discount, path in _plain(voucher):
        cap = discount.cap_minor if isinstance(discount, Percentage | Shipping) else None
        budget = limits.budget_minor
        if cap is not None and budget is not None and cap > budget:
            raise _contradiction(f"{path}.cap_minor", f"must be at most {budget}, which is limits.budget_minor", cap)
    if voucher.stacking.max_total_percent is not None and all(
        isinstance(discount, Shipping | GiftCard) for discount in plain_discounts(voucher.discount)
    ):
        text = "must be left out: it never limits shipping or gift cards"
        raise _contradiction("stacking.max_total_percent", text)


def _plain(voucher: Voucher) -> Iterator[tuple[PlainDiscount, str]]:
    """Every discount that it can turn out to be, with its path."""
    discount = voucher.discount
    if isinstance(discount, Tiered):
        for index, tier in enumerate(discount.tiers):
            yield tier.discount, f"discount.tiers[{index}].discount"
    elif isinstance(discount, Conditional):
        for index, case in enumerate(discount.cases):
            yield case.discount, f"discount.cases[{index}].discount"
        if discount.otherwise is not None:
            yield discount.otherwise, "discount.otherwise"
    else:
        yield discount, "discount"


def _check_hours(voucher: Voucher) -> None:
    if voucher.hours is None or voucher.valid_from is None or voucher.valid_until is None:
        return
    hours, start = OpeningHours(voucher.hours), epoch_second(voucher.valid_from)
    if hours.is_open(start):
        return
    opens = hours.next_opening(start)
    if opens is None or opens[0] > voucher.valid_until:
        raise _contradiction("hours", "must have a window that opens between valid_from and valid_until")


# Items.


def _own_items(discount: PlainDiscount) -> Iterator[tuple[Items, str]]:
    """The selectors of one discount, with their paths in it."""
    if isinstance(discount, Bogo):
        for name, side in (("buy", discount.buy), ("get", discount.get)):
            if side.items is not None:
                yield side.items, f"{name}.items"
    elif isinstance(discount, Percentage | Fixed | FixedPrice | BundlePrice) and discount.items is not None:
        yield discount.items, "items"


def _selectors(voucher: Voucher) -> Iterator[tuple[Items, str]]:
    if isinstance(voucher.discount, Tiered) and voucher.discount.items is not None:
        yield voucher.discount.items, "discount.items"
    for discount, path in _plain(voucher):
        for items, inner in _own_items(discount):
            yield items, f"{path}.{inner}"
    conditions = [] if voucher.when is None else [(voucher.when, "when")]
    if isinstance(voucher.discount, Conditional):
        conditions += [
            (case.when, f"discount.cases[{index}].when") for index, case in enumerate(voucher.discount.cases)
        ]
    for condition, path in conditions:
        for node, where, _ in condition_nodes(condition, path):
            if node.items is not UNSET:
                yield node.items, f"{where}.items"


def _check_items(items: Items, path: str) -> None:
    for name, kind in (("product_ids", "product"), ("category_ids", "category")):
        included, excluded = getattr(items, name), getattr(items, f"exclude_{name}")
        both = frozenset(included).intersection(excluded)
        if both:
            index = next(index for index, one in enumerate(excluded) if one in both)
            where = f"{path}.exclude_{name}[{index}]"
            raise _contradiction(where, f"must not be a {kind} of {name} too: leave it out of one of them")


def _never_both(one: Items | None, other: Items | None) -> bool:
    """Whether no line can match both selectors, as far as their lists of ids show."""
    if one is None or other is None:
        return False
    no_product = frozenset((*one.exclude_product_ids, *other.exclude_product_ids))
    no_category = frozenset((*one.exclude_category_ids, *other.exclude_category_ids))
    by_product = [
        frozenset(items.product_ids) - no_product
        for items in (one, other)
        if items.product_ids or items.category_ids  # else every line that is not excluded, or by its attributes
        if not items.attributes and no_category.issuperset(items.category_ids)
    ]
    return bool(by_product) and not frozenset.intersection(*by_product)


# Tiers, cases and caps.


def _known(voucher: Voucher) -> Facts:
    """What an order must be like for the voucher to apply, whatever its conditions say."""
    known = Facts()
    if voucher.currency is not None:
        known.only("order.currency", {("text", voucher.currency)})
    if voucher.limits.per_customer is not None:
        known.there("customer.id", True)
    return known


def _check_tiers(tiered: Tiered, whole: Facts) -> None:
    by_amount = tiered.basis == "amount"
    field = "order.subtotal_minor" if by_amount else "order.quantity"
    least = whole.least.get(field, 0) if tiered.items is None or tiered.items == Items() else 0
    most = whole.most.get(field)
    for index, tier in enumerate(tiered.tiers):
        path = f"discount.tiers[{index}]"
        last = tiered.tiers[index + 1].min - 1 if index + 1 < len(tiered.tiers) else None
        if most is not None and tier.min > most:
            raise _contradiction(
                f"{path}.min", f"must be at most {most}, which is all that when lets through", tier.min
            )
        if last is not None and last < least:
            text = f"can never apply: when lets nothing below {least} through, where a later tier has begun"
            raise _contradiction(path, text)
        highest = most if last is None else last if most is None else min(last, most)
        for items, inner in _own_items(tier.discount):
            if _never_both(tiered.items, items):
                where = f"{path}.discount.{inner}"
                raise _contradiction(where, "must have something in common with discount.items, or be left out")
        if by_amount and isinstance(tier.discount, Percentage):
            _check_cap(tier.discount, highest, f"{path}.discount")
        elif not by_amount and highest is not None:
            _check_units(tier.discount, highest, f"{path}.discount")


def _check_units(discount: PlainDiscount, most: int, path: str) -> None:
    """Within a tier that ends at `most` units."""
    if isinstance(discount, BundlePrice) and discount.quantity > most:
        text = f"must be at most {most}, the units with which this tier ends"
        raise _contradiction(f"{path}.quantity", text, discount.quantity)
    if isinstance(discount, Bogo) and discount.buy.quantity + discount.get.quantity > most:
        text = f"must buy and get at most {most} units together, with which this tier ends"
        raise _contradiction(path, text, discount.buy.quantity + discount.get.quantity)


def _check_cap(discount: Percentage, most: int | None, path: str) -> None:
    """`most` is the highest amount of goods that the discount can meet."""
    if discount.cap_minor is None or most is None:
        return
    highest = percent_of(most, discount.percent.ten_thousandths)
    if discount.cap_minor > highest:
        rate = percent_text(discount.percent.ten_thousandths)
        text = f"must be at most {highest}, or be left out: {rate} of the {most} that it can meet is no more"
        raise _contradiction(f"{path}.cap_minor", text, discount.cap_minor)


def _check_cases(conditional: Conditional, voucher: Voucher, known: Facts) -> None:
    seen: list[bytes] = []  # as JSON, because Python takes true for 1
    for index, case in enumerate(conditional.cases):
        path = f"discount.cases[{index}]"
        both = facts([voucher.when, case.when], known)
        if not both.possible:
            beside = "" if voucher.when is None else " beside the voucher's own when"
            raise _contradiction(f"{path}.when", f"can never hold{beside}: change it, or leave the case out")
        written = encode(case.when)
        if written in seen:
            raise _contradiction(
                f"{path}.when", f"must differ from that of cases[{seen.index(written)}], which goes first"
            )
        seen.append(written)
        rest = len(conditional.cases) > index + 1 or conditional.otherwise is not None
        if rest and not possible(case.when, False):
            raise _contradiction(
                f"{path}.when", "always holds: nothing after it can apply, so put it last as otherwise"
            )
        if isinstance(case.discount, Percentage):
            _check_cap(case.discount, both.most.get("order.subtotal_minor"), f"{path}.discount")
