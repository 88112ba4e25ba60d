"""The journal: this till's events, their hash chain (I4), and all that must survive with them.

Plain `sqlite3`; tables and constraints are in `schema`. One writer at a time (`BEGIN IMMEDIATE`), of any number of
threads and processes of one till. A `Writing` is one transaction with at most one commit, and that is one fdatasync;
where it changed nothing it commits nothing.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import uuid_utils

from tallystick_client import schema
from tallystick_client.chain import verify_chain
from tallystick_client.errors import CallerError, StorageError
from tallystick_client.timekeeping import Judged, Mark
from tallystick_shared.engine import ENGINE_VERSION
from tallystick_shared.journal import (
    ENVELOPE_VERSION,
    EVENT_BYTES_MAX,
    Envelope,
    EventType,
    Position,
    StoredEvent,
    Use,
    chain_next,
    encode,
)
from tallystick_shared.signing import sha256_hex
from tallystick_shared.wire import DeviceState

FILE_NAME = "journal.sqlite3"


class State(msgspec.Struct, frozen=True):
    """The one row of `state`. `*_redemptions` and `*_minor` count from the first event: a difference is what waits."""

    server_id: str
    device_id: str
    store_id: str
    scope: str
    device_state: DeviceState
    customer_salt: str
    base_seq: int
    base_hash: str
    durable_seq: int
    acknowledged_seq: int
    acknowledged_hash: str
    acknowledged_redemptions: int
    acknowledged_minor: int
    head_seq: int
    head_hash: str
    head_redemptions: int
    head_minor: int
    server_epoch: int
    ledger_mark: int
    lease_number: int
    bundle_version: int
    bundle_serial: int
    """Rises with every bundle that is kept, so that each process of the till notices."""
    mark_at: datetime
    mark_boot_id: str
    mark_monotonic_s: int
    mark_gained_s: int
    mark_signed_at: datetime
    mark_signed_boot_id: str
    anomaly: str
    batch_events_max: int
    failures: int
    next_attempt_at: datetime | None
    not_before_at: datetime | None
    last_sync_at: datetime | None
    recovering: bool = False
    """The server was restored from a backup, and gathers what its tills know."""
    retired: bool = False
    """Its journal was exported for good: no redemption and no lease ever again."""

    @property
    def mark(self) -> Mark:
        return Mark(
            self.mark_at,
            self.mark_boot_id,
            self.mark_monotonic_s,
            self.mark_gained_s,
            self.mark_signed_at,
            self.mark_signed_boot_id,
        )

    @property
    def head(self) -> Position:
        return Position(self.head_seq, self.head_hash)

    @property
    def acknowledged(self) -> Position:
        return Position(self.acknowledged_seq, self.acknowledged_hash)

    @property
    def waiting(self) -> int:
        """Redemptions that the server has not acknowledged."""
        return self.head_redemptions - self.acknowledged_redemptions

    @property
    def waiting_minor(self) -> int:
        return self.head_minor - self.acknowledged_minor


_COLUMNS = ", ".join(State.__struct_fields__)
_FLAGS = ("recovering", "retired")
"""What SQLite keeps as 0 or 1."""


def mark_columns(mark: Mark) -> dict[str, Any]:
    return {f"mark_{name}": getattr(mark, name) for name in Mark.__struct_fields__}


class Writing:
    """One open transaction. `state` is as it will be; whatever is changed here is committed together or not at all.

    `event_id`: of the redemption or void that was appended, if any; nobody asks for the others.
    """

    def __init__(self, connection: sqlite3.Connection, state: State) -> None:
        self.run = connection.execute
        self.state = state
        self._before = state
        self.touched = False
        self.event_id = ""

    def execute(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """A statement that writes."""
        self.touched = True
        return self.run(statement, tuple(_plain(value) for value in values))

    def change(self, **columns: Any) -> None:
        self.state = msgspec.structs.replace(self.state, **columns)

    def finish(self) -> bool:
        """Writes what changed of `state`; whether there is anything to commit."""
        old, new = self._before, self.state
        changed = {n: getattr(new, n) for n in State.__struct_fields__ if getattr(new, n) != getattr(old, n)}
        if changed:
            self.execute(f"UPDATE state SET {', '.join(f'{name} = ?' for name in changed)}", list(changed.values()))
        return self.touched

    def append(
        self,
        kind: EventType,
        event_id: str,
        judged: Judged,
        body: bytes,
        *,
        uses: Sequence[Use] = (),
        ref: str | None = None,
    ) -> int:
        """Writes one event at the head of the chain, and the time it was given; its number.

        Raises `CallerError` (`EVENT_TOO_LARGE`) past 64 KiB.
        """
        state, mark = self.state, judged.mark
        seq = state.head_seq + 1
        envelope = encode(
            Envelope(
                v=ENVELOPE_VERSION,
                type=kind,
                id=event_id,
                seq=seq,
                at=judged.at,
                boot_id=mark.boot_id,
                monotonic_s=mark.monotonic_s,
                bundle_version=state.bundle_version,
                engine_version=ENGINE_VERSION,
                uses=list(uses),
                body_sha256=sha256_hex(body),
                ref=ref,
            )
        )
        if len(envelope) + len(body) > EVENT_BYTES_MAX:
            raise CallerError(
                f"the order is too large to be kept: {len(envelope) + len(body)} bytes with its result, "
                f"at most {EVENT_BYTES_MAX}",
                code="EVENT_TOO_LARGE",
            )
        is_redemption = kind is EventType.REDEEM
        redemptions = state.head_redemptions + is_redemption
        minor = state.head_minor + (sum(use.minor for use in uses) if is_redemption else 0)
        digest = chain_next(state.head_hash, envelope)
        self.execute(
            "INSERT INTO events (seq, id, type, at, ref, hash, envelope, body, redemptions_so_far, minor_so_far)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (seq, event_id, kind.value, judged.at, ref, digest, envelope, body, redemptions, minor),
        )
        if kind in (EventType.REDEEM, EventType.VOID):
            self.event_id = event_id
        self.change(
            head_seq=seq, head_hash=digest, head_redemptions=redemptions, head_minor=minor, **mark_columns(mark)
        )
        return seq


class Journal:
    """An open journal. Raises `StorageError` in one sentence for whatever the disk does."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.RLock()
        self._pid = os.getpid()

    @classmethod
    def create(
        cls, path: Path, state: State, root_version: int, root: bytes, request: bytes = b"", answer: bytes = b""
    ) -> None:
        """Makes the journal of a newly enrolled till; it is at `path` complete, or not at all.

        `request`, `answer`: the enrolment as it was sent and answered, for a server that has forgotten this device.
        """
        making = path.with_name(path.name + ".new")
        with schema.on_disk(f"{path} cannot be made"):
            making.unlink(missing_ok=True)  # left by an enrolment that was cut off; it never was a journal
        connection = schema.create(making)
        try:
            values = [_plain(getattr(state, name)) for name in State.__struct_fields__]
            connection.execute(f"INSERT INTO state (one, {_COLUMNS}) VALUES (1{', ?' * len(values)})", values)
            connection.execute("INSERT INTO roots VALUES (?, ?)", (root_version, root))
            if request:
                connection.execute("INSERT INTO enrolment VALUES (1, ?, ?)", (request, answer))
            connection.execute("COMMIT")
            # the log does not go with the file when it is renamed, and a close that fails to empty it does not say so
            (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise StorageError(f"another process has opened {making}: enrol again", code="BUSY")
        except sqlite3.Error as error:
            raise schema.explained(error, path) from error
        finally:
            connection.close()
        with schema.on_disk(f"{path} cannot be made"):
            making.rename(path)
            schema.sync_folder(path.parent)  # before the config says that there is a till

    @classmethod
    def open(cls, path: Path, *, label: str) -> Journal:
        """The journal at `path`. A damaged one is renamed aside, `label` in its name, and reported; never remade."""
        try:
            return cls._opened(path)
        except StorageError as error:
            if error.code != "JOURNAL_DAMAGED":
                raise
        try:
            return cls._opened(path)  # SQLite says the same of what a disk failed to read, and that may pass
        except StorageError as error:
            if error.code != "JOURNAL_DAMAGED":
                raise
            schema.demand_readable(path)
            aside = schema.set_aside(path, label)
            raise StorageError(
                f"the journal was damaged and is kept as {aside}: keep that file, it holds what was redeemed, and "
                "enrol this till again in another directory",
                code="JOURNAL_DAMAGED",
            ) from error

    @classmethod
    def _opened(cls, path: Path) -> Journal:
        journal = cls(schema.open_existing(path), path)
        try:
            journal.check_head()
        except StorageError:
            journal.close()
            raise
        return journal

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def write(self) -> Iterator[Writing]:
        """One transaction, alone among all processes of this till; rolled back if the block raises."""
        with self._locked():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                writing = Writing(self._connection, self._state())
                yield writing
                if writing.finish():
                    self._commit(writing.event_id)
                else:
                    self._connection.execute("ROLLBACK")
            except BaseException:
                # SQLite rolls back by itself on a full disk, and then says that there is nothing to roll back
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _commit(self, event_id: str) -> None:
        """Raises `StorageError` (`UNCERTAIN`) where the disk fails once all is in the log: it is as good as not written
        for this process and any other that has the journal open, and there for who opens it after a crash."""
        try:
            self._connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            failed = error.sqlite_errorcode
            if failed & 0xFF != sqlite3.SQLITE_IOERR or failed == sqlite3.SQLITE_IOERR_WRITE:
                raise  # what was not written is not there, but what was not synced may be
            again = f"ask again with the id {event_id}" if event_id else "ask again"
            raise StorageError(
                f"the disk failed while this was being written, so that it may be kept or not: {again} ({error})",
                code="UNCERTAIN",
            ) from error

    @contextmanager
    def read(self) -> Iterator[Writing]:
        """One consistent view of everything; nothing can be written through it."""
        with self._locked():
            self._connection.execute("BEGIN")
            try:
                yield Writing(self._connection, self._state())
            finally:
                self._connection.execute("ROLLBACK")

    def state(self) -> State:
        with self.read() as view:
            return view.state

    def check_head(self) -> None:
        """Raises `StorageError` (`JOURNAL_DAMAGED`) where the newest event is not what the chain's head says."""
        with self.read() as view:
            state = view.state
            if state.head_seq > state.base_seq:
                verify_chain(view, state.head_seq - 1, state.head_seq)

    def verify(self) -> int:
        """Goes through the whole chain from the first event kept; how many there are."""
        with self.read() as view:
            return verify_chain(view, view.state.base_seq, view.state.head_seq)

    def scrub(self) -> None:
        """Brings the log into the file, so that it keeps nothing of what was erased; a reader at work delays that."""
        with self._locked():
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if os.getpid() != self._pid:
            raise CallerError("a till must be opened by the process that uses it, after any fork", code="FORKED")
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise schema.explained(error, self.path) from error

    def _state(self) -> State:
        row = self._connection.execute(f"SELECT {_COLUMNS} FROM state").fetchone()
        if row is None:
            raise StorageError(f"the journal {self.path} has lost its state", code="JOURNAL_DAMAGED")
        values = dict(zip(State.__struct_fields__, row, strict=True))
        try:
            return msgspec.convert({**values, **{name: bool(values[name]) for name in _FLAGS}}, State)
        except msgspec.ValidationError as error:
            raise StorageError(f"the journal {self.path} is damaged: {error}", code="JOURNAL_DAMAGED") from error


def stored_events(view: Writing, after_seq: int, events_max: int, bytes_max: int) -> list[StoredEvent]:
    """The next events after `after_seq`, at most `events_max` and `bytes_max` bytes, but one at least."""
    events: list[StoredEvent] = []
    size = 0
    rows = view.run("SELECT envelope, body FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (after_seq, events_max))
    for envelope, body in rows:
        size += len(envelope) + len(body) + 2
        if events and size > bytes_max:
            break
        events.append(StoredEvent(envelope, body))
    return events


def new_id(at: datetime) -> str:
    """A UUID of version 7 for the time `at`."""
    return str(uuid_utils.uuid7(nanoseconds=int(at.timestamp()) * 10**9))


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value
