"""What an engineer who has run offline tills for ten years does to one: copies its disk, turns its clock, pulls cords.

(The power cord is `test_kills`, the cable is everywhere.)
"""

from __future__ import annotations

import asyncio
import random
import shutil
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from tallystick_client import NotNow, RemoteError, Till
from tallystick_server import forks, operations
from tallystick_server.tables import events
from tests.contract.chain import Chain


def copied(chain: Chain, name: str, copy: str) -> Till:
    """The till's disk on a second machine."""
    chain.tills[name].close()
    shutil.copytree(chain.work / name, chain.work / copy)
    chain.tills[name] = chain._open(name)
    chain.tills[copy] = chain._open(copy)
    return chain.tills[copy]


def stored(chain: Chain) -> list[tuple[int, int]]:
    """Branch and number of every event that the server has."""

    async def read() -> list[tuple[int, int]]:
        async with operations.opened(chain.settings, chain.clock()) as server, server.database.read() as connection:
            query = select(events.c.branch, events.c.seq).order_by(events.c.branch, events.c.seq)
            return [(row.branch, row.seq) for row in await connection.execute(query)]

    return asyncio.run(read())


def test_a_copied_disk_is_found_at_the_first_sync_of_the_second_copy(chain: Chain) -> None:
    """Both journals are kept, the device is suspended, and what the copies can have cost is counted."""
    till = chain.enrol("a")
    assert chain.sell("a", "UNITS")
    till.sync()
    copy = copied(chain, "a", "copy")
    till = chain.tills["a"]
    assert chain.sell("a", "UNITS")
    assert chain.sell("copy", "UNITS")
    assert chain.sell("copy", "OPEN")
    till.sync()
    assert till.status().state == "active"
    copy.sync()
    assert copy.status().state == "suspended"
    assert copy.status().waiting == 0
    assert [branch for branch, _ in stored(chain)].count(1) >= 2
    till.sync()
    for one in (till, copy):
        with pytest.raises(NotNow, match="suspended"):
            one.redeem({"id": "x", "currency": "EUR", "lines": []}, ["OPEN"])
    report = chain.audited()
    assert (report.lost, report.doubled, report.mismatched) == (0, 0, 0)


def test_an_older_copy_put_back_is_found_before_it_sells(chain: Chain) -> None:
    """The till's disk fails and last week's image is put back: at its first sync, with nothing sold, the server knows
    more of this till than the till itself; it is stopped before it can spend its leases again."""
    chain.enrol("a").sync()
    shutil.copytree(chain.work / "a", chain.work / "image")
    for _ in range(3):
        assert chain.sell("a", "UNITS")
    chain.tills["a"].sync()
    chain.tills.pop("a").close()
    old = chain.tills["image"] = chain._open("image")
    old.sync()
    assert old.status().state == "suspended"


def test_exposure_of_a_fork_is_told_in_units_and_money(chain: Chain) -> None:
    """`devices show` prints each journal, and by voucher what the copies can spend beyond what was leased once."""
    chain.enrol("a").sync()
    copy = copied(chain, "a", "copy")
    assert chain.sell("a", "UNITS")
    assert chain.sell("copy", "UNITS")
    chain.tills["a"].sync()
    copy.sync()

    async def read() -> forks.DeviceDetail:
        async with operations.opened(chain.settings, chain.clock()) as server, server.database.read() as connection:
            return await forks.show(connection, server, copy.status().device)

    found = asyncio.run(read())
    units = next(one for one in found.leases if one.code == "UNITS")
    assert (units.state, units.units, units.known_units, units.rest_units) == ("burned", 12, 2, 10)
    assert [one.branch for one in found.branches] == [0, 1]


def test_a_clock_set_back_a_week_revives_nothing(chain: Chain) -> None:
    """The time known from the server goes on; it is written down, told, and the events are in the right order."""
    till = chain.enrol("a")
    assert chain.sell("a", "OPEN")
    chain.clock.run(days=1)
    till.sync()
    before = till.status().at
    chain.clock.turn(days=-7)
    assert chain.sell("a", "OPEN")
    status = till.status()
    assert (status.at, status.clock_anomalies) == (before, 1)
    assert any("clock of this machine is wrong" in note for note in status.notes)
    with till._keeper.journal.read() as view:
        times = [row[0] for row in view.run("SELECT at FROM events ORDER BY seq")]
    assert times == sorted(times)


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(-10, 10), st.booleans()), max_size=8), seed=st.integers(0, 99))
def test_whatever_the_clock_of_a_till_does_no_limit_breaks(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bool]], seed: int
) -> None:
    """Days forward and back, between syncs and sales: twelve uses are twelve, and nothing is lost."""
    chain = Chain(tmp_path_factory.mktemp("chain"))
    chance = random.Random(seed)
    try:
        chain.enrol("a")
        chain.enrol("b")
        for days, syncs in steps:
            chain.clock.turn(days=days)
            for _ in range(4):
                with suppress(NotNow):  # too long offline, as far as it knows
                    chain.sell(chance.choice("ab"), "UNITS")
            if syncs:
                for till in chain.tills.values():
                    with suppress(RemoteError):  # the manifest seems to be over
                        till.sync()
        report = chain.audited()
        assert (report.over_limit, report.doubled, report.mismatched, report.broken) == (0, 0, 0, [])
        assert report.redeemed == chain.redeemed
    finally:
        chain.close()
