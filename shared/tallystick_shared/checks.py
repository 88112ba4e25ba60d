"""The rules between fields: what is well shaped and still makes no sense is refused here, with its path.

Source: engine.md, "Voucher" to "Conditions", and protocol.md, section 2, for `offline`. Each function takes a struct of
`terms` and raises `InvalidInput` with the path relative to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import UNSET

from . import codes, terms
from .door import encode, shown
from .errors import InvalidInput
from .money import CURRENCY_EXPONENTS, ORDER_TOTAL_MAX
from .terms import (
    Bogo,
    BundlePrice,
    Condition,
    Conditional,
    Discount,
    Fixed,
    FixedPrice,
    GiftCard,
    Items,
    Limits,
    Offline,
    Order,
    Percentage,
    PlainDiscount,
    Policy,
    Shipping,
    Tiered,
    Voucher,
)
from .validity import check_hours
from .values import kind_of

ATTRIBUTES_MAX: Final = 100
METADATA_BYTES_MAX: Final = 8192
METADATA_DEPTH_MAX: Final = 32
WHEN_DEPTH_MAX: Final = 8
WHEN_LEAVES_MAX: Final = 64
VALUES_MAX: Final = 1000
_NUMBER_MAX: Final = 10**18
_OFFLINE: Final[dict[Policy, Offline]] = {
    "online_only": Offline(policy="online_only"),
    "quota": Offline(policy="quota"),
    "open": Offline(policy="open"),
}

# What a condition compares, by name; attributes may be anything and are known only at the till.
NUMBER_FIELDS: Final = frozenset(
    {"order.subtotal_minor", "order.remaining_minor", "order.quantity", "items.quantity", "items.subtotal_minor"}
)
TEXT_FIELDS: Final = frozenset({"order.currency", "order.store_id", "order.channel", "customer.id"})
LIST_FIELDS: Final = frozenset({"customer.segments"})
ATTRIBUTE_PREFIXES: Final = ("order.attributes.", "customer.attributes.")
_ORDERING: Final = frozenset({"gt", "gte", "lt", "lte"})
_FIELDS_WANTED: Final = (
    "must be order.subtotal_minor, order.remaining_minor, order.quantity, order.currency, order.store_id, "
    "order.channel, order.attributes.NAME, customer.id, customer.segments, customer.attributes.NAME, items.quantity "
    "or items.subtotal_minor"
)
_HasItems: TypeAlias = Percentage | Fixed | FixedPrice | BundlePrice | Tiered


def check_order(order: Order) -> None:
    """Raises where ids repeat, the currency is unknown, attributes are not plain, or the goods come to too much."""
    check_currency(order.currency, "currency")
    check_attributes(order.attributes, "attributes")
    if order.customer is not None:
        check_attributes(order.customer.attributes, "customer.attributes")
    first_seen: dict[str, int] = {}
    total = order.shipping_minor
    for index, line in enumerate(order.lines):
        if first_seen.setdefault(line.id, index) != index:
            raise InvalidInput(f"lines[{index}].id", "must not be the id of an earlier line too", shown(line.id))
        if line.attributes:
            check_attributes(line.attributes, f"lines[{index}].attributes")
        total += line.quantity * line.unit_price_minor
    if total > ORDER_TOTAL_MAX:
        raise InvalidInput("lines", f"must come to at most {ORDER_TOTAL_MAX} minor units with shipping", shown(total))


def checked_voucher(voucher: Voucher, default_currency: str | None) -> Voucher:
    """The voucher as it is stored: code trimmed, currency and offline policy filled in, defaults in one form."""
    try:
        code = codes.trimmed(voucher.code)
    except InvalidInput as error:
        raise error.under("code") from None
    check_discount(voucher.discount)
    if voucher.when is not None:
        check_when(voucher.when, "when")
    if voucher.valid_from is not None and voucher.valid_until is not None and voucher.valid_until < voucher.valid_from:
        raise InvalidInput("valid_until", "must not be before valid_from", voucher.valid_until.isoformat())
    for index, window in enumerate(voucher.hours or ()):
        check_hours(window, f"hours[{index}]")
    _check_stacking(voucher.stacking)
    if voucher.metadata:
        _check_metadata(voucher.metadata)
    offline = _checked_offline(voucher)
    currency = _checked_currency(voucher, default_currency)
    limits = terms.NO_LIMITS if voucher.limits == terms.NO_LIMITS else voucher.limits
    stacking = terms.STACKING_BY_DEFAULT if voucher.stacking == terms.STACKING_BY_DEFAULT else voucher.stacking
    if (code, currency) == (voucher.code, voucher.currency) and (
        offline is voucher.offline and limits is voucher.limits and stacking is voucher.stacking
    ):
        return voucher
    return msgspec.structs.replace(
        voucher, code=code, currency=currency, offline=offline, limits=limits, stacking=stacking
    )


def check_currency(currency: str, path: str) -> None:
    if currency not in CURRENCY_EXPONENTS:
        raise InvalidInput(path, "must be an active currency of ISO 4217, three capital letters", shown(currency))


def check_attributes(attributes: dict[str, Any], path: str) -> None:
    if len(attributes) > ATTRIBUTES_MAX:
        raise InvalidInput(path, f"must have at most {ATTRIBUTES_MAX} names", shown(len(attributes)))
    for name, value in attributes.items():
        if not 1 <= len(name) <= terms.TEXT_MAX:
            raise InvalidInput(path, f"must have names of 1 to {terms.TEXT_MAX} characters", shown(name))
        where = f"{path}.{name}"
        if isinstance(value, list):
            if len(value) > VALUES_MAX:
                raise InvalidInput(where, f"must be a list of at most {VALUES_MAX}", shown(value))
            for index, inner in enumerate(value):
                _check_scalar(inner, f"{where}[{index}]")
        elif value is not None:
            _check_scalar(value, where)


def _check_scalar(value: object, path: str) -> None:
    if isinstance(value, str):
        if len(value) > terms.TEXT_MAX:
            raise InvalidInput(path, f"must be at most {terms.TEXT_MAX} characters", shown(value))
    elif isinstance(value, Decimal):
        digits = value.as_tuple().digits
        if len(digits) > 18 or not -18 <= value.adjusted() <= 18 or int(value.as_tuple().exponent) < -18:
            raise InvalidInput(path, "must be a number of at most 18 digits", shown(value))
    elif isinstance(value, int):
        if abs(value) > _NUMBER_MAX:
            raise InvalidInput(path, f"must be a number of at most {_NUMBER_MAX}", shown(value))
    else:
        raise InvalidInput(path, "must be text, a number, true, false, or a list of these", shown(value))


def _check_items(items: Items | None, path: str) -> None:
    if items is None or not items.attributes:
        return
    check_attributes(items.attributes, f"{path}.attributes")
    for name, value in items.attributes.items():
        if value is None:
            raise InvalidInput(f"{path}.attributes.{name}", "must be text, a number, true, false or a list", "null")


def check_discount(discount: Discount) -> None:
    """Raises, with a path that starts at `discount`, where its parts contradict each other."""
    if isinstance(discount, Tiered):
        _check_items(discount.items, "discount.items")
        for index, (tier, next_tier) in enumerate(zip(discount.tiers, discount.tiers[1:], strict=False), start=1):
            if next_tier.min <= tier.min:
                where = f"discount.tiers[{index}].min"
                raise InvalidInput(where, f"must be above the {tier.min} of the tier before", shown(next_tier.min))
        for index, tier in enumerate(discount.tiers):
            _check_plain(tier.discount, f"discount.tiers[{index}].discount")
    elif isinstance(discount, Conditional):
        for index, case in enumerate(discount.cases):
            check_when(case.when, f"discount.cases[{index}].when")
            _check_plain(case.discount, f"discount.cases[{index}].discount")
        if discount.otherwise is not None:
            _check_plain(discount.otherwise, "discount.otherwise")
    else:
        _check_plain(discount, "discount")


def _check_plain(discount: PlainDiscount, path: str) -> None:
    if isinstance(discount, Bogo):
        _check_items(discount.buy.items, f"{path}.buy.items")
        _check_items(discount.get.items, f"{path}.get.items")
        if discount.get.percent is not None and discount.get.amount_minor is not None:
            raise InvalidInput(f"{path}.get", "must have percent or amount_minor, not both")
    elif isinstance(discount, _HasItems):
        _check_items(discount.items, f"{path}.items")


def check_when(when: Condition, path: str) -> None:
    """Raises where the tree is too deep or wide, a node is of no kind or two, or a leaf compares unlike types."""
    leaves = 0
    for node, where, depth in condition_nodes(when, path):
        parts = (("all", node.all_of), ("any", node.any_of), ("not", node.negated), ("field", node.field))
        kinds = [name for name, part in parts if part is not UNSET]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "none of them"
            raise InvalidInput(where, "must have exactly one of all, any, not and field", found)
        if depth > WHEN_DEPTH_MAX:
            raise InvalidInput(where, f"must not be deeper than {WHEN_DEPTH_MAX}", f"{depth} deep")
        if node.field is not UNSET:
            leaves += 1
            if leaves > WHEN_LEAVES_MAX:
                raise InvalidInput(path, f"must have at most {WHEN_LEAVES_MAX} leaves", "more")
            _check_leaf(node, node.field, where)
            continue
        for name in ("op", "value", "items"):
            if getattr(node, name) is not UNSET:
                raise InvalidInput(f"{where}.{name}", f"must stand beside field, not {kinds[0]}")
        if node.all_of == () or node.any_of == ():
            raise InvalidInput(f"{where}.{kinds[0]}", "must be a list of at least 1", "an empty list")


def condition_nodes(when: Condition, path: str) -> Iterator[tuple[Condition, str, int]]:
    """Every node with its path and its depth, from the top down, one level too deep at most."""
    waiting = [(when, path, 1)]
    while waiting:
        node, where, depth = waiting.pop()
        yield node, where, depth
        inner: list[tuple[Condition, str, int]] = []
        for name, part in (("all", node.all_of), ("any", node.any_of)):
            if part is not UNSET and depth <= WHEN_DEPTH_MAX:
                inner += [(child, f"{where}.{name}[{index}]", depth + 1) for index, child in enumerate(part)]
        if node.negated is not UNSET and depth <= WHEN_DEPTH_MAX:
            inner.append((node.negated, f"{where}.not", depth + 1))
        waiting += reversed(inner)


def _check_leaf(leaf: Condition, field: str, path: str) -> None:
    if leaf.op is UNSET:
        raise InvalidInput(f"{path}.op", "is required")
    if leaf.value is UNSET:
        raise InvalidInput(f"{path}.value", "is required")
    known = field in NUMBER_FIELDS or field in TEXT_FIELDS or field in LIST_FIELDS
    if not known and (field in ATTRIBUTE_PREFIXES or not field.startswith(ATTRIBUTE_PREFIXES)):
        raise InvalidInput(f"{path}.field", _FIELDS_WANTED, shown(field))
    if field.startswith("items."):
        if leaf.items is UNSET:
            raise InvalidInput(f"{path}.items", f"is required beside {field}")
        _check_items(leaf.items, f"{path}.items")
    elif leaf.items is not UNSET:
        raise InvalidInput(f"{path}.items", "must stand beside items.quantity or items.subtotal_minor only")
    _check_value(leaf.op, leaf.value, field, path)


def _check_value(op: terms.Op, value: object, field: str, path: str) -> None:
    where = f"{path}.value"
    if op == "exists":
        if not isinstance(value, bool):
            raise InvalidInput(where, "must be true or false", shown(value))
        return
    if op.startswith("contains"):
        if field in NUMBER_FIELDS or field in TEXT_FIELDS:
            raise InvalidInput(f"{path}.op", f"must not be {op}: {field} is not a list")
    elif field in LIST_FIELDS and op not in ("eq", "ne"):
        raise InvalidInput(
            f"{path}.op", f"must be contains, contains_any, contains_all, eq, ne or exists on {field}", op
        )
    wants_list = op in ("in", "not_in", "contains_any", "contains_all") or (op in ("eq", "ne") and field in LIST_FIELDS)
    if wants_list:
        if field in LIST_FIELDS and op in ("eq", "ne") and not isinstance(value, list):
            raise InvalidInput(where, f"must be a list, or the op contains, to find one of {field}", shown(value))
        if not isinstance(value, list) or not value or len(value) > VALUES_MAX:
            raise InvalidInput(where, f"must be a list of 1 to {VALUES_MAX}", shown(value))
        for index, inner in enumerate(value):
            _check_operand(inner, field, f"{where}[{index}]")
            if op in ("in", "not_in") and kind_of(inner) != kind_of(value[0]):
                raise InvalidInput(f"{where}[{index}]", "must be of the type of the first in its list", shown(inner))
    elif isinstance(value, list) and op in ("eq", "ne") and field not in NUMBER_FIELDS | TEXT_FIELDS:
        check_attributes({"value": value}, path)
    else:
        _check_operand(value, field, where)
        if op in _ORDERING and isinstance(value, bool):
            raise InvalidInput(where, f"must be a number or text to be compared by {op}", shown(value))


def _check_operand(value: object, field: str, path: str) -> None:
    if field in NUMBER_FIELDS:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidInput(path, f"must be a whole number, as {field} is", shown(value))
    elif (field in TEXT_FIELDS or field in LIST_FIELDS) and not isinstance(value, str):
        raise InvalidInput(path, f"must be text, as {field} is", shown(value))
    _check_scalar(value, path)


def _check_stacking(stacking: terms.Stacking) -> None:
    if stacking.mode == "exclusive" and stacking.group is not None:
        text = "must stand beside mode stackable, or be left out: an exclusive voucher stands alone"
        raise InvalidInput("stacking.group", text)


def _check_metadata(metadata: dict[str, Any]) -> None:
    waiting: list[tuple[object, int]] = [(metadata, 1)]
    while waiting:
        value, depth = waiting.pop()
        if (
            depth > METADATA_DEPTH_MAX
        ):  # a fixed one: what is left of the interpreter's stack is another for each caller
            raise InvalidInput("metadata", f"must not be nested deeper than {METADATA_DEPTH_MAX}")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += [(one, depth + 1) for one in inner if isinstance(one, dict | list)]
    try:
        size = len(encode(metadata))
    except (OverflowError, RecursionError):
        raise InvalidInput("metadata", "must hold ordinary numbers and not be nested so deeply") from None
    if size > METADATA_BYTES_MAX:
        raise InvalidInput("metadata", f"must be at most {METADATA_BYTES_MAX} bytes of JSON", f"{size} bytes")


def policy_by_default(discount: Discount, limits: Limits) -> Policy:
    """`online_only` for a gift card, `quota` where there is a limit to share out, else `open`."""
    if _has_gift_card(discount):
        return "online_only"
    return "open" if limits.total is None and limits.budget_minor is None else "quota"


def _has_gift_card(discount: Discount) -> bool:
    return GiftCard in map(type, plain_discounts(discount))


def plain_discounts(discount: Discount) -> tuple[PlainDiscount, ...]:
    """The discounts that this one can turn out to be."""
    if isinstance(discount, Tiered):
        return tuple(tier.discount for tier in discount.tiers)
    if isinstance(discount, Conditional):
        inner = tuple(case.discount for case in discount.cases)
        return inner if discount.otherwise is None else (*inner, discount.otherwise)
    return (discount,)


def _checked_offline(voucher: Voucher) -> Offline:
    offline, limits = voucher.offline, voucher.limits
    if offline == terms.OFFLINE_BY_DEFAULT:
        return _OFFLINE[policy_by_default(voucher.discount, limits)]
    policy = offline.policy
    if policy == terms.POLICY_BY_DEFAULT:
        policy = policy_by_default(voucher.discount, limits)
        offline = msgspec.structs.replace(offline, policy=policy)
    if policy == "quota" and _has_gift_card(voucher.discount):
        raise InvalidInput("offline.policy", "must not be quota: a gift card's balance cannot be shared out")
    if policy in ("quota", "exclusive") and limits.total is None and limits.budget_minor is None:
        raise InvalidInput("offline.policy", f"must not be {policy} without limits.total or limits.budget_minor")
    for name in ("max_units", "max_minor"):
        given = getattr(offline, name) is not None
        if given and policy != "soft":
            raise InvalidInput(f"offline.{name}", "must stand beside the policy soft only", f"beside {policy}")
        if not given and policy == "soft":
            raise InvalidInput(f"offline.{name}", "is required for the policy soft")
    return offline


def _checked_currency(voucher: Voucher, default_currency: str | None) -> str | None:
    if voucher.currency is not None:
        check_currency(voucher.currency, "currency")
        return voucher.currency
    needed_by = _needs_currency(voucher)
    if needed_by is None:
        return None
    if default_currency is None:
        raise InvalidInput("currency", f"is required, because of {needed_by}")
    check_currency(default_currency, "default_currency")
    return default_currency


def _needs_currency(voucher: Voucher) -> str | None:
    """The first field, by name, that is an amount of money."""
    if voucher.limits.budget_minor is not None:
        return "limits.budget_minor"
    if voucher.offline.max_minor is not None:
        return "offline.max_minor"
    discount = voucher.discount
    if isinstance(discount, Tiered) and discount.basis == "amount":
        return "discount.tiers"
    if any(map(_is_in_money, plain_discounts(discount))):
        return "an amount in discount"
    conditions = [voucher.when] if voucher.when is not None else []
    if isinstance(discount, Conditional):
        conditions += [case.when for case in discount.cases]
    for condition in conditions:
        for node, _, _ in condition_nodes(condition, ""):
            if node.field is not UNSET and node.field.endswith("_minor") and node.field in NUMBER_FIELDS:
                return f"a condition on {node.field}"
    return None


def _is_in_money(discount: PlainDiscount) -> bool:
    if isinstance(discount, Percentage | Shipping):
        return discount.cap_minor is not None
    return not isinstance(discount, Bogo) or discount.get.amount_minor is not None
