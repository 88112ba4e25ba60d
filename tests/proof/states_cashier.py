"""The rules of the tills: what cashiers, clocks and lines do. After each of them product and model say the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, multiple, precondition, rule

from tallystick_client.forgetting import forget
from tests.proof.states_compare import compare_server, compare_till
from tests.proof.states_pair import Pair, same
from tests.proof.states_sale import Sale
from tests.proof.states_till import Attempt, Told

Done = tuple[str, str, Sale]
"""A redemption that was asked for: till, id, sale."""
SYNC, ONLINE, OPERATOR, FILES, REOPEN = 12, 10, 5, 24, 6
"""What steps cost, in steps of a till alone: the server is paid for with these, so that a run has time for both."""
CODES = ("OPEN", "ALONG", "UNITS", "MONEY", "BOTH", "ALONE", "SOFT", "WIRED", "ONCE", "CARD", "NEW1", "NEW2")
LIMITED = ("UNITS", "MONEY", "BOTH", "ALONE", "WIRED", "CARD")
DAY_S = 86_400
DAYS_MAX = 600
"""No example outlives the first root of the server, which is good for three years: days pass one by one, too."""

names = st.sampled_from(("a", "b", "a", "b", "c"))
customers = st.sampled_from((None, "anna", "bert"))
codes = st.sampled_from((*CODES, "UNITS", "MONEY", "BOTH", " open ", "units", "nowhere"))
sales = st.builds(
    Sale,
    number=st.integers(0, 30),
    price=st.sampled_from((500, 1000, 100, 300, 700, 0)),
    quantity=st.integers(1, 3),
    customer=customers,
    currency=st.sampled_from(("EUR",) * 15 + ("USD",)),
    codes=st.lists(codes, min_size=1, max_size=3).map(tuple),
)
whole_sales = st.builds(replace, sales, codes=st.just(CODES))
lines = st.sampled_from(("", "", "", "down", "lost", "busy"))


class Tills(RuleBasedStateMachine):
    """Product and model, from where every example begins. `pair` is set by who makes it."""

    pair: Pair
    redemptions: Bundle[Done] = Bundle("redemptions")

    def __init__(self) -> None:
        super().__init__()
        self.pair.again()
        self.credit = 3 * SYNC
        self.made = self.days_gone = 0

    def step(self, kind: str, cost: int = 0) -> None:
        self.pair.tally.units += 1
        self.pair.tally.see(f"rule {kind}")
        self.credit += 1 - cost

    def new_id(self) -> str:
        self.made += 1
        return f"01920000-0000-7000-8000-{self.made:012x}"

    def redeem(self, name: str, sale: Sale, redemption_id: str | None) -> Any:
        pair, drawer = self.pair, self.pair.drawers[name]
        told = drawer.redeem(sale, redemption_id, pair.reading(name))
        till = pair.world.till(name)
        code, receipt = pair.call(lambda: till.redeem(sale.order(), list(sale.codes), id=redemption_id))
        pair.compare("redeem", code, receipt, told)
        last = drawer.events[-1] if drawer.events else None
        if told.redeemed and last is not None and last.kind == "redeem" and not last.id:
            last.id = receipt.id
        compare_till(pair, name)
        return (name, receipt.id, sale) if told.redeemed else multiple()

    # ---- a cashier without a line

    @rule(target=redemptions, name=names, sale=sales)
    def sell(self, name: str, sale: Sale) -> Any:
        self.step("sell")
        return self.redeem(name, sale, None)

    @rule(target=redemptions, name=names, sale=sales)
    def sell_as_before(self, name: str, sale: Sale) -> Any:
        self.step("sell, own id")
        return self.redeem(name, sale, self.new_id())

    @rule(target=redemptions, name=names, code=codes, customer=customers)
    def sell_one_code(self, name: str, code: str, customer: str | None) -> Any:
        self.step("sell one code")
        self.made += 1
        return self.redeem(name, Sale(self.made + 100, 500, 2, customer, "EUR", (code,)), None)

    @rule(target=redemptions, name=names, sale=whole_sales)
    def sell_with_all_codes(self, name: str, sale: Sale) -> Any:
        self.step("sell with all codes")
        return self.redeem(name, sale, None)

    @rule(name=names, sale=sales)
    def look(self, name: str, sale: Sale) -> None:
        self.step("preview")
        pair, drawer = self.pair, self.pair.drawers[name]
        told = drawer.look(sale, drawer.now(pair.reading(name)))
        till = pair.world.till(name)
        code, result = pair.call(lambda: till.preview(sale.order(), list(sale.codes)))
        same("preview: the error", code, told.code)
        if not code:
            pair.compare_result("preview", result, told)
        compare_till(pair, name)

    @rule(done=redemptions)
    def repeat(self, done: Done) -> None:
        self.step("same id again")
        self.redeem(done[0], done[2], done[1])

    @rule(done=redemptions, sale=sales)
    def reuse(self, done: Done, sale: Sale) -> None:
        self.step("same id, other content")
        self.redeem(done[0], replace(sale, number=sale.number + 1000), done[1])

    @precondition(lambda self: self.credit >= 0)
    @rule(name=names)
    def reopen(self, name: str) -> None:
        self.step("reopen", REOPEN)
        self.pair.world.reopen(name)
        compare_till(self.pair, name)

    @rule(name=names, customer=st.sampled_from(("anna", "bert")))
    def forget_on_till(self, name: str, customer: str) -> None:
        self.step("forget on a till")
        expected = self.pair.drawers[name].forget(customer)
        found = forget(self.pair.world.till(name)._keeper.journal, customer)
        same("forgotten: bodies, attempts, waiting", (found.bodies, found.attempts, found.waiting), expected)
        compare_till(self.pair, name)

    # ---- time

    @rule(seconds=st.sampled_from((1, 60, 1800, 3600, 6 * 3600, DAY_S)))
    def time_passes(self, seconds: int) -> None:
        self.step("time passes")
        self.pair.world.pass_time(seconds)

    @rule(days=st.sampled_from((2, 3, 5, 91)), odd=st.integers(0, 3))
    def days_pass(self, days: int, odd: int) -> None:
        self.step("days pass")
        long = odd == 0 and self.days_gone + days < DAYS_MAX
        self.days_gone += days if long else 0
        self.pair.world.pass_time(days * DAY_S if long else 7200)

    @rule(name=names, seconds=st.sampled_from((-400, -1200, -7200, -3 * DAY_S, 200, 3600, 7200, 2 * DAY_S, 9 * DAY_S)))
    def set_clock(self, name: str, seconds: int) -> None:
        self.step("wall clock set")
        self.pair.world.clocks[name].turn(seconds=seconds)
        compare_till(self.pair, name)

    @precondition(lambda self: self.credit >= 0)
    @rule(name=names, right=st.booleans())
    def reboot(self, name: str, right: bool) -> None:
        """`right`: its clock is set to the true time by it."""
        self.step("reboot", REOPEN)
        world = self.pair.world
        world.reopen(name)
        world.clocks[name].reboot()
        if right:
            world.clocks[name].wall = world.at
        compare_till(self.pair, name)

    # ---- with a line

    @precondition(lambda self: self.credit >= 0)
    @rule(name=names)
    def sync(self, name: str) -> None:
        self.step("sync", SYNC)
        self.pair.sync(name, {})
        self.after_sync(name)

    @precondition(lambda self: self.credit >= 0)
    @rule(
        name=names, kind=st.sampled_from(("sync", "sync", "manifest", "manifest", "blobs")), number=st.integers(0, 1),
        fault=st.sampled_from(("down", "lost", "lost", "busy")),
    )  # fmt: skip
    def sync_over_a_bad_line(self, name: str, kind: str, number: int, fault: str) -> None:
        self.step(f"sync, {fault}", SYNC)
        self.pair.sync(name, {(kind, number): fault})
        self.after_sync(name)

    def after_sync(self, name: str) -> None:
        compare_till(self.pair, name)
        compare_server(self.pair)

    @precondition(lambda self: self.credit >= 0)
    @rule(target=redemptions, name=names, sale=sales, fault=lines, own=st.booleans())
    def sell_online(self, name: str, sale: Sale, fault: str, own: bool) -> Any:
        self.step("sell online", ONLINE)
        return self.redeem_online(name, sale, fault, self.new_id() if own else None)

    @precondition(lambda self: self.credit >= 0)
    @rule(target=redemptions, name=names, code=st.sampled_from(LIMITED), quantity=st.integers(1, 3))
    def sell_one_code_online(self, name: str, code: str, quantity: int) -> Any:
        self.step("sell one code online", ONLINE)
        self.made += 1
        return self.redeem_online(name, Sale(self.made + 100, 500, quantity, "bert", "EUR", (code,)), "", None)

    @precondition(lambda self: self.credit >= 0)
    @rule(done=redemptions, fault=lines)
    def repeat_online(self, done: Done, fault: str) -> None:
        self.step("same id again, online", ONLINE)
        self.redeem_online(done[0], done[2], fault, done[1])

    @precondition(lambda self: self.credit >= 0)
    @rule(done=redemptions, sale=sales)
    def reuse_online(self, done: Done, sale: Sale) -> None:
        self.step("same id, other content, online", ONLINE)
        self.redeem_online(done[0], replace(sale, number=sale.number + 2000), "", done[1])

    @precondition(lambda self: self.credit >= 0 and any(one.attempts for one in self.pair.drawers.values()))
    @rule(name=names, choice=st.integers(0, 9), fault=lines, online=st.booleans())
    def ask_again(self, name: str, choice: int, fault: str, online: bool) -> None:
        """The same sale without its id, as a cashier does after an answer that did not come."""
        self.step("ask again", ONLINE)
        tried = [one for one in self.pair.drawers[name].attempts.values() if one.state == "pending"]
        if not tried:
            return
        sale = tried[choice % len(tried)].sale
        if online:
            self.redeem_online(name, sale, fault, None)
        else:
            self.redeem(name, sale, None)

    def redeem_online(self, name: str, sale: Sale, fault: str, redemption_id: str | None) -> Any:
        pair, drawer = self.pair, self.pair.drawers[name]
        earlier = None if redemption_id is None else drawer.earlier(redemption_id, sale)
        till = pair.world.till(name)
        with pair.lined({("redemptions", 0): fault} if fault else {}) as log:
            code, receipt = pair.call(lambda: till.redeem_online(sale.order(), list(sale.codes), id=redemption_id))
        same("online: requests", len(log), 0 if earlier else 1)
        if earlier is None or not earlier.code:
            drawer.tick(pair.reading(name))
        if earlier is not None:
            told = earlier
        else:
            asked = log[0].asked["id"]
            if (known := redemption_id or drawer.pending(sale)) is not None:
                same("online: the id that is asked with", asked, known)
            told = self.online(name, sale, asked, fault)
        pair.compare("online", code, receipt, told)
        compare_till(pair, name)
        compare_server(pair)
        return (name, receipt.id, sale) if not code else multiple()

    def online(self, name: str, sale: Sale, redemption_id: str, fault: str) -> Told:
        """What the model says of an attempt."""
        pair, drawer = self.pair, self.pair.drawers[name]
        attempt = drawer.attempts.get(redemption_id)
        if attempt is None:
            attempt = Attempt(sale, drawer.now(pair.reading(name)).at)
            drawer.attempts[redemption_id] = attempt
        elif attempt.state == "refused":
            attempt.state = "pending"
        if fault in ("", "lost"):
            code, redeemed, said = pair.server.answer(drawer.device, redemption_id, sale, pair.world.at)
        if fault:
            return drawer.redeem(sale, redemption_id, pair.reading(name))
        if code == "FORBIDDEN":
            return Told(code)
        first = attempt.state == "pending"
        if code:
            attempt.state = "refused" if first else attempt.state
            return Told(code)
        assert said is not None
        if not redeemed and self.holds(name, said.refused):
            fallen = drawer.redeem(sale, redemption_id, pair.reading(name))
            if fallen.redeemed or fallen.code:
                return fallen
        if first:
            attempt.state, attempt.said = ("redeemed" if redeemed else "refused"), said
            if redeemed:
                drawer.count_applied(said, sale.customer, 1)
        return Told(id=redemption_id, redeemed=redeemed, online=True, said=said)

    def holds(self, name: str, refused: dict[str, str]) -> bool:
        """What the server has no more of may be leased, and to this till."""
        drawer = self.pair.drawers[name]
        short = [code for code, reason in refused.items() if reason in ("LIMIT_REACHED", "BUDGET_EXHAUSTED")]
        return any(drawer.active(drawer.bundle[code][0]) for code in short if drawer.bundle and code in drawer.bundle)
