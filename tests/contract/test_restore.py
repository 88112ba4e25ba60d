"""A server restored from last night's backup, with real tills on real disks: nothing lost, nothing doubled, no limit
exceeded, whatever was granted, redeemed and enrolled since.

The clocks are injected, everything else is real: HTTP on loopback, SQLite, the journals, the caches.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from typing import Any

import pytest

from tallystick_client import Till, TryLater, Untrusted
from tallystick_client.exporting import export
from tallystick_server import journals
from tests.contract.chain import CODES, Chain


def held(till: Till) -> dict[str, tuple[Any, ...]]:
    return {one.id: (one.units, one.minor, one.used_units, one.used_minor) for one in till.status().leases}


@pytest.mark.parametrize("seed", range(5))
def test_a_declared_restore_loses_and_doubles_nothing(chain: Chain, seed: int) -> None:
    """Grants, redemptions, voids, closes and an enrolment since the backup: all tills sync, and everything is there."""
    chance = random.Random(seed)
    for name in ("a", "b"):
        chain.enrol(name)
    chain.act(chance, 25)
    file = chain.back_up()
    chain.enrol("c")
    chain.act(chance, 40)
    before = {name: held(till) for name, till in chain.tills.items()}
    chain.restore(file)
    chain.declare()
    for name, till in chain.tills.items():
        assert held(till) == before[name]
        chain.sell(name, chance.choice(CODES))  # they sell on from what they hold
    assert chain.state() == "recovering"
    chain.sync_all()
    assert chain.state() == "recovering", "nobody knows whether all have come"
    chain.end()
    chain.check()
    chain.act(chance, 40)
    chain.sync_all()
    chain.check()


def test_an_undeclared_restore_stops_grants_until_it_is_declared(chain: Chain) -> None:
    """Tills refuse the answers in words and sell on; what the operator then declares makes it good."""
    chance = random.Random(7)
    chain.enrol("a")
    chain.enrol("b")
    file = chain.back_up()
    chain.act(chance, 30)
    chain.sync_all()
    chain.restore(file)
    for till in chain.tills.values():
        with pytest.raises(Untrusted) as caught:
            till.sync()
        assert caught.value.code in ("NOT_OUR_JOURNAL", "OLD_LEDGER_MARK")
    assert chain.state() == "restore_suspected"
    for name in chain.tills:
        assert chain.sell(name, "OPEN")
    chain.declare(all_known=True)
    chain.sync_all()
    assert chain.state() == "normal"
    chain.check()


def test_a_till_that_comes_late_is_taken_in_all_the_same(chain: Chain) -> None:
    """An operator did not wait for it: what it held is adopted when it comes, and its sales count."""
    chance = random.Random(3)
    chain.enrol("a")
    chain.enrol("b")
    file = chain.back_up()
    chain.act(chance, 30)
    chain.restore(file)
    chain.declare()
    late = chain.tills.pop("b")
    chain.sync_all()
    assert chain.state() == "recovering"

    chain.end()
    chain.tills["b"] = late
    chain.sync_all()
    chain.act(chance, 20)
    chain.sync_all()
    report = chain.audited()
    assert (report.lost, report.doubled, report.mismatched, report.broken) == (0, 0, 0, [])
    assert report.redeemed == chain.redeemed


def test_a_till_enrolled_since_the_backup_proves_an_undeclared_restore(chain: Chain) -> None:
    """It is unknown, and says with the server's own signature that it was known: nothing more is granted."""
    chain.enrol("a")
    file = chain.back_up()
    chain.enrol("c")
    chain.restore(file)
    with pytest.raises(TryLater) as caught:
        chain.tills["c"].sync()
    assert caught.value.code == "RECOVERING"
    assert chain.state() == "restore_suspected"
    assert chain.sell("c", "OPEN")
    chain.declare()
    chain.sync_all()
    chain.end()
    chain.check()


def test_what_a_backup_holds_may_be_purged_and_nothing_else(chain: Chain) -> None:
    """Without a backup nothing ever leaves the till; after one, what it holds and is old does, and a restore of it is
    whole all the same."""
    chance = random.Random(11)
    till = chain.enrol("a")
    chain.act(chance, 30)
    chain.sync_all()
    assert till.status().durable == 0
    file = chain.back_up()
    chain.act(chance, 10)
    chain.sync_all()
    durable = till.status().durable
    assert 0 < durable < till.status().head
    chain.clock.run(days=91)
    chain.sync_all()
    with till._keeper.journal.read() as view:
        assert view.state.base_seq == durable
    chain.restore(file)
    chain.declare(all_known=True)
    chain.sync_all()
    assert chain.tills["a"].status().waiting == 0
    assert chain.state() == "normal"


def test_a_till_enrolled_since_the_backup_is_waited_for(chain: Chain) -> None:
    """Away while all known tills report, it goes on selling from leases that nobody else is granted meanwhile."""
    chain.enrol("a")
    file = chain.back_up()
    chain.enrol("c")
    chain.sync_all()
    chain.restore(file)
    chain.declare()
    away = chain.tills.pop("c")
    for _ in range(15):
        chain.clock.run(minutes=1)
        chain.sell("a", "UNITS")
        chain.tills["a"].sync()
    chain.tills["c"] = away
    for _ in range(12):
        chain.sell("c", "UNITS")
    chain.sync_all()
    chain.end()
    chain.sync_all()
    chain.check()


def test_the_same_backup_restored_twice_loses_nothing(chain: Chain) -> None:
    """The first restored database was bad too: what tills saw of it is of an epoch that never comes again."""
    chain.enrol("a")
    chain.enrol("b")
    file = chain.back_up()
    for _ in range(2):
        chain.restore(file)
        chain.clock.run(hours=1)
        chain.declare(all_known=True)
        chain.sync_all()
        assert chain.state() == "normal"
        for name in chain.tills:
            chain.sell(name, "OPEN")
            chain.sell(name, "UNITS")
        chain.sync_all()
    chain.check()
    assert all(till.status().waiting == 0 for till in chain.tills.values())


def test_a_carried_journal_is_taken_again_after_a_restore(chain: Chain) -> None:
    """Its till was scrapped, as it may be once the file was imported; so was one that enrolled since the backup."""
    chain.enrol("a")
    chain.enrol("b")
    file = chain.back_up()
    chain.enrol("c")
    files = []
    for name in ("a", "c"):
        for code in ("UNITS", "OPEN"):
            chain.sell(name, code)
        files.append(chain.work / f"{name}.tally")
        export(chain.tills[name]._keeper, files[-1], final=True)
    gone = [chain.tills.pop(name) for name in ("a", "c")]
    for _ in range(2):
        done = asyncio.run(journals.import_journals(chain.settings, files, now=chain.clock()))
        assert [one.refused for one in done] == ["", ""]
        chain.restore(file)
        chain.declare()
    done = asyncio.run(journals.import_journals(chain.settings, files, now=chain.clock()))
    assert [(one.stored > 0, one.refused) for one in done] == [(True, ""), (True, "")]
    chain.sync_all()
    chain.end()
    chain.check()
    for till in gone:
        till.close()


def test_a_copy_of_a_till_tells_all_of_its_own_after_a_restore(chain: Chain) -> None:
    """The backup has what the one copy recorded, and the other had sent more than that when the server was restored:
    it is told a place of the other's journal. Its own events were never taken again (fleet, seed 1, case 1)."""
    till = chain.enrol("a")
    chain.sell("a", "OPEN")
    till.sync()
    shutil.copytree(chain.work / "a", chain.work / "b")
    for _ in range(2):
        chain.sell("a", "OPEN")
    till.sync()
    file = chain.back_up()
    chain.tills["b"] = Till.open(chain.work / "b", clock=chain.clock)
    for _ in range(4):
        chain.sell("b", "OPEN")
    chain.tills["b"].sync()
    chain.restore(file)
    chain.declare(all_known=True)
    chain.sync_all()
    report = chain.audited()
    assert (report.lost, report.doubled, report.broken, report.redeemed) == (0, 0, [], 7)
    assert [till.status().waiting for till in chain.tills.values()] == [0, 0]
