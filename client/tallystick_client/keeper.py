"""The till's own side of every driver: opens its files, and performs what the machines ask to be kept.

Blocking, without network; `drivers` calls it directly or in a worker thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path

import msgspec

from tallystick_client import exchange
from tallystick_client.actions import (
    Accept,
    BeginOnline,
    Change,
    Event,
    Failed,
    FallBack,
    FinishOnline,
    KeepBundle,
    KeepEnrolment,
    KeepKey,
    KeepRoots,
    Kept,
    Persisted,
    Prepare,
    Start,
    Tick,
)
from tallystick_client.arguments import OrderInput, as_codes, as_id, as_order
from tallystick_client.attempts import close_attempt, earlier_receipt, fingerprint_of, is_voided, pending_id
from tallystick_client.directory import Config, Directory
from tallystick_client.enrolment import Enrolment
from tallystick_client.errors import CallerError, InvalidInput, StorageError
from tallystick_client.journal import FILE_NAME, Journal, State, Writing, mark_columns, new_id
from tallystick_client.machine import Machine
from tallystick_client.online import OnlineRedemption
from tallystick_client.reports import Receipt
from tallystick_client.schema import on_disk, set_aside
from tallystick_client.store import DIRECTORY_NAME, Store
from tallystick_client.terminal import (
    Terminal,
    count_customer,
    demand_not_retired,
    find_entries,
)
from tallystick_client.timekeeping import Clock, read_clock, signed
from tallystick_shared.engine import Reason, Result
from tallystick_shared.journal import BATCH_EVENTS_MAX, chain_start, encode
from tallystick_shared.model import order_json, parse_order
from tallystick_shared.signing import SigningKey
from tallystick_shared.wire import DeviceState, EnrolmentToken, RedeemRequest


class Keeper:
    """The open files of one till."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.directory = Directory(path)
        self.clock = clock
        self.config = self.directory.config()
        key = self.directory.key()
        if key is None:
            raise StorageError(f"{path} has lost its device.key: enrol this till again", code="NOT_A_TILL")
        self.key = key
        self.journal = Journal.open(path / FILE_NAME, label=_label(clock))
        try:
            self._demand_one_till()
            self.store = Store(path / DIRECTORY_NAME, label=lambda: _label(clock))
        except StorageError:
            self.journal.close()
            raise
        self.terminal = Terminal(self.journal, self.store, clock)

    def close(self) -> None:
        self.store.close()
        self.journal.close()

    def tick(self) -> Tick:
        with self.journal.read() as view:
            judged, boot_id = self.terminal.judged(view), view.state.mark_boot_id
        if judged.anomaly and judged.mark.boot_id != boot_id:
            # in a boot that nothing was written in, time stands still where the wall clock is not believed: so would
            # every appointment
            with self.journal.write() as writing:
                judged = self.terminal.judged(writing)
                writing.change(**mark_columns(judged.mark))
        return Tick(judged.at, read_clock(self.clock), *_chance())

    def sync_machine(self, patient: bool) -> tuple[Machine, Start]:
        with self.journal.read() as view:
            bundle = self.terminal.readable_bundle(view)
            held = None if bundle is None or not self.store.holds(bundle) else bundle.held
            reading, trusted, proof = exchange.reading(view), exchange.trusted_state(view), exchange.proof(view)
            start = Start(reading, trusted, held, patient, proof)
        return Machine(self.config.device, self.key), start

    def online_machine(
        self, order: OrderInput, codes: Sequence[str], redemption_id: str | None = None
    ) -> OnlineRedemption:
        """An attempt that was cut off before its answer is taken up again, under its id; the same sale under the same
        `redemption_id` again gives the receipt it had."""
        order, codes = as_order(order), as_codes(codes)
        if not codes:
            raise InvalidInput("codes", "must hold at least one code")
        with self.journal.read() as view:
            demand_not_retired(view.state)
            self.terminal.bundle(view)  # nothing is sent whose offline redemption could not take its place
            earlier = None
            if redemption_id is not None:
                earlier = earlier_receipt(view, as_id(redemption_id), order, codes)
            redemption_id = redemption_id or pending_id(view, order, codes) or new_id(self.terminal.judged(view).at)
            request = RedeemRequest(redemption_id, msgspec.Raw(order_json(order)), codes, self.config.device)
            trusted = exchange.trusted_state(view)
        return OnlineRedemption(request, self.key, trusted, earlier)

    def perform(self, change: Change) -> Event:
        """Makes one change durable. Raises `StorageError`, `Untrusted`; then nothing of it was kept."""
        match change:
            case KeepBundle():
                return self._keep_bundle(change)
            case BeginOnline():
                return self._begin_online(change)
            case FinishOnline():
                return self._finish_online(change)
            case FallBack():
                return self._fall_back(change)
            case _:
                with self.journal.write() as writing:
                    return self._exchange(writing, change)

    def _exchange(self, writing: Writing, change: Change) -> Persisted:
        granted = closed = 0
        judged = self.terminal.judged(writing)
        match change:
            case Prepare(batch_events_max, too_small):
                closed = exchange.close_done_leases(writing, judged, too_small=too_small)
                if batch_events_max is not None:
                    writing.change(batch_events_max=batch_events_max)
            case Accept():
                granted, closed = exchange.accept(writing, change, judged, read_clock(self.clock))
                self.terminal.forget_ended(writing)
            case KeepRoots(roots):
                exchange.keep_roots(writing, roots)
            case Failed():
                exchange.keep_failure(writing, change)
            case _:
                raise RuntimeError(f"{type(change).__name__} is not kept in a journal")
        return Persisted(exchange.reading(writing), granted, closed)

    def _keep_bundle(self, change: KeepBundle) -> Persisted:
        # the cache first: a floor above what the cache has would leave this till without vouchers
        with self.journal.read() as view:
            bundle = self.terminal.bundle(view)
        parts = self.store.keep(change, "" if bundle is None else bundle.digest)
        try:
            with self.journal.write() as writing:
                exchange.keep_roots(writing, change.roots)
                exchange.keep_floor(writing, change.manifest)
                self.terminal.take(change, parts, writing.state.bundle_serial)
                return Persisted(exchange.reading(writing))
        except BaseException:
            self.terminal.forget_bundle()  # its serial may become that of another process's bundle
            raise

    def _begin_online(self, change: BeginOnline) -> Kept:
        request = msgspec.json.decode(change.request, type=RedeemRequest)
        fingerprint = fingerprint_of(bytes(request.order), request.codes)
        with self.journal.write() as writing:
            if is_voided(writing, change.id):  # by another process, since this attempt was looked up
                raise CallerError(f"the attempt {change.id} was voided on this till: redeem anew", code="VOIDED")
            at = self.terminal.judged(writing).at
            writing.execute(
                "INSERT INTO attempts (id, at, fingerprint, request, state) VALUES (?, ?, ?, ?, 'pending')"
                " ON CONFLICT (id) DO UPDATE SET state = 'pending', answer = NULL WHERE state = 'refused'",
                (change.id, at, fingerprint, change.request),
            )
        return Kept()

    def _finish_online(self, change: FinishOnline) -> Kept:
        answer = change.answer
        if answer is None:
            with self.journal.write() as writing:
                close_attempt(writing, change.id, "refused")
            return Kept()
        result = msgspec.json.decode(answer.result, type=Result)
        if not answer.redeemed and self._holds_what_was_refused(result):
            # not used up: leased, and to this till. What the server refuses it does not keep, so the id is free
            kept = self._fall_back(FallBack(answer.id))
            if kept.receipt is not None and kept.receipt.redeemed:
                return kept
        with self.journal.write() as writing:
            if answer.redeemed and is_voided(writing, answer.id):
                # its unit is on its way back to the pool, so nothing may go out for it
                raise CallerError(
                    f"the redemption {answer.id} was voided on this till while the server answered: redeem anew",
                    code="VOIDED",
                )
            first = close_attempt(writing, answer.id, "redeemed" if answer.redeemed else "refused", encode(answer))
            bundle = self.terminal.readable_bundle(writing)
            if first and answer.redeemed and bundle is not None:
                raw = writing.run("SELECT request FROM attempts WHERE id = ?", (answer.id,)).fetchone()[0]
                order = parse_order(bytes(msgspec.json.decode(raw, type=RedeemRequest).order))
                for entry in find_entries(bundle, [applied.code for applied in result.applied]).values():
                    count_customer(writing, entry, order, 1)
        return Kept(Receipt(answer.id, answer.at, answer.redeemed, result, online=True))

    def _holds_what_was_refused(self, result: Result) -> bool:
        codes = [one.code for one in result.refused if one.reason in (Reason.LIMIT_REACHED, Reason.BUDGET_EXHAUSTED)]
        with self.journal.read() as view:
            bundle = self.terminal.readable_bundle(view)
            found = {} if bundle is None else find_entries(bundle, codes)
            return any(
                view.run("SELECT 1 FROM leases WHERE voucher_id = ? AND state = 'active'", (entry.id,)).fetchone()
                for entry in found.values()
            )

    def _fall_back(self, change: FallBack) -> Kept:
        """Redeems offline under the same id. If that gives nothing the attempt stays open: the server may have it."""
        with self.journal.read() as view:
            raw = view.run("SELECT request FROM attempts WHERE id = ?", (change.id,)).fetchone()[0]
        request = msgspec.json.decode(raw, type=RedeemRequest)
        return Kept(self.terminal.redeem(bytes(request.order), request.codes, redemption_id=change.id))

    def _demand_one_till(self) -> None:
        state = self.journal.state()
        if (state.device_id, state.server_id) != (self.config.device, self.config.server):
            raise StorageError(
                f"{self.directory.path} mixes the files of two tills: its config and its journal differ",
                code="MIXED_DIRECTORY",
            )


class Enroller:
    """The files of a till that is being enrolled."""

    def __init__(self, path: Path, server_url: str, token: str, name: str | None, clock: Clock) -> None:
        self.clock = clock
        self._server_url, self._name = server_url, name or path.name or "till"
        try:
            self._token = EnrolmentToken.parse(token)
        except ValueError as error:
            raise InvalidInput("token", str(error)) from None
        if not 1 <= len(self._name) <= 128:
            raise InvalidInput("name", "must be 1 to 128 characters")
        self._directory = Directory(path)
        self._directory.make()
        self.key = self._directory.key() or SigningKey.generate()

    def machine(self) -> Enrolment:
        return Enrolment(self._token, self._name, self.key)

    def tick(self) -> Tick:
        reading = read_clock(self.clock)
        return Tick(reading.at, reading, *_chance())

    def perform(self, change: Change) -> Event:
        match change:
            case KeepKey(key):
                self._directory.keep_key(key)
            case KeepEnrolment():
                self._keep(change)
            case _:
                raise RuntimeError(f"{type(change).__name__} is no part of an enrolment")
        return Kept()

    def _keep(self, change: KeepEnrolment) -> None:
        enrolled = change.enrolled
        path = self._directory.path / FILE_NAME
        with on_disk(f"{path} cannot be looked at"):
            left_over = path.exists()
        if left_over:
            # an enrolment was cut off between journal and config; a journal with events is somebody's, and stays
            left = Journal.open(path, label=_label(self.clock))
            head_seq = left.state().head_seq
            left.close()
            if head_seq:
                raise StorageError(f"{path} holds the journal of another till", code="MIXED_DIRECTORY")
        set_aside(path, _label(self.clock))  # also a log without its journal: SQLite would read it into the new one
        start = chain_start(enrolled.server, enrolled.device, self.key.public())
        mark = signed(None, read_clock(self.clock), enrolled.server_time)
        state = State(
            server_id=enrolled.server,
            device_id=enrolled.device,
            store_id=enrolled.store_id,
            scope=enrolled.scope,
            device_state=DeviceState.ACTIVE,
            customer_salt=secrets.token_hex(16),
            base_seq=0,
            base_hash=start,
            durable_seq=0,
            acknowledged_seq=0,
            acknowledged_hash=start,
            acknowledged_redemptions=0,
            acknowledged_minor=0,
            head_seq=0,
            head_hash=start,
            head_redemptions=0,
            head_minor=0,
            server_epoch=enrolled.server_epoch,
            ledger_mark=enrolled.ledger_mark,
            lease_number=0,
            bundle_version=0,
            bundle_serial=0,
            anomaly="",
            batch_events_max=BATCH_EVENTS_MAX,
            failures=0,
            next_attempt_at=None,
            not_before_at=None,
            last_sync_at=None,
            **mark_columns(mark),
        )
        proof = change.proof
        Journal.create(path, state, change.root_version, change.root, proof.request, proof.answer)
        config = Config(
            device=enrolled.device,
            server=enrolled.server,
            server_url=self._server_url,
            name=self._name,
            store_id=enrolled.store_id,
            root_version=self._token.root_version,
            root_sha256=self._token.root_sha256,
        )
        self._directory.keep_config(config)


def _label(clock: Clock) -> str:
    """For the name of a file that is set aside: when, and something that no other has."""
    return f"{clock.now().astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def _chance() -> tuple[str, float]:
    return secrets.token_urlsafe(24), secrets.randbelow(2**32) / 2**32
