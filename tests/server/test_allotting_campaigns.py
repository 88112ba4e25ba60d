"""A campaign in what devices are granted and asked for: its vouchers are sold where others of it were."""

from __future__ import annotations

from dataclasses import replace

from tallystick_server.demand import Demand
from tests.server.test_allotting import Held, allotting, candidate, sold


def test_a_campaign_counts_for_shares_and_recalls() -> None:
    """What a device sold of a campaign makes it likelier for every voucher of that campaign, and for no other."""
    scores = Demand(["me", "a", "b"], [("a", "jam", "spring", 1)])
    assert [scores.score(one, "tea", "spring") for one in ("me", "a", "b")] == [1, 18, 1]
    spring, autumn = (replace(candidate(40), campaign_id=name) for name in ("spring", "autumn"))
    assert allotting(scores).part(spring) == (2, None)
    assert allotting(scores).part(autumn) == (10, None)
    assert allotting(scores, [Held("l", "a")]).part(spring) == (20, None)
    assert allotting(scores, [Held("l", "b")]).part(spring) == (2, None)
    mine = Demand(["me", "a", "b"], [("me", "jam", "spring", 1)])
    assert [allotting(mine).mine(one) for one in (spring, autumn)] == [18, 2]
    one_each = [Held("l", "a", units=1), Held("m", "b", units=1)]
    assert allotting(mine, one_each).recallable(replace(spring, units_free=0)) == "l"
    assert allotting(mine, one_each).recallable(replace(autumn, units_free=0)) is None
    holder = Demand(["me", "a"], [("a", "jam", "spring", 1)])
    hoards = [Held("l", "a", units=20)]
    assert allotting(holder, hoards).recallable(replace(spring, units_free=0)) is None
    assert allotting(holder, hoards).recallable(replace(autumn, units_free=0)) is None
    assert allotting(sold("me a"), hoards).recallable(replace(spring, units_free=0)) == "l"
    first = replace(spring, units_free=1)
    assert allotting(scores).part(first) is None
    assert allotting(scores).part(replace(first, campaign_id="autumn")) == (1, None)
