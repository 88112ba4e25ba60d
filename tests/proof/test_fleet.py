"""The short version of the fleet simulation, its negative controls, and its own parts that could prove nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.proof import fleet
from tests.proof.fleet_controls import BREAKS, changed
from tests.proof.fleet_shrink import shrink
from tests.proof.fleet_world import Profile
from tests.proof.runner import ROOT, controls, short

DIGEST = """
import sys
from pathlib import Path
from tests.proof.fleet import profile_of, simulate
profile = profile_of(1, 0)
profile.tills, profile.days = 3, 2
print(simulate("digest", Path(sys.argv[1]), profile).digest)
"""


def test_the_short_version_holds() -> None:
    """Nothing lost, doubled, mismatched or beyond a limit; every till converges; and every kind of fault was met."""
    tally = short("fleet")
    assert tally.holds, [failure.what for failure in tally.failures[:5]]
    assert fleet.lacks(tally) == []


def test_every_break_is_found() -> None:
    """What is broken on purpose does not hold."""
    for name, tally in controls("fleet").items():
        assert not tally.holds, name


@pytest.mark.parametrize("name", BREAKS)
def test_the_worlds_of_the_controls_hold_by_themselves(name: str, tmp_path: Path) -> None:
    """So it is the break that was found, and not the faults of that world."""
    world = fleet.simulate(f"control {name} 1/0", tmp_path, BREAKS[name][1])
    assert world.failures == []
    assert world.tally.holds


def test_a_world_is_the_same_in_every_process(tmp_path: Path) -> None:
    """All that happens, byte for byte, whatever the interpreter hashes with."""
    found = set()
    for seed in ("1", "2"):
        place = tmp_path / seed
        place.mkdir()
        ran = subprocess.run(
            [sys.executable, "-c", DIGEST, str(place)],
            capture_output=True, text=True, cwd=ROOT, env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}, check=True,
        )  # fmt: skip
        found.add(ran.stdout.strip())
    assert len(found) == 1
    assert len(found.pop()) == 64


def test_shrinking_leaves_what_it_takes() -> None:
    """Two kinds and three days, of many."""
    profile = Profile(4, 24, dict.fromkeys("abcdefgh", 1.0))
    least = shrink(profile, lambda one: {"b", "g"} <= set(one.rates) and one.days >= 3)
    assert (least.days, sorted(least.rates)) == (3, ["b", "g"])


def test_a_control_says_when_the_product_has_changed() -> None:
    """A break that breaks nothing any more is no control."""
    with pytest.raises(AssertionError, match="written anew"), changed(fleet, "prove", "not there", ""):
        pass


def test_a_calm_fleet_has_nothing_flagged_but_customers(tmp_path: Path) -> None:
    """Without any fault no limit is passed and no flag raised, but for what tills apart cannot know of each other."""
    world = fleet.simulate("calm", tmp_path, Profile(3, 2))
    assert world.failures == []
    assert world.tally.faults == {}
    assert {kind for kind in world.tally.seen if kind.startswith("flagged")} <= {
        "flagged CUSTOMER_LIMIT",
        "flagged WITHOUT_COVER",
    }
