"""The fewest kinds of faults and days with which a case still fails.

    python -m tests.proof.fleet_shrink --seed 1 --case 7

Greedy: each kind is left out, and stays out where the same world, by the same seed, fails all the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy

from tests.proof.fleet import profile_of, simulate
from tests.proof.fleet_world import Profile
from tests.proof.runner import folder


def shrink(profile: Profile, fails: Callable[[Profile], bool]) -> Profile:
    """`fails` tries a profile. First days, by halves, then kinds, one by one."""
    while profile.days > 1:
        shorter = deepcopy(profile)
        shorter.days //= 2
        if not fails(shorter):
            break
        profile = shorter
    for kind in sorted(profile.rates):
        without = deepcopy(profile)
        del without.rates[kind]
        if fails(without):
            profile = without
    return profile


def first_failure(name: str, profile: Profile) -> str:
    """In a sentence; empty where all held."""
    with folder() as work:
        try:
            world = simulate(name, work, profile)
        except Exception as error:  # noqa: BLE001 - as in the runner: whatever it is, the case has failed
            return f"{type(error).__name__}: {error}"
    return next(iter(world.failures), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", type=int, required=True)
    given = parser.parse_args()
    name = f"{given.seed}/{given.case}"

    def fails(profile: Profile) -> bool:
        said = first_failure(name, profile)
        print(f"{profile.days} days, {len(profile.rates)} kinds: {said[:200] or 'holds'}", flush=True)
        return bool(said)

    whole = profile_of(given.seed, given.case)
    if fails(whole):
        least = shrink(whole, fails)
        print(f"{least.days} days, and only: {', '.join(sorted(least.rates))}")


if __name__ == "__main__":
    main()
