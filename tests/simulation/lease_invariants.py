"""What must hold in every state of the lease search: the promise, I1 and I2 (protocol.md, section 1)."""

from __future__ import annotations

from tests.simulation.lease_model import State

PROMISE = "more units are out than the limit"


def broken(state: State, limit: int) -> str | None:
    """The invariant that this state breaks, in words; None where all hold.

    The promise is to honest devices: what clones spend beyond the one that is counted, and what is used of a lease
    that an operator released, is beyond the limit and said to be.
    """
    pool = state.pool
    if state.given > limit + _at_risk(state):
        return f"{PROMISE}: {state.given}, not {limit + _at_risk(state)}"
    if sum(pool) - 2 * pool.voided != limit:
        return f"I1: the accounts add up to {sum(pool) - 2 * pool.voided}, not {limit}"
    leases = [lease for device in state.devices for lease in device.leases]
    if pool.held != sum(one.granted for one in leases if one.state in ("open", "waits", "lost", "forked")):
        return "I1: what is held is not what open and burned leases were granted"
    if pool.closed_used != sum(one.known for one in leases if one.state.endswith("closed")):
        return "I1: what closed leases used is not what their closes said"
    if pool.free < -pool.uncovered:
        return "I1: the pool is below zero, and not by use without cover"
    for device in state.devices:
        if len(device.tills) == 1 and not all(0 <= one.known <= one.spent <= one.granted for one in device.leases):
            return "I2: 0 <= k <= u <= q does not hold"
    return None


def _at_risk(state: State) -> int:
    risk = 0
    for device in state.devices:
        cloned = sum(till.alive for till in device.tills) > 1
        for lease in device.leases:
            if lease.state == "released":
                risk += lease.spent - lease.known
            elif cloned:
                counted = lease.known if lease.state == "closed" else lease.granted
                risk += max(0, lease.spent - counted)
    return risk
