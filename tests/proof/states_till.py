"""The model of a till: what its journal, leases and counts must be, and what it must answer to a cashier.

Written from protocol.md, sections 2, 5, 6 and 7; it shares no code with the client.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tests.proof.states_books import MEASURES, Event, Use
from tests.proof.states_sale import Mark, Now, Reading, Room, Said, Sale, Terms, part_of, reckon
from tests.proof.states_world import MANIFEST_TTL_S, OFFLINE_S, WAITING_MAX, WAITING_MINOR_MAX

RETENTION = timedelta(days=90)


@dataclass
class Held:
    """A lease as the till holds it. `state`: active, closing or closed."""

    id: str
    number: int
    voucher: str
    granted: dict[str, int]
    expires_at: datetime
    used: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MEASURES, 0))
    state: str = "active"
    close_seq: int = 0


@dataclass
class Attempt:
    """To redeem online. `state`: pending, redeemed, refused or offline."""

    sale: Sale
    at: datetime
    state: str = "pending"
    said: Said | None = None


@dataclass
class Told:
    """What a call must come to: an error's `code`, or a receipt, of an id where it is known before. `again`: of a void
    that was made before."""

    code: str = ""
    id: str | None = None
    redeemed: bool = False
    online: bool = False
    said: Said | None = None
    refund: int = 0
    again: bool = False


class Drawer:
    """The till `name`, as `device` of the server. `bundle` is id and terms by code; None: it has none yet. `voided`:
    the id of its void by redemption."""

    def __init__(self, name: str, device: str, mark: Mark) -> None:
        self.name, self.device, self.mark = name, device, mark
        self.state = "active"
        self.bundle: dict[str, tuple[str, Terms]] | None = None
        self.version = 0
        self.expires_at: datetime | None = None
        self.events: list[Event] = []
        self.head = self.acknowledged = self.durable = self.base = 0
        self.leases: dict[str, Held] = {}
        self.leased: set[str] = set()
        self.lease_number = 0
        self.soft: dict[str, tuple[int, int]] = {}
        self.customers: dict[tuple[str, str], int] = {}
        self.attempts: dict[str, Attempt] = {}
        self.voided: dict[str, str] = {}
        self.returned: dict[str, int] = {}
        self.refused: set[str] = set()
        self.anomaly = ""
        self.not_before: datetime | None = None

    # ---- what it knows

    def now(self, reading: Reading) -> Now:
        return self.mark.read(reading, STEP_S if self.bundle is not None else 0)

    def tick(self, reading: Reading) -> None:
        """In a boot that nothing was written in, going online writes down the time where the clock is not believed, so
        that it does not stand still."""
        now = self.now(reading)
        if now.anomaly and reading.boot != self.mark.boot:
            self.mark = now.mark

    def is_asked_to_wait(self, now: Now) -> bool:
        """By the server, and no longer than a day: what is further off a wrong clock has kept."""
        return self.not_before is not None and 0 < (self.not_before - now.at).total_seconds() <= 86_400

    def event(self, event_id: str) -> Event | None:
        return next((one for one in self.events if one.id == event_id), None)

    @property
    def waiting(self) -> list[Event]:
        return [one for one in self.events if one.seq > self.acknowledged and one.kind == "redeem"]

    @property
    def waiting_minor(self) -> int:
        return sum(use.minor for event in self.waiting for use in event.uses)

    def active(self, voucher: str) -> Held | None:
        mine = (one for one in self.leases.values() if one.voucher == voucher and one.state == "active")
        return next(mine, None)

    # ---- redeem

    def look(self, sale: Sale, now: Now) -> Told:
        """A preview."""
        return Told("NO_BUNDLE") if self.bundle is None else Told(said=self._said(sale, now.at))

    def redeem(self, sale: Sale, redemption_id: str | None, reading: Reading) -> Told:
        """What it must answer, and what follows from that. `id` None in the answer: a new one."""
        if redemption_id is None:
            redemption_id = self.pending(sale)
        if redemption_id is not None and (earlier := self.earlier(redemption_id, sale)) is not None:
            return earlier
        now = self.now(reading)
        if now.anomaly and self.anomaly != f"{now.anomaly} {reading.boot}":
            self.append(Event(0, "clock_anomaly", "", now.at), now)
            self.anomaly = f"{now.anomaly} {reading.boot}"
        if code := self._may_not(now):
            return Told(code, redemption_id)
        said = self._said(sale, now.at)
        assert self.bundle is not None
        self.refused |= {self.bundle[code][0] for code, reason in said.refused.items() if reason == "NO_ALLOWANCE"}
        if not said.applied:
            return Told(id=redemption_id, said=said)
        uses = [self._use(self.bundle[code], minor, sale) for code, minor in said.applied.items()]
        self.append(Event(0, "redeem", redemption_id or "", now.at, sale, said, uses), now)
        attempt = self.attempts.get(redemption_id or "")
        if attempt is not None and attempt.state == "pending":
            attempt.state = "offline"
        return Told(id=redemption_id, redeemed=True, said=said)

    def pending(self, sale: Sale) -> str | None:
        mine = (key for key, one in self.attempts.items() if one.sale == sale and one.state == "pending")
        return next(mine, None)

    def earlier(self, redemption_id: str, sale: Sale) -> Told | None:
        event, attempt = self.event(redemption_id), self.attempts.get(redemption_id)
        if redemption_id in self.voided or redemption_id in self.voided.values():
            return Told("IDENTIFIER_REUSED")
        if event is not None:
            same = event.kind == "redeem" and not event.erased and event.sale == sale
            return Told(id=redemption_id, redeemed=True, said=event.said) if same else Told("IDENTIFIER_REUSED")
        if attempt is None:  # of what was forgotten or purged, the till still knows that units of it came back
            return Told("IDENTIFIER_REUSED") if redemption_id in self.returned else None
        if attempt.sale != sale:
            return Told("IDENTIFIER_REUSED")
        if attempt.state != "redeemed":
            return None
        return Told(id=redemption_id, redeemed=True, online=True, said=attempt.said)

    def append(self, event: Event, now: Now) -> None:
        self.head += 1
        event.seq = self.head
        self.events.append(event)
        self.mark = now.mark

    def _may_not(self, now: Now) -> str:
        if self.bundle is None or self.expires_at is None:
            return "NO_BUNDLE"
        if self.state != "active":
            return "SUSPENDED"
        if now.latest > self.expires_at + timedelta(seconds=OFFLINE_S):
            return "TOO_LONG_OFFLINE"
        full = len(self.waiting) >= WAITING_MAX or self.waiting_minor >= WAITING_MINOR_MAX
        return "QUEUE_FULL" if full else ""

    def _said(self, sale: Sale, at: datetime) -> Said:
        assert self.bundle is not None
        known = {code: terms for code, (_, terms) in self.bundle.items()}
        return reckon(sale, known, {code: self._room(one, sale, at) for code, one in self.bundle.items()}, at)

    def _room(self, one: tuple[str, Terms], sale: Sale, at: datetime) -> Room:
        voucher, terms = one
        left = None
        if terms.per_customer is not None:
            left = terms.per_customer - self.customers.get((voucher, sale.customer or ""), 0)
        if terms.offline == "online_only":
            return Room(False, customer=left, needs_connection=True)
        if self.is_backed(voucher, terms):
            lease = self.active(voucher)
            if lease is None or lease.expires_at <= at:
                return Room(False, 0, customer=left)
            rest = {measure: most - lease.used[measure] for measure, most in lease.granted.items()}
            return Room(False, rest.get("units"), rest.get("minor"), left)
        if terms.offline == "soft":
            units, minor = self.soft.get(voucher, (0, 0))
            rest_units = None if terms.max_units is None else max(0, terms.max_units - units)
            rest_minor = None if terms.max_minor is None else max(0, terms.max_minor - minor)
            return Room(False, rest_units, rest_minor, left)
        return Room(False, customer=left)

    def is_backed(self, voucher: str, terms: Terms) -> bool:
        """Only by a lease; what was leased to it once never falls to a weaker policy."""
        return terms.offline in ("quota", "exclusive") or voucher in self.leased

    def _use(self, one: tuple[str, Terms], minor: int, sale: Sale) -> Use:
        voucher, terms = one
        lease = self.active(voucher) if self.is_backed(voucher, terms) else None
        if lease is not None:
            lease.used["units"] += 1
            lease.used["minor"] += minor
        elif terms.offline == "soft":
            units, spent = self.soft.get(voucher, (0, 0))
            self.soft[voucher] = units + 1, spent + minor
        self.count(voucher, terms, sale.customer, 1)
        return Use(voucher, terms, minor, None if lease is None else lease.id)

    def count(self, voucher: str, terms: Terms, customer: str | None, units: int) -> None:
        if terms.per_customer is not None and customer is not None:
            key = voucher, customer
            self.customers[key] = max(0, self.customers.get(key, 0) + units)

    def count_applied(self, said: Said, customer: str | None, units: int) -> None:
        for code in said.applied:
            if self.bundle is not None and code in self.bundle:
                self.count(*self.bundle[code], customer, units)

    # ---- void

    def void(self, redemption_id: str, units: int, reading: Reading, void_id: str = "") -> Told:
        """`units`: how many of the one line come back; 0: the whole redemption. `void_id` empty: the till makes one."""
        if void_id and (earlier := self.earlier_void(void_id, redemption_id, units)) is not None:
            return earlier
        if redemption_id in self.voided:
            return Told("ALREADY_VOIDED")
        event, attempt = self.event(redemption_id), self.attempts.get(redemption_id)
        if event is not None and event.kind != "redeem":
            event = None
        if event is not None and not event.erased:
            assert event.sale is not None
            sale, said, uses = event.sale, event.said, event.uses
        elif attempt is not None and attempt.state == "redeemed":
            assert attempt.said is not None
            sale, said, bundle = attempt.sale, attempt.said, self.bundle or {}
            if any(code not in bundle for code in said.applied):
                return Told("UNKNOWN_REDEMPTION")
            uses = [Use(*bundle[code], minor) for code, minor in said.applied.items()]
        elif attempt is not None and attempt.state == "pending":
            sale, said, uses = attempt.sale, None, []
        else:
            return Told("ERASED" if event is not None else "UNKNOWN_REDEMPTION")
        before = self.returned.get(redemption_id, 0)
        if units > sale.quantity - before:
            return Told("INVALID_FIELD")
        if units and said is None:
            return Told("UNKNOWN_REDEMPTION")
        made = Event(0, "void", void_id, reading.wall, ref=redemption_id, units=units)
        return self._give_back(made, sale, said, uses, before, reading)

    def earlier_void(self, void_id: str, redemption_id: str, units: int) -> Told | None:
        """An id names one thing for ever, as far as this till knows it: what is purged it knows no more, but for a void
        of a whole redemption. What is erased cannot be told."""
        event = self.event(void_id)
        if event is None:
            other = any(made == void_id and sold != redemption_id for sold, made in self.voided.items())
            sold = void_id in self.attempts or void_id in self.returned or void_id in self.voided
            return Told("IDENTIFIER_REUSED") if other or sold else None
        if event.kind != "void" or event.ref != redemption_id:
            return Told("IDENTIFIER_REUSED")
        if event.erased:
            return Told("ERASED")
        if event.units != units:
            return Told("IDENTIFIER_REUSED")
        sale = self.event(redemption_id)
        known = sale is not None and sale.kind == "redeem" and not sale.erased
        if not known and redemption_id not in self.attempts:
            return Told("ERASED")  # in what currency is gone
        return Told(id=void_id, refund=event.refund, again=True)

    def name_void(self, void_id: str) -> None:
        """The last event is a void, and this is its id."""
        event = self.events[-1]
        event.id = void_id
        if not event.units:
            self.voided[event.ref] = void_id

    def _give_back(
        self, made: Event, sale: Sale, said: Said | None, uses: list[Use], before: int, reading: Reading
    ) -> Told:
        """The shares are frozen: of a line of q units with the share s, s div q a unit, the first s mod q one more."""
        redemption_id, units = made.ref, made.units
        after = before + units

        def given(minor: int, upto: int) -> int:
            return part_of(minor, sale.quantity, upto)

        if said is not None:
            made.back = {
                use.voucher: (0 if units else 1,
                              (given(use.minor, after) if units else use.minor) - given(use.minor, before))
                for use in uses
            }  # fmt: skip
        off = sum(use.minor for use in uses)
        had = sale.price * before - given(off, before)
        total = 0 if said is None else said.total
        made.refund = (sale.price * after - given(off, after) if units else total) - had
        now = self.now(reading)
        made.at = now.at
        self.append(made, now)
        told = Told(id=made.id or None, refund=made.refund)
        if units:
            self.returned[redemption_id] = after
            return told
        self.voided[redemption_id] = made.id
        attempt = self.attempts.get(redemption_id)
        if attempt is not None and attempt.state == "pending":
            attempt.state = "refused"
        if said is not None:
            self.count_applied(said, sale.customer, -1)
        return told

    # ---- sync

    def close(self, lease_id: str, seq: int) -> None:
        lease = self.leases[lease_id]
        lease.state, lease.close_seq = "closing", seq

    def accept(self, acknowledged: int, durable: int, state: str, told_at: datetime, reading: Reading) -> None:
        """An answer, but for its leases."""
        self.mark = self.mark.signed(reading, told_at)
        self.state, self.anomaly, self.not_before = state, "", None
        self.acknowledged, self.durable = acknowledged, max(self.base, durable)
        for lease in self.leases.values():
            if lease.state == "closing" and lease.close_seq <= acknowledged:
                lease.state = "closed"

    def purge(self) -> None:
        """What is durable and old goes; the leases it closed do not matter any more."""
        for event in list(self.events):
            if event.seq > self.durable or event.at > self.mark.at - RETENTION:
                break
            self.events.remove(event)
            self.base = event.seq
        old = self.mark.at - RETENTION
        self.attempts = {key: one for key, one in self.attempts.items() if one.state == "pending" or one.at >= old}

    def take(self, lease: Held) -> bool:
        """Whether it is taken, by the rules of section 5; what comes too late is given back by the till itself."""
        busy = any(one.voucher == lease.voucher and one.state != "closed" for one in self.leases.values())
        if lease.id in self.leases or lease.number <= self.lease_number or busy:
            return False
        self.leases[lease.id] = lease
        self.leased.add(lease.voucher)
        self.lease_number = lease.number
        return True

    def forget(self, customer: str) -> tuple[int, int, int]:
        """What is erased of a customer: bodies, attempts, and how many of either still wait."""
        pending = {key for key, one in self.attempts.items() if one.state == "pending"}
        tried = {key for key, one in self.attempts.items() if one.sale.customer == customer}
        theirs, ids = [], set(tried)
        for event in self.events:
            if event.erased:
                continue
            if event.kind == "redeem" and event.sale is not None and event.sale.customer == customer:
                ids.add(event.id)
                theirs.append(event)
            elif event.kind == "void" and event.ref in ids:
                theirs.append(event)
        done = [event for event in theirs if event.seq <= self.acknowledged]
        for event in done:
            event.erased = True
        for key in tried - pending:
            del self.attempts[key]
        self.customers = {key: units for key, units in self.customers.items() if key[1] != customer}
        return len(done), len(tried - pending), len(theirs) - len(done) + len(tried & pending)


STEP_S = MANIFEST_TTL_S + OFFLINE_S
"""How much unsigned time may gain in one boot: what a till may be offline for in all."""
