"""What this client says of the inputs of the protocol's vectors (docs/reference/protocol.md, "The line protocol").

One input holds what a client has, the time, and the bytes that came; the answer is `{"accept": {..}}` with what it
reads in them, or `{"refuse": "CODE"}`. Every verdict is that of the modules a till runs on. Pure: bytes in, bytes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import Any, Final

import msgspec

from tallystick_client.actions import Held
from tallystick_client.blobs import summed, unpack
from tallystick_client.errors import InvalidInput, Untrusted
from tallystick_client.fetching import Fetching
from tallystick_client.granting import sort_out
from tallystick_client.judging_inputs import (
    FirstRoot,
    HeldBundle,
    HeldJournal,
    Message,
    NextRoot,
    OfAnswer,
    OfBundle,
    OfChain,
    OfCode,
    OfEnrolled,
    OfEnvelope,
    OfGrants,
    OfLeases,
    OfManifest,
    OfRedeemed,
    OfSignedTime,
    OfState,
    OfSync,
    OfThumbprint,
    OfTime,
    OfToken,
    ToSign,
)
from tallystick_client.timekeeping import judge as judge_time
from tallystick_client.timekeeping import signed
from tallystick_client.trust import Floor, Trusted
from tallystick_shared.bundle import BundleVoucher, Manifest, hidden_code, state_digest, voucher_digest
from tallystick_shared.journal import (
    BATCH_BYTES_MAX,
    BATCH_EVENTS_MAX,
    EVENT_BYTES_MAX,
    Position,
    chain_next,
    chain_start,
    read_envelope,
    split_events,
)
from tallystick_shared.signing import NOT_JSON, PublicKey, SigningKey, Typ, sha256_hex, verify
from tallystick_shared.wire import EnrolmentToken, SyncHead, digest_of

Facts = dict[str, Any]
SYNC_UNPACKED_BYTES_MAX: Final = BATCH_BYTES_MAX + 2 * EVENT_BYTES_MAX
"""What a server unpacks of a sync: a batch, and room for the one event that may stand alone beyond it."""
SYNC_WINDOW_BYTES_MAX: Final = 8 * 1024 * 1024


# ---- what is believed ---------------------------------------------------------------------------------------------


def _first_root(given: FirstRoot) -> Facts:
    return _of_root(Trusted.pin(_bytes(given.message), version=given.version, sha256=given.sha256))


def _next_root(given: NextRoot) -> Facts:
    floors = dict.fromkeys(given.floors, Floor(1, 1, "0" * 64))
    return _of_root(Trusted(given.root, floors).next_root(_bytes(given.message)))


def _of_root(trusted: Trusted) -> Facts:
    roles = trusted.root.roles
    threshold, kids = roles.root.threshold, sorted({*roles.root.kids, *roles.bundle.kids, *roles.receipt.kids})
    return {"version": trusted.root.version, "threshold": threshold, "kids": kids, "floors": sorted(trusted.floors)}


def _manifest(given: OfManifest) -> Facts:
    trusted = Trusted(given.root, {} if given.floor is None else {given.scope: given.floor})
    manifest = trusted.manifest(_bytes(given.message), given.scope, now=given.now)
    return {"server_epoch": manifest.server_epoch, "version": manifest.version, "caps": manifest.caps}


def _bundle(given: OfBundle) -> Facts:
    """As a sync fetches it: from what is held, and where a rule is broken on that way, from the snapshot."""
    fetching = Fetching(b"", given.manifest, "", None if given.held is None else _held(given.manifest, given.held))
    try:
        return _fetched(given, fetching, None)
    except Untrusted as error:
        if not fetching.from_held:
            raise
        return _fetched(given, fetching.anew(), error.code)


def _held(manifest: Manifest, held: HeldBundle) -> Held:
    by_code = {one.code: BundleVoucher(one.id, 1, one.code, msgspec.Raw(_bytes(one.voucher))) for one in held.vouchers}
    ours = msgspec.structs.replace(manifest, server_epoch=held.server_epoch, version=held.version)
    return Held(ours, "", "", summed(by_code), [])


def _fetched(given: OfBundle, fetching: Fetching, fell_back: str | None) -> Facts:
    took = []
    while (ref := fetching.wanted()) is not None:
        raw = given.blobs.get(ref.sha256)
        if raw is None:
            raise InvalidInput(f"blobs[{ref.sha256}]", "is needed for this manifest and what is held")
        took.append(ref.sha256)
        fetching.take(_bytes(raw))
    change = fetching.change([])
    vouchers = change.vouchers
    if vouchers is None:
        assert given.held is not None
        vouchers = _held(given.manifest, given.held).vouchers
        vouchers.apply(change.changes, change.parts_sum)
    ids = {code: one.id for code, one in sorted(vouchers.by_code.items())}
    return {"took": took, "fell_back": fell_back, "vouchers": ids}


def _answer(given: OfAnswer) -> Facts:
    journal = given.journal
    head = Position(journal.base + len(journal.hashes) - 1, journal.hashes[-1])
    answer = Trusted(given.root).answer(
        _bytes(given.message),
        device=given.device,
        request_sha256=given.request_sha256,
        epoch=given.server_epoch,
        mark=given.ledger_mark,
        head=head,
        now=given.now,
    )
    named = [one for one in (answer.acknowledged, answer.durable) if one.seq >= journal.base]
    of_a_copy = any(journal.hashes[one.seq - journal.base] != one.hash for one in named)
    if answer.server_epoch > given.server_epoch and of_a_copy:  # as `exchange.accept`: all of ours is sent again
        base = Position(journal.base, journal.hashes[0])
        answer = msgspec.structs.replace(answer, acknowledged=base, durable=base, exceptions=[])
    _demand_ours(journal, answer.acknowledged)
    if answer.durable.seq >= journal.base:
        _demand_ours(journal, answer.durable)
    if answer.acknowledged.seq < journal.acknowledged and answer.server_epoch == given.server_epoch:
        raise Untrusted("the server has forgotten events that it acknowledged", code="NOT_OUR_JOURNAL")
    return {
        "acknowledged": answer.acknowledged.seq,
        "durable": answer.durable.seq,
        "server_epoch": answer.server_epoch,
        "ledger_mark": answer.ledger_mark,
        "state": answer.state,
        "exceptions": answer.exceptions,
        "leases": [lease.number for lease in answer.leases],
        "recovering": answer.recovering,
    }


def _demand_ours(journal: HeldJournal, position: Position) -> None:
    """As `exchange.accept` does it in the journal's own tables."""
    if position.seq < journal.base:
        raise Untrusted("the server has forgotten events that it called durable", code="NOT_OUR_JOURNAL")
    if journal.hashes[position.seq - journal.base] != position.hash:
        raise Untrusted(f"the server's journal differs at event {position.seq}", code="NOT_OUR_JOURNAL")


def _enrolled(given: OfEnrolled) -> Facts:
    raw = _bytes(given.message)
    enrolled = Trusted(given.root).enrolled(raw, request_sha256=given.request_sha256, now=given.now)
    return {"device": enrolled.device, "scope": enrolled.scope, "server_epoch": enrolled.server_epoch}


def _redeemed(given: OfRedeemed) -> Facts:
    answer = Trusted(given.root).redeemed(
        _bytes(given.message), device=given.device, request_sha256=given.request_sha256, now=given.now
    )
    return {"id": answer.id, "redeemed": answer.redeemed}


def _grants(given: OfGrants) -> Facts:
    taken, late = sort_out(given.leases, given.known, given.lease_number)
    return {"take": [one.id for one in taken], "give_back": [one.id for one in late]}


# ---- what a client sends ------------------------------------------------------------------------------------------


def _sync(given: OfSync) -> Facts:
    """As a server opens it: line 1 and its signature, then the bytes behind it, then the chain."""
    key = PublicKey.from_jwk(given.key)
    line, newline, packed = _bytes(given.message).partition(b"\n")
    if not newline:
        raise Untrusted("line 1 must be ended by a newline", code="MALFORMED")
    payload = verify(line, {key.kid: key}, Typ.SYNC)
    try:
        payload.decode()
        head = _HEAD.decode(payload)
    except msgspec.ValidationError as error:
        raise Untrusted(f"line 1 has a wrong field: {error}", code="INVALID_FIELD") from error
    except NOT_JSON as error:
        raise Untrusted(f"line 1 cannot be read: {error}", code="MALFORMED") from error
    if head.events.bytes != len(packed) or (packed and head.events.sha256 != sha256_hex(packed)):
        raise Untrusted("the events are not those that line 1 names", code="WRONG_DIGEST")
    if head.events.count > BATCH_EVENTS_MAX:
        raise Untrusted(f"a batch has at most {BATCH_EVENTS_MAX} events", code="TOO_LARGE")
    events = split_events(unpack(packed, SYNC_UNPACKED_BYTES_MAX, SYNC_WINDOW_BYTES_MAX)) if packed else []
    bounds_hold = head.after.seq + len(events) == head.through.seq <= head.head.seq
    if len(events) != head.events.count or not bounds_hold:
        raise Untrusted("the number of events does not fit after, through and head", code="MALFORMED")
    hashes = _chain(head.after.hash, [event.envelope for event in events])
    if hashes[-1] != head.through.hash:
        raise Untrusted("the chain over the events does not lead to through", code="BROKEN_CHAIN")
    return {"device": head.device, "events": len(events), "through": head.through}


_HEAD = msgspec.json.Decoder(SyncHead)


def _envelope(given: OfEnvelope) -> Facts:
    envelope = read_envelope(_bytes(given.message))
    return {"type": envelope.type, "seq": envelope.seq, "uses": len(envelope.uses)}


def _token(given: OfToken) -> Facts:
    try:
        token = EnrolmentToken.parse(given.text)
    except ValueError as error:
        raise Untrusted(str(error), code="INVALID_FIELD") from None
    return {"secret": token.secret, "root_version": token.root_version, "root_sha256": token.root_sha256}


# ---- what a client computes ---------------------------------------------------------------------------------------


def _thumbprint(given: OfThumbprint) -> Facts:
    return {"kid": PublicKey.from_jwk(given.key).kid}


def _sign(given: ToSign) -> Facts:
    try:
        key = SigningKey.from_bytes(msgspec.json.encode(given.key))
    except ValueError as error:
        raise InvalidInput("key", str(error)) from None
    return {"jws": key.sign(given.typ, _bytes(given.payload)).decode("ascii")}


def _hashes(given: OfChain) -> Facts:
    start = chain_start(given.server, given.device, PublicKey.from_jwk(given.key))
    return {"hashes": _chain(start, [_bytes(one) for one in given.envelopes])}


def _chain(start: str, envelopes: Sequence[bytes]) -> list[str]:
    """The hash before the first envelope, and after each."""
    hashes = [start]
    for envelope in envelopes:
        hashes.append(chain_next(hashes[-1], envelope))
    return hashes


def _leases(given: OfLeases) -> Facts:
    return {"leases_digest": digest_of(given.leases)}


def _state(given: OfState) -> Facts:
    parts = [voucher_digest(one.id, sha256_hex(_bytes(one.voucher))) for one in given.vouchers]
    return {"state_digest": state_digest(sum(parts))}


def _code(given: OfCode) -> Facts:
    return {"code": hidden_code(given.code_salt, given.folded)}


def _time(given: OfTime) -> Facts:
    judged = judge_time(given.mark, given.clock, step_s=given.step_s)
    return {"at": judged.at, "latest": judged.latest, "anomaly": judged.anomaly, "mark": judged.mark}


def _signed_time(given: OfSignedTime) -> Facts:
    return {"mark": signed(given.mark, given.clock, given.server_time, lower=given.new_epoch)}


def _bytes(message: Message) -> bytes:
    if isinstance(message, bytes):
        return message
    return b"".join(part.base64 * part.times for part in message)


# ---- inputs and answers -------------------------------------------------------------------------------------------

_JUDGES: Final[dict[type[Any], Callable[[Any], Facts]]] = {
    FirstRoot: _first_root,
    NextRoot: _next_root,
    OfManifest: _manifest,
    OfBundle: _bundle,
    OfAnswer: _answer,
    OfEnrolled: _enrolled,
    OfRedeemed: _redeemed,
    OfGrants: _grants,
    OfSync: _sync,
    OfEnvelope: _envelope,
    OfToken: _token,
    OfThumbprint: _thumbprint,
    ToSign: _sign,
    OfChain: _hashes,
    OfLeases: _leases,
    OfState: _state,
    OfCode: _code,
    OfTime: _time,
    OfSignedTime: _signed_time,
}
CHECKS: Final = tuple(kind.__struct_config__.tag for kind in _JUDGES)
"""The names of what can be judged: `check` of an input, and `call` of a file of vectors."""
_INPUT: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(reduce(or_, _JUDGES))


def judge(raw: bytes) -> bytes:
    """The answer to one input, as JSON. Raises `InvalidInput` where it is none."""
    try:
        given = _INPUT.decode(raw)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        raise InvalidInput(where.strip(".`"), what[:1].lower() + what[1:]) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput("", "must be an input of the protocol's vectors, as JSON") from error
    try:
        return msgspec.json.encode({"accept": _JUDGES[type(given)](given)})
    except Untrusted as error:
        return msgspec.json.encode({"refuse": error.code})
