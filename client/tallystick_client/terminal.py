"""The offline terminal: preview and redeem with nothing but this till's disk. Source: protocol.md, sections 2 and 6."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from tallystick_client.actions import KeepBundle
from tallystick_client.arguments import OrderInput, as_codes, as_id, as_order
from tallystick_client.attempts import close_attempt, earlier_receipt, pending_id
from tallystick_client.blobs import Part
from tallystick_client.bundle import Bundle, Entry
from tallystick_client.errors import NotNow, StorageError
from tallystick_client.exchange import keep_floor, trusted_state
from tallystick_client.journal import Journal, State, Writing, new_id
from tallystick_client.reports import Receipt
from tallystick_client.store import Store
from tallystick_client.timekeeping import STEP_S_MIN, Clock, Judged, judge, read_clock
from tallystick_shared.codes import fold
from tallystick_shared.engine import Allowance, Reason, Result, Usage, brief, evaluate, result_json
from tallystick_shared.journal import EventType, PlainBody, RedeemBody, Use, encode
from tallystick_shared.model import Order, order_json
from tallystick_shared.signing import sha256_hex
from tallystick_shared.wire import DeviceState

_BACKED = ("quota", "exclusive")


class Terminal:
    """Sells from the bundle in force and the leases of this till. Threads and processes may share one journal."""

    def __init__(self, journal: Journal, store: Store, clock: Clock) -> None:
        self.journal, self.store, self.clock = journal, store, clock
        self._kept: tuple[int, Bundle | None] = (-1, None)
        """A serial of the journal, and the bundle that was kept with it."""

    # ---- preview and redeem

    def preview(self, order: OrderInput, codes: Sequence[str]) -> Result:
        """What `redeem` would say now, but for the caps of a till that was offline for too long. Writes nothing.

        Raises `InvalidInput`, `NotNow` (`NO_BUNDLE`), `StorageError`.
        """
        order, codes = as_order(order), as_codes(codes)
        with self.journal.read() as view:
            bundle = self.demand_bundle(view)
            judged = self.judged(view)
            entries = find_entries(bundle, codes)
            return self._evaluate(view, order, codes, entries, judged)

    def redeem(self, order: OrderInput, codes: Sequence[str], *, redemption_id: str | None = None) -> Receipt:
        """Redeems, and returns only when one transaction has committed. Steps, in this order:

        1. the same id with the same order and codes again: the receipt it had; with others: `IDENTIFIER_REUSED`;
           without an id: that of an online attempt at the same sale that was cut off, as the server may have it
        2. what time it is; a clock that cannot be right is written down, once
        3. whether this till may redeem at all now (`NotNow`)
        4. the engine, with what this till knows of use and may give away
        5. nothing applied: nothing is written but what was wanted beyond the allowance
        6. use of leases, of soft allowances and of customers
        7. the event, at the head of the chain

        Raises `InvalidInput`, `NotNow`, `CallerError`, `StorageError`; then nothing was redeemed, but where that is
        `UNCERTAIN`: then asking again with the same id tells.
        """
        order, codes = as_order(order), as_codes(codes)
        refusal: NotNow | None = None
        with self.journal.write() as writing:
            # 1
            redemption_id = pending_id(writing, order, codes) if redemption_id is None else as_id(redemption_id)
            if redemption_id is not None:
                earlier = earlier_receipt(writing, redemption_id, order, codes)
                if earlier is not None:
                    return earlier
            # 2
            judged = self.judged(writing)
            _note_anomaly(writing, judged)
            # 3
            try:
                bundle = self.demand_bundle(writing)
                _demand_may_redeem(writing.state, bundle, judged)
            except NotNow as error:
                refusal = error  # raised below, so that the note of step 2 is committed
            else:
                return self._redeem(writing, bundle, order, codes, judged, redemption_id)
        assert refusal is not None
        raise refusal

    def _redeem(
        self,
        writing: Writing,
        bundle: Bundle,
        order: Order,
        codes: list[str],
        judged: Judged,
        redemption_id: str | None,
    ) -> Receipt:
        redemption_id = redemption_id or new_id(judged.at)
        # 4
        entries = find_entries(bundle, codes)
        result = self._evaluate(writing, order, codes, entries, judged)
        # 5
        _note_wants(writing, result, entries)
        if not result.applied:
            return Receipt(redemption_id, judged.at, False, result)
        # 6
        if bundle.manifest.version != writing.state.bundle_version:
            keep_floor(writing, bundle.manifest)  # the cache has it, and the process that fetched it died before this
        uses = []
        for applied in result.applied:
            entry = entries[fold(applied.code)]
            lease_id = _use_allowance(writing, entry, applied.discount_minor, judged.at)
            uses.append(Use(entry.id, entry.revision_sha256, lease_id, 1, applied.discount_minor))
            count_customer(writing, entry, order, 1)
        # 7
        body = RedeemBody(
            order=msgspec.Raw(order_json(order)),
            codes=codes,
            result=msgspec.Raw(result_json(brief(result))),
            salt=secrets.token_hex(16),
        )
        writing.append(EventType.REDEEM, redemption_id, judged, encode(body), uses=uses)
        close_attempt(writing, redemption_id, "offline")
        return Receipt(redemption_id, judged.at, True, result)

    # ---- what a sale rests on

    def judged(self, view: Writing) -> Judged:
        """The time now; unsigned time may gain in one boot what a till may be offline for in all."""
        step_s = STEP_S_MIN
        bundle = self.readable_bundle(view)
        if bundle is not None:
            manifest = bundle.manifest
            step_s = int((manifest.expires_at - manifest.issued_at).total_seconds()) + manifest.caps.offline_s
        return judge(view.state.mark, read_clock(self.clock), step_s=step_s)

    def bundle(self, view: Writing) -> Bundle | None:
        """The bundle in force, read again if any process of this till has kept another since."""
        serial, bundle = self._kept
        if serial != view.state.bundle_serial:
            bundle = self.store.load(trusted_state(view), view.state.scope, bundle)
            self._kept = view.state.bundle_serial, bundle
        return bundle

    def readable_bundle(self, view: Writing) -> Bundle | None:
        """None too where the disk fails to read it: that stops nothing that sells nothing, such as a sync, or a void of
        what was redeemed here. A customer's use that cannot be found then stays counted."""
        try:
            return self.bundle(view)
        except StorageError:
            return None

    def forget_bundle(self) -> None:
        """It is read again when it is needed."""
        self._kept = -1, None

    def take(self, change: KeepBundle, parts: list[Part], serial: int) -> None:
        """The bundle that this process has just verified and kept: it need not be read again."""
        _, bundle = self._kept
        digest = sha256_hex(change.raw)
        if change.vouchers is not None:
            bundle = Bundle(change.manifest, digest, change.etag, change.vouchers, parts)
        elif bundle is not None:
            bundle.advance(change.manifest, digest, change.etag, change.changes, change.parts_sum, parts)
        self._kept = serial, bundle

    def forget_ended(self, writing: Writing) -> None:
        """What is known of customers goes with the end of its voucher, which may have been put off since."""
        at, bundle = writing.state.mark_at, self.readable_bundle(writing)
        if bundle is None:
            return
        ended = writing.run("SELECT DISTINCT voucher_id FROM customer_uses WHERE ends_at < ?", (at.isoformat(),))
        for (voucher_id,) in ended.fetchall():
            entry = bundle.by_id(voucher_id)
            voucher = None if entry is None or entry.compiled is None else entry.compiled.voucher
            if voucher is None or (voucher.valid_until is not None and voucher.valid_until < at):
                writing.execute("DELETE FROM customer_uses WHERE voucher_id = ?", (voucher_id,))
            else:
                until = None if voucher.valid_until is None else voucher.valid_until.astimezone(UTC)
                writing.execute("UPDATE customer_uses SET ends_at = ? WHERE voucher_id = ?", (until, voucher_id))

    def demand_bundle(self, view: Writing) -> Bundle:
        bundle = self.bundle(view)
        if bundle is None:
            raise NotNow("this till has no vouchers yet: sync it first", code="NO_BUNDLE")
        return bundle

    def _evaluate(
        self, view: Writing, order: Order, codes: list[str], entries: Mapping[str, Entry], judged: Judged
    ) -> Result:
        usage: dict[str, Usage] = {}
        allowance: dict[str, Allowance] = {}
        compiled = []
        for folded, entry in entries.items():
            if entry.compiled is None:
                continue
            compiled.append(entry.compiled)
            if entry.compiled.voucher.limits.per_customer is not None:
                usage[folded] = Usage(customer=_customer_count(view, entry, order))
            allowed = _allowance(view, entry, judged.at)
            if allowed is not None:
                allowance[folded] = allowed
        result = evaluate(order, compiled, codes, at=judged.at, usage=usage, allowance=allowance)
        return _with_needs_update(result, entries)


# ---- what is asked for ----------------------------------------------------------------------------------------------


def find_entries(bundle: Bundle, codes: Sequence[str]) -> dict[str, Entry]:
    """The vouchers of these codes, by folded code; a code that the bundle does not have is left out."""
    spelled: dict[str, str] = {}
    for code in codes:
        spelled.setdefault(fold(code), code)
    found = {}
    for folded, code in spelled.items():
        entry = bundle.find(folded, code)
        if entry is not None:
            found[folded] = entry
    return found


# ---- whether this till may redeem at all --------------------------------------------------------------------------


def demand_not_retired(state: State) -> None:
    """Raises `NotNow`."""
    if state.retired:
        raise NotNow(
            "this till was retired when its journal was exported with --final, and redeems no more: "
            "enrol another directory",
            code="RETIRED",
        )


def _demand_may_redeem(state: State, bundle: Bundle, judged: Judged) -> None:
    """The device's state and the caps of the manifest; voids and closes are never asked. Raises `NotNow`."""
    demand_not_retired(state)
    if state.device_state is not DeviceState.ACTIVE:
        raise NotNow(
            f"this till is {state.device_state.value} at the server and may not redeem: call the operator",
            code="SUSPENDED",
        )
    manifest = bundle.manifest
    caps = manifest.caps
    if judged.latest - manifest.expires_at > timedelta(seconds=caps.offline_s):
        since = state.last_sync_at or manifest.issued_at
        raise NotNow(
            f"this till has been offline since {since.astimezone(UTC):%Y-%m-%d %H:%M} UTC, too long to redeem: "
            "sync it first",
            code="TOO_LONG_OFFLINE",
        )
    if caps.redemptions is not None and state.waiting >= caps.redemptions:
        raise NotNow(
            f"{state.waiting} redemptions wait to be sent, no more than {caps.redemptions} may: sync this till first",
            code="QUEUE_FULL",
        )
    if caps.amount_minor is not None and state.waiting_minor >= caps.amount_minor:
        raise NotNow(
            "the discounts that wait to be sent have reached the most this till may give offline: sync it first",
            code="QUEUE_FULL",
        )


def _note_anomaly(writing: Writing, judged: Judged) -> None:
    """Writes a `clock_anomaly`, once for each kind and boot since the last signed time."""
    name = f"{judged.anomaly} {judged.mark.boot_id}"
    if judged.anomaly and writing.state.anomaly != name:
        body = encode(PlainBody(salt=secrets.token_hex(16), note=judged.anomaly))
        writing.append(EventType.CLOCK_ANOMALY, new_id(judged.at), judged, body)
        writing.change(anomaly=name)


# ---- what may be given away, and what was -------------------------------------------------------------------------


def is_lease_backed(view: Writing, entry: Entry) -> bool:
    """Whether only a lease allows it. Once a voucher was leased to this till no bundle alone makes it weaker, so that
    who steals the bundle key cannot turn `quota` into `open`."""
    if entry.compiled is not None and entry.compiled.voucher.offline.policy in _BACKED:
        return True
    return view.run("SELECT 1 FROM leases WHERE voucher_id = ? LIMIT 1", (entry.id,)).fetchone() is not None


def _allowance(view: Writing, entry: Entry, at: datetime) -> Allowance | None:
    """What this till may give away of one voucher without asking; None: freely."""
    assert entry.compiled is not None
    offline = entry.compiled.voucher.offline
    if offline.policy == "online_only":
        return Allowance(needs_connection=True)
    if is_lease_backed(view, entry):
        row = view.run(
            "SELECT units - used_units, minor - used_minor FROM leases"
            " WHERE voucher_id = ? AND state = 'active' AND expires_at > ?",
            (entry.id, at.isoformat()),
        ).fetchone()
        return Allowance(units=0) if row is None else Allowance(units=row[0], minor=row[1])
    if offline.policy == "soft":
        row = view.run("SELECT units, minor FROM voucher_uses WHERE voucher_id = ?", (entry.id,)).fetchone()
        units, minor = row or (0, 0)
        return Allowance(
            units=None if offline.max_units is None else max(0, offline.max_units - units),
            minor=None if offline.max_minor is None else max(0, offline.max_minor - minor),
        )
    return None


def _use_allowance(writing: Writing, entry: Entry, minor: int, at: datetime) -> str | None:
    """Takes one unit and `minor` from what allowed it; the id of the lease, if it was one (I2)."""
    if is_lease_backed(writing, entry):
        row = writing.execute(
            "UPDATE leases SET used_units = used_units + 1, used_minor = used_minor + ?"
            " WHERE voucher_id = ? AND state = 'active' AND expires_at > ?"
            " AND (units IS NULL OR used_units + 1 <= units) AND (minor IS NULL OR used_minor + ? <= minor)"
            " RETURNING id",
            (minor, entry.id, at.isoformat(), minor),
        ).fetchall()
        if len(row) != 1:
            raise StorageError("the lease does not cover what the engine gave: nothing was redeemed", code="CONSTRAINT")
        return str(row[0][0])
    assert entry.compiled is not None
    if entry.compiled.voucher.offline.policy == "soft":
        writing.execute(
            "INSERT INTO voucher_uses VALUES (?, 1, ?) ON CONFLICT DO UPDATE"
            " SET units = units + 1, minor = minor + excluded.minor",
            (entry.id, minor),
        )
    return None


def customer_key(view: Writing, customer_id: str) -> str:
    """A customer's id does not belong into a table that survives purging; its salted digest does."""
    return hashlib.sha256(f"{view.state.customer_salt} {customer_id}".encode()).hexdigest()


def _key_of(view: Writing, order: Order) -> str | None:
    if order.customer is None or order.customer.id is None:
        return None
    return customer_key(view, order.customer.id)


def _customer_count(view: Writing, entry: Entry, order: Order) -> int:
    row = view.run(
        "SELECT units FROM customer_uses WHERE voucher_id = ? AND customer = ?", (entry.id, _key_of(view, order))
    ).fetchone()
    return 0 if row is None else int(row[0])


def count_customer(writing: Writing, entry: Entry, order: Order, units: int) -> None:
    """Adds to (or, voiding, takes from) what this till knows of `per_customer`, until the voucher ends."""
    customer = _key_of(writing, order)
    if customer is None or entry.compiled is None or entry.compiled.voucher.limits.per_customer is None:
        return
    until = entry.compiled.voucher.valid_until
    writing.execute(
        "INSERT INTO customer_uses VALUES (?, ?, max(0, ?), ?) ON CONFLICT DO UPDATE SET units = max(0, units + ?)",
        (entry.id, customer, units, None if until is None else until.astimezone(UTC), units),
    )


def _note_wants(writing: Writing, result: Result, entries: Mapping[str, Entry]) -> None:
    for refused in result.refused:
        if refused.reason is Reason.NO_ALLOWANCE:
            writing.execute(
                "INSERT INTO wants VALUES (?, 1) ON CONFLICT DO UPDATE SET units = units + 1",
                (entries[fold(refused.code)].id,),
            )


def _with_needs_update(result: Result, entries: Mapping[str, Entry]) -> Result:
    """Says of a voucher that this engine cannot read that it is the till that is too old, not the code unknown."""
    if all(entry.compiled is not None for entry in entries.values()):
        return result
    detail = {"code": "NEEDS_UPDATE", "message": "this voucher needs a newer version of Tallystick on this till"}
    refused = tuple(
        msgspec.structs.replace(one, detail=detail)
        if one.reason is Reason.UNKNOWN_CODE and fold(one.code) in entries
        else one
        for one in result.refused
    )
    return msgspec.structs.replace(result, refused=refused)
