"""A device comes back to a server that was restored from a backup older than its enrolment (protocol.md, section 7).

Its proof is the enrolment itself, as both sides sent it. In this order:

1. the message is signed by the key that asked for the enrolment, and so is that request
2. the answer to the request is signed by a receipt key of any root of this server, for this very request and device
3. a device that is known is answered as if it was new
4. no declared restore can have forgotten an enrolment of the epoch that still runs: there was an undeclared one
5. the device is added again, at the start of its journal, and its token is spent, if it is there at all; a device of
   the same key that never synced was made by a repeated request, and gives way, if it is active and nothing is of it

A receipt key that is in use no more proves nothing by itself: it may have been replaced because it was stolen. What it
signed, and who comes while no recovery runs, is added as `pending`: an operator confirms it.
"""

from __future__ import annotations

from datetime import datetime

import msgspec
from sqlalchemy import and_, delete, exists, select, update

from tallystick_server import auditing, devices, recovery
from tallystick_server.database import Transaction
from tallystick_server.server import Ledger, Server, read_ledger, secret_digest
from tallystick_server.tables import devices as device_rows
from tallystick_server.tables import enrolment_tokens, redemptions, scopes
from tallystick_shared.bundle import Root
from tallystick_shared.errors import CallerError, LineError, Untrusted
from tallystick_shared.journal import encode
from tallystick_shared.signing import PublicKey, Typ, open_general, peek, sha256_hex, verify
from tallystick_shared.wire import DeviceState, EnrolAgain, Enrolled, EnrolRequest

BODY_BYTES_MAX = 64 * 1024
_AGAIN = msgspec.json.Decoder(EnrolAgain)
_ENROL = msgspec.json.Decoder(EnrolRequest)
_ENROLLED = msgspec.json.Decoder(Enrolled)
_ROOT = msgspec.json.Decoder(Root)


async def enrol_again(server: Server, body: bytes) -> bytes:
    """`EnrolAgain` in, `Enrolled` out, both signed.

    Raises `Untrusted` (`WRONG_ENROLMENT`, and those of a signature), `CallerError` (`NOT_FOUND` for a scope that is no
    more, `EXISTS`), `LineError` (`RECOVERING`) where the restore is not declared.
    """
    # 1. one key
    _, payload = peek(body, Typ.ENROL_AGAIN, bytes_max=BODY_BYTES_MAX)
    again: EnrolAgain = devices.read(_AGAIN, payload)
    raw = again.request.encode()
    _, asked = peek(raw, Typ.ENROL)
    request: EnrolRequest = devices.read(_ENROL, asked)
    key = PublicKey.from_jwk(request.jwk)
    verify(raw, {key.kid: key}, Typ.ENROL)
    verify(body, {key.kid: key}, Typ.ENROL_AGAIN, bytes_max=BODY_BYTES_MAX)
    # 2. this server's own word
    answered = again.enrolled.encode()
    enrolled: Enrolled = devices.read(_ENROLLED, verify(answered, _receipt_keys(server), Typ.ENROLLED))
    in_use = peek(answered, Typ.ENROLLED)[0] in server.keys.root.roles.receipt.kids
    if (enrolled.request_sha256, enrolled.device) != (sha256_hex(raw), again.device):
        raise Untrusted("the answer is not to this enrolment", code="WRONG_ENROLMENT")
    now = server.clock()
    row = await server.database.write(lambda t: _take_back(t, request, key, enrolled, in_use, now=now))
    if row is None:
        raise LineError(
            "this server does not know a device that it enrolled a short time ago: it was restored from a backup, and "
            "its operator has to declare that",
            code="RECOVERING",
        )
    ledger, store_id, scope = row
    answer = Enrolled(
        device=enrolled.device,
        server=ledger.server_id,
        store_id=store_id,
        scope=scope,
        request_sha256=sha256_hex(body),
        root_version=server.keys.root_version,
        server_epoch=ledger.server_epoch,
        ledger_mark=ledger.mark,
        server_time=now,
    )
    return server.keys.receipt.sign(Typ.ENROLLED, encode(answer))


def _receipt_keys(server: Server) -> dict[str, PublicKey]:
    """Of all roots: what a key signed while it was in use was believed by the device, and is by this server."""
    found: dict[str, PublicKey] = {}
    for raw in server.keys.roots.values():
        root = _ROOT.decode(open_general(raw))
        found |= {kid: PublicKey.from_jwk(root.keys[kid]) for kid in root.roles.receipt.kids}
    return found


async def _take_back(
    transaction: Transaction,
    request: EnrolRequest,
    key: PublicKey,
    enrolled: Enrolled,
    in_use: bool,
    *,
    now: datetime,
) -> tuple[Ledger, str, str] | None:
    """The ledger, and the device's store and scope; None where a restore was not declared.

    `in_use`: the receipt key that signed `enrolled` is of the newest root.
    """
    ledger = await read_ledger(transaction)
    if enrolled.server != ledger.server_id:
        raise Untrusted("it is an enrolment with another server", code="WRONG_ENROLMENT")
    known = select(device_rows).where(device_rows.c.id == enrolled.device)
    # 3. known?
    if (row := (await transaction.execute(known)).one_or_none()) is not None:
        if row.kid != key.kid:
            raise Untrusted("this device has another key", code="WRONG_ENROLMENT")
        return ledger, row.store_id, row.scope
    # 4. forgotten by which restore?
    if in_use and enrolled.server_epoch >= ledger.server_epoch:
        why = f"it was enrolled in epoch {enrolled.server_epoch} and is not known"
        await recovery.suspect(transaction, enrolled.device, why=why, now=now, proven=True)
        return None
    # 5. once more
    there = await transaction.execute(select(scopes.c.name).where(scopes.c.name == enrolled.scope))
    if there.first() is None:
        raise CallerError(
            f"this device was enrolled in the scope {enrolled.scope}, which this server does not have: an operator has "
            "to make it again",
            code="NOT_FOUND",
        )
    ghost = await _forget_repeated(transaction, key, enrolled.device)
    place, at = (enrolled.store_id, enrolled.scope), enrolled.server_time
    # while it recovers, honest tills must be able to go on
    state = DeviceState.ACTIVE if in_use and ledger.state == "recovering" else DeviceState.PENDING
    await devices.add(
        transaction, enrolled.device, request, key, place, ledger, enrolled_at=at, reported_epoch=0, state=state
    )
    token = enrolment_tokens.c.sha256 == secret_digest(request.token)
    used_by = (await transaction.execute(select(enrolment_tokens.c.device_id).where(token))).scalar_one_or_none()
    unspent = update(enrolment_tokens).where(token, enrolment_tokens.c.device_id.is_(None))
    await transaction.execute(unspent.values(device_id=enrolled.device))
    detail = {"store": enrolled.store_id, "scope": enrolled.scope, "epoch": enrolled.server_epoch,
              "token_used_by": used_by, "state": state.value, "key_in_use": in_use, "gave_way": ghost}  # fmt: skip
    who = enrolled.device
    await auditing.note(transaction, who=who, action=recovery.AGAIN, about=who, now=now, detail=detail)
    return ledger, *place


async def _forget_repeated(transaction: Transaction, key: PublicKey, device_id: str) -> str | None:
    """The line may have repeated the enrolment's request since the restore: that made a device of the same key, by an
    id that nobody ever heard. It has never synced, so there is nothing of it; its token is this device's.

    Its id, or None. One that an operator decided about stays, and so does one that redeemed online: `CallerError`
    (`EXISTS`), as a device with a journal must not make a new key.
    """
    nothing_is_of_it = and_(
        device_rows.c.state == DeviceState.ACTIVE.value,
        device_rows.c.seq == 0,
        device_rows.c.last_sync_at.is_(None),
        ~exists().where(redemptions.c.issuer == device_rows.c.id),
    )
    query = select(device_rows.c.id, nothing_is_of_it.label("gives_way")).where(device_rows.c.kid == key.kid)
    if (row := (await transaction.execute(query)).one_or_none()) is None:
        return None
    ghost: str = row.id
    if not row.gives_way:
        raise CallerError(f"an operator has to decide about the device {ghost}, which has this key", code="EXISTS")
    spent = update(enrolment_tokens).where(enrolment_tokens.c.device_id == ghost)
    await transaction.execute(spent.values(device_id=device_id))
    await transaction.execute(delete(device_rows).where(device_rows.c.id == ghost))
    return ghost
