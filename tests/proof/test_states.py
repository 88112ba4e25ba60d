"""The state machine: its short version, its negative controls, and that its own arithmetic is not made up."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from benchmarks.audit import _pools
from tests.client.fake_clock import START
from tests.proof.rows import ROWS
from tests.proof.runner import controls, short
from tests.proof.states import lacks
from tests.proof.states_pair import Differs, same
from tests.proof.states_sale import Mark, Reading, Room, Sale, Terms, part_of, reckon
from tests.proof.tally import Tally

SALE = Sale(1, 500, 2, None, "EUR", ("TEN", " off ", "ALONE", "none"))
KNOWN = {
    "TEN": Terms("TEN", "percent", 10, priority=5), "OFF": Terms("OFF", amount=300, priority=1, total=2),
    "ALONE": Terms("ALONE", amount=900),
}  # fmt: skip
FREE = dict.fromkeys(KNOWN, Room(False))


def test_the_model_holds_and_everything_was_met() -> None:
    """Every answer of client and server was predicted."""
    tally = short("states")
    assert tally.holds, tally.failures[:1]
    assert lacks(tally) == []


def test_a_broken_product_is_found() -> None:
    """By the model, in few steps."""
    for name, tally in controls("states").items():
        assert tally.failures, name
        assert "Differs" in tally.failures[0].what, name


def test_a_run_that_tried_nothing_lacks_everything() -> None:
    """Or a proof of nothing would pass."""
    assert len(lacks(Tally())) > 60


def test_other_words_are_a_failure() -> None:
    """`same` says both."""
    with pytest.raises(Differs, match="pools: the product has 1, the model 2"):
        same("pools", 1, 2)


def test_the_model_reckons_as_the_design_says() -> None:
    """10 % of 10.00, then 3.00 off; what stands alone conflicts with the best."""
    said = reckon(SALE, KNOWN, FREE, START)
    assert said.applied == {"TEN": 100, "OFF": 300}
    assert said.refused == {"ALONE": "STACKING_CONFLICT", "none": "UNKNOWN_CODE"}
    assert said.total == 600


def test_room_is_looked_at_before_the_amount() -> None:
    """A lease that is used up, and one that is too small, refuse; without the server there is no limit to reach."""
    one = replace(SALE, codes=("OFF",))
    for room, reason in ((Room(False, 0), "NO_ALLOWANCE"), (Room(False, 1, 299), "NO_ALLOWANCE"),
                         (Room(True, 0), "LIMIT_REACHED"), (Room(True, 1, 299), "BUDGET_EXHAUSTED"),
                         (Room(False, needs_connection=True), "NEEDS_CONNECTION")):  # fmt: skip
        assert reckon(one, KNOWN, {"OFF": room}, START).refused == {"OFF": reason}
    assert reckon(one, KNOWN, {"OFF": Room(False, 1, 300)}, START).total == 700


def test_units_come_back_with_their_shares() -> None:
    """Of 1.00 on three units the first carries 0.34."""
    assert [part_of(100, 3, units) for units in range(4)] == [0, 34, 67, 100]


def test_the_model_keeps_time() -> None:
    """A clock set back changes nothing but is noted; one set ahead is believed up to the bound."""
    mark = Mark(START, "one", 100, 0, START, "one")

    def read(hours: float, ran_s: int = 100) -> tuple[float, str]:
        now = mark.read(Reading(START + timedelta(hours=hours), "one", ran_s), 0)
        return (now.at - START).total_seconds(), now.anomaly

    assert read(-1) == (0, "CLOCK_BEHIND")
    assert read(24) == (86_400, "")
    assert read(25, 160) == (60, "CLOCK_AHEAD")


def test_the_row_is_sized_for_a_push() -> None:
    """20,000 steps, as the issue asks for."""
    assert (ROWS["states"].full, ROWS["states"].short) == (500_000, 20_000)


def test_the_auditor_knows_leases_older_than_a_limit() -> None:
    """What was used of such a lease is in `uncovered`, and is not counted twice (states, seed 1, case 2023)."""
    pool = {
        "voucher_id": "v",
        "measure": "minor",
        "limit": 500,
        "free": 200,
        "online": 0,
        "uncovered": 300,
        "voided": 0,
    }
    lease = {"voucher_id": "v", "units": 3, "minor": None, "known_units": 1, "known_minor": 300, "state": "closed"}
    assert _pools([pool], [lease]) == []
    assert _pools([pool | {"uncovered": 0}], [lease]) != []
