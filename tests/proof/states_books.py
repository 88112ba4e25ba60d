"""What the model of the server keeps: pools, vouchers, leases, events, redemptions and devices, as plain records."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from tests.proof.states_sale import Said, Sale, Terms

MEASURES = ("units", "minor")


@dataclass
class Pool:
    """One limit of one voucher: F + O + X + sum(q open, burned) + sum(u closed) + sum(k released) - V = L (I1)."""

    limit: int
    free: int
    online: int = 0
    uncovered: int = 0
    voided: int = 0


@dataclass
class Book:
    """A voucher as it is published now. `lowered`: a limit of it was, or is newer than uses of it."""

    id: str
    terms: Terms
    revised_at: datetime
    pools: dict[str, Pool] = field(default_factory=dict)
    dropped_at: datetime | None = None
    lowered: bool = False


@dataclass
class Lease:
    """What the server knows of one. `granted` and `known` by measure; a measure without a limit is not in `granted`."""

    id: str
    number: int
    voucher: str
    device: str
    granted: dict[str, int]
    expires_at: datetime
    state: str = "open"
    known: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MEASURES, 0))

    @property
    def held(self) -> bool:
        return self.state in ("open", "burned")

    def covers(self, use: Use) -> bool:
        amounts = {"units": 1, "minor": use.minor}
        return all(self.known[measure] + amounts[measure] <= most for measure, most in self.granted.items())


@dataclass
class Use:
    """One voucher of one redemption. `cover` is lease, open, online or none; `voided` by measure."""

    voucher: str
    terms: Terms
    minor: int
    lease: str | None = None
    cover: str = ""
    voided: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MEASURES, 0))

    def had(self, measure: str) -> int:
        return 1 if measure == "units" else self.minor


@dataclass
class Event:
    """One event of a till's journal. `back`: of a void, units and minor by voucher; None: all that is left. `units`: of
    a void, how many of the one line came back, 0 for the whole; `refund`: what was paid back for it."""

    seq: int
    kind: str
    id: str
    at: datetime
    sale: Sale | None = None
    said: Said | None = None
    uses: list[Use] = field(default_factory=list)
    ref: str = ""
    back: dict[str, tuple[int, int]] | None = None
    units: int = 0
    refund: int = 0
    lease: str = ""
    used: tuple[int, int] = (0, 0)
    erased: bool = False
    outcome: str = ""
    reasons: tuple[str, ...] = ()


@dataclass
class Redemption:
    """An effect: there is one for each id of a device. `sale` None: an attempt that was voided and never came."""

    sale: Sale | None
    said: Said | None
    uses: dict[str, Use]
    customer: str | None
    at: datetime


@dataclass
class Device:
    id: str
    last_sync_at: datetime
    state: str = "active"
    seq: int = 0
    durable_seq: int = 0
    lease_number: int = 0
    last_event_at: datetime | None = None
    events: list[Event] = field(default_factory=list)
