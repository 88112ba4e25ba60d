"""What an order and a voucher can say, as frozen structs: the shapes only.

`model` reads and writes them and is the place to import them from; `checks` holds the rules between fields. Sources:
engine.md, "Order", "Voucher", "Items", "Discounts" and "Conditions". Money is in minor units of the currency.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, TypeAlias, cast

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .money import MONEY_MAX

QUANTITY_MAX: Final = 10**9
IDS_MAX: Final = 100_000
LINES_MAX: Final = 10_000
TEXT_MAX: Final = 256

Money: TypeAlias = Annotated[int, Meta(ge=0, le=MONEY_MAX)]
MoneyAboveZero: TypeAlias = Annotated[int, Meta(ge=1, le=MONEY_MAX)]
Quantity: TypeAlias = Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=10**15)]
Text: TypeAlias = Annotated[str, Meta(min_length=1, max_length=TEXT_MAX)]
Label: TypeAlias = Annotated[str, Meta(min_length=1, max_length=TEXT_MAX, pattern=r"^[^\x00]*$")]
"""Text that a database column holds: U+0000 fits into none of PostgreSQL's."""
Ids: TypeAlias = Annotated[tuple[Text, ...], Meta(max_length=IDS_MAX)]
Attributes: TypeAlias = dict[str, Any]
"""Name -> text, number (`int` or exact `Decimal`), bool, null, or a list of the first three; checked by `checks`."""


class Percent(Decimal):
    """A percentage above 0, at most 100, of at most 4 decimal places: exact, never a float."""

    __slots__ = ()

    @property
    def ten_thousandths(self) -> int:
        """12.5 % is 125000: what the engine counts in."""
        numerator, denominator = self.as_integer_ratio()  # exact whatever the precision of the decimal context
        return numerator * 10_000 // denominator


class Moment(datetime):
    """A time with an offset and without fractions of a second, which are dropped, never rounded up."""

    __slots__ = ()


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of an order. Goods sold by weight are one unit at their computed price."""

    id: Text
    product_id: Text
    quantity: Quantity
    unit_price_minor: Money
    category_ids: Ids = ()
    attributes: Attributes = {}


class Customer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who buys; every field may be missing. `segments` of None are unknown, of () none."""

    id: Label | None = None
    segments: Ids | None = None
    attributes: Attributes = {}


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is bought. `currency` is ISO 4217, ids of lines are unique, the goods come to at most 10**15 minor units."""

    id: Text
    currency: str
    lines: Annotated[tuple[Line, ...], Meta(max_length=LINES_MAX)]
    shipping_minor: Money = 0
    store_id: Label | None = None
    channel: Text | None = None
    customer: Customer | None = None
    attributes: Attributes = {}


class Items(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which lines: any include (none at all = every line) and no exclude. `attributes` together are one include."""

    product_ids: Ids = ()
    category_ids: Ids = ()
    attributes: Attributes = {}
    exclude_product_ids: Ids = ()
    exclude_category_ids: Ids = ()


Op: TypeAlias = Literal[
    "eq", "ne", "gt", "gte", "lt", "lte", "in", "not_in", "contains", "contains_any", "contains_all", "exists"
]


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One node of a `when`: exactly one of `all`, `any`, `not`, or a leaf of `field`, `op`, `value` (and `items`)."""

    all_of: tuple[Condition, ...] | UnsetType = msgspec.field(default=UNSET, name="all")
    any_of: tuple[Condition, ...] | UnsetType = msgspec.field(default=UNSET, name="any")
    negated: Condition | UnsetType = msgspec.field(default=UNSET, name="not")
    field: Text | UnsetType = UNSET
    op: Op | UnsetType = UNSET
    value: Any = UNSET
    items: Items | UnsetType = UNSET


class Percentage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="percentage"):
    """Percent of what the matching lines still cost, at most `cap_minor`."""

    percent: Percent
    cap_minor: MoneyAboveZero | None = None
    items: Items | None = None


class Fixed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="fixed"):
    """An amount off the matching lines together, off each line, or off each unit."""

    amount_minor: MoneyAboveZero
    per: Literal["order", "line", "unit"] = "order"
    items: Items | None = None


class FixedPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="fixed_price"):
    """Takes what a matching line still costs above quantity x `unit_price_minor`."""

    unit_price_minor: Money
    items: Items | None = None


class BundlePrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="bundle_price"):
    """`quantity` matching units together for `price_minor`, the dearest first."""

    quantity: Quantity
    price_minor: Money
    items: Items | None = None
    max_applications: Quantity | None = None


class Buy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    quantity: Quantity
    items: Items | None = None


class Get(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is given: `percent` off each unit, or `amount_minor` off each; neither means 100 %."""

    quantity: Quantity
    items: Items | None = None
    percent: Percent | None = None
    amount_minor: MoneyAboveZero | None = None


class Bogo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="bogo"):
    """Buy some, get some: whole applications only, no unit both bought and given."""

    buy: Buy
    get: Get
    max_applications: Quantity | None = None


class Shipping(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="shipping"):
    """Percent of what shipping still costs; no `percent` means 100 %."""

    percent: Percent | None = None
    cap_minor: MoneyAboveZero | None = None


class GiftCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="gift_card"):
    """Pays what is left, goods and shipping, up to its balance: a payment, not a discount."""

    balance_minor: Money


PlainDiscount: TypeAlias = Percentage | Fixed | FixedPrice | BundlePrice | Bogo | Shipping | GiftCard


class Tier(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`min` is in minor units or in units, as the basis of its `tiered` says."""

    min: Count
    discount: PlainDiscount


class Tiered(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="tiered"):
    """The discount of the highest tier that the matching lines reach, before any discount."""

    tiers: Annotated[tuple[Tier, ...], Meta(min_length=1, max_length=100)]
    basis: Literal["amount", "quantity"] = "amount"
    items: Items | None = None


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    when: Condition
    discount: PlainDiscount


class Conditional(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="conditional"):
    """The discount of the first case that holds, else `otherwise`, else refused."""

    cases: Annotated[tuple[Case, ...], Meta(min_length=1, max_length=100)]
    otherwise: PlainDiscount | None = None


Discount: TypeAlias = PlainDiscount | Tiered | Conditional


Day: TypeAlias = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


class Hours(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A daily window on the wall clock of `timezone`; `days` (None: all) names the day the window opens."""

    timezone: Text
    opens: str = msgspec.field(name="from")
    closes: str = msgspec.field(name="to")
    days: Annotated[tuple[Day, ...], Meta(min_length=1, max_length=7)] | None = None


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How often in all, how often a customer, and for how much in all, in minor units."""

    total: Annotated[int, Meta(ge=1, le=10**12)] | None = None
    per_customer: Annotated[int, Meta(ge=1, le=10**12)] | None = None
    budget_minor: Annotated[int, Meta(ge=1, le=10**15)] | None = None


class Stacking(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`group` belongs to `stackable` alone; a higher `priority` goes first."""

    mode: Literal["exclusive", "stackable"] = "exclusive"
    priority: Annotated[int, Meta(ge=-1_000_000, le=1_000_000)] = 0
    group: Text | None = None
    max_total_percent: Percent | None = None


Policy: TypeAlias = Literal["quota", "exclusive", "soft", "open", "online_only"]
POLICY_BY_DEFAULT: Final = cast(Policy, "")
"""Stands where no policy was written until `checks` fills in the one that follows from the voucher; never leaves it."""


class Offline(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """protocol.md, section 2. A voucher that came through the door always has a real policy here."""

    policy: Policy = POLICY_BY_DEFAULT
    max_units: Annotated[int, Meta(ge=1, le=10**12)] | None = None
    max_minor: Annotated[int, Meta(ge=1, le=10**15)] | None = None


NO_LIMITS: Final = Limits()
STACKING_BY_DEFAULT: Final = Stacking()
OFFLINE_BY_DEFAULT: Final = Offline()


class Voucher(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One voucher. `code` is as first given, trimmed; compare codes with `codes.fold` only."""

    code: str
    discount: Discount
    campaign_id: Label | None = None
    status: Literal["active", "paused"] = "active"
    when: Condition | None = None
    valid_from: Moment | None = None
    valid_until: Moment | None = None
    hours: Annotated[tuple[Hours, ...], Meta(min_length=1, max_length=100)] | None = None
    currency: str | None = None
    limits: Limits = NO_LIMITS
    stacking: Stacking = STACKING_BY_DEFAULT
    offline: Offline = OFFLINE_BY_DEFAULT
    metadata: dict[str, Any] = {}


class Usage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a voucher has been used so far: in all, by this order's customer, and in minor units of its budget."""

    total: Count = 0
    customer: Count = 0
    budget_minor: Count = 0
