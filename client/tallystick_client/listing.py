"""What the journal holds, event by event, for a person who looks for a receipt or asks what became of one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from tallystick_client.journal import State, Writing
from tallystick_shared.journal import Envelope, EventType, read_envelope


class Entry(msgspec.Struct, frozen=True):
    """One event.

    `id` of a `redeem` is what `tallystick void` takes, `voided` whether that was done; `ref` of a `void` is that id.
    `amount_minor`: what the vouchers gave, below 0 where a void gave it back to them, null for closes and clocks;
    `currency` and `codes` (of a void, those of its redemption) are null and empty where that body is erased; `erased`:
    this event's own is. `ref_seq`: the event that a void is of, null where it is not kept. `state`: waiting,
    acknowledged, or durable (in any backup that the server may be restored from). `outcome` is null while it waits.
    """

    seq: int
    at: datetime
    type: str
    id: str
    ref: str | None
    ref_seq: int | None
    amount_minor: int | None
    currency: str | None
    codes: list[str]
    state: str
    outcome: str | None
    reasons: list[str]
    voided: bool
    erased: bool


class _Result(msgspec.Struct):
    currency: str | None = None


class _Body(msgspec.Struct):
    codes: list[str] = []
    result: _Result = msgspec.field(default_factory=_Result)


_BODY = msgspec.json.Decoder(_Body)


def entries(view: Writing, *, waiting: bool, limit: int) -> list[Entry]:
    """The newest `limit` events, oldest first; with `waiting` only those that the server has not acknowledged."""
    after_seq = view.state.acknowledged_seq if waiting else view.state.base_seq
    rows = view.run(
        "SELECT one.seq, one.envelope, one.body, one.outcome, one.reasons,"
        " EXISTS (SELECT 1 FROM voids WHERE redemption_id = one.id), sold.seq, sold.body"
        " FROM events AS one LEFT JOIN events AS sold ON sold.id = one.ref"
        " WHERE one.seq > ? ORDER BY one.seq DESC LIMIT ?",
        (after_seq, limit),
    ).fetchall()
    return [_entry(view.state, row) for row in reversed(rows)]


def _entry(state: State, row: Any) -> Entry:
    seq, raw, body, outcome, reasons, voided, ref_seq, ref_body = row
    envelope = read_envelope(raw)
    said = _read(body if ref_body is None else ref_body)
    return Entry(
        seq=seq,
        at=envelope.at,
        type=envelope.type.value,
        id=envelope.id,
        ref=envelope.ref,
        ref_seq=ref_seq,
        amount_minor=_amount(envelope),
        currency=said.result.currency,
        codes=said.codes,
        state=_state(state, seq),
        outcome=outcome,
        reasons=reasons.split(),
        voided=bool(voided),
        erased=not body,
    )


def _read(body: bytes) -> _Body:
    """What is not there, or cannot be read, is left out: a list is no place to refuse."""
    try:
        return _BODY.decode(body) if body else _Body()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Body()


def _amount(envelope: Envelope) -> int | None:
    minor = sum(use.minor for use in envelope.uses)
    if envelope.type is EventType.REDEEM:
        return minor
    return -minor if envelope.type is EventType.VOID else None


def _state(state: State, seq: int) -> str:
    if seq > state.acknowledged_seq:
        return "waiting"
    return "durable" if seq <= state.durable_seq else "acknowledged"
