"""Which leases of an answer a till takes, and which it gives back. Pure; source: protocol.md, section 5.

In the order of their numbers, by the first of these that holds:

1. one that is known is left alone
2. one whose number another lease had is left alone: a number is given once, so this is the server's mistake
3. one whose number is not above the highest ever taken came too late: given back, so that it is not held for nobody
4. one for a voucher with a lease that is not closed waits for a later answer
5. any other is taken
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tallystick_shared.wire import Lease


class KnownLease(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A lease that this till took or gave back. `closed`: the server has acknowledged its close."""

    id: str
    number: int
    voucher_id: str
    closed: bool


def sort_out(leases: Iterable[Lease], known: Iterable[KnownLease], highest: int) -> tuple[list[Lease], list[Lease]]:
    """Those to take and those to give back, each by number. `highest`: the highest number ever taken."""
    known = list(known)
    ids, numbers = {one.id for one in known}, {one.number for one in known}
    busy = {one.voucher_id for one in known if not one.closed}
    taken: list[Lease] = []
    late: list[Lease] = []
    for lease in sorted(leases, key=lambda one: one.number):
        if lease.id in ids or lease.number in numbers:
            continue
        if lease.number > highest and lease.voucher_id in busy:
            continue
        ids.add(lease.id)
        numbers.add(lease.number)
        if lease.number <= highest:
            late.append(lease)
        else:
            taken.append(lease)
            busy.add(lease.voucher_id)
            highest = lease.number
    return taken, late
