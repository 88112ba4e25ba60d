"""What the client hands back: receipts, the status, the report of a sync. Amounts are in minor units."""

from __future__ import annotations

from datetime import datetime

import msgspec

from tallystick_shared.engine import Result


class Receipt(msgspec.Struct, frozen=True):
    """A redemption, or why there is none. `redeemed` is True only when it is on the disk (or the server has it).

    `id` names it for ever; void it by that. Where `redeemed` is False nothing applied, and `result.refused` says why.
    `online`: the server redeemed it, it is not in this till's journal.
    """

    id: str
    at: datetime
    redeemed: bool
    result: Result
    online: bool = False


class VoidReceipt(msgspec.Struct, frozen=True):
    """`refund_minor`: what the customer gets back."""

    id: str
    refund_minor: int
    currency: str


class SyncReport(msgspec.Struct, frozen=True):
    """What one sync did. `outcomes` counts the acknowledged events by outcome; `bundle_version` 0: no bundle."""

    sent: int
    acknowledged: int
    outcomes: dict[str, int]
    leases_granted: int
    leases_closed: int
    bundle_version: int
    rounds: int
    state: str


class LeaseStatus(msgspec.Struct, frozen=True):
    """A part of a voucher's limit held here. `state`: active, or closing (the server does not have its close yet).

    `units` and `minor` are None where the voucher has no limit of that kind; `code` is None where the bundle does not
    have the voucher (any more).
    """

    id: str
    number: int
    voucher_id: str
    code: str | None
    units: int | None
    minor: int | None
    used_units: int
    used_minor: int
    expires_at: datetime
    state: str
    reason: str


class FlaggedEvent(msgspec.Struct, frozen=True):
    """An event of this till that waits for a person at the server. `outcome`: flagged or quarantined."""

    seq: int
    id: str
    type: str
    outcome: str
    reasons: list[str]


class Status(msgspec.Struct, frozen=True):
    """How a till stands.

    `freshness`: fresh, stale (past the bundle's expiry, still selling), too_old (no longer selling), none (no bundle).
    `waiting`: events that the server has not acknowledged, `waiting_redemptions` those of them that redeem, and
    `waiting_minor` their discounts. `head`, `acknowledged`, `durable`: numbers of events; what is durable is in any
    backup the server may be restored from.
    """

    device: str
    name: str
    server: str
    store: str
    scope: str
    state: str
    bundle_version: int
    bundle_vouchers: int
    bundle_expires_at: datetime | None
    freshness: str
    head: int
    acknowledged: int
    durable: int
    waiting: int
    waiting_redemptions: int
    waiting_minor: int
    leases: list[LeaseStatus]
    flagged: list[FlaggedEvent]
    clock_anomalies: int
    at: datetime
    last_sync_at: datetime | None
    next_sync_at: datetime | None
    notes: list[str]
