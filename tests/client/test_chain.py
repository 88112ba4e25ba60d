"""The hash chain of a journal that was changed on the disk: what is found, and where."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tallystick_client import Till
from tallystick_client.chain import verify_bodies
from tallystick_client.journal import FILE_NAME
from tests.client.conftest import TEN, Shop, order, sell
from tests.client.test_terminal_words import said


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN)
    return shop.enroll()


@pytest.fixture
def path(till: Till, shop: Shop) -> Path:
    return shop.work / "till" / FILE_NAME


def change(path: Path, *statements: str) -> None:
    """As nobody may: without the triggers that forbid it."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for name in ("events_never_change", "head_never_goes_back"):
            connection.execute(f"DROP TRIGGER IF EXISTS {name}")
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize(
    ("damage", "at"),
    [
        ("UPDATE events SET envelope = x'00' WHERE seq = 1", 1),
        ("UPDATE events SET envelope = x'00' WHERE seq = 4", 4),
        (f"UPDATE events SET hash = '{'0' * 64}' WHERE seq = 2", 2),
        ("DELETE FROM events WHERE seq = 1", 1),
        ("DELETE FROM events WHERE seq = 3", 3),
        ("DELETE FROM events WHERE seq = 4", 4),
        ("DELETE FROM events", 1),
        (f"UPDATE state SET head_hash = '{'0' * 64}'", 4),
        (f"UPDATE state SET base_hash = '{'0' * 64}'", 1),
    ],
)
def test_the_first_event_that_breaks_the_chain_is_named(till: Till, path: Path, damage: str, at: int) -> None:
    """Wherever it is, and also where only the head or the base is not as it was."""
    sell(till, 4)
    journal = till._keeper.journal
    assert journal.verify() == 4
    change(path, damage)
    assert said(journal.verify) == ("JOURNAL_DAMAGED", f"the journal is damaged: the chain breaks at event {at}")


def test_only_the_newest_event_is_verified_at_the_start(till: Till, path: Path, shop: Shop) -> None:
    """A till with a long journal opens at once: what is older is verified on its way out, and by `verify`."""
    sell(till, 4)
    till.close()
    change(path, "UPDATE events SET envelope = x'00' WHERE seq = 3")
    again = shop.open()
    assert again.redeem(order(9), ["TEN"]).redeemed
    assert said(again._keeper.journal.verify)[1].endswith("event 3")


def test_bodies_are_compared_and_the_erased_are_counted(till: Till, path: Path) -> None:
    """An erased body is no damage; one that is not what its envelope says is, and is named."""
    sell(till, 4)
    change(path, "UPDATE events SET body = x'' WHERE seq IN (1, 3)")
    with till._keeper.journal.read() as view:
        assert verify_bodies(view) == 2
    change(path, "UPDATE events SET body = x'7b7d' WHERE seq = 2")
    with till._keeper.journal.read() as view:
        assert said(lambda: verify_bodies(view)) == (
            "JOURNAL_DAMAGED",
            "the journal is damaged: the body of event 2 was changed",
        )
