"""The short version of the crash points, what must be found in a broken product, and the harness's own parts."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import msgspec
import pytest

from tests.proof.crashes import CONTROLS, lacks, zygote
from tests.proof.rows import ROWS
from tests.proof.runner import folder, short
from tests.proof.straced import read_log
from tests.proof.till_day import Life, Step, new_id, plan
from tests.proof.till_day_check import read, wrong
from tests.proof.till_day_shop import Shop, template

pytestmark = pytest.mark.skipif(bool(ROWS["crashes"].missing), reason=ROWS["crashes"].missing or "it is there")


def test_no_kill_loses_or_doubles_anything() -> None:
    """150 kills at the till's system calls: all that was acknowledged is there, once, and all tills converge."""
    tally = short("crashes")
    assert tally.holds, tally.failures
    assert lacks(tally) == []
    assert tally.units >= ROWS["crashes"].short


@pytest.mark.parametrize("name", list(CONTROLS))
def test_a_broken_till_is_found(name: str) -> None:
    """What the row proves, it does not prove of a till that is broken on purpose."""
    with folder() as work:
        tally = CONTROLS[name](1, work)
    assert not tally.holds
    assert tally.units


def test_the_nth_call_of_the_step_is_the_one(tmp_path: Path) -> None:
    """Not one more and not one less: killed at the n-th call, the steps apart have made n - 1 of them, and the journal
    has the sale only where its commit was over."""
    shop = Shop.copy(template(), tmp_path / "shop")
    step = Step(2, "redeem", new_id(random.Random(3)), ["OPEN"])
    made = []
    for number in (1, 2, 3):
        life = Life(str(shop.path()), [Step(1, "open"), msgspec.structs.replace(step, number=2)], (1, 2))
        lived = zygote().live(life, {"write": number})
        heard = [(one.kind, one.done) for one in lived.said]
        made.append((lived.signal, heard, step.id in read(shop.path()).redemptions))
    before, opened = [("open", False), ("open", True)], [("redeem", False)]
    assert made == [
        (signal.SIGKILL, before, False),
        (signal.SIGKILL, before + opened, True),
        (0, [*before, *opened, ("redeem", True)], True),
    ]


def test_a_log_is_read_with_what_was_struck() -> None:
    """A call that was killed, one that was failed, and one that went through, by name and file."""
    log = (
        'pwrite64(7</x/journal.sqlite3-wal>, "a"..., 24, 0) = 24\n'
        'rename("/x/a.new", "/x/a") = -1 EIO (Input/output error) (INJECTED)\n'
        "fdatasync(7</x/journal.sqlite3-wal>) = ?\n+++ killed by SIGKILL +++\n"
    )
    assert [(one.name, one.path, one.struck) for one in read_log(log)] == [
        ("pwrite64", "/x/journal.sqlite3-wal", False),
        ("rename", "/x/a", True),
        ("fdatasync", "/x/journal.sqlite3-wal", True),
    ]


def test_what_is_half_done_is_found(tmp_path: Path) -> None:
    """A lease without its event, an event without the head, a chain that breaks: each is a sentence."""
    journal = read(Shop.copy(template(), tmp_path / "shop").path())
    assert wrong(journal) == []
    assert journal.redemptions
    lease = next(iter(journal.leases.values()))
    used = journal.leases | {lease["id"]: lease | {"used_units": lease["used_units"] + 1}}
    assert wrong(journal._replace(leases=used))
    assert wrong(journal._replace(events=journal.events[:-1]))
    assert wrong(journal._replace(events=[*journal.events[:-1], journal.events[-1] | {"envelope": b"{}"}]))
    assert wrong(journal._replace(sound="row 1 missing from index"))


def test_a_day_is_the_same_for_the_same_seed() -> None:
    """And has each kind of step, with ids of version 7."""
    steps = plan(random.Random(5), 300)
    assert steps == plan(random.Random(5), 300)
    assert {one.kind for one in steps} >= {"redeem", "void", "return", "sync", "down", "lost", "online", "forget"}
    assert all(one.id[14] == "7" for one in steps if one.kind == "redeem")
