"""The engine against a second one, written from engine.md with fractions: to the unit, on generated cases."""

from __future__ import annotations

import os
from collections import Counter
from datetime import UTC, datetime, timedelta
from importlib.resources import files

import pytest
from hypothesis import HealthCheck, given, settings

from tallystick_shared.engine import Reason
from tests.shared import cases, oracle, prove
from tests.shared.chance import Seeded
from tests.shared.comparing import difference
from tests.shared.oracle_rules import Doc, is_open

EXAMPLES = int(os.environ.get("TALLYSTICK_EXAMPLES", "300"))


@pytest.mark.parametrize("block", range(5))
def test_the_engine_agrees_with_the_oracle(block: int) -> None:
    """Amounts, shares, order of application, reasons, best, qualify and returns are the same in every seeded case."""
    tally = prove.compared(range(block * 400, block * 400 + 400), every=10)
    assert tally.differences == []
    assert (tally.counts["cases"], tally.counts["chosen"]) == (400, 40)


@given(cases.documents())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_engine_agrees_with_oracle_hypothesis(document: Doc) -> None:
    """The same on documents that hypothesis draws, and shrinks where they differ."""
    assert difference(document) is None


def test_the_cases_reach_everything() -> None:
    """1,500 cases reach every reason and every type at least five times, and the door refuses few of the vouchers."""
    reasons: Counter[str] = Counter()
    applied: Counter[str] = Counter()
    kept = dropped = 0
    for seed in range(1500):
        case = cases.case(seed)
        kept, dropped = kept + case.kept, dropped + case.dropped
        counts: Counter[str] = Counter()
        prove.count(counts, case.document, oracle.evaluate(case.document))
        reasons.update({name: counts[name] for name in prove.REASONS})
        applied.update({name: counts[name] for name in prove.TYPES})
    assert [reason.value for reason in Reason] == prove.REASONS
    assert {name for name in prove.REASONS if reasons[name] < 5} == set()
    assert {name for name in prove.TYPES if applied[name] < 5} == set()
    assert dropped < (kept + dropped) / 8


def test_hours_are_the_same_in_every_zone() -> None:
    """In each zone of the pinned tzdata, at instants of many years, a window is open or not for both."""
    zones = (files("tzdata") / "zones").read_text(encoding="ascii").split()
    chance, open_windows = Seeded(1), 0
    for number, name in enumerate(zones * 3):
        clocks = [f"{chance.integer(0, 23):02}:{chance.choice([0, 0, 15, 30, 59]):02}" for _ in range(2)]
        window: Doc = {"from": clocks[0], "to": clocks[1], "timezone": name}
        if number % 2:
            window["days"] = chance.sample(cases.DAYS, chance.integer(1, 6))
        at = datetime(1990, 1, 1, tzinfo=UTC) + timedelta(minutes=chance.integer(0, 47 * 365 * 24 * 60))
        voucher = {"code": "A", "discount": {"type": "percentage", "percent": 10}, "hours": [window]}
        line = {"id": "1", "product_id": "p", "quantity": 1, "unit_price_minor": 100}
        order = {"id": "o", "currency": "EUR", "lines": [line]}
        document = {"order": order, "vouchers": [voucher], "at": at.isoformat()}
        assert difference(document) is None, document
        open_windows += is_open([window], at)
    assert len(zones) > 590
    assert open_windows > 400


def test_an_attribute_has_a_type() -> None:
    """`true` is not 1, also where two lists of items differ in nothing else: found by the comparison."""
    line = {"id": "l", "product_id": "b", "quantity": 2, "unit_price_minor": 1, "attributes": {"brand": True}}
    buy = {"quantity": 1, "items": {"attributes": {"brand": True}}}
    get = {"quantity": 1, "items": {"attributes": {"brand": 1}}}
    document = {
        "order": {"id": "o", "currency": "EUR", "lines": [line]},
        "vouchers": [{"code": "a", "discount": {"type": "bogo", "buy": buy, "get": get}}],
        "at": "2026-02-15T03:30:00Z",
    }
    assert oracle.evaluate(document)["refused"] == [{"code": "a", "reason": "NO_MATCHING_ITEM"}]
    assert difference(document) is None
