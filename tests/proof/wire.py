"""The wire: real tills and the real server, with a fault proxy between their sockets (`wire_relay`, `wire_faults`).

A case has eight tills, synchronous and asynchronous, half of them syncing in the background, and rounds. In each, every
till makes one call that meets one fault, all at the same time; then the wires are whole, and every till must redeem
online and sync at the first attempt: a fault leaves nothing behind. The faults are those of all pairs of a fault and a
kind of call, in an order drawn by the seed, so that a run of any size meets what it can. In the last round the server
is killed with all tills at it. Then all is healed, each cashier who knows no result asks again, and the auditor counts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from tests.proof.tally import Tally
from tests.proof.wire_answers import FAULTS
from tests.proof.wire_broken import TAKES, Broken
from tests.proof.wire_case import COUNTERS, Case
from tests.proof.wire_faults import CALLS

ROUNDS = 5
PAIRS = [(call, name) for name, fault in sorted(FAULTS.items()) for call in sorted(fault.calls)]


def planned(seed: int, case: int) -> list[tuple[str, str]]:
    """The pairs of a case: the next of all, in an order that is drawn anew whenever all have been met."""
    found = []
    for number in range(case * ROUNDS * COUNTERS, (case + 1) * ROUNDS * COUNTERS):
        whole, at = divmod(number, len(PAIRS))
        found.append(order_of(seed, whole)[at])
    return found


@cache
def order_of(seed: int, whole: int) -> list[tuple[str, str]]:
    """All pairs: first every fault with one call, then with another, so that no fault waits for long."""
    chance = random.Random(f"{seed} {whole}")
    layered = []
    for name, fault in sorted(FAULTS.items()):
        calls = chance.sample(sorted(fault.calls), len(fault.calls))
        layered += [(layer, chance.random(), call, name) for layer, call in enumerate(calls)]
    return [(call, name) for _, _, call, name in sorted(layered)]


def prove(seed: int, case: int, work: Path) -> Tally:
    return run(seed, case, work, planned(seed, case))


def run(
    seed: int, case: int, work: Path, pairs: Sequence[tuple[str, str]], broken: str = "", whole: bool = True
) -> Tally:
    """`broken`: what of the server is, on purpose; `whole`: with the command line, and the server killed at the end."""
    with Case(seed, case, work, broken) as one:
        if whole:
            one.command_step()
        for at in range(0, len(pairs), COUNTERS):
            one.round(pairs[at : at + COUNTERS])
        if whole:
            one.kill_round()
        one.heal()
    return one.tally


def lacks(tally: Tally) -> list[str]:
    """A case fails where a fault it planned is not met, so the numbers of faults are those of the plan."""
    missing = [f"no fault of this kind was met: {name}" for name in FAULTS if not tally.faults.get(name)]
    missing += [f"nothing was spoilt at {call}" for call in CALLS if not tally.seen.get(f"at {call}")]
    wanted = ["sales during a call that was held", "calls left in the midst", "requests that arrived late",
              "tills enrolled", "sales asked for again", "ended offline", "ended well"]  # fmt: skip
    missing += [f"{what} 0" for what in wanted if not tally.seen.get(what)]
    if not tally.faults.get("server killed"):
        missing.append("the server was never killed")
    if not any(name.startswith("exit code") for name in tally.seen):
        missing.append("the command line was not tried")
    whole = tally.cases * ROUNDS * COUNTERS // len(PAIRS)
    missing += [
        f"{name} was not met by each of the {len(fault.calls)} calls that can meet it"
        for name, fault in FAULTS.items()
        if tally.faults.get(name, 0) < whole * len(fault.calls)
    ]
    if tally.acknowledged < tally.units:
        missing.append("fewer redemptions were acknowledged than faults were met")
    return missing


def _control(broken: Broken) -> Callable[[int, Path], Tally]:
    def prove_broken(seed: int, work: Path) -> Tally:
        with broken.till():
            return run(seed, 0, work, broken.pairs, broken.server, whole=False)

    return prove_broken


CONTROLS: Mapping[str, Callable[[int, Path], Tally]] = {name: _control(broken) for name, broken in TAKES.items()}
