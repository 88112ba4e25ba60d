"""The lease protocol of one voucher as a small state machine (protocol.md, sections 1 and 5), for `lease_search`.

`moves` gives everything that can happen next, one durable step at a time; `lease_invariants` says what must hold then.
What an event means to the server is decided by the real `settle` (see `lease_server`).

The network keeps whatever was ever sent and delivers it twice, late, in any order or never. It is not stored: a till
sends only what is durable, so any beginning of its journal may arrive at any time (heard one by one, which is every
batch), every lease ever granted may be told again at any time, and whatever the server has stored may be acknowledged
at any time. This is more than the real network can do, because answers are not bound to their requests here.

Clocks are not stored either: a till may use a lease or close it at any time, as if its clock were any clock; a recall
is one more reason to close. A crash loses the step that was not durable yet, and the request in flight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from tallystick_shared.journal import EventType
from tests.simulation.lease_server import Effect, settled

T = TypeVar("T")
Event = tuple[str, int, int]
"""`use` (lease number, sale or -1), `close` (lease number, u), `void` (sale, 1, or 0 where it names no use),
`other` (of another voucher, say)."""
Label = tuple[str, int, int, int, int]
"""What happened: a verb, the device's place in the state, the till of it (1 is a clone), and two details, such as a
lease's number and units; `lease_search` puts it in words."""
Done = tuple[str, int, int, int]
"""The same without the place."""

OTHER: Event = ("other", 0, 0)


class Rules(NamedTuple):
    """What keeps the limit. Each can be switched off, and then a search must find how it breaks."""

    nothing_returns_at_expiry: bool = True
    close_is_durable_before_it_is_sent: bool = True
    close_counts_once: bool = True
    grant_needs_free_units: bool = True
    lease_number_is_taken_once: bool = True
    forked_close_returns_nothing: bool = True
    void_counts_once: bool = True
    use_stays_within_the_lease: bool = True
    use_is_durable_before_the_goods_go: bool = True
    released_lease_returns_nothing: bool = True
    online_use_needs_a_free_unit: bool = True
    void_ends_an_attempt: bool = True
    only_goods_that_are_out_are_voided_elsewhere: bool = True


class Bounds(NamedTuple):
    """How large the search is. `leases`: granted to each device; `sales`: followed one by one on each device, with
    voids and online attempts (0: uses are only counted); `losses`, `clones` and `releases`: at most, of all devices;
    `depth`: steps from the start (0: as many as there are)."""

    devices: int = 2
    limit: int = 2
    leases: int = 1
    sales: int = 0
    losses: int = 0
    clones: int = 0
    releases: int = 0
    depth: int = 0


class Pool(NamedTuple):
    """I1: `free + online + uncovered + held + closed_used + released_known - voided` is the limit."""

    free: int
    online: int = 0
    uncovered: int = 0
    voided: int = 0
    held: int = 0
    closed_used: int = 0
    released_known: int = 0


class Lease(NamedTuple):
    """As the server has it (`granted` q, `known` k, states of `lease_server`), and the units truly used of it.

    Where a rule is off there is also `expired`, returned by a timer, and `forked, closed`, returned after a fork.
    """

    granted: int
    known: int
    state: str
    spent: int


class Sale(NamedTuple):
    """One redemption id. `asked` online: 0 never, 1 waits for the answer, 2 settled, 3 voided but still believed.
    `server`: `""`, `online` or `used`; `goods`: 0 not handed over, 1 out, 2 brought back; `voids` written."""

    asked: int = 0
    server: str = ""
    voided: int = 0
    goods: int = 0
    voids: int = 0


class Row(NamedTuple):
    """A lease on a till; gone once its close is acknowledged."""

    number: int
    used: int
    closing: bool


class Till(NamedTuple):
    """What is durable on one till. A clone is a second till of the same device, and the first `shared` events that
    wait are the same ones; `heard`: the server has stored an event that only this one wrote."""

    highest: int = 0
    rows: tuple[Row, ...] = ()
    waiting: tuple[Event, ...] = ()
    shared: int = 0
    heard: bool = False
    alive: bool = True


class Device(NamedTuple):
    state: str = "active"
    leases: tuple[Lease, ...] = ()
    tills: tuple[Till, ...] = (Till(),)
    sales: tuple[Sale, ...] = ()


class State(NamedTuple):
    """`given`: units that are out with customers."""

    pool: Pool
    given: int
    devices: tuple[Device, ...]


Step = tuple[Label, State]


def initial(bounds: Bounds) -> State:
    return State(Pool(bounds.limit), 0, (Device(),) * bounds.devices)


def canonical(state: State) -> State:
    """Devices are alike: states that differ only in their order are one."""
    return State(state.pool, state.given, tuple(sorted(state.devices)))


def moves(state: State, rules: Rules, bounds: Bounds) -> Iterator[Step]:
    """Every single step from here, with the devices in their places."""
    pool, given, devices = state
    if pool.free >= 1 or not rules.online_use_needs_a_free_unit:
        yield ("web", 0, 0, 0, 0), State(pool._replace(free=pool.free - 1, online=pool.online + 1), given + 1, devices)
    clones = sum(len(device.tills) - 1 for device in devices)
    for place, device in enumerate(devices):
        for index, till in enumerate(device.tills):
            if till.alive:
                for done, more, changed in _till_moves(device, index, till, rules, bounds):
                    yield _step(done, place, pool, given + more, devices, changed)
                if clones < bounds.clones:
                    copies = (till._replace(shared=len(till.waiting), heard=False),) * 2
                    yield _step(("clone", 0, 0, 0), place, pool, given, devices, device._replace(tills=copies))
            if till.waiting:
                new_pool, changed = _hear(pool, device, index, till, rules)
                verb, first, second = till.waiting[0]
                yield _step((f"hear {verb}", index, first, second), place, new_pool, given, devices, changed)
        for done, more, new_pool, changed in _server_moves(state, device, rules, bounds):
            yield _step(done, place, new_pool, given + more, devices, changed)


def _step(done: Done, place: int, pool: Pool, given: int, devices: tuple[Device, ...], changed: Device) -> Step:
    return (done[0], place, *done[1:]), State(pool, given, (*devices[:place], changed, *devices[place + 1 :]))


# ---- a till: each step is one transaction of its journal ---------------------------------------------------------

TillMove = tuple[Done, int, Device]


def _till_moves(device: Device, index: int, till: Till, rules: Rules, bounds: Bounds) -> Iterator[TillMove]:
    for at, row in enumerate(till.rows):
        if row.closing:
            if ("close", row.number, row.used) not in till.waiting:
                rows = till.rows[:at] + till.rows[at + 1 :]
                yield ("acknowledged", index, row.number, 0), 0, _with(device, index, till._replace(rows=rows))
            continue
        yield from _uses(device, index, till, at, rules, bounds)
        closing = _replaced(till.rows, at, row._replace(closing=True))
        waiting = (*till.waiting, ("close", row.number, row.used))
        closed = till._replace(rows=closing, waiting=waiting)
        yield ("close", index, row.number, row.used), 0, _with(device, index, closed)
        if not rules.close_is_durable_before_it_is_sent and len(device.tills) == 1:
            # what is on its way is what a till would have written that is no more
            lost = Till(waiting=waiting, shared=len(till.waiting), alive=False)
            kept = till._replace(shared=len(till.waiting))
            yield ("forgets close", index, row.number, row.used), 0, device._replace(tills=(kept, lost))
    for number in range(1, len(device.leases) + 1):
        taken = _taken(till, number, rules)
        if taken is not None:
            verb = "gives back" if taken.rows[-1].closing else "takes"
            yield (verb, index, number, 0), 0, _with(device, index, taken)
    if len(device.tills) > 1 and not till.heard and OTHER not in till.waiting:
        yield ("other", index, 0, 0), 0, _with(device, index, till._replace(waiting=(*till.waiting, OTHER)))
    if bounds.sales:
        yield from _sales_moves(device, index, till, rules, bounds)


def _uses(device: Device, index: int, till: Till, at: int, rules: Rules, bounds: Bounds) -> Iterator[TillMove]:
    row = till.rows[at]
    lease = device.leases[row.number - 1]
    if not rules.use_is_durable_before_the_goods_go:
        yield ("forgets use", index, row.number, 0), 1, device
    if row.used >= lease.granted + (not rules.use_stays_within_the_lease):
        return
    leases = _replaced(device.leases, row.number - 1, lease._replace(spent=lease.spent + 1))

    def using(sale: int) -> Device:
        rows = _replaced(till.rows, at, row._replace(used=row.used + 1))
        used = till._replace(rows=rows, waiting=(*till.waiting, ("use", row.number, sale)))
        return _with(device._replace(leases=leases), index, used)

    if not bounds.sales:
        yield ("use", index, row.number, 0), 1, using(-1)
        return
    if len(device.sales) < bounds.sales:
        new = using(len(device.sales))
        yield ("use", index, row.number, 0), 1, new._replace(sales=(*device.sales, Sale(goods=1)))
        yield ("crash after use", index, row.number, 0), 0, new._replace(sales=(*device.sales, Sale()))
    for number, sale in enumerate(device.sales):
        if sale.asked == 1:
            fallen = sale._replace(asked=2, goods=1)
            new = using(number)._replace(sales=_replaced(device.sales, number, fallen))
            yield ("falls back", index, row.number, number), 1, new


def _taken(till: Till, number: int, rules: Rules) -> Till | None:
    """A lease is told, for the first time or again, as `exchange._take_leases` has it; None: nothing changes."""
    if any(row.number == number for row in till.rows):
        return None
    if number <= till.highest and rules.lease_number_is_taken_once:
        waiting = (*till.waiting, ("close", number, 0))
        return till._replace(rows=(*till.rows, Row(number, 0, True)), waiting=waiting)
    if till.rows:
        return None
    return till._replace(highest=max(number, till.highest), rows=(Row(number, 0, False),))


def _sales_moves(device: Device, index: int, till: Till, rules: Rules, bounds: Bounds) -> Iterator[TillMove]:
    if len(device.sales) < bounds.sales:
        yield ("asks", index, len(device.sales), 0), 0, device._replace(sales=(*device.sales, Sale(asked=1)))
    for number, sale in enumerate(device.sales):
        if sale.asked in (1, 3) and sale.server in ("online", "used"):
            answered = sale._replace(asked=2, goods=1)
            yield ("answered", index, number, 0), 1, device._replace(sales=_replaced(device.sales, number, answered))
        if sale.voids == 2:
            continue
        known = sale.asked == 0 or sale.goods > 0
        waiting = (*till.waiting, ("void", number, int(known)))
        asked = sale.asked if sale.asked != 1 else 2 if rules.void_ends_an_attempt else 3
        voided = sale._replace(asked=asked, goods=2 if sale.goods else 0, voids=sale.voids + 1)
        new = device._replace(sales=_replaced(device.sales, number, voided))
        yield ("void", index, number, 0), -(sale.goods == 1), _with(new, index, till._replace(waiting=waiting))


# ---- the server ------------------------------------------------------------------------------------------------------

ServerMove = tuple[Done, int, Pool, Device]


def _hear(pool: Pool, device: Device, index: int, till: Till, rules: Rules) -> tuple[Pool, Device]:
    """The next event of a till is stored and settled, unless it is stored already; two histories are a fork (I5)."""
    event, others = till.waiting[0], device.tills[:index] + device.tills[index + 1 :]
    rest = till._replace(waiting=till.waiting[1:])
    if till.shared:
        known = any(other.shared < till.shared for other in others)
        device = _with(device, index, rest._replace(shared=till.shared - 1))
        return (pool, device) if known else _settle(pool, device, event, rules)
    if others:
        rest = rest._replace(heard=True)
        if any(other.heard for other in others):
            leases = tuple(
                lease._replace(state="forked") if lease.state in ("open", "lost", "waits") else lease
                for lease in device.leases
            )
            device = device._replace(state="forked", leases=leases)
    return _settle(pool, _with(device, index, rest), event, rules)


def _settle(pool: Pool, device: Device, event: Event, rules: Rules) -> tuple[Pool, Device]:
    verb, first, second = event
    if event == OTHER:
        return pool, device
    if verb == "close":
        lease = device.leases[first - 1]
        shown = _shown(lease.state, rules)
        effect = settled(EventType.LEASE_CLOSE, second, (lease.granted, lease.known, shown), ("", 0), pool.free)
        state = lease.state if effect.state == shown else effect.state
        if (lease.state, state) == ("forked", "closed"):
            state = "forked, closed"
        changed = lease._replace(known=effect.known, state=state)
        return _moved(pool, effect), device._replace(leases=_replaced(device.leases, first - 1, changed))
    number = first if verb == "void" else second
    sale = device.sales[number] if number >= 0 else Sale()
    if verb == "void":
        counted = sale.voided if rules.void_counts_once else 0
        effect = settled(EventType.VOID, second, None, (sale.server, counted), pool.free)
    else:
        lease = device.leases[first - 1]
        of = (lease.granted, lease.known, lease.state)
        effect = settled(EventType.REDEEM, 1, of, (sale.server, sale.voided), pool.free)
        changed = lease._replace(known=effect.known, state=effect.state)
        device = device._replace(leases=_replaced(device.leases, first - 1, changed))
    if number >= 0:
        sale = sale._replace(server=effect.server, voided=effect.voided_units)
        device = device._replace(sales=_replaced(device.sales, number, sale))
    return _moved(pool, effect), device


def _shown(state: str, rules: Rules) -> str:
    """How a lease stands before `settle` when a close of it comes; a rule that is off hides what it rests on."""
    if state == "closed" and not rules.close_counts_once:
        return "open"
    if state == "released" and not rules.released_lease_returns_nothing:
        return "open"
    if state == "forked" and not rules.forked_close_returns_nothing:
        return "lost"
    return state


def _server_moves(state: State, device: Device, rules: Rules, bounds: Bounds) -> Iterator[ServerMove]:
    pool = state.pool
    open_now = any(lease.state in ("open", "waits") for lease in device.leases)
    if device.state == "active" and not open_now and len(device.leases) < bounds.leases:
        for units in range(1, (pool.free if rules.grant_needs_free_units else bounds.limit) + 1):
            granted = device._replace(leases=(*device.leases, Lease(units, 0, "open", 0)))
            yield ("grant", 0, units, 0), 0, pool._replace(free=pool.free - units, held=pool.held + units), granted
    if device.state == "active" and sum(one.state == "lost" for one in state.devices) < bounds.losses:
        leases = tuple(one._replace(state="lost") if one.state == "open" else one for one in device.leases)
        yield ("lost", 0, 0, 0), 0, pool, device._replace(state="lost", leases=leases)
    released = sum(lease.state == "released" for one in state.devices for lease in one.leases)
    for number, lease in enumerate(device.leases, 1):
        if lease.state == "open" and released < bounds.releases:
            yield ("release", 0, number, 0), 0, *_returned(pool, device, number, "released")
        if lease.state == "open" and not rules.nothing_returns_at_expiry:
            yield ("expire", 0, number, 0), 0, *_returned(pool, device, number, "expired")
        if lease.state == "closed":
            repeated = _settle(pool, device, ("close", number, lease.known), rules)
            yield ("again close", 0, number, lease.known), 0, *repeated
    for number, sale in enumerate(device.sales):
        if sale.asked and not sale.server and pool.free >= 1 and device.state == "active":
            told = device._replace(sales=_replaced(device.sales, number, sale._replace(server="online")))
            yield ("counts", 0, number, 0), 0, pool._replace(free=pool.free - 1, online=pool.online + 1), told
        unseen = sale.asked == 1 and not sale.voided and not rules.only_goods_that_are_out_are_voided_elsewhere
        if sale.server in ("online", "used") and (sale.goods == 1 or unseen):
            back = device._replace(sales=_replaced(device.sales, number, sale._replace(goods=2 * sale.goods)))
            yield (
                ("voided elsewhere", 0, number, 0),
                -(sale.goods == 1),
                *_settle(pool, back, ("void", number, 1), rules),
            )
        if sale.voided:
            yield ("again void", 0, number, 0), 0, *_settle(pool, device, ("void", number, 1), rules)


def _returned(pool: Pool, device: Device, number: int, state: str) -> tuple[Pool, Device]:
    """The server gives the rest of a lease back without its close."""
    lease = device.leases[number - 1]
    leases = _replaced(device.leases, number - 1, lease._replace(state=state))
    moved = pool._replace(
        free=pool.free + lease.granted - lease.known,
        held=pool.held - lease.granted,
        released_known=pool.released_known + lease.known,
    )
    return moved, device._replace(leases=leases)


def _moved(pool: Pool, effect: Effect) -> Pool:
    return Pool(
        pool.free + effect.free,
        pool.online + effect.online,
        pool.uncovered + effect.uncovered,
        pool.voided + effect.voided,
        pool.held + effect.held,
        pool.closed_used + effect.closed_used,
        pool.released_known,
    )


def _replaced(items: tuple[T, ...], at: int, item: T) -> tuple[T, ...]:
    return (*items[:at], item, *items[at + 1 :])


def _with(device: Device, index: int, till: Till) -> Device:
    return device._replace(tills=_replaced(device.tills, index, till))
