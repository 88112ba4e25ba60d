"""Erasing what this till's journal holds of one customer. Source: protocol.md, section 6.

What waits cannot be erased: the server has to have seen the order to say whether the price was right. Envelopes, and so
the chain, amounts and leases, stay as they are. What the till knows of `per_customer` goes too: whoever has this file
has the salt, and could ask it whether this customer was ever here. Forgotten, a customer starts anew.
"""

from __future__ import annotations

import msgspec

from tallystick_client.errors import InvalidInput
from tallystick_client.journal import Journal, Writing
from tallystick_client.terminal import customer_key
from tallystick_shared.journal import EventType, read_envelope

_ERASE = "UPDATE events SET body = x'' WHERE seq = ?"


class Forgotten(msgspec.Struct, frozen=True):
    """`bodies` erased, `attempts` to redeem online removed, and what still waits for the server and was left."""

    bodies: int
    attempts: int
    waiting: int


class _Customer(msgspec.Struct):
    id: str | None = None


class _Order(msgspec.Struct):
    customer: _Customer | None = None


class _Sale(msgspec.Struct):
    """The body of a redemption, and a request to redeem online."""

    order: _Order


_SALE = msgspec.json.Decoder(_Sale)


def forget(journal: Journal, customer_id: str) -> Forgotten:
    """Erases in one transaction what does not wait; to be done again after a sync where something waited.

    Raises `InvalidInput`, `StorageError`.
    """
    if not 0 < len(customer_id) <= 256:
        raise InvalidInput("CUSTOMER", "must be a customer's id, of 1 to 256 characters")
    with journal.write() as writing:
        # SQLite leaves deleted bytes in its file until something else needs the room
        writing.run("PRAGMA secure_delete = ON").fetchone()
        bodies, waiting = _erase_bodies(writing, customer_id)
        attempts, pending = _remove_attempts(writing, customer_id)
        writing.execute("DELETE FROM customer_uses WHERE customer = ?", (customer_key(writing, customer_id),))
    journal.scrub()
    return Forgotten(bodies, attempts, waiting + pending)


def _erase_bodies(writing: Writing, customer_id: str) -> tuple[int, int]:
    """Of the customer's redemptions, and of their voids, which may say why; how many, and how many wait."""
    rows = writing.run(
        "SELECT seq, id, type, envelope, body FROM events WHERE body <> x'' AND type IN (?, ?) ORDER BY seq",
        (EventType.REDEEM.value, EventType.VOID.value),
    )
    theirs: list[int] = []
    ids = _known_attempts(writing, customer_id)
    for seq, event_id, kind, envelope, body in rows:
        if kind == EventType.REDEEM.value and _is_of(body, customer_id):
            ids.add(event_id)
            theirs.append(seq)
        elif kind == EventType.VOID.value and read_envelope(envelope).ref in ids:
            theirs.append(seq)
    done = [seq for seq in theirs if seq <= writing.state.acknowledged_seq]
    for seq in done:
        writing.execute(_ERASE, (seq,))
    return len(done), len(theirs) - len(done)


def _known_attempts(writing: Writing, customer_id: str) -> set[str]:
    rows = writing.run("SELECT id, request FROM attempts").fetchall()
    return {attempt_id for attempt_id, request in rows if _is_of(request, customer_id)}


def _remove_attempts(writing: Writing, customer_id: str) -> tuple[int, int]:
    """One without an answer stays, so that it is asked again under its id; how many went, and how many stayed."""
    pending = {one for (one,) in writing.run("SELECT id FROM attempts WHERE state = 'pending'")}
    theirs = _known_attempts(writing, customer_id)
    for attempt_id in theirs - pending:
        writing.execute("DELETE FROM attempts WHERE id = ?", (attempt_id,))
    return len(theirs - pending), len(theirs & pending)


def _is_of(raw: bytes, customer_id: str) -> bool:
    customer = _SALE.decode(raw).order.customer
    return customer is not None and customer.id == customer_id
