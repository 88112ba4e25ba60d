"""Breadth first through everything that can happen to the leases of one voucher: `make prove-leases`.

python -m tests.simulation.lease_search: every bound of `LARGE` with all rules on, then each rule switched off, with the
shortest trace to the violation. Exit 1 where a limit can break with all
rules on, or cannot with one of them off.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from tests.simulation.lease_invariants import PROMISE, broken
from tests.simulation.lease_model import (
    Bounds,
    Label,
    Rules,
    State,
    canonical,
    initial,
    moves,
)

ALL = Rules()
SMALL = (
    Bounds(leases=2),
    Bounds(limit=4),
    Bounds(losses=1, releases=1),
    Bounds(limit=1, clones=1),
    Bounds(limit=1, sales=1),
    Bounds(devices=1, limit=2, sales=1),
    Bounds(devices=1, limit=1, sales=1, leases=2),
    Bounds(devices=3, limit=3),
    Bounds(devices=3, leases=2, depth=17),
)
"""Of the tests: seconds."""
LARGE = (
    *SMALL,
    Bounds(leases=2, losses=1),
    Bounds(leases=2, releases=1),
    Bounds(limit=3, leases=2),
    Bounds(limit=2, clones=1, losses=1),
    Bounds(limit=1, clones=1, leases=2, depth=16),
    Bounds(limit=2, sales=1),
    Bounds(devices=3, limit=4),
    Bounds(devices=3, leases=2, depth=21),
)
"""Of `make prove-leases`: minutes."""
WHERE_IT_BREAKS = {
    "forked_close_returns_nothing": Bounds(devices=1, limit=1, clones=1),
    "void_counts_once": Bounds(devices=1, limit=1, sales=1),
    "released_lease_returns_nothing": Bounds(limit=1, releases=1),
    "void_ends_an_attempt": Bounds(devices=1, limit=1, sales=1),
    "only_goods_that_are_out_are_voided_elsewhere": Bounds(devices=1, limit=1, sales=1),
}
"""Bounds within which each rule is needed; the others need no more than `Bounds(limit=1)`."""


@dataclass(frozen=True)
class Found:
    """`depth`: the most steps from the start. `whole`: there was nothing left to try. `verbs`: what happened at least
    once. `trace`: the shortest way to the violation, in words."""

    states: int
    steps: int
    depth: int
    whole: bool
    verbs: frozenset[str]
    violation: str | None = None
    trace: tuple[str, ...] = ()


def search(bounds: Bounds, rules: Rules = ALL, *, only: str = "") -> Found:
    """Stops at the first violation whose words start with `only`.

    States are remembered by their 64-bit hash: of 10 million, two are taken for one with a chance of 1 in 300,000.
    """
    start = canonical(initial(bounds))
    came: dict[int, tuple[int, Label | None]] = {hash(start): (0, None)}
    verbs: set[str] = set()
    level, depth, steps = [start], 0, 0
    while level and not 0 < bounds.depth <= depth:
        deeper: list[State] = []
        for state in level:
            origin = hash(state)
            for label, raw in moves(state, rules, bounds):
                steps += 1
                reached = canonical(raw)
                key = hash(reached)
                if key in came:
                    continue
                came[key] = origin, label
                verbs.add(label[0])
                violation = broken(reached, bounds.limit)
                if violation is not None and violation.startswith(only):
                    trace = told(labels(came, key), bounds, rules)
                    return Found(len(came), steps, depth + 1, False, frozenset(verbs), violation, trace)
                deeper.append(reached)
        level, depth = deeper, depth + bool(deeper)
    return Found(len(came), steps, depth, not level, frozenset(verbs))


def labels(came: dict[int, tuple[int, Label | None]], key: int) -> list[Label]:
    """The way back to the start, turned round."""
    back: list[Label] = []
    key, label = came[key]
    while label is not None:
        back.append(label)
        key, label = came[key]
    return back[::-1]


def without(rule: str) -> Rules:
    return ALL._replace(**{rule: False})


def needed_within(rule: str) -> Bounds:
    return WHERE_IT_BREAKS.get(rule, Bounds(limit=1))


def told(way: list[Label], bounds: Bounds, rules: Rules) -> tuple[str, ...]:
    """The way in words, each device under one name although the search keeps them sorted."""
    state, names, words = canonical(initial(bounds)), list("ABC"[: bounds.devices]), []
    for label in way:
        verb, place, till, first, second = label
        name = names[place] + "'" * till
        words.append(WORDS[verb].format(name, first=first, second=second))
        state = next(reached for one, reached in moves(state, rules, bounds) if one == label)
        order = sorted(range(bounds.devices), key=lambda index: state.devices[index])
        names, state = [names[index] for index in order], canonical(state)
    return tuple(words)


WORDS = {
    "web": "the web shop redeems one unit",
    "clone": "{} is cloned",
    "use": "{} redeems one unit of lease {first} and hands over the goods",
    "forgets use": "{} hands over the goods before the redemption of lease {first} is durable, and crashes",
    "crash after use": "{} redeems one unit of lease {first}, and crashes before it hands over the goods",
    "falls back": "{} has no answer, and redeems one unit of lease {first} under the id of sale {second}",
    "close": "{} closes lease {first} durably, with {second} used",
    "forgets close": "{} sends a close of lease {first}, with {second} used, and crashes: the close was not durable",
    "acknowledged": "{} hears that its close of lease {first} is stored, and forgets the lease",
    "takes": "{} is told of lease {first}, and takes it",
    "gives back": "{} is told of lease {first} too late, and writes a close of it with nothing used",
    "asks": "{} asks to redeem sale {first} online",
    "answered": "{} gets the answer for sale {first}, and hands over the goods",
    "void": "{} voids sale {first}",
    "other": "{} writes an event that is not about this voucher",
    "hear other": "the server stores that event by {}",
    "hear use": "the server stores a redemption of lease {first} by {}",
    "hear close": "the server stores the close of lease {first} by {}, with {second} used",
    "hear void": "the server stores the void of sale {first} by {}",
    "grant": "the server grants {} a lease of {first}",
    "lost": "an operator declares {} lost",
    "release": "an operator releases lease {first} of {}",
    "expire": "the server returns the rest of lease {first} of {}, because it has expired",
    "again close": "the close of lease {first} of {} arrives once more, with {second} used",
    "again void": "the void of sale {first} of {} arrives once more",
    "counts": "the server counts the online attempt at sale {first} of {}",
    "voided elsewhere": "sale {first} of {} is voided at another store",
}


def proved(bounds: Bounds) -> tuple[Found, float]:
    began = time.perf_counter()
    return search(bounds), time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.lease_search", description=__doc__)
    parser.add_argument("--small", action="store_true", help="only the bounds of the tests")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    asked = SMALL if options.small else LARGE
    sys.stdout.write("all rules on\n" + _row(*Bounds._fields, "steps deep", "states", "violations", "seconds"))
    failed = 0
    with ProcessPoolExecutor(options.workers) as pool:
        for bounds, (found, seconds) in zip(asked, pool.map(proved, asked), strict=True):
            depth = f"{found.depth}, all" if found.whole else f"{found.depth}"
            violations = int(found.violation is not None)
            failed += violations
            sys.stdout.write(_row(*bounds, depth, f"{found.states:,}", violations, f"{seconds:,.1f}"))
            sys.stdout.write("".join(f"    {line}\n" for line in (*found.trace, found.violation or "") if line))
            sys.stdout.flush()
    for rule in Rules._fields:
        found = search(needed_within(rule), without(rule), only=PROMISE)
        failed += found.violation is None
        sys.stdout.write(f"\nwithout {rule}: {found.violation or 'nothing breaks'} ({found.states:,} states)\n")
        sys.stdout.writelines(f"  {number:>2}. {line}\n" for number, line in enumerate(found.trace, 1))
    return 1 if failed else 0


def _row(*cells: object) -> str:
    return "".join(f"{cell!s:>12}" for cell in cells) + "\n"


if __name__ == "__main__":
    sys.exit(main())
