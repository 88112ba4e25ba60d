"""The model of the server: dictionaries and integers that say what the design promises of limits, leases and events.

Written from protocol.md; it shares no code with the ledger. What the design leaves to the server (who is granted how
much, whose lease is asked back) is told to the model, which says whether that is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from tests.proof.states_books import MEASURES, Book, Device, Event, Lease, Pool, Redemption, Use
from tests.proof.states_sale import Room, Said, Sale, Terms, reckon
from tests.proof.states_world import LEASE_TTL_S, LEASE_UNITS_MAX, MANIFEST_TTL_S, OFFLINE_S

CLOCK_S = 300


class Server:
    """`redemptions` by device and id; `customers` counts by voucher and customer; `flags` are those that are open."""

    def __init__(self) -> None:
        self.version = 1
        self.books: dict[str, Book] = {}
        self.devices: dict[str, Device] = {}
        self.leases: dict[str, Lease] = {}
        self.redemptions: dict[tuple[str, str], Redemption] = {}
        self.customers: dict[tuple[str, str], int] = {}
        self.flags: list[tuple[str, int, str]] = []

    def by_code(self) -> dict[str, Book]:
        return {book.terms.code: book for book in self.books.values()}

    def bundle(self) -> dict[str, tuple[str, Terms]]:
        """What a till that syncs now gets: id and terms by code."""
        return {book.terms.code: (book.id, book.terms) for book in self.books.values() if book.dropped_at is None}

    def leases_of(self, device: str) -> list[Lease]:
        return [lease for lease in self.leases.values() if lease.device == device and lease.state == "open"]

    def move(self, voucher: str, measure: str, amount: int, *into: str) -> None:
        """Takes `amount` from what is free and counts it as `into` too; no limit of that measure: nothing to do."""
        pool = self.books[voucher].pools.get(measure)
        if pool is not None:
            pool.free -= amount
            for name in into:
                setattr(pool, name, getattr(pool, name) + amount)

    # ---- vouchers

    def publish(self, voucher: str, terms: Terms, now: datetime) -> None:
        self.books[voucher] = Book(voucher, terms, now, {name: Pool(most, most) for name, most in terms.limits.items()})
        self.version += 1

    def may_revise(self, book: Book, terms: Terms) -> str:
        """The code of the problem, or nothing."""
        if book.dropped_at is not None:
            return "WRONG_STATE"
        if book.terms.currency != terms.currency:
            return "FIXED_FIELD"
        gone = set(book.terms.limits) - set(terms.limits)
        leased = [one for one in self.leases.values() if one.voucher == book.id and one.state == "open"]
        return "LEASED" if any(measure in lease.granted for measure in gone for lease in leased) else ""

    def revise(self, book: Book, terms: Terms, now: datetime) -> None:
        if terms == book.terms:
            return
        for measure in MEASURES:
            old, new = book.terms.limits.get(measure), terms.limits.get(measure)
            if old is None and new is not None:
                book.pools[measure] = self._as_if_always(book.id, measure, new)
                book.lowered = True
            elif new is None:
                book.pools.pop(measure, None)
            elif old is not None:
                book.pools[measure].limit += new - old
                book.pools[measure].free += new - old
                book.lowered |= new < old
        book.terms, book.revised_at = terms, now
        self.version += 1

    def _as_if_always(self, voucher: str, measure: str, limit: int) -> Pool:
        pool = Pool(limit, limit)
        for redemption in self.redemptions.values():
            use = redemption.uses.get(voucher)
            if use is None:
                continue
            lease = self.leases.get(use.lease or "")
            if use.cover == "online":
                pool.online += use.had(measure)
            elif use.cover != "lease" or lease is None or measure not in lease.granted:
                pool.uncovered += use.had(measure)
            pool.voided += use.voided[measure]
        held = 0
        for lease in self.leases.values():
            if lease.voucher == voucher and measure in lease.granted:
                held += lease.granted[measure] if lease.held else lease.known[measure]
        pool.free = limit - pool.online - pool.uncovered + pool.voided - held
        return pool

    def drop(self, book: Book, now: datetime) -> None:
        if book.dropped_at is None:
            book.dropped_at = now
            self.version += 1

    # ---- online

    def answer(self, device: str, redemption_id: str, sale: Sale, now: datetime) -> tuple[str, bool, Said | None]:
        """The code of the problem, or nothing; whether it is redeemed; what the engine said."""
        if self.devices[device].state != "active":
            return "FORBIDDEN", False, None
        before = self.redemptions.get((device, redemption_id))
        if before is not None:
            return ("", True, before.said) if before.sale == sale else ("IDENTIFIER_REUSED", False, None)
        books = self.by_code()
        said = reckon(sale, {code: self._online(book) for code, book in books.items()},
                      {code: self._room(book, sale.customer) for code, book in books.items()}, now)  # fmt: skip
        if not said.applied:
            return "", False, said
        uses = {}
        for code, minor in said.applied.items():
            book = books[code]
            uses[book.id] = Use(book.id, book.terms, minor, cover="online")
            for measure in MEASURES:
                self.move(book.id, measure, uses[book.id].had(measure), "online")
            self._count(book.id, sale.customer, 1)
        self.redemptions[device, redemption_id] = Redemption(sale, said, uses, sale.customer, now)
        return "", True, said

    @staticmethod
    def _online(book: Book) -> Terms:
        return book.terms if book.dropped_at is None else replace(book.terms, status="paused")

    def _room(self, book: Book, customer: str | None) -> Room:
        left = {measure: pool.free for measure, pool in book.pools.items()}
        most = book.terms.per_customer
        counted = self.customers.get((book.id, customer or ""), 0)
        return Room(True, left.get("units"), left.get("minor"), None if most is None else most - counted)

    def _count(self, voucher: str, customer: str | None, units: int) -> int:
        if customer is None:
            return 0
        key = voucher, customer
        if units > 0 or key in self.customers:  # of one who was forgotten nothing is taken
            self.customers[key] = self.customers.get(key, 0) + units
        return self.customers.get(key, 0)

    # ---- events

    def settle(self, device: Device, event: Event, last_contact: datetime, now: datetime) -> None:
        reasons: set[str] = set()
        quiet = False
        if event.kind == "redeem":
            quiet = self._redeem(device, event, reasons)
            late_after = last_contact + timedelta(seconds=MANIFEST_TTL_S + OFFLINE_S + CLOCK_S)
            if not quiet and event.at > late_after:
                reasons.add("LATE")
            back = device.last_event_at is not None and event.at < device.last_event_at - timedelta(seconds=CLOCK_S)
            if not quiet and (back or event.at > now + timedelta(seconds=CLOCK_S)):
                reasons.add("TIME_UNCERTAIN")
        elif event.kind == "void":
            self._void(device, event, reasons)
        elif event.kind == "lease_close":
            quiet = self._close(device, event, reasons)
        device.last_event_at = event.at
        device.seq = event.seq
        device.events.append(event)
        event.reasons = tuple(sorted(reasons))
        event.outcome = "flagged" if reasons else "duplicate" if quiet else "applied"
        self.flags += [(device.id, event.seq, reason) for reason in event.reasons]

    def _redeem(self, device: Device, event: Event, reasons: set[str]) -> bool:
        """Whether it has no effect: its id had one."""
        assert event.sale is not None
        key = device.id, event.id
        before = self.redemptions.get(key)
        online = before is not None and any(use.cover == "online" for use in before.uses.values())
        if before is not None and (not online or before.sale != event.sale):
            reasons.add("IDENTIFIER_REUSED")
            return True
        voided = {} if before is None else self._take_back(before, event)
        uses = {}
        for use in event.uses:
            uses[use.voucher] = use
            use.voided = voided.get(use.voucher, dict.fromkeys(MEASURES, 0))
            self._cover(device, event, use, reasons)
            self._circumstances(event, use, reasons)
        self.redemptions[key] = Redemption(event.sale, event.said, uses, event.sale.customer, event.at)
        return False

    def _take_back(self, before: Redemption, event: Event) -> dict[str, dict[str, int]]:
        """An online attempt that the till redeemed offline too counts once, as what the till did."""
        kept = {}
        new = {use.voucher: use for use in event.uses}
        for use in before.uses.values():
            now = new.get(use.voucher)
            carried = {one: 0 if now is None else min(use.voided[one], now.had(one)) for one in MEASURES}
            for measure in MEASURES:
                self.move(use.voucher, measure, -use.had(measure), "online")
                self.move(use.voucher, measure, use.voided[measure] - carried[measure])
                pool = self.books[use.voucher].pools.get(measure)
                if pool is not None:
                    pool.voided -= use.voided[measure] - carried[measure]
            self._count(use.voucher, before.customer, use.voided["units"] - 1 - carried["units"])
            kept[use.voucher] = carried
        return kept

    def _cover(self, device: Device, event: Event, use: Use, reasons: set[str]) -> None:
        lease = self.leases.get(use.lease or "")
        pools = self.books[use.voucher].pools
        if lease is not None and lease.device == device.id and lease.held and lease.covers(use):
            use.cover = "lease"
            for measure in MEASURES:
                lease.known[measure] += use.had(measure)
                if measure not in lease.granted:
                    self.move(use.voucher, measure, use.had(measure), "uncovered")
            if event.at > lease.expires_at:
                reasons.add("LATE")
            return
        within = all(pool.free >= use.had(measure) for measure, pool in pools.items())
        for measure in MEASURES:
            self.move(use.voucher, measure, use.had(measure), "uncovered")
        free = use.terms.offline == "open" or (use.terms.offline == "soft" and within)
        use.cover = "open" if free else "none"
        if not free:
            reasons.add("WITHOUT_COVER")

    def _circumstances(self, event: Event, use: Use, reasons: set[str]) -> None:
        assert event.sale is not None
        book = self.books[use.voucher]
        if book.dropped_at is not None and book.dropped_at < event.at:
            reasons.add("REVOKED_VOUCHER")
        over = book.terms.ends is not None and book.terms.ends < event.at
        if book.terms != use.terms and book.revised_at < event.at and (book.terms.status != "active" or over):
            reasons.add("REVOKED_VOUCHER")
        counted = self._count(use.voucher, event.sale.customer, 1)
        if use.terms.per_customer is not None and counted > use.terms.per_customer:
            reasons.add("CUSTOMER_LIMIT")

    def _void(self, device: Device, event: Event, reasons: set[str]) -> None:
        redemption = self.redemptions.get((device.id, event.ref))
        if redemption is None and event.back is None:  # an attempt that never came, and now never may
            self.redemptions[device.id, event.ref] = Redemption(None, None, {}, None, event.at)
            return
        if redemption is None or not set(event.back or {}) <= set(redemption.uses):
            reasons.add("WITHOUT_COVER")
            return
        asked = event.back
        if asked is None:
            asked = {
                use.voucher: (1 - use.voided["units"], use.minor - use.voided["minor"])
                for use in redemption.uses.values()
            }
        for voucher, wanted in asked.items():
            use = redemption.uses[voucher]
            for measure, amount in zip(MEASURES, wanted, strict=True):
                given = min(amount, use.had(measure) - use.voided[measure])
                if given < amount:
                    reasons.add("ALREADY_VOIDED")
                use.voided[measure] += given
                self.move(voucher, measure, -given)
                pool = self.books[voucher].pools.get(measure)
                if pool is not None:
                    pool.voided += given
                if measure == "units" and given:
                    self._count(voucher, redemption.customer, -given)

    def _close(self, device: Device, event: Event, reasons: set[str]) -> bool:
        """What is left of the lease comes back, once (I3). Whether it had come already, or is counted as it is."""
        lease = self.leases.get(event.lease)
        if lease is None or lease.device != device.id:
            reasons.add("WITHOUT_COVER")
            return False
        if not lease.held:
            return True
        for measure, used in zip(MEASURES, event.used, strict=True):
            if measure in lease.granted:
                self.move(lease.voucher, measure, used - lease.granted[measure])
            lease.known[measure] = used
        lease.state = "closed"
        return False

    # ---- leases

    def grant(self, device: Device, told: Lease, now: datetime) -> Sequence[str]:
        """A lease that the server made; sentences on why it may not have."""
        book = self.books[told.voucher]
        terms = book.terms
        ends = now + timedelta(seconds=LEASE_TTL_S)
        ends = ends if terms.ends is None else min(ends, terms.ends)
        others = [one for one in self.leases.values() if one.voucher == told.voucher and one.held]
        wrong = {
            "the device is not active": device.state != "active",
            "its number does not follow": told.number != device.lease_number + 1,
            "the device has an open one of this voucher": any(one.device == device.id and one.state == "open"
                                                              for one in others),
            "the voucher is not given out in leases": terms.offline not in ("quota", "exclusive"),
            "the voucher is withdrawn": book.dropped_at is not None or terms.status != "active",
            "it is over": terms.ends is not None and terms.ends <= now,
            "it is of other measures": set(told.granted) != set(book.pools),
            "nothing is granted": any(amount <= 0 for amount in told.granted.values()),
            "more than is free": any(told.granted[one] > pool.free for one, pool in book.pools.items()
                                     if one in told.granted),
            "too little for the largest discount": told.granted.get("minor", terms.largest or 0) < (terms.largest or 0),
            "more units than one lease may have": terms.offline == "quota"
            and told.granted.get("units", 0) > LEASE_UNITS_MAX,
            "it is not alone": terms.offline == "exclusive" and bool(others),
            "it ends at another time": told.expires_at != ends,
        }  # fmt: skip
        for measure, amount in told.granted.items():
            self.move(told.voucher, measure, amount)
        self.leases[told.id] = told
        device.lease_number = told.number
        return [sentence for sentence, holds in wrong.items() if holds]

    def release(self, lease: Lease) -> bool:
        if not lease.held:
            return False
        for measure, amount in lease.granted.items():
            self.move(lease.voucher, measure, lease.known[measure] - amount)
        lease.state = "released"
        return True

    def change(self, device: Device, verb: str) -> bool:
        """Whether an operator may do that to a device in its state."""
        state = {"suspend": "suspended", "resume": "active", "revoke": "revoked", "lost": "lost"}[verb]
        order = ("active", "suspended", "revoked", "lost")
        allowed = device.state == "suspended" if verb == "resume" else order.index(device.state) <= order.index(state)
        if allowed:
            device.state = state
            for lease in self.leases_of(device.id) if verb == "lost" else []:
                lease.state = "burned"
        return allowed

    def forget(self, customer: str) -> None:
        for redemption in self.redemptions.values():
            if redemption.customer == customer:
                redemption.customer = None
        self.customers = {key: units for key, units in self.customers.items() if key[1] != customer}
