"""What changed in a scope from version to version, and how little of it a device has to fetch.

Every change of a scope notes its vouchers in `scope_changes`. When a manifest is made, the vouchers noted since the
last one become one delta: nothing here looks at the others. The deltas before it are merged as a binary counter is:
the last two become one while the newer has at least half as many changes as the older. So each change is written
O(log n) times in all, the list has O(log n) entries, and a device that was here at the last manifest fetches exactly
what changed since.

Once the deltas since the snapshot hold a quarter of the scope, a new snapshot is made. Older deltas go on being named
for devices that hold an older version, as long as all of them together are no larger than the snapshot, which is what
such a device fetches instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, delete, insert, select, update

from tallystick_server import blobs
from tallystick_server.database import Transaction, chunks
from tallystick_server.settings import DAY_S
from tallystick_server.tables import scope_changes, scope_vouchers, scopes, voucher_revisions, vouchers
from tallystick_shared.bundle import (
    BlobRef,
    BundleVoucher,
    DeltaRef,
    drop_line,
    hidden_code,
    put_line,
    read_lines,
    state_digest,
    voucher_digest,
)

KEPT_S: Final = 30 * DAY_S
"""How long after its end a delta is named that no new device needs."""
KEPT_MAX: Final = 40
"""Deltas named at most; what comes after a snapshot alone stays far below."""
SNAPSHOT_PART: Final = 4
SNAPSHOT_MIN = 100

Parts = Sequence[tuple[str, str]]
"""(voucher id, digest of its revision)."""


class Delta(msgspec.Struct, frozen=True):
    """A delta as the scope keeps it: how many lines it has, and when its end was the newest version."""

    from_version: int
    sha256: str
    bytes: int
    changes: int
    made_at: datetime

    def ref(self) -> DeltaRef:
        return DeltaRef(self.from_version, self.sha256, self.bytes)


_DELTAS = msgspec.json.Decoder(list[Delta])


@dataclass(frozen=True)
class Chain:
    """What a manifest names. The last delta ends at its version, any other where the next begins."""

    snapshot: BlobRef
    deltas: list[Delta]

    def blobs(self) -> set[str]:
        return {self.snapshot.sha256, *(one.sha256 for one in self.deltas)}

    def columns(self) -> dict[str, Any]:
        """Of `scopes`."""
        return {
            "snapshot_version": self.snapshot.version,
            "snapshot_sha256": self.snapshot.sha256,
            "snapshot_bytes": self.snapshot.bytes,
            "snapshot_vouchers": self.snapshot.vouchers,
            "deltas": msgspec.json.encode(self.deltas).decode(),
        }


def most_changes(in_scope: int) -> int:
    """So many changes are deltas; more are a snapshot."""
    return max(SNAPSHOT_MIN, in_scope // SNAPSHOT_PART)


async def change_scope(transaction: Transaction, name: str, *, put: Parts = (), taken: Parts = ()) -> None:
    """A new version of a scope. A revised voucher is in both: its new revision is put, the one before is taken."""
    query = select(scopes).where(scopes.c.name == name)
    row = (await transaction.execute(query.with_for_update(key_share=True))).one()
    change = _digests(put) - _digests(taken)
    values: dict[str, Any] = {
        "version": row.version + 1,
        "vouchers": row.vouchers + len(put) - len(taken),
        "state_digest": state_digest(int(row.state_digest, 16) + change),
    }
    changed = {voucher_id for voucher_id, _ in (*put, *taken)}
    if len(changed) > most_changes(row.vouchers):
        values["snapshot_version"] = None  # a new one is due, and needs no notes
    elif row.snapshot_version is not None:
        notes = [{"scope": name, "version": row.version + 1, "voucher_id": one} for one in sorted(changed)]
        await transaction.execute(insert(scope_changes), notes)
    await transaction.execute(update(scopes).where(scopes.c.name == name).values(**values))


def _digests(parts: Parts) -> int:
    return sum(voucher_digest(voucher_id, sha256) for voucher_id, sha256 in parts)


async def advance(transaction: Transaction, row: Row[Any], *, same_epoch: bool, now: datetime) -> Chain:
    """What the manifest of the scope's version is to name; `row` is the scope's, locked.

    `same_epoch`: the manifest before was of this server epoch. In a new one versions may be counted again, so no delta
    leads on from the old one's.
    """
    if row.snapshot_version is None or (not same_epoch and row.snapshot_version != row.version):
        chain = Chain(await _snapshot(transaction, row, now), [])
    else:
        before = snapshot_of(row)
        deltas = _DELTAS.decode(row.deltas) if same_epoch else []
        chain = Chain(before, deltas)
        if row.manifest_version != row.version:
            chain = await _grown(transaction, row, chain, now)
    noted = delete(scope_changes).where(scope_changes.c.scope == row.name, scope_changes.c.version <= row.version)
    await transaction.execute(noted)
    return chain


def snapshot_of(row: Row[Any]) -> BlobRef:
    return BlobRef(row.snapshot_version, row.snapshot_sha256, row.snapshot_bytes, row.snapshot_vouchers)


def named_by(row: Row[Any]) -> set[str]:
    """The blobs that the scope's last manifest names."""
    named = {one.sha256 for one in _DELTAS.decode(row.deltas)}
    return named if row.snapshot_sha256 is None else named | {row.snapshot_sha256}


async def _grown(transaction: Transaction, row: Row[Any], before: Chain, now: datetime) -> Chain:
    """The chain of the last manifest, led on to the scope's version."""
    most = most_changes(row.vouchers)
    changed = await _changed(transaction, row, most)
    if len(changed) > most:
        return Chain(await _snapshot(transaction, row, now), [])
    snapshot, deltas = before.snapshot, await _merged(transaction, before, row.manifest_version, now)
    sha256, size = await blobs.store(transaction, await _lines(transaction, row, changed), now)
    deltas = [*deltas, Delta(row.manifest_version, sha256, size, len(changed), now)]
    if sum(one.changes for one, end in with_ends(deltas, row.version) if end > snapshot.version) > most:
        snapshot = await _snapshot(transaction, row, now)
    return Chain(snapshot, kept(deltas, snapshot, row.version, now))


async def _changed(transaction: Transaction, row: Row[Any], most: int) -> list[str]:
    """Ids of the vouchers changed since the last manifest; no more than one more than `most`."""
    query = select(scope_changes.c.voucher_id).where(
        scope_changes.c.scope == row.name, scope_changes.c.version > row.manifest_version
    )
    return sorted((await transaction.execute(query.distinct().limit(most + 1))).scalars())


def with_ends(deltas: Sequence[Delta], version: int) -> list[tuple[Delta, int]]:
    """Each delta and the version it leads to; `version` is that of the manifest."""
    bounds = [*(one.from_version for one in deltas), version]
    return list(zip(deltas, bounds[1:], strict=True))


def merge_from(deltas: Sequence[Delta], snapshot_version: int, version: int) -> int:
    """The index of the delta from which on all become one; that of the last where nothing is to be merged.

    Never across the snapshot: a new device would fetch what the snapshot holds already.
    """
    start = len(deltas) - 1
    changes = deltas[start].changes
    while start > 0 and not deltas[start].from_version <= snapshot_version < version:
        if 2 * changes < deltas[start - 1].changes:
            break
        start -= 1
        changes += deltas[start].changes
    return start


def kept(deltas: Sequence[Delta], snapshot: BlobRef, version: int, now: datetime) -> list[Delta]:
    """Without the oldest ones that are too old, or more to fetch than the snapshot, and that no new device needs."""
    oldest, size = 0, sum(one.bytes for one in deltas)
    for one, end in with_ends(deltas, version):
        old = one.made_at < now - timedelta(seconds=KEPT_S)
        if end > snapshot.version or not (old or size > snapshot.bytes or len(deltas) - oldest > KEPT_MAX):
            break
        oldest += 1
        size -= one.bytes
    return list(deltas[oldest:])


async def _merged(transaction: Transaction, before: Chain, version: int, now: datetime) -> list[Delta]:
    """The deltas of the last manifest, whose version this is, fewer where the newest are many enough."""
    deltas = before.deltas
    if not deltas:
        return []
    start = merge_from(deltas, before.snapshot.version, version)
    if start == len(deltas) - 1:
        return deltas
    lines: dict[str, bytes] = {}
    for raw in await blobs.unpacked(transaction, [one.sha256 for one in deltas[start:]]):
        for one in read_lines(raw):
            if isinstance(one, str):
                lines[one] = drop_line(one)
            else:
                lines[one.id] = put_line(one)
    sha256, size = await blobs.store(transaction, [lines[one] for one in sorted(lines)], now)
    return [*deltas[:start], Delta(deltas[start].from_version, sha256, size, len(lines), deltas[-1].made_at)]


async def _lines(transaction: Transaction, row: Row[Any], changed: Collection[str]) -> list[bytes]:
    """A line for each of these vouchers as it now is: put, or dropped."""
    lines = {voucher_id: drop_line(voucher_id) for voucher_id in changed}
    for part in chunks(sorted(changed)):
        for line in await transaction.execute(_active(row.name).where(vouchers.c.id.in_(part))):
            lines[line.id] = _put(row.code_salt, line)
    return [lines[voucher_id] for voucher_id in sorted(lines)]


async def _snapshot(transaction: Transaction, row: Row[Any], now: datetime) -> BlobRef:
    """The blob that holds every voucher of the scope as it now is."""
    found: Iterable[Any] = await transaction.execute(_active(row.name).order_by(scope_vouchers.c.voucher_id))
    lines = [_put(row.code_salt, line) for line in found]
    sha256, size = await blobs.store(transaction, lines, now)
    return BlobRef(row.version, sha256, size, len(lines))


def _active(scope: str) -> Select[Any]:
    return (
        select(vouchers.c.id, vouchers.c.folded, vouchers.c.hidden, vouchers.c.revision, voucher_revisions.c.json)
        .join(scope_vouchers, scope_vouchers.c.voucher_id == vouchers.c.id)
        .join(
            voucher_revisions,
            (voucher_revisions.c.voucher_id == vouchers.c.id) & (voucher_revisions.c.revision == vouchers.c.revision),
        )
        .where(scope_vouchers.c.scope == scope, vouchers.c.deactivated_at.is_(None))
    )


def _put(salt: str, line: Any) -> bytes:
    code = hidden_code(salt, line.folded) if line.hidden else line.folded
    return put_line(BundleVoucher(line.id, line.revision, code, msgspec.Raw(line.json)))
