"""What a sync reads from the journal and writes to it: batches, leases, answers, roots. Source: protocol.md, 5 to 7.

Each function is one step inside a transaction that its caller opened. Nothing here sends anything.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from tallystick_client.actions import Accept, Failed, NewRoot, Proof, Reading
from tallystick_client.chain import position_at, verify_chain
from tallystick_client.errors import Untrusted
from tallystick_client.granting import KnownLease, sort_out
from tallystick_client.journal import Writing, mark_columns, new_id, stored_events
from tallystick_client.timekeeping import Judged, signed
from tallystick_client.trust import Floor, Trusted
from tallystick_shared.bundle import Manifest, Root
from tallystick_shared.journal import (
    BATCH_BYTES_MAX,
    EventType,
    PlainBody,
    Position,
    Use,
    encode,
)
from tallystick_shared.signing import open_general
from tallystick_shared.wire import ClockReading, DeviceState, Lease, LeaseUse, Outcome, SyncAnswer, Want, digest_of

RETENTION = timedelta(days=90)
"""What is durable on the server stays on the till for this long, so that it can be voided without a line."""
PURGE_EVENTS_MAX = 2_000
"""Of one sync, so that no sync takes long."""
WANTS_MAX = 10_000
RETRY_AFTER_S_MAX = 86_400
"""No longer does a till wait before it comes by itself, whatever an answer asks."""

_USED_UP = "units = used_units OR minor = used_minor"


def reading(view: Writing) -> Reading:
    """The journal as a sync needs it, with the next batch; its chain is verified on the way out."""
    state = view.state
    events = stored_events(view, state.acknowledged_seq, state.batch_events_max, BATCH_BYTES_MAX)
    through_seq = state.acknowledged_seq + len(events)
    verify_chain(view, state.acknowledged_seq, through_seq)
    wants = view.run(
        "SELECT voucher_id, min(units, 1000000) FROM wants ORDER BY units DESC, voucher_id LIMIT ?", (WANTS_MAX,)
    )
    used = view.run("SELECT id, used_units, used_minor FROM leases WHERE state <> 'closed' AND used_units > 0")
    return Reading(
        scope=state.scope,
        device_state=state.device_state,
        server_epoch=state.server_epoch,
        ledger_mark=state.ledger_mark,
        lease_number=state.lease_number,
        bundle_version=state.bundle_version,
        head=state.head,
        after=state.acknowledged,
        through=position_at(view, through_seq) or state.acknowledged,
        events=events,
        leases=[LeaseUse(*row) for row in used],
        leases_digest=digest_of(_open_leases(view, through_seq)),
        held=_open_leases(view, state.acknowledged_seq) if state.recovering else None,
        wants=[Want(*row) for row in wants],
        batch_events_max=state.batch_events_max,
        failures=state.failures,
        next_attempt_at=state.next_attempt_at,
        not_before_at=state.not_before_at,
        retired=state.retired,
    )


def proof(view: Writing) -> Proof | None:
    """What shows a server that it enrolled this till; None where an older version enrolled it."""
    row = view.run("SELECT request, answer FROM enrolment").fetchone()
    return None if row is None else Proof(*row)


def _open_leases(view: Writing, through_seq: int) -> list[Lease]:
    """The leases that the server holds open, once it has read this till's events up to `through_seq`."""
    rows = view.run(
        "SELECT id, number, voucher_id, units, minor, expires_at FROM leases WHERE state = 'active' OR close_seq > ?",
        (through_seq,),
    )
    return [
        Lease(one, number, voucher_id, units, minor, datetime.fromisoformat(expires_at))
        for one, number, voucher_id, units, minor, expires_at in rows
    ]


# ---- leases -------------------------------------------------------------------------------------------------------


def close_done_leases(writing: Writing, judged: Judged, *, too_small: bool = False) -> int:
    """Closes, durably, the leases that are used up or expired; with `too_small` also those that could not serve what
    was wanted of them. How many.

    Of a till that is retired, all.
    """
    if writing.state.retired:
        left = writing.run("SELECT id, 'retired' FROM leases WHERE state = 'active' ORDER BY number").fetchall()
        return close_leases(writing, judged, dict(left))
    at = judged.at.isoformat()
    rows = writing.run(
        f"SELECT id, CASE WHEN {_USED_UP} THEN 'used up' WHEN expires_at <= ? THEN 'expired' ELSE 'too small' END"
        f" FROM leases WHERE state = 'active'"
        f" AND ({_USED_UP} OR expires_at <= ? OR (? AND voucher_id IN (SELECT voucher_id FROM wants)))"
        " ORDER BY number",
        (at, at, too_small),
    ).fetchall()
    return close_leases(writing, judged, dict(rows))


def close_leases(writing: Writing, judged: Judged, reasons: Mapping[str, str]) -> int:
    """Ends the use of these leases by id, each with a `lease_close` in the chain; those not active are left alone."""
    closed = 0
    for lease_id, reason in reasons.items():
        row = writing.run(
            "SELECT voucher_id, used_units, used_minor FROM leases WHERE id = ? AND state = 'active'", (lease_id,)
        ).fetchone()
        if row is None:
            continue
        seq = _append_close(writing, judged, lease_id, row, reason)
        writing.execute(
            "UPDATE leases SET state = 'closing', reason = ?, close_seq = ? WHERE id = ?", (reason, seq, lease_id)
        )
        closed += 1
    return closed


def _append_close(writing: Writing, judged: Judged, lease_id: str, used: tuple[str, int, int], reason: str) -> int:
    voucher_id, units, minor = used
    use = Use(voucher_id=voucher_id, revision_sha256=None, lease=lease_id, units=units, minor=minor)
    body = encode(PlainBody(salt=secrets.token_hex(16), note=reason))
    return writing.append(EventType.LEASE_CLOSE, new_id(judged.at), judged, body, uses=[use])


def _take_leases(writing: Writing, judged: Judged, leases: Sequence[Lease]) -> int:
    """Takes and gives back leases by the rules of `granting`; a number is never taken twice (I6). How many are taken.

    One that is given back is closed with no use.
    """
    ids, numbers = ([getattr(lease, name) for lease in leases] for name in ("id", "number"))
    rows = writing.run(
        "SELECT id, number, voucher_id, state = 'closed' FROM leases WHERE state <> 'closed'"
        " OR id IN (SELECT value FROM json_each(?)) OR number IN (SELECT value FROM json_each(?))",
        (encode(ids), encode(numbers)),
    )
    known = [KnownLease(lease_id, number, voucher_id, bool(closed)) for lease_id, number, voucher_id, closed in rows]
    taken, late = sort_out(leases, known, writing.state.lease_number)
    for lease in late:
        seq = _append_close(writing, judged, lease.id, (lease.voucher_id, 0, 0), "came too late")
        writing.execute(
            "INSERT INTO leases (id, number, voucher_id, units, minor, expires_at, state, reason, close_seq)"
            " VALUES (?, ?, ?, ?, ?, ?, 'closed', 'came too late', ?)",
            (lease.id, lease.number, lease.voucher_id, 0, 0, lease.expires_at.astimezone(UTC), seq),
        )
    for lease in taken:
        writing.execute(
            "INSERT INTO leases (id, number, voucher_id, units, minor, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
            (lease.id, lease.number, lease.voucher_id, lease.units, lease.minor, lease.expires_at.astimezone(UTC)),
        )
        writing.change(lease_number=lease.number)
    return len(taken)


# ---- answers ------------------------------------------------------------------------------------------------------


def accept(writing: Writing, change: Accept, judged: Judged, clock: ClockReading) -> tuple[int, int]:
    """Takes a verified answer; how many leases were granted and how many closed. Steps, in this order:

    1. its positions must be on our own chain (rule 31 of `trust`), else `Untrusted` and nothing is changed; only in a
       new epoch may the server have forgotten what it acknowledged, or know the events of a copy of this till instead
       of ours: then nothing of ours is acknowledged, and all that is kept here is sent again
    2. the roots it needed; signed time, epoch and mark. In a new epoch the next request tells of all leases, until the
       server says that it has recovered
    3. outcomes of what it acknowledges
    4. leases whose close it acknowledges are closed
    5. a new scope or a recall closes leases; with `leases_full`, so does absence, but not while the server recovers
    6. new leases
    7. what is durable and old is purged
    """
    answer = change.answer
    state = writing.state
    new_epoch = answer.server_epoch > state.server_epoch
    wait_s = min(answer.retry_after_s, RETRY_AFTER_S_MAX)
    # 1
    if new_epoch and _is_of_a_copy(writing, answer):
        base = Position(state.base_seq, state.base_hash)
        answer = msgspec.structs.replace(answer, acknowledged=base, durable=base, exceptions=[])
        change = msgspec.structs.replace(change, answer=answer)
    demand_our_journal(writing, answer.acknowledged, answer.durable)
    if answer.acknowledged.seq < state.acknowledged_seq and not new_epoch:
        raise Untrusted("the server has forgotten events that it acknowledged", code="NOT_OUR_JOURNAL")
    # 2
    keep_roots(writing, change.roots)
    mark = signed(judged.mark, clock, answer.server_time, lower=new_epoch)
    writing.change(
        server_epoch=answer.server_epoch,
        ledger_mark=answer.ledger_mark,
        recovering=answer.recovering or new_epoch,
        device_state=_known_state(answer.state),
        failures=0,
        not_before_at=None,
        next_attempt_at=mark.at + timedelta(seconds=wait_s) if wait_s else None,
        last_sync_at=mark.at,
        anomaly="",
        **mark_columns(mark),
    )
    judged = Judged(mark.at, mark.at, mark)
    # 3
    _acknowledge(writing, change)
    # 4
    writing.execute(
        "UPDATE leases SET state = 'closed' WHERE state = 'closing' AND close_seq <= ?", (answer.acknowledged.seq,)
    )
    # 5
    closed = close_leases(writing, judged, _reasons_to_close(writing, answer))
    if answer.scope != state.scope:
        writing.change(scope=answer.scope, bundle_version=0, bundle_serial=state.bundle_serial + 1)
    # 6
    granted = _take_leases(writing, judged, answer.leases)
    # 7
    _purge(writing, judged.at)
    return granted, closed


def _reasons_to_close(writing: Writing, answer: SyncAnswer) -> dict[str, str]:
    """Why, by the id of a lease that the server may not know any more."""
    reasons = dict.fromkeys(answer.recall, "recalled")
    listed = {lease.id for lease in answer.leases}
    for (lease_id,) in writing.run("SELECT id FROM leases WHERE state = 'active'").fetchall():
        if answer.scope != writing.state.scope:
            reasons[lease_id] = "another scope"
        elif answer.leases_full and lease_id not in listed and not writing.state.recovering:
            reasons[lease_id] = "not known to the server"
    return reasons


def demand_our_journal(writing: Writing, acknowledged: Position, durable: Position) -> None:
    """That both are places of our own chain. Raises `Untrusted` (`NOT_OUR_JOURNAL`)."""
    _demand_ours(writing, acknowledged)
    if durable.seq >= writing.state.base_seq:  # below it is what a backup said before its restore, and no news
        _demand_ours(writing, durable)


def _is_of_a_copy(writing: Writing, answer: SyncAnswer) -> bool:
    """Whether it names a place of our journal by another hash: a restored server knows only the other's events."""
    places = [(one, position_at(writing, one.seq)) for one in (answer.acknowledged, answer.durable)]
    return any(ours is not None and ours.hash != one.hash for one, ours in places)


def _demand_ours(writing: Writing, position: Position) -> None:
    if position.seq < writing.state.base_seq:
        # purged here because it was durable there: an older backup was restored than may be
        raise Untrusted(
            "the server has forgotten events that it called durable: its operator has to restore a later backup",
            code="NOT_OUR_JOURNAL",
        )
    ours = position_at(writing, position.seq)
    if ours is None or ours.hash != position.hash:
        raise Untrusted(f"the server's journal of this till differs at event {position.seq}", code="NOT_OUR_JOURNAL")


def _acknowledge(writing: Writing, change: Accept) -> None:
    answer, state = change.answer, writing.state
    exceptions = {exception.seq: exception for exception in answer.exceptions}
    writing.execute(
        "UPDATE events SET outcome = ? WHERE seq > ? AND seq <= ?",
        (Outcome.APPLIED.value, state.acknowledged_seq, answer.acknowledged.seq),
    )
    for seq, exception in exceptions.items():
        writing.execute(
            "UPDATE events SET outcome = ?, reasons = ? WHERE seq = ? AND id = ?",
            (_known_outcome(exception.outcome), " ".join(exception.reasons), seq, exception.id),
        )
    counted = writing.run(
        "SELECT redemptions_so_far, minor_so_far FROM events WHERE seq = ?", (answer.acknowledged.seq,)
    ).fetchone()
    if counted is None:
        # at the start, or where everything up to it is purged: what was counted after it is known all the same
        waiting, minor = writing.run(
            "SELECT count(*), coalesce(sum((SELECT sum(json_extract(value, '$.minor'))"
            " FROM json_each(CAST(envelope AS TEXT), '$.uses'))), 0) FROM events WHERE type = 'redeem' AND seq > ?",
            (answer.acknowledged.seq,),
        ).fetchone()
        counted = state.head_redemptions - waiting, state.head_minor - minor
    writing.change(acknowledged_redemptions=counted[0], acknowledged_minor=counted[1])
    writing.change(
        acknowledged_seq=answer.acknowledged.seq,
        acknowledged_hash=answer.acknowledged.hash,
        durable_seq=max(state.base_seq, answer.durable.seq),
    )
    for want in change.wants:
        writing.execute("DELETE FROM wants WHERE voucher_id = ? AND units <= ?", (want.voucher_id, want.units))
        writing.execute(
            "UPDATE wants SET units = units - ? WHERE voucher_id = ? AND units > ?",
            (want.units, want.voucher_id, want.units),
        )


def _known_state(state: str) -> DeviceState:
    """Whatever a newer server means by a state that this till does not know, it is not that it may redeem."""
    return DeviceState(state) if state in {one.value for one in DeviceState} else DeviceState.SUSPENDED


def _known_outcome(outcome: str) -> str:
    """What a newer server calls by a name that this till does not know is at any rate not plainly applied."""
    return outcome if outcome in {one.value for one in Outcome} else Outcome.FLAGGED.value


def _purge(writing: Writing, at: datetime) -> None:
    """Removes the oldest events that are durable on the server and past their time here, and leases they closed."""
    state = writing.state
    last = None
    rows = writing.run(
        "SELECT seq, at, hash FROM events WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
        (state.base_seq, state.durable_seq, PURGE_EVENTS_MAX),
    )
    for seq, written_at, digest in rows:
        if datetime.fromisoformat(written_at) > at - RETENTION:
            break
        last = (seq, digest)
    if last is not None:
        writing.execute("DELETE FROM events WHERE seq <= ?", (last[0],))
        writing.change(base_seq=last[0], base_hash=last[1])
        # the newest lease of a voucher stays: it says that no bundle alone may make the voucher's policy weaker
        writing.execute(
            "DELETE FROM leases WHERE state = 'closed' AND close_seq <= ? AND EXISTS (SELECT 1 FROM leases AS later"
            " WHERE later.voucher_id = leases.voucher_id AND later.number > leases.number)",
            (last[0],),
        )
    writing.execute("DELETE FROM attempts WHERE state <> 'pending' AND at < ?", (at - RETENTION,))


# ---- roots, floors, failures --------------------------------------------------------------------------------------


def trusted_state(view: Writing) -> Trusted:
    """What `trust` accepted so far: the last root, which was verified when it was kept, and the floors."""
    raw = view.run("SELECT raw FROM roots ORDER BY version DESC LIMIT 1").fetchone()[0]
    root = msgspec.json.decode(open_general(raw), type=Root)
    floors = view.run("SELECT scope, server_epoch, version, digest FROM floors")
    return Trusted(root, {scope: Floor(*rest) for scope, *rest in floors})


def keep_roots(writing: Writing, roots: Sequence[NewRoot]) -> None:
    """New roots, in the transaction of what they verify, and with the floors that their new keys reset.

    New bundle keys are news to every process of this till: what the old ones signed is not believed any more.
    """
    for root in roots:
        writing.execute("INSERT INTO roots (version, raw) VALUES (?, ?)", (root.version, root.raw))
        if root.bundle_changed:
            writing.execute("DELETE FROM floors")
            writing.change(bundle_serial=writing.state.bundle_serial + 1)
        if root.receipt_changed:
            writing.change(ledger_mark=0, server_epoch=0)


def keep_floor(writing: Writing, manifest: Manifest) -> None:
    """The floor of I6, and the version in force; written after the cache has committed the bundle."""
    writing.execute(
        "INSERT INTO floors (scope, server_epoch, version, digest) VALUES (?, ?, ?, ?) ON CONFLICT (scope) DO UPDATE"
        " SET server_epoch = excluded.server_epoch, version = excluded.version, digest = excluded.digest",
        (manifest.scope, manifest.server_epoch, manifest.version, manifest.state_digest),
    )
    if manifest.scope == writing.state.scope:
        writing.change(bundle_version=manifest.version, bundle_serial=writing.state.bundle_serial + 1)


def keep_failure(writing: Writing, change: Failed) -> None:
    """When to come again, across restarts."""
    writing.change(
        failures=writing.state.failures + 1,
        next_attempt_at=change.next_attempt_at,
        not_before_at=change.not_before_at,
    )
    if change.batch_events_max is not None:
        writing.change(batch_events_max=change.batch_events_max)
