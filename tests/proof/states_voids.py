"""The rules of voids: of a whole redemption or of some units, on any till, with ids of the caller's own or without."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, multiple, precondition, rule

from tallystick_shared.journal import Returned
from tests.proof.states_cashier import ONLINE, Done, Tills, names, sales
from tests.proof.states_compare import compare_till
from tests.proof.states_pair import same
from tests.proof.states_sale import Sale

Void = tuple[str, str, str, int]
"""A void that was made: till, id, redemption, units of the one line, 0 for the whole."""
redemptions = Tills.redemptions


class Voids(Tills):
    """Beside the other rules of the tills."""

    voids: Bundle[Void] = Bundle("voids")

    def void(self, name: str, redemption_id: str, units: int, void_id: str = "") -> Any:
        pair, drawer = self.pair, self.pair.drawers[name]
        if units and (sold := drawer.event(redemption_id)) and sold.said and "CARD" in sold.said.applied:
            return multiple()  # how a card is paid back in parts is more than this model reckons
        attempt = drawer.attempts.get(redemption_id)
        if units and attempt and attempt.said and "CARD" in attempt.said.applied:
            return multiple()
        told = drawer.void(redemption_id, units, pair.reading(name), void_id)
        till, returned = pair.world.till(name), [Returned("1", units)] if units else []
        code, receipt = pair.call(lambda: till.void(redemption_id, returned=returned, id=void_id or None))
        same("void: the error", code, told.code)
        pair.tally.see(f"error {code}" if code else "void in part" if units else "void")
        if code and void_id:
            pair.tally.see(f"void with an id: {code}")
        if not code:
            same("void: to pay back", receipt.refund_minor, told.refund)
            if told.id is not None:
                same("void: the id", receipt.id, told.id)
            if told.again:
                pair.tally.see("void told again")
            else:
                drawer.name_void(receipt.id)
        compare_till(pair, name)
        return multiple() if code or told.again else (name, receipt.id, redemption_id, units)

    @rule(target=voids, done=redemptions)
    def void_whole(self, done: Done) -> Any:
        self.step("void")
        return self.void(done[0], done[1], 0)

    @rule(target=voids, done=redemptions, units=st.integers(1, 3))
    def take_back_units(self, done: Done, units: int) -> Any:
        self.step("partial return")
        return self.void(done[0], done[1], units)

    @rule(target=voids, done=redemptions, units=st.integers(0, 3))
    def void_with_an_id(self, done: Done, units: int) -> Any:
        self.step("void, own id")
        return self.void(done[0], done[1], units, self.new_id())

    @rule(target=voids, done=redemptions, name=names)
    def void_elsewhere(self, done: Done, name: str) -> Any:
        self.step("void on any till")
        return self.void(name, done[1], 0)

    @precondition(lambda self: any(one.attempts for one in self.pair.drawers.values()))
    @rule(target=voids, name=names, choice=st.integers(0, 9), units=st.integers(0, 2), own=st.booleans())
    def void_attempt(self, name: str, choice: int, units: int, own: bool) -> Any:
        self.step("void an attempt")
        tried = sorted(self.pair.drawers[name].attempts)
        if not tried:
            return multiple()
        return self.void(name, tried[choice % len(tried)], units, self.new_id() if own else "")

    @rule(target=voids, made=voids, other=redemptions, units=st.sampled_from((None, None, None, 0, 1, 2)))
    def same_void_again(self, made: Void, other: Done, units: int | None) -> Any:
        """`units` None: of the same redemption, and as many; else as many, of the same redemption or another one."""
        name, void_id, redemption_id, before = made
        if units is None:
            self.step("same void id again")
            return self.void(name, redemption_id, before, void_id)
        if units != before:
            self.step("same void id, other units")
            return self.void(name, redemption_id, units, void_id)
        self.step("same void id, any redemption")
        return self.void(name, other[1], units, void_id)

    @rule(target=voids, done=redemptions, other=redemptions, units=st.integers(0, 1))
    def void_with_the_id_of_a_redemption(self, done: Done, other: Done, units: int) -> Any:
        self.step("void, id of a redemption")
        return self.void(done[0], done[1], units, other[1])

    @rule(target=redemptions, made=voids, sale=sales, name=names, online=st.booleans())
    def sell_with_the_id_of_a_void(self, made: Void, sale: Sale, name: str, online: bool) -> Any:
        """On the till that made it, but for one that is asked for by name: a till knows only its own ids."""
        name = made[0] if name != "c" else name
        if online and self.credit >= 0:
            self.step("sell online, id of a void", ONLINE)
            return self.redeem_online(name, sale, "", made[1])
        self.step("sell, id of a void")
        return self.redeem(name, sale, made[1])
