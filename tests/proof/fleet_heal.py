"""The end of a simulated fleet: everything is mended, every till syncs, and then all must agree."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tallystick_client.errors import TallystickError
from tests.proof.fleet_till import FleetTill
from tests.proof.fleet_world import World

ROUNDS_MAX = 14


def heal(world: World) -> None:
    """The network is perfect, clocks are right, every process is started anew, a restore is declared, and nobody is
    suspended but for what the server found."""
    world.healing = world.line.perfect = True
    world.forget_events()
    world.server.start_again()
    for till in world.tills:
        till.clock.mend()
        till.crash()
    if world.restores and world.restores[-1].declared_at is None:
        world.declare()
    world.run(world.at + timedelta(hours=25))  # whatever a server may ask tills to wait for
    _activate(world)
    if world.restores:  # every till reports, then the operator ends it
        _sync_all(world, rounds=3)
        _end_recovery(world)
    _activate(world)
    _sync_all(world, rounds=ROUNDS_MAX)


def _activate(world: World) -> None:
    """An operator lets in again whom he suspended, or who waits for his word; the server itself refuses forked ones."""
    for device, state in world.server.read("SELECT id, state FROM devices ORDER BY id"):
        if state in ("suspended", "pending"):
            world.server.operate("POST", f"devices/{device}/resume")


def _end_recovery(world: World) -> None:
    state = world.server.read("SELECT state FROM server")[0][0]
    if state == "restore_suspected":
        world.fail("a restore is suspected after every restore was declared")
    if state == "recovering":
        world.server.operate("POST", "recovery/end")


def _sync_all(world: World, *, rounds: int) -> None:
    """Until a round changes nothing on any till."""
    before: list[Any] = []
    last, after = before, before
    for _ in range(rounds):
        last, after = before, [_sync(world, till) for till in world.tills]
        world.run(world.at + timedelta(hours=1))
        asked_to_wait = any(till.last_error and till.last_error.code == "ASKED_TO_WAIT" for till in world.tills)
        if after == before and not asked_to_wait:
            return
        before = after
    if rounds == ROUNDS_MAX:
        both = zip(world.tills, last, after, strict=True)
        moved = "; ".join(f"{till.path.name}: {was} -> {now}" for till, was, now in both if was != now)
        world.fail(f"the tills do not come to rest in {rounds} rounds: {moved}")


def _sync(world: World, till: FleetTill) -> Any:
    errors: list[TallystickError] = []

    def over(error: TallystickError | None) -> None:
        if error is not None:
            errors.append(error)

    world.sync(till, over)
    world.run(world.at + timedelta(minutes=2))
    if till.syncing:
        world.fail(f"the sync of {till.path.name} does not end")
    state = till.open().journal.state()
    till.last_error = errors[-1] if errors else None
    told = [error.code for error in errors]
    return state.head, state.acknowledged, state.lease_number, state.bundle_version, state.device_state, told
