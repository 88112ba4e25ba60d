"""What cashiers and operators do in a simulated fleet, on any day and without any fault."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tallystick_client.errors import CallerError, NotNow, TallystickError
from tallystick_client.reports import Receipt
from tallystick_client.voids import void
from tallystick_shared.journal import Returned
from tests.proof.fleet_till import FleetTill
from tests.proof.fleet_world import World

CUSTOMERS = 9
HARMLESS = ("ALREADY_VOIDED", "UNKNOWN_REDEMPTION", "IDENTIFIER_REUSED", "VOIDED", "MISUSE", "INVALID_FIELD")


class Acts:
    """`lively`: how often the tills of this world do anything at all."""

    def __init__(self, world: World) -> None:
        self.world, self.chance = world, world.chance
        self._cut_off: list[tuple[str, dict[str, Any], list[str]]] = []

    # -- sales

    def order(self) -> dict[str, Any]:
        chance = self.chance
        lines = [
            {"id": str(n), "product_id": chance.choice(("tea", "cup", "pot")), "quantity": chance.randint(1, 4),
             "unit_price_minor": chance.choice((99, 250, 501, 1333, 2000))}
            for n in range(1, chance.randint(2, 4))
        ]  # fmt: skip
        order: dict[str, Any] = {"id": f"order-{next(self.world.orders)}", "currency": "EUR", "lines": lines}
        if chance.random() < 0.9:
            order["customer"] = {"id": f"customer-{chance.randrange(CUSTOMERS)}"}
        return order

    def codes(self) -> list[str]:
        known = self.world.codes()
        codes = self.chance.sample(known, 1 if self.chance.random() < 0.75 else 2)
        return [code.lower() if self.chance.random() < 0.1 else code for code in codes]

    def sell(self, till: FleetTill) -> None:
        """Previewed, then redeemed at once: both say the same."""
        order, codes = self.order(), self.codes()
        again = [one for one in self._cut_off if one[0] == till.path.name]
        if again and self.chance.random() < 0.5:
            self._cut_off.remove(again[0])
            _, order, codes = again[0]
        terminal = till.open().terminal
        try:
            shown = terminal.preview(order, codes)
            receipt = terminal.redeem(order, codes)
        except NotNow as error:
            self.world.tally.see(f"refused: {error.code}")
            return
        if shown != receipt.result:
            self.world.tally.mismatched += 1
            self.world.fail(f"{till.path.name} previewed {shown}, and redeemed {receipt.result}")
        if not receipt.redeemed:
            self.world.tally.see(f"refused: {receipt.result.refused[0].reason.value}")
        self.world.told(till, receipt)

    def sell_online(self, till: FleetTill) -> None:
        order, codes = self.order(), self.codes()
        if self.chance.random() < 0.5:
            codes = ["CARD"]
        asked = (till.path.name, order, codes)
        self._cut_off.append(asked)

        def over(receipt: Receipt | None, error: TallystickError | None) -> None:
            if asked in self._cut_off and self.chance.random() < 0.7:
                self._cut_off.remove(asked)
            if receipt is not None:
                self.world.told(till, receipt)
            if error is not None:
                self.world.tally.see(f"online: {error.code}")

        try:
            till.redeem_online(order, codes, over)
        except NotNow as error:
            self.world.tally.see(f"refused: {error.code}")

    def take_back(self, till: FleetTill) -> None:
        """Voids or takes back a part of a redemption that this till, or its copy, made at any time."""
        mine = [note for note in self.world.notes if note.device == till.device.name]
        if not mine:
            return
        note = self.chance.choice(mine[-12:])
        returned = [Returned("1", 1)] if self.chance.random() < 0.4 else []
        try:
            receipt = void(till.open().terminal, note.id, returned)
        except CallerError as error:
            if error.code not in HARMLESS:
                raise
            self.world.tally.see(f"void: {error.code}")
            return
        self.world.voids[receipt.id] = till.device.name
        self.world.tally.see("returns" if returned else "voids")
        self.world.trace(f"void {till.path.name} {note.id} {receipt.refund_minor}")

    def sync(self, till: FleetTill) -> None:
        def over(error: TallystickError | None) -> None:
            if error is not None and self.chance.random() < 0.6:  # it comes again by itself
                self.world.later(self.chance.uniform(120, 7200), lambda: self.do(till, self.sync))

        self.world.sync(till, over)

    # -- the operator

    def back_up(self) -> None:
        if not self.world.server.is_up:
            return
        file = self.world.work / f"backup-{len(list(self.world.work.glob('backup-*')))}"
        self.world.server.back_up(file)
        self.world.backup, self.world.devices_in_backup = file, len(self.world.devices)
        self.world.tally.see("backups")

    def at_some_time(self, times: float, act: Callable[[], None], day_s: float = 86_400) -> None:
        """So many times in the coming day, on average."""
        count = int(times) + (self.chance.random() < times % 1)
        for _ in range(count):
            self.world.later(self.chance.uniform(0, day_s), act)

    def day(self) -> None:
        for till in self.world.tills:
            for times, act in ((5.0, self.sell), (1.0, self.sync), (0.4, self.sell_online), (0.4, self.take_back)):
                self.at_some_time(times * till.lively, partial(self.do, till, act))
        self.at_some_time(0.5, self.back_up)

    def do(self, till: FleetTill, act: Callable[[FleetTill], None]) -> None:
        if till in self.world.tills:
            act(till)
