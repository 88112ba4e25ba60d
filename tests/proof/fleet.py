"""The fleet simulation: real tills and the real server in one process, under a seeded scheduler (`fleet_world`).

One case is one world of a few tills and days: faults, then healing, then all must agree (`fleet_audit`). Each world
meets some kinds of faults only, each at a rate of its own, so that rare combinations come about, and calm days too.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from tests.proof.fleet_acts import Acts
from tests.proof.fleet_audit import check
from tests.proof.fleet_chance import seeded
from tests.proof.fleet_controls import BREAKS, broken
from tests.proof.fleet_harm import SERVER_FAULTS, TILL_FAULTS, Harm
from tests.proof.fleet_heal import heal
from tests.proof.fleet_line import LINE_FAULTS
from tests.proof.fleet_world import Profile, World, settings_of
from tests.proof.tally import Tally

KINDS = (*LINE_FAULTS, *TILL_FAULTS, *SERVER_FAULTS)


def profile_of(seed: int, case: int) -> Profile:
    """Which kinds of faults this world meets, and how often."""
    chance = random.Random(f"profile {seed}/{case}")
    share = chance.choice((0.1, 0.4, 0.7, 1.0))
    rates = {kind: chance.choice((0.4, 1.0, 2.5)) for kind in KINDS if chance.random() < share}
    rates["no line"] = 1.0
    if chance.random() < 0.3:
        rates["short leases"] = 1.0
    return Profile(chance.randint(3, 6), chance.randint(5, 14), rates, settings_of(rates))


def simulate(name: str, work: Path, profile: Profile) -> World:
    """The whole life of one world."""
    with seeded(name):
        world = World(name, work, profile)
        acts = Acts(world)
        harm = Harm(world, acts)
        world.publish()
        for _ in range(profile.tills):
            world.enrol()
        world.run(world.at + timedelta(minutes=10))
        for _ in range(profile.days):
            world.tally.units += len(world.tills)
            acts.day()
            harm.day()
            world.run(world.at + timedelta(days=1))
        heal(world)
        check(world)
        for till in world.tills:
            till.close()
        world.server.close()
        return world


@contextmanager
def _collecting_rarely() -> Iterator[None]:
    """An eighth of the time went into looking for garbage among what a world keeps anyway."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def prove(seed: int, case: int, work: Path) -> Tally:
    with _collecting_rarely():
        world = simulate(f"{seed}/{case}", work, profile_of(seed, case))
    for sentence in world.failures:
        world.tally.fail(case, sentence)
    return world.tally


def lacks(tally: Tally) -> list[str]:
    """What a run of some size meets: every kind of fault, and each kind of act."""
    missing = [f"the fault '{kind}' never came" for kind in KINDS if not tally.faults.get(kind)]
    met = ("redeemed online", "redeemed offline", "voids", "returns", "backups", "syncs", "events acknowledged")
    missing += [f"'{what}' never happened" for what in met if not tally.seen.get(what)]
    return missing


CONTROLS: dict[str, Callable[[int, Path], Tally]] = {
    name: lambda seed, work, name=name: broken(simulate, name, seed, work)  # type: ignore[misc]
    for name in BREAKS
}
