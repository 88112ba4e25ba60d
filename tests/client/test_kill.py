"""Power cuts: real processes, SIGKILL in the middle of redeeming, and every receipt that was printed is there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

from tallystick_client.journal import FILE_NAME
from tallystick_shared.bundle import Caps
from tallystick_shared.journal import EventType
from tests.client.conftest import ONCE, TEN, Shop, arrived, rows

KILLS = 12
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from tallystick_client import Till
from tests.client.conftest import order
from tests.client.fake_clock import FakeClock
with Till.open({directory!r}, clock=FakeClock()) as till:
    for number in range(100_000):
        receipt = till.redeem(order(number), ["ONCE"])
        if not receipt.redeemed:
            receipt = till.redeem(order(number), ["TEN"])
        if number % 5 == 4:
            till.void(receipt.id)
        sys.stdout.write(receipt.id + "\\n")
        sys.stdout.flush()
"""


def start(directory: Path) -> subprocess.Popen[str]:
    program = PROGRAM.format(root=str(Path(__file__).parents[2]), directory=str(directory))
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def test_no_printed_receipt_is_lost(shop: Shop) -> None:
    """Two processes of one till, killed at any moment, again and again: the journal has every receipt, once, in one
    chain, no lease is overdrawn, and the server gets all of it."""
    shop.server.caps = Caps(redemptions=None)
    shop.server.publish(TEN, ONCE)
    till = shop.enroll()
    lease = shop.server.grant(shop.server.device, "ONCE", units=40)
    till.sync()
    till.close()
    chance = random.Random(7)
    printed: list[str] = []
    for _ in range(KILLS // 2):
        processes = [start(shop.work / "till") for _ in range(2)]
        for process in processes:
            assert process.stdout is not None
            for _ in range(chance.randint(1, 25)):
                printed.append(process.stdout.readline().strip())
            process.send_signal(signal.SIGKILL)
        for process in processes:
            assert process.stdout is not None
            printed += [line.strip() for line in process.stdout if line.endswith("\n")]
            assert process.wait() == -signal.SIGKILL
            process.stdout.close()

    till = shop.open()
    assert till._keeper.journal.verify() == till.status().head
    journal = [one for (one,) in rows(shop, "SELECT id FROM events WHERE type = 'redeem'")]
    assert len(printed) == len(set(printed)) > KILLS
    assert set(printed) <= set(journal)
    ((used, granted),) = rows(shop, "SELECT used_units, units FROM leases")
    with_lease = f"SELECT 1 FROM events WHERE type = 'redeem' AND instr(CAST(envelope AS TEXT), '{lease.id}')"
    assert used == len(rows(shop, with_lease)) == granted
    till.sync()
    assert sorted(arrived(shop)) == sorted(journal)
    assert not list((shop.work / "till").glob(f"{FILE_NAME}.damaged*"))
    (close,) = shop.server.device.envelopes(EventType.LEASE_CLOSE)
    assert close.uses[0].units == used == 40
