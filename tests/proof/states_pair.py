"""The product and the model side by side: what a rule does to both, and the comparison of the two after it."""

from __future__ import annotations

import copy
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

from tallystick_client.errors import TallystickError, TryLater
from tests.client.fake_clock import START
from tests.proof.states_books import Device, Event, Lease
from tests.proof.states_sale import Mark, Now, Reading, Terms
from tests.proof.states_server import Server
from tests.proof.states_till import Drawer, Held, Told
from tests.proof.states_world import MANIFEST_TTL_S, RETRY_AFTER_S, Exchange, World, at_of
from tests.proof.tally import Tally

FIRST = (
    Terms("OPEN", "percent", 10, priority=5),
    Terms("ALONG", amount=200, priority=1),
    Terms("UNITS", amount=300, total=9),
    Terms("MONEY", amount=250, budget=3_000, priority=5),
    Terms("BOTH", amount=200, priority=0, total=8, budget=1_400),
    Terms("ALONE", amount=100, priority=9, total=2, policy="exclusive"),
    Terms("SOFT", amount=150, priority=3, total=4, policy="soft", max_units=3, max_minor=400),
    Terms("WIRED", amount=500, total=3, policy="online_only"),
    Terms("ONCE", amount=100, priority=2, per_customer=1),
    Terms("CARD", "card", 400, total=4),
)


class Differs(AssertionError):
    """Product and model do not say the same."""


def same(what: str, product: Any, model: Any) -> None:
    if product != model:
        raise Differs(f"{what}: the product has {product}, the model {model}")


class Pair:
    """`again` puts both back to where all examples begin. `tally` counts what was met."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.world = World()
        self.server = Server()
        for device in self.world.devices.values():
            self.server.devices[device] = Device(device, START)
        mark = Mark(START, "boot-1", 1000, 0, START, "boot-1")
        self.drawers = {name: Drawer(name, device, mark) for name, device in self.world.devices.items()}
        for terms in FIRST:
            self.publish(terms)
        for name in ("a", "b"):
            self.sync(name, {})
        self.world.keep()
        self._kept = copy.deepcopy((self.server, self.drawers))

    def again(self) -> None:
        self.world.again()
        self.server, self.drawers = copy.deepcopy(self._kept)
        self.tally = Tally()

    def reading(self, name: str) -> Reading:
        clock = self.world.clocks[name]
        return Reading(clock.wall, clock.boot, int(clock.ran_s))

    def publish(self, terms: Terms) -> None:
        made = self.world.operate("POST", "/v1/vouchers", terms.document())
        self.server.publish(made["id"], terms, self.world.at)

    # ---- calls

    @contextmanager
    def lined(self, plan: dict[tuple[str, int], str]) -> Iterator[list[Exchange]]:
        self.world.line.plan, self.world.line.log = plan, []
        yield self.world.line.log
        for kind, fault in plan.items():
            if sum(one.kind == kind[0] for one in self.world.line.log) > kind[1]:
                self.tally.fault(f"{kind[0]} {fault}")
        self.world.line.plan = {}

    def call(self, work: Callable[[], Any]) -> tuple[str, Any]:
        """An error's code, and what came back."""
        try:
            return "", work()
        except TallystickError as error:
            return error.code, None

    def compare(self, what: str, code: str, receipt: Any, told: Told) -> None:
        """A receipt with what it must be; of a new redemption the model learns its id."""
        same(f"{what}: the error", code, told.code)
        self.tally.see(f"error {code}" if code else f"{what} {'redeemed' if told.redeemed else 'refused'}")
        if code:
            return
        same(f"{what}: redeemed", receipt.redeemed, told.redeemed)
        same(f"{what}: online", receipt.online, told.online)
        if told.id is not None:
            same(f"{what}: the id", receipt.id, told.id)
        self.compare_result(what, receipt.result, told)

    def compare_result(self, what: str, result: Any, told: Told) -> None:
        assert told.said is not None
        same(f"{what}: applied", {one.code: one.discount_minor for one in result.applied}, told.said.applied)
        same(f"{what}: refused", {one.code: one.reason.value for one in result.refused}, told.said.refused)
        same(f"{what}: to pay", result.total_minor, told.said.total)
        for reason in told.said.refused.values():
            self.tally.see(f"refused {reason}")

    # ---- sync

    def sync(self, name: str, plan: dict[tuple[str, int], str]) -> None:
        """A sync, and all that follows from it in the model."""
        drawer = self.drawers[name]
        drawer.tick(self.reading(name))
        asked_to_wait = drawer.is_asked_to_wait(drawer.now(self.reading(name)))
        with self.lined(plan) as log:
            try:
                report, error = self.world.till(name).sync(), None
            except TryLater as raised:
                report, error = None, raised
        rows = self._rows(drawer)
        if asked_to_wait:
            same("asked to wait: the error", getattr(error, "code", ""), "ASKED_TO_WAIT")
            same("asked to wait: requests", (len(log), len(rows)), (0, 0))
            self.tally.see("sync asked to wait")
            return
        failed = self._exchanges(drawer, log, rows)
        same("sync: an error", "" if error is None else error.code, failed)
        self.tally.see(f"sync {failed or drawer.state}")
        if failed:
            drawer.not_before = None
            if failed == "BUSY":
                at = drawer.now(self.reading(name)).at
                drawer.not_before = at + timedelta(seconds=RETRY_AFTER_S)
            return
        assert report is not None
        same("sync: the state", report.state, drawer.state)
        self._bundle(drawer)
        open_now = {lease.id for lease in self.server.leases_of(drawer.device)}
        mine = {lease.id for lease in drawer.leases.values() if lease.state == "active"}
        same("sync: leases open on both sides", mine, open_now)
        same("sync: all is acknowledged", drawer.acknowledged, drawer.head)

    def _rows(self, drawer: Drawer) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
        """The events that the till wrote since the model's last: only closes."""
        with closing(sqlite3.connect(self.world.base / drawer.name / "journal.sqlite3")) as journal:
            query = "SELECT seq, envelope, body FROM events WHERE seq > ? ORDER BY seq"
            rows = journal.execute(query, (drawer.head,)).fetchall()
        found = [(seq, json.loads(envelope), json.loads(body)) for seq, envelope, body in rows]
        same("events written by a sync", {envelope["type"] for _, envelope, _ in found} - {"lease_close"}, set())
        return found

    def _exchanges(self, drawer: Drawer, log: list[Exchange], rows: list[Any]) -> str:
        """Follows the requests in their order; the code of the error that ends it, or nothing."""
        failed = ""
        for one in log:
            if failed:
                raise Differs(f"after {failed} the till went on with {one.kind}")
            if one.kind == "sync":
                self._closes(drawer, rows, one.asked["head"]["seq"])
                if one.answer is not None and one.status == 200:
                    self._settle(drawer, one)
            if one.status == 429:
                failed = "BUSY"
            elif not one.heard:
                failed = "NO_CONNECTION"
            elif one.kind == "sync":
                self._heard(drawer, one.answer or {})
        self._closes(drawer, rows, None)
        return failed

    def _closes(self, drawer: Drawer, rows: list[Any], upto: int | None) -> None:
        """Closes that the till wrote: with the use the model knows, and for a reason that there is."""
        while rows and (upto is None or rows[0][0] <= upto):
            seq, envelope, body = rows.pop(0)
            (use,) = envelope["uses"]
            event = Event(seq, "lease_close", envelope["id"], at_of(envelope["at"]), lease=use["lease"],
                          used=(use["units"], use["minor"]))  # fmt: skip
            held, why = drawer.leases.get(event.lease), body["note"]
            now = drawer.now(self.reading(drawer.name))
            if why not in ("used up", "expired", "too small"):  # it follows from an answer, and that tells the time
                now = Now(drawer.mark.at, drawer.mark.at, "", drawer.mark)
            same("a close: its time", event.at, now.at)
            drawer.append(event, now)
            same("a close: its number", event.seq, seq)
            self.tally.see(f"closed {why}")
            if why == "came too late":
                same("a lease given back: its use", event.used, (0, 0))
                self._too_late(drawer, event)
                continue
            if held is None or held.state != "active":
                raise Differs(f"a close of {event.lease}, which is not active on the till")
            used_up = any(held.used[measure] == most for measure, most in held.granted.items())
            allowed = {"used up": used_up, "expired": held.expires_at <= now.at,
                       "too small": held.voucher in drawer.refused}  # fmt: skip
            same(f"a close because {why}", allowed.get(why, True), True)
            same("a close: its use", event.used, (held.used["units"], held.used["minor"]))
            drawer.close(event.lease, seq)

    def _too_late(self, drawer: Drawer, event: Event) -> None:
        lease = self.server.leases[event.lease]
        given_back = Held(lease.id, lease.number, lease.voucher, {}, lease.expires_at, state="closed")
        given_back.close_seq = event.seq
        drawer.leases[lease.id] = given_back

    def _settle(self, drawer: Drawer, one: Exchange) -> None:
        """The server's part: events settled, leases granted; every word of its answer."""
        assert one.answer is not None
        answer, device, now = one.answer, self.server.devices[drawer.device], self.world.at
        through, after = one.asked["through"]["seq"], one.asked["after"]["seq"]
        for event in drawer.events:
            if device.seq < event.seq <= through:
                self.server.settle(device, event, device.last_sync_at, now)
                self.tally.see(f"settled {event.outcome}")
                for reason in event.reasons:
                    self.tally.see(f"flagged {reason}")
        device.last_sync_at = now
        exceptions = [
            (event.seq, event.outcome, list(event.reasons))
            for event in device.events if after < event.seq <= through and event.outcome != "applied"
        ]  # fmt: skip
        told = [(one["seq"], one["outcome"], one["reasons"]) for one in answer["exceptions"]]
        same("the answer: exceptions", told, exceptions)
        same("the answer: acknowledged", answer["acknowledged"]["seq"], through)
        same("the answer: durable", answer["durable"]["seq"], min(through, device.durable_seq))
        same("the answer: state", answer["state"], device.state)
        same("the answer: the bundle's version", answer["manifest_version"], self.server.version)
        for lease in answer["leases"]:
            self._granted(device, lease)
        open_now = {lease.id for lease in self.server.leases_of(device.id)}
        if not set(answer["recall"]) <= open_now:
            raise Differs("a lease is recalled that is not open")
        if device.state != "active":
            same("a device that is not active: all is asked back", set(answer["recall"]), open_now)

    def _granted(self, device: Device, told: dict[str, Any]) -> None:
        known = self.server.leases.get(told["id"])
        granted = {name: told[name] for name in ("units", "minor") if told[name] is not None}
        if known is not None:
            same("a lease told again", (known.granted, known.state, known.device), (granted, "open", device.id))
            return
        lease = Lease(told["id"], told["number"], told["voucher_id"], device.id, granted, at_of(told["expires_at"]))
        wrong = self.server.grant(device, lease, self.world.at)
        same(f"a lease of {self.server.books[lease.voucher].terms.code}: wrong with it", list(wrong), [])
        self.tally.see("leases granted")

    def _heard(self, drawer: Drawer, answer: dict[str, Any]) -> None:
        state = "suspended" if answer["state"] not in ("active", "suspended", "revoked", "lost") else answer["state"]
        drawer.accept(answer["acknowledged"]["seq"], answer["durable"]["seq"], state, self.world.at,
                      self.reading(drawer.name))  # fmt: skip
        for told in sorted(answer["leases"], key=lambda one: int(one["number"])):
            known = self.server.leases[told["id"]]
            drawer.take(Held(known.id, known.number, known.voucher, known.granted, known.expires_at))
        base = drawer.base
        drawer.purge()
        self.tally.see("purged", drawer.base - base)

    def _bundle(self, drawer: Drawer) -> None:
        """After a sync that came through: an active till has what is published now."""
        if drawer.state != "active":
            return
        drawer.bundle, drawer.version = self.server.bundle(), self.server.version
        expires_at = self.world.till(drawer.name).status().bundle_expires_at
        assert expires_at is not None
        left_s = (expires_at - self.world.at).total_seconds()
        if not MANIFEST_TTL_S / 2 < left_s <= MANIFEST_TTL_S:
            raise Differs(f"the bundle is good for {left_s} s more after a sync")
        drawer.expires_at = expires_at
