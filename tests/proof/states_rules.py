"""The rules of the operator, beside those of the tills: vouchers, devices, leases, the queue, backups and erasing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tallystick_server import backups, privacy
from tests.proof.states_books import Book
from tests.proof.states_cashier import CODES, DAY_S, FILES, OPERATOR
from tests.proof.states_compare import compare_operator, compare_server, finish
from tests.proof.states_pair import same
from tests.proof.states_sale import Terms
from tests.proof.states_voids import Voids
from tests.proof.states_world import NAMES, Refused

CHANGES: tuple[dict[str, Any], ...] = (
    {"amount": 100}, {"amount": 300}, {"amount": 600}, {"total": 1}, {"total": 2}, {"total": 5}, {"total": 20},
    {"total": None}, {"budget": 700}, {"budget": 300}, {"budget": 5_000}, {"budget": None}, {"policy": "quota"},
    {"policy": "online_only"}, {"policy": "exclusive"}, {"policy": "soft"}, {"policy": ""},
    {"status": "paused"}, {"status": "active"}, {"ends": 0}, {"ends": 3 * DAY_S}, {"ends": None},
)  # fmt: skip
OFTEN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("OPEN", {"budget": 700}), ("UNITS", {"total": None}), ("MONEY", {"budget": None}), ("MONEY", {"budget": 300}),
    ("BOTH", {"budget": 300}), ("ALONG", {"ends": 0}), ("ONCE", {"ends": 0}), ("SOFT", {"status": "paused"}),
    ("SOFT", {"status": "active"}),
)  # fmt: skip
"""What no short run would meet by chance: a currency that is fixed, a limit that is leased, a budget that is short."""
VERBS = ("suspend", "resume", "suspend", "resume", "revoke", "lost")


class Shops(Voids):
    """All rules; at the end every till syncs, and the auditor goes over everything."""

    def operate(self, expected: str, work: Callable[[], Any]) -> None:
        try:
            work()
            code = ""
        except Refused as refused:
            code = refused.code
        same("the operator's request: the error", code, expected)
        self.pair.tally.see(f"operator error {code}" if code else "operator done")
        compare_server(self.pair)

    @precondition(lambda self: self.credit >= 0)
    @rule(asked=st.one_of(st.tuples(st.sampled_from(CODES[:-2]), st.sampled_from(CHANGES)), st.sampled_from(OFTEN)))
    def revise(self, asked: tuple[str, dict[str, Any]]) -> None:
        code, change = asked
        self.step("revise", OPERATOR)
        world, server = self.pair.world, self.pair.server
        book = server.by_code()[code]
        ends = change.get("ends")
        if ends is not None:
            change = {"ends": world.at + timedelta(seconds=ends)}
        terms = possible(replace(book.terms, **change))
        expected = server.may_revise(book, terms)
        self.operate(expected, lambda: self.revised(book, terms, expected))

    def revised(self, book: Book, terms: Terms, expected: str) -> None:
        if not expected:
            self.pair.server.revise(book, terms, self.pair.world.at)
        self.pair.world.operate("PUT", f"/v1/vouchers/{book.id}", terms.document())

    @precondition(lambda self: self.credit >= 0)
    @rule(code=st.sampled_from(CODES), limit=st.sampled_from((None, 3)))
    def publish_or_drop(self, code: str, limit: int | None) -> None:
        """A new code is published; one that is there is withdrawn."""
        self.step("publish or drop", OPERATOR)
        book = self.pair.server.by_code().get(code)
        if book is None:
            ends = self.pair.world.at + timedelta(days=2) if limit else None
            self.operate("", lambda: self.pair.publish(Terms(code, amount=400, priority=4, total=limit, ends=ends)))
        else:
            self.pair.server.drop(book, self.pair.world.at)
            self.operate("", lambda: self.pair.world.operate("POST", f"/v1/vouchers/{book.id}/deactivate"))

    @precondition(lambda self: self.credit >= 0)
    @rule(name=st.sampled_from(NAMES), verb=st.sampled_from(VERBS))
    def change_device(self, name: str, verb: str) -> None:
        self.step(verb, OPERATOR)
        device = self.pair.server.devices[self.pair.drawers[name].device]
        allowed = self.pair.server.change(device, verb)
        work = lambda: self.pair.world.operate("POST", f"/v1/devices/{device.id}/{verb}")  # noqa: E731
        self.operate("" if allowed else "WRONG_STATE", work)

    @precondition(lambda self: self.credit >= 0 and bool(self.pair.server.leases))
    @rule(choice=st.integers(0, 30))
    def release(self, choice: int) -> None:
        self.step("release", OPERATOR)
        lease = sorted(self.pair.server.leases.values(), key=lambda one: (one.state != "open", one.id))
        chosen = lease[choice % len(lease)]
        allowed = self.pair.server.release(chosen)
        work = lambda: self.pair.world.operate("POST", f"/v1/leases/{chosen.id}/release")  # noqa: E731
        self.operate("" if allowed else "WRONG_STATE", work)

    @precondition(lambda self: self.credit >= -OPERATOR and bool(self.pair.server.flags))
    @rule()
    def resolve(self) -> None:
        self.step("resolve", 2 * OPERATOR)
        shown = self.pair.world.operate("GET", "/v1/flagged?limit=1")["flagged"][0]
        self.pair.server.flags.remove((shown["device_id"], shown["seq"], shown["reason"]))
        self.operate("", lambda: self.pair.world.operate("POST", f"/v1/flagged/{shown['id']}/resolve"))

    @precondition(lambda self: self.credit >= 0)
    @rule()
    def look_at_the_console(self) -> None:
        self.step("operator looks", 4 * OPERATOR)
        compare_operator(self.pair)

    @precondition(lambda self: self.credit >= 0)
    @rule()
    def restart_server(self) -> None:
        self.step("restart", OPERATOR)
        self.pair.world.restart()
        compare_server(self.pair)

    @precondition(lambda self: self.credit >= 0)
    @rule()
    def back_up(self) -> None:
        self.step("backup", FILES)
        world = self.pair.world
        file = world.base / f"backup-{self.pair.tally.units}-{self.made}.sqlite3"
        world.run(backups.back_up(world.settings, file, now=world.at))
        for device in self.pair.server.devices.values():
            device.durable_seq = device.seq
        file.unlink()

    @precondition(lambda self: self.credit >= 0)
    @rule(customer=st.sampled_from(("anna", "bert")))
    def forget_customer(self, customer: str) -> None:
        self.step("forget", FILES)
        world, server = self.pair.world, self.pair.server
        theirs = sum(one.customer == customer for one in server.redemptions.values())
        forgotten = world.run(privacy.forget(world.settings, customer, now=world.at))
        same("forgotten: redemptions", forgotten.redemptions, theirs)
        server.forget(customer)
        compare_server(self.pair)

    @precondition(lambda self: self.credit >= 0)
    @rule()
    def erase_bodies(self) -> None:
        self.step("erase bodies", FILES)
        world = self.pair.world
        world.run(privacy.erase_old_bodies(world.settings, now=world.at))
        compare_server(self.pair)

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:  # else a step did not hold, or hypothesis ends the example
            finish(self.pair)


def possible(terms: Terms) -> Terms:
    """What the door lets in: a policy that its limits and bounds allow."""
    if terms.kind == "card":
        return replace(terms, policy="")
    if terms.kind == "percent" and terms.amount > 100:
        terms = replace(terms, amount=terms.amount // 20)
    if terms.policy == "soft" and terms.limits:
        return replace(terms, max_units=terms.max_units or 2, max_minor=terms.max_minor or 500)
    terms = replace(terms, max_units=None, max_minor=None)
    usual = replace(terms, policy="")
    # what is so by default is published as if it was not said
    return (
        usual
        if terms.policy == usual.offline or (not terms.limits and terms.policy in ("quota", "exclusive", "soft"))
        else terms
    )
