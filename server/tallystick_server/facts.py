"""What is known about the accounts a batch of events touches: read before settling, changed by it, written after."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from tallystick_server.ledger import PoolMoves
from tallystick_shared.engine import CompiledVoucher


@dataclass
class LeaseFacts:
    id: str
    voucher_id: str
    units: int | None
    minor: int | None
    known_units: int
    known_minor: int
    state: str
    burned_by: str | None
    expires_at: datetime
    close_seq: int | None
    changed: bool = False


@dataclass
class VoucherFacts:
    """The current revision of a voucher, and its pools: what is free, by measure."""

    policy: str
    sha256: str
    status: str
    revised_at: datetime
    valid_until: datetime | None
    deactivated_at: datetime | None
    free: dict[str, int]


@dataclass
class UseFacts:
    voucher_id: str
    revision_sha256: str | None
    units: int
    minor: int
    settled_minor: int | None
    lease_id: str | None
    cover: str
    voided_units: int = 0
    voided_minor: int = 0
    changed: bool = False

    @property
    def left(self) -> tuple[int, int]:
        """Units and minor that are not voided yet."""
        return self.units - self.voided_units, self.minor - self.voided_minor


@dataclass
class RedemptionFacts:
    id: str
    at: datetime
    store_id: str | None
    customer_id: str | None
    online: bool
    content_sha256: str
    body_sha256: str | None
    result: bytes
    uses: dict[str, UseFacts]
    is_new: bool = False
    replaces: bool = False


@dataclass
class Facts:
    """What was known before a batch, and, after settling it, what is to be written."""

    leases: dict[str, LeaseFacts] = field(default_factory=dict)
    vouchers: dict[str, VoucherFacts] = field(default_factory=dict)
    revisions: dict[tuple[str, str], CompiledVoucher] = field(default_factory=dict)
    redemptions: dict[str, RedemptionFacts] = field(default_factory=dict)
    customer_units: dict[tuple[str, str], int] = field(default_factory=dict)
    blocked_leases: set[str] = field(default_factory=set)
    all_leases_blocked: bool = False
    """By events that cannot be read: a close over such a span keeps its lease open."""
    moves: PoolMoves = field(default_factory=PoolMoves)
    customer_moves: dict[tuple[str, str], int] = field(default_factory=dict)
    sold: dict[str, int] = field(default_factory=dict)
    last_event_at: datetime | None = None
