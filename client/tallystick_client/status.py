"""How a till stands, read in one view of its journal and bundle. Source: protocol.md, sections 2, 5 and 6."""

from __future__ import annotations

from datetime import datetime, timedelta

from tallystick_client.bundle import Bundle
from tallystick_client.directory import Config
from tallystick_client.errors import StorageError
from tallystick_client.journal import Writing
from tallystick_client.reports import FlaggedEvent, LeaseStatus, Status
from tallystick_client.terminal import Terminal
from tallystick_client.timekeeping import Judged
from tallystick_shared.wire import DeviceState

FLAGGED_MAX = 100


def status(config: Config, terminal: Terminal) -> Status:
    """Raises `StorageError`. Writes nothing."""
    with terminal.journal.read() as view:
        state = view.state
        unread = ""
        try:
            bundle = terminal.bundle(view)
        except StorageError as error:  # all else is wanted the more
            bundle, unread = None, str(error)
        judged = terminal.judged(view)
        flagged = _flagged(view)
        anomalies = view.run("SELECT count(*) FROM events WHERE type = 'clock_anomaly'").fetchone()[0]
        return Status(
            device=config.device,
            name=config.name,
            server=config.server_url,
            store=state.store_id,
            scope=state.scope,
            state=state.device_state.value,
            bundle_version=state.bundle_version,
            bundle_vouchers=0 if bundle is None else len(bundle),
            bundle_expires_at=None if bundle is None else bundle.manifest.expires_at,
            freshness=freshness(bundle, judged),
            head=state.head_seq,
            acknowledged=state.acknowledged_seq,
            durable=state.durable_seq,
            waiting=state.head_seq - state.acknowledged_seq,
            waiting_redemptions=state.waiting,
            waiting_minor=state.waiting_minor,
            leases=_leases(view, bundle),
            flagged=flagged,
            clock_anomalies=anomalies,
            at=judged.at,
            last_sync_at=state.last_sync_at,
            next_sync_at=state.next_attempt_at,
            notes=[*terminal.store.notes, *_notes(view, bundle, unread, judged, flagged)],
        )


def freshness(bundle: Bundle | None, judged: Judged) -> str:
    """fresh, stale (expired, still selling), too_old (no longer selling) or none."""
    if bundle is None:
        return "none"
    manifest = bundle.manifest
    if judged.latest <= manifest.expires_at:
        return "fresh"
    return "stale" if judged.latest - manifest.expires_at <= timedelta(seconds=manifest.caps.offline_s) else "too_old"


def _leases(view: Writing, bundle: Bundle | None) -> list[LeaseStatus]:
    rows = view.run(
        "SELECT id, number, voucher_id, units, minor, used_units, used_minor, expires_at, state, reason FROM leases"
        " WHERE state <> 'closed' ORDER BY number"
    ).fetchall()
    shown = []
    for lease_id, number, voucher_id, units, minor, used_units, used_minor, expires_at, state, reason in rows:
        shown.append(
            LeaseStatus(
                id=lease_id,
                number=number,
                voucher_id=voucher_id,
                code=None if bundle is None else _shown_code(bundle, voucher_id),
                units=units,
                minor=minor,
                used_units=used_units,
                used_minor=used_minor,
                expires_at=datetime.fromisoformat(expires_at),
                state=state,
                reason=reason,
            )
        )
    return shown


def _shown_code(bundle: Bundle, voucher_id: str) -> str | None:
    entry = bundle.by_id(voucher_id)
    return entry.compiled.voucher.code if entry and entry.compiled else bundle.vouchers.code_of(voucher_id)


def _flagged(view: Writing) -> list[FlaggedEvent]:
    rows = view.run(
        "SELECT seq, id, type, outcome, reasons FROM events WHERE outcome IN ('flagged', 'quarantined')"
        " ORDER BY seq DESC LIMIT ?",
        (FLAGGED_MAX,),
    )
    return [FlaggedEvent(seq, one, kind, outcome, reasons.split()) for seq, one, kind, outcome, reasons in rows]


def _notes(view: Writing, bundle: Bundle | None, unread: str, judged: Judged, flagged: list[FlaggedEvent]) -> list[str]:
    """Sentences for the person at the till, most urgent first. `unread`: why there is no bundle."""
    state = view.state
    notes = []
    if state.retired:
        notes.append("this till was retired when its journal was exported with --final, and redeems no more")
    if state.device_state is not DeviceState.ACTIVE:
        notes.append(f"this till is {state.device_state.value} at the server and may not redeem: call the operator")
    if bundle is None:
        notes.append(unread or "this till has no vouchers yet: sync it")
    elif freshness(bundle, judged) == "too_old":
        notes.append("this till was offline for too long and may not redeem: sync it")
    if state.failures:
        when = "" if state.next_attempt_at is None else f", the next is due at {state.next_attempt_at:%H:%M} UTC"
        times = "the last attempt to sync" if state.failures == 1 else f"the last {state.failures} attempts to sync"
        notes.append(f"{times} failed{when}: tallystick sync says why")
    if judged.anomaly:
        notes.append("the clock of this machine is wrong: the time known from the server is used instead")
    if flagged:
        notes.append(f"{len(flagged)} events wait for a person at the server")
    pending = view.run("SELECT count(*) FROM attempts WHERE state = 'pending'").fetchone()[0]
    if pending:
        notes.append(
            f"{pending} online redemptions were cut off before an answer: redeem the same order and codes again, "
            "online, and each is counted once"
        )
    if state.acknowledged_seq > 0 and state.durable_seq == 0:
        notes.append("nothing of this till is in a backup of the server yet, so nothing is purged here")
    return notes
