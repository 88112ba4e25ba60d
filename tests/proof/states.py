"""The state machine: hypothesis' rules against a model of client and server, every answer predicted.

A case is `EXAMPLES` examples of at most `STEPS` steps each. Rules are in `states_rules`, the model in `states_sale`,
`states_server` and `states_till`, the product in `states_world`; `states_pair` and `states_compare` hold one against
the other. A failure is shrunk, and its steps are printed.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test

from tallystick_client import reports
from tallystick_client.attempts import earlier_receipt
from tallystick_client.status import status
from tallystick_client.terminal import Terminal
from tallystick_server import settling
from tallystick_server.facts import Facts
from tallystick_shared.journal import Envelope
from tallystick_shared.model import parse_order
from tallystick_shared.wire import Flag, Outcome
from tests.proof import fleet_chance as chance
from tests.proof.states_pair import Pair
from tests.proof.states_rules import Shops
from tests.proof.tally import Tally

EXAMPLES, STEPS = 6, 120
CONTROL_EXAMPLES = 40
STEPS_SHOWN = 40
"""Of a failure, the last ones."""
_PAIRS: list[Pair] = []

RULES = (
    "sell", "sell, own id", "sell one code", "sell with all codes", "preview", "same id again",
    "same id, other content", "void", "partial return", "void on any till", "void an attempt", "void, own id",
    "same void id again", "same void id, other units", "same void id, any redemption", "void, id of a redemption",
    "sell, id of a void", "sell online, id of a void", "reopen",
    "forget on a till", "time passes", "days pass", "wall clock set", "reboot", "sync", "sync, down", "sync, lost",
    "sync, busy", "sell online", "sell one code online", "same id again, online", "same id, other content, online",
    "ask again", "revise", "publish or drop", "suspend", "resume", "revoke", "lost", "release", "resolve",
    "operator looks", "restart", "backup", "forget", "erase bodies",
)  # fmt: skip
"""By the names under which steps are counted."""
MET = (
    *(f"refused {reason}" for reason in (
        "UNKNOWN_CODE", "INACTIVE", "EXPIRED", "CURRENCY_MISMATCH", "LIMIT_REACHED", "CUSTOMER_LIMIT_REACHED",
        "NEEDS_CONNECTION", "NO_ALLOWANCE", "NO_MATCHING_ITEM", "NOTHING_TO_DISCOUNT", "BUDGET_EXHAUSTED",
        "STACKING_CONFLICT")),
    *(f"error {code}" for code in (
        "NO_BUNDLE", "SUSPENDED", "TOO_LONG_OFFLINE", "QUEUE_FULL", "IDENTIFIER_REUSED", "FORBIDDEN", "ALREADY_VOIDED",
        "UNKNOWN_REDEMPTION", "ERASED", "INVALID_FIELD")),
    *(f"flagged {reason}" for reason in (
        "WITHOUT_COVER", "CUSTOMER_LIMIT", "TIME_UNCERTAIN", "REVOKED_VOUCHER")),
    *(f"closed {why}" for why in ("used up", "expired", "too small", "recalled", "not known to the server")),
    *(f"settled {outcome}" for outcome in ("applied", "duplicate", "flagged")),
    "redeem redeemed", "redeem refused", "online redeemed", "online refused", "void", "void in part",
    "void told again", "void with an id: IDENTIFIER_REUSED", "void with an id: ALREADY_VOIDED",
    "void with an id: ERASED",
    "operator error WRONG_STATE", "operator error LEASED", "operator error FIXED_FIELD", "sync asked to wait",
    "leases granted", "purged",
)  # fmt: skip
"""No honest till brings about the other flags: that it voids twice, or gives an id to two sales."""


def pair() -> Pair:
    """One of each process: it takes a second to build. The same in all of them."""
    if not _PAIRS:
        with chance.seeded("states"):
            _PAIRS.append(Pair())
    return _PAIRS[0]


def prove(seed: int, case: int, work: Path) -> Tally:
    return run(seed, case, EXAMPLES, (Phase.generate, Phase.shrink))


def run(seed: int, case: int, examples: int, phases: tuple[Phase, ...]) -> Tally:
    """So many examples; with them, the tally of all steps that were done, those of the shrinking too."""
    whole = Tally()

    class Counted(Shops):
        def __init__(self) -> None:
            drawn.begin(f"states {seed} {case}")  # so that a step does the same in each example, also while it shrinks
            super().__init__()

        def teardown(self) -> None:
            try:
                super().teardown()
            finally:
                whole.add(self.pair.tally)

    Counted.pair = pair()
    chosen = settings(
        max_examples=examples, stateful_step_count=STEPS, database=None, deadline=None, phases=phases,
        suppress_health_check=list(HealthCheck), print_blob=False, report_multiple_bugs=False,
    )  # fmt: skip
    with chance.seeded("") as drawn:
        try:
            run_state_machine_as_test(seeded(seed * 1_000_003 + case)(Counted), settings=chosen)
        except Exception as error:  # noqa: BLE001 - whatever it is, it comes with the steps that lead to it
            whole.fail(case, _told(error))
    return whole


def _told(error: Exception) -> str:
    """What did not hold, where, and the steps to it."""
    steps = "\n".join(getattr(error, "__notes__", [])).splitlines()
    skipped = [f"... {len(steps) - STEPS_SHOWN} steps before"] if len(steps) > STEPS_SHOWN else []
    where = traceback.extract_tb(error.__traceback__)[-1].name
    return "\n".join([f"{type(error).__name__}: {error} ({where})", *skipped, *steps[-STEPS_SHOWN:]])


def lacks(tally: Tally) -> list[str]:
    missing = [f"no step was of the rule '{name}'" for name in RULES if not tally.seen.get(f"rule {name}")]
    missing += [f"nothing was met that is '{name}'" for name in MET if not tally.seen.get(name)]
    missing += [] if tally.acknowledged else ["nothing was redeemed"]
    for kind in ("sync down", "sync lost", "sync busy", "manifest lost", "redemptions lost", "redemptions busy"):
        missing += [] if tally.faults.get(kind) else [f"no line was ever broken as '{kind}'"]
    return missing


# ---- negative controls: the product broken in this process --------------------------------------------------------


def _second_void(envelope: Envelope, facts: Facts, flags: set[Flag], real: Callable[..., Outcome]) -> Outcome:
    """A void forgets what came back before it, so that it can come back again."""
    redemption = facts.redemptions.get(envelope.ref or "")
    for use in redemption.uses.values() if redemption is not None else ():
        use.voided_units = use.voided_minor = 0
    return real(envelope, facts, flags)


def _whole_lease(envelope: Envelope, facts: Facts, flags: set[Flag], real: Callable[..., Outcome]) -> Outcome:
    """A close gives back all that was granted, not what is left of it."""
    use = envelope.uses[0]
    lease = facts.leases.get(use.lease or "")
    outcome = real(envelope, facts, flags)
    if outcome is Outcome.APPLIED and lease is not None and lease.units is not None:
        facts.moves.add(lease.voucher_id, "units", free=use.units, closed_used=-use.units)
    return outcome


def _any_content(writing: Any, redemption_id: str, order: Any, codes: list[str]) -> Any:
    """The same id gives the receipt it had, whatever is asked for under it now."""
    row = writing.run("SELECT body FROM events WHERE id = ? AND type = 'redeem'", (redemption_id,)).fetchone()
    if row is not None and row[0]:
        body = msgspec.json.decode(row[0], type=dict[str, msgspec.Raw])
        stored = msgspec.json.decode(body["codes"], type=list[str])
        order = parse_order(bytes(body["order"]))
        return earlier_receipt(writing, redemption_id, order, stored)
    return earlier_receipt(writing, redemption_id, order, codes)


def _counts_voids(config: Any, terminal: Terminal, real: Callable[..., reports.Status]) -> reports.Status:
    """`waiting_redemptions` counts what was voided meanwhile as done."""
    said = real(config, terminal)
    with terminal.journal.read() as view:
        voided = view.run("SELECT count(*) FROM voids").fetchone()[0]
    return msgspec.structs.replace(said, waiting_redemptions=max(0, said.waiting_redemptions - voided))


def _no_earlier_void(*asked: Any) -> None:
    """No void was ever made under the id."""


def _broken(patch: Callable[[], AbstractContextManager[Any]], seed: int, work: Path) -> Tally:
    with patch():
        return run(seed, 0, CONTROL_EXAMPLES, (Phase.generate,))


CONTROLS: Mapping[str, Callable[[int, Path], Tally]] = {
    "a void forgets the returns before it": partial(
        _broken, lambda: mock.patch.object(settling, "_void", partial(_second_void, real=settling._void))
    ),
    "a close gives all that was granted back": partial(
        _broken, lambda: mock.patch.object(settling, "_close", partial(_whole_lease, real=settling._close))
    ),
    "the same id with other content is accepted": partial(
        _broken, lambda: mock.patch("tallystick_client.terminal.earlier_receipt", _any_content)
    ),
    "a void asked for again with its id is a new one": partial(
        _broken, lambda: mock.patch("tallystick_client.voids.earlier_void", _no_earlier_void)
    ),
    "the status counts what waits wrongly": partial(
        _broken, lambda: mock.patch("tallystick_client.drivers.status", partial(_counts_voids, real=status))
    ),
}
