"""Whatever is done to a till, in any order: the chain holds, no lease is overdrawn, and the server gets it all once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tallystick_client import LineError, Returned, TallystickError
from tallystick_shared.bundle import Caps
from tallystick_shared.journal import EventType
from tests.client.conftest import ONCE, TEN, Shop, arrived, order, rows
from tests.client.fake_clock import FakeClock
from tests.client.fake_server import FakeServer, Reply, loses_the_answer, loses_the_request, says

FAULTS = [loses_the_request, loses_the_answer, says(503), says(413), says(429), says(401)]
Fault = Callable[[str, Callable[[], Reply]], Reply | None]


class TillMachine(RuleBasedStateMachine):
    @initialize()
    def enrol(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.clock = FakeClock()
        self.serving = FakeServer(self.clock).serving()
        server = self.serving.__enter__()
        server.caps = Caps(offline_s=10**7)
        server.publish(TEN, ONCE)
        self.shop = Shop(Path(self.folder.name), server, pytest.MonkeyPatch())
        self.till = self.shop.enroll()
        self.receipts: list[str] = []
        self.heads = [0]

    @rule(code=st.sampled_from(["TEN", "ONCE", "NOPE"]), customer=st.sampled_from(["anna", "ben", None]))
    def redeem(self, code: str, customer: str | None) -> None:
        receipt = self.till.redeem(order(customer=customer), [code])
        assert receipt.redeemed or code != "TEN"
        if receipt.redeemed:
            self.receipts.append(receipt.id)

    @precondition(lambda self: self.receipts)
    @rule(index=st.integers(0, 99), units=st.integers(0, 3))
    def void(self, index: int, units: int) -> None:
        name = self.receipts[index % len(self.receipts)]
        try:
            self.till.void(name, returned=[Returned("1", units)] if units else [])
        except TallystickError as error:
            assert error.code in ("ALREADY_VOIDED", "INVALID_FIELD"), error  # noqa: PT017 # only some may be raised

    @rule(units=st.integers(1, 3))
    def grant(self, units: int) -> None:
        device = self.shop.server.device
        if not device.leases:
            self.shop.server.grant(device, "ONCE", units=units)

    @rule()
    def recall(self) -> None:
        self.shop.server.device.recall = list(self.shop.server.device.leases)

    @rule(faults=st.lists(st.sampled_from(FAULTS), max_size=2))
    def sync(self, faults: list[Fault]) -> None:
        self.shop.server.script = list(faults)
        try:
            self.till.sync()
        except LineError:
            assert faults
        except TallystickError as error:
            assert error.code == "BUSY", error  # noqa: PT017 # the refusals of FAULTS
        self.shop.server.script = []

    @rule(hours=st.integers(-200, 200), off=st.booleans())
    def time_goes_wrong(self, hours: int, off: bool) -> None:
        if off:
            self.till.close()
            self.clock.reboot()
            self.till = self.shop.open()
        self.clock.turn(hours=hours)

    @rule(hours=st.integers(0, 200))
    def time_goes_by(self, hours: int) -> None:
        self.clock.run(hours=hours)

    @rule()
    def restart(self) -> None:
        self.till.close()
        self.till = self.shop.open()

    @invariant()
    def the_chain_holds(self) -> None:
        if not hasattr(self, "till"):
            return
        head = self.till._keeper.journal.verify()
        assert head >= self.heads[-1]
        self.heads.append(head)
        journal = rows(self.shop, "SELECT id, at FROM events WHERE type = 'redeem' ORDER BY seq")
        assert [name for name, _ in journal] == self.receipts
        for used, granted in rows(self.shop, "SELECT used_units, units FROM leases"):
            assert used <= granted
        state = self.till._keeper.journal.state()
        assert state.head_redemptions == len(self.receipts)

    def teardown(self) -> None:
        if not hasattr(self, "till"):
            return
        try:
            self.clock.run(days=2)
            for _ in range(3):
                self.till.sync()
            assert arrived(self.shop) == self.receipts
            used = [use.units for one in self.shop.server.device.envelopes(EventType.LEASE_CLOSE) for use in one.uses]
            open_use = sum(lease.used_units for lease in self.till.status().leases)
            from_leases = rows(self.shop, "SELECT sum(used_units) FROM leases")[0][0] or 0
            assert sum(used) + open_use == from_leases
        finally:
            self.shop.close()
            self.serving.__exit__(None, None, None)
            self.folder.cleanup()


TillMachine.TestCase.settings = settings(
    max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTill = TillMachine.TestCase
