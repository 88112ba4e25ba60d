"""The hash chain of a journal that is open (I4), read and recomputed. Source: protocol.md, section 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystick_client.errors import StorageError
from tallystick_shared.journal import Position, chain_next, read_envelope
from tallystick_shared.signing import sha256_hex

if TYPE_CHECKING:
    from tallystick_client.journal import Writing


def position_at(view: Writing, seq: int) -> Position | None:
    """The place `seq` of our own chain, None where it is not kept."""
    if seq == view.state.base_seq:
        return Position(seq, view.state.base_hash)
    row = view.run("SELECT hash FROM events WHERE seq = ?", (seq,)).fetchone()
    return None if row is None else Position(seq, row[0])


def verify_chain(view: Writing, after_seq: int, through_seq: int) -> int:
    """Recomputes the chain of the events in (after, through]; raises `JOURNAL_DAMAGED` at the first that breaks it."""
    start = position_at(view, after_seq)
    previous = start.hash if start else ""
    count = 0
    rows = view.run(
        "SELECT seq, hash, envelope FROM events WHERE seq > ? AND seq <= ? ORDER BY seq", (after_seq, through_seq)
    )
    for seq, digest, envelope in rows:
        count += 1
        if not previous or seq != after_seq + count or chain_next(previous, envelope) != digest:
            raise _broken_at(after_seq + count)
        previous = digest
    if count != through_seq - after_seq:
        raise _broken_at(after_seq + count + 1)
    if through_seq == view.state.head_seq and previous != view.state.head_hash:
        raise _broken_at(through_seq)
    return count


def _broken_at(seq: int) -> StorageError:
    return StorageError(f"the journal is damaged: the chain breaks at event {seq}", code="JOURNAL_DAMAGED")


def verify_bodies(view: Writing) -> int:
    """Compares each body with the digest in its envelope; how many are erased. Raises `JOURNAL_DAMAGED` at the first.

    The chain must have been verified: it says nothing of bodies, but that their digests are as they were written.
    """
    erased = 0
    for seq, envelope, body in view.run("SELECT seq, envelope, body FROM events ORDER BY seq"):
        erased += not body
        if body and sha256_hex(body) != read_envelope(envelope).body_sha256:
            raise StorageError(f"the journal is damaged: the body of event {seq} was changed", code="JOURNAL_DAMAGED")
    return erased
