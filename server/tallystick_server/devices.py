"""Devices: tokens, enrolment, whose signature a request carries, and what an operator does to them.

Source: protocol.md, section 4. A device that is not active can still upload its journal; it gets nothing.
"""

from __future__ import annotations

import secrets
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Row, insert, select, update

from tallystick_server import auditing, leases, recovery
from tallystick_server.database import Transaction
from tallystick_server.server import Ledger, Server, new_id, not_found, read_ledger, secret_digest
from tallystick_server.tables import devices, enrolment_tokens
from tallystick_server.vouchers import must_be_scopes
from tallystick_shared.errors import CallerError, InvalidInput, Untrusted
from tallystick_shared.journal import chain_start, encode
from tallystick_shared.signing import PublicKey, Typ, peek, sha256_hex, verify
from tallystick_shared.wire import (
    AUTH_SCHEME,
    DeviceRequest,
    DeviceState,
    Enrolled,
    EnrolmentToken,
    EnrolRequest,
    RedeemRequest,
    SyncHead,
)

REQUEST_BYTES_MAX = 8 * 1024
_ENROL = msgspec.json.Decoder(EnrolRequest)
_REQUEST = msgspec.json.Decoder(DeviceRequest)
_NEXT_STATES: dict[DeviceState, frozenset[str]] = {
    DeviceState.ACTIVE: frozenset({"pending", "suspended"}),
    DeviceState.SUSPENDED: frozenset({"pending", "active", "suspended"}),
    DeviceState.REVOKED: frozenset({"pending", "active", "suspended", "revoked"}),
    DeviceState.LOST: frozenset({"pending", "active", "suspended", "revoked", "lost"}),
}
"""From which states an operator may bring a device into each of these."""
Message = TypeVar("Message", SyncHead, RedeemRequest)


@dataclass(frozen=True)
class Device:
    """A device as a request found it. `seq` and `hash`: the end of branch 0 of its journal."""

    id: str
    key: PublicKey
    store_id: str
    scope: str
    state: DeviceState
    enrolled_at: datetime
    last_sync_at: datetime | None
    last_event_at: datetime | None
    seq: int
    hash: str
    branches: int
    lease_number: int
    durable_seq: int
    durable_hash: str | None
    reported_epoch: int


async def make_token(server: Server, *, store_id: str, scope: str, ttl_s: int | None = None) -> EnrolmentToken:
    """A one-time token for a new device of `store_id`. Raises `InvalidInput`, `CallerError` (`NOT_FOUND`)."""
    # control characters, and what cannot be encoded
    if not 0 < len(store_id) <= 128 or any(unicodedata.category(one) in ("Cc", "Cs") for one in store_id):
        raise InvalidInput("store_id", "must be text of 1 to 128 characters, without control characters")
    now = server.clock()
    server.keys.must_not_be_over(now)
    secret = secrets.token_urlsafe(32)
    row = {
        "sha256": secret_digest(secret),
        "store_id": store_id,
        "scope": scope,
        "created_at": now,
        "expires_at": now + timedelta(seconds=ttl_s or server.settings.token_ttl_s),
    }

    async def store(transaction: Transaction) -> None:
        await must_be_scopes(transaction, [scope])
        await transaction.execute(insert(enrolment_tokens), row)

    await server.database.write(store)
    return EnrolmentToken(secret, server.keys.root_version, server.keys.root_sha256)


async def enrol(server: Server, body: bytes) -> bytes:
    """`EnrolRequest` in, `Enrolled` out, both signed. The same token and key give the same device again.

    Raises `Untrusted`, `CallerError` (`BAD_TOKEN`, `TOKEN_USED`).
    """
    _, payload = peek(body, Typ.ENROL, bytes_max=REQUEST_BYTES_MAX)
    request = read(_ENROL, payload)
    key = PublicKey.from_jwk(request.jwk)
    verify(body, {key.kid: key}, Typ.ENROL, bytes_max=REQUEST_BYTES_MAX)
    now = server.clock()

    async def work(transaction: Transaction) -> Enrolled:
        token = select(enrolment_tokens).where(enrolment_tokens.c.sha256 == secret_digest(request.token))
        row = (await transaction.execute(token.with_for_update())).one_or_none()
        if row is None or (row.device_id is None and row.expires_at < now):
            raise CallerError("this enrolment token is unknown or has expired; ask for a new one", code="BAD_TOKEN")
        ledger = await read_ledger(transaction)
        if row.device_id is None:
            device_id = await _add(transaction, row, request, key, ledger, now=now)
        else:
            device_id = row.device_id
            kid = (await transaction.execute(select(devices.c.kid).where(devices.c.id == device_id))).scalar_one()
            if kid != key.kid:
                raise CallerError(
                    "this enrolment token was used by another device already; a token is for one device",
                    code="TOKEN_USED",
                )
        return Enrolled(
            device=device_id,
            server=ledger.server_id,
            store_id=row.store_id,
            scope=row.scope,
            request_sha256=sha256_hex(body),
            root_version=server.keys.root_version,
            server_epoch=ledger.server_epoch,
            ledger_mark=ledger.mark,
            server_time=now,
        )

    return server.keys.receipt.sign(Typ.ENROLLED, encode(await server.database.write(work)))


async def _add(
    transaction: Transaction, token: Row[Any], request: EnrolRequest, key: PublicKey, ledger: Ledger, *, now: datetime
) -> str:
    device_id, place = new_id(now), (token.store_id, token.scope)
    # what it does not know was never told, so a recovery has nothing to ask of it
    await add(transaction, device_id, request, key, place, ledger, enrolled_at=now, reported_epoch=ledger.server_epoch)
    spent = update(enrolment_tokens).where(enrolment_tokens.c.sha256 == token.sha256)
    await transaction.execute(spent.values(device_id=device_id))
    return device_id


async def add(
    transaction: Transaction,
    device_id: str,
    request: EnrolRequest,
    key: PublicKey,
    place: tuple[str, str],
    ledger: Ledger,
    *,
    enrolled_at: datetime,
    reported_epoch: int,
    state: DeviceState = DeviceState.ACTIVE,
) -> None:
    """A device at the start of its journal. `place`: store and scope. Raises `CallerError` (`EXISTS`)."""
    known = await transaction.execute(select(devices.c.id).where(devices.c.kid == key.kid))
    if known.first() is not None:
        raise CallerError("this key belongs to an enrolled device; a new device makes a new key", code="EXISTS")
    row = {
        "id": device_id,
        "kid": key.kid,
        "public_x": request.jwk["x"],
        "name": request.name,
        "store_id": place[0],
        "scope": place[1],
        "state": state.value,
        "enrolled_at": enrolled_at,
        "seq": 0,
        "hash": chain_start(ledger.server_id, device_id, key),
        "branches": 1,
        "lease_number": 0,
        "reported_epoch": reported_epoch,
    }
    await transaction.execute(insert(devices), row)


async def find(transaction: Transaction, device_id: str, *, lock: bool = False) -> Device:
    """Raises `Untrusted` (`UNKNOWN_DEVICE`)."""
    query = select(devices).where(devices.c.id == device_id)
    row = (await transaction.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise Untrusted("this device is not enrolled here", code="UNKNOWN_DEVICE")
    return Device(
        id=row.id,
        key=PublicKey.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": row.public_x}),
        store_id=row.store_id,
        scope=row.scope,
        state=DeviceState(row.state),
        enrolled_at=row.enrolled_at,
        last_sync_at=row.last_sync_at,
        last_event_at=row.last_event_at,
        seq=row.seq,
        hash=row.hash,
        branches=row.branches,
        lease_number=row.lease_number,
        durable_seq=row.durable_seq,
        durable_hash=row.durable_hash,
        reported_epoch=row.reported_epoch,
    )


async def signed_by(
    server: Server, token: bytes, typ: Typ, decoder: msgspec.json.Decoder[Message]
) -> tuple[Message, Device]:
    """A message and the device that its `device` names, whose key it is verified with. Raises `Untrusted`."""
    _, payload = peek(token, typ)
    message = read(decoder, payload)
    async with server.database.read() as connection:
        device = await find(connection, message.device or "")
    verify(token, {device.key.kid: device.key}, typ)
    return message, device


async def active_request(server: Server, authorization: str, method: str, path: str) -> Device:
    """The active device behind `Authorization: Tallystick JWS`. Raises `Untrusted`, `CallerError`."""
    scheme, _, token = authorization.partition(" ")
    if scheme != AUTH_SCHEME or not token:
        raise CallerError("this needs a device's signature", code="UNAUTHENTICATED")
    raw = token.strip().encode()
    try:
        _, payload = peek(raw, Typ.REQUEST, bytes_max=REQUEST_BYTES_MAX)
    except Untrusted as error:
        raise Untrusted(f"the signature cannot be read: {error}", code="UNAUTHENTICATED") from error
    request = read(_REQUEST, payload)
    async with server.database.read() as connection:
        device = await find(connection, request.device)
    verify(raw, {device.key.kid: device.key}, Typ.REQUEST, bytes_max=REQUEST_BYTES_MAX)
    if (request.method, request.path) != (method, path):
        raise Untrusted("it is signed for another request", code="UNAUTHENTICATED")
    must_be_active(device)
    return device


def must_be_active(device: Device) -> None:
    if device.state is not DeviceState.ACTIVE:
        raise CallerError(f"this device is {device.state}: it can only upload its journal", code="FORBIDDEN")


async def change_state(transaction: Transaction, device_id: str, state: DeviceState, *, now: datetime) -> None:
    """What an operator decides; a lost one's leases are burned. Raises `CallerError` (`NOT_FOUND`, `WRONG_STATE`)."""
    device = await _locked(transaction, device_id)
    if device.state not in _NEXT_STATES[state]:
        raise CallerError(f"a {device.state} device cannot become {state}", code="WRONG_STATE")
    if state is DeviceState.ACTIVE and device.branches > 1:
        raise CallerError(
            "this device is forked: its key and journal are in use twice, so neither is to be believed; enrol the till "
            "anew with a new token, and revoke this device",
            code="WRONG_STATE",
        )
    await transaction.execute(update(devices).where(devices.c.id == device_id).values(state=state.value))
    await _note(transaction, f"device.{state}", device_id, now, {"was": device.state})
    if state is DeviceState.LOST:
        await leases.burn(transaction, device_id, by="lost")
    if state in (DeviceState.LOST, DeviceState.REVOKED):
        await recovery.end_if_all_reported(transaction, now=now)


async def move(transaction: Transaction, device_id: str, scope: str, *, now: datetime) -> None:
    """Into another scope, from its next sync on. Raises `CallerError` (`NOT_FOUND`, `WRONG_STATE`)."""
    device = await _locked(transaction, device_id)
    if device.state in (DeviceState.LOST, DeviceState.REVOKED):
        raise CallerError(f"a {device.state} device gets nothing of any scope", code="WRONG_STATE")
    await must_be_scopes(transaction, [scope])
    await transaction.execute(update(devices).where(devices.c.id == device_id).values(scope=scope))
    await _note(transaction, "device.move", device_id, now, {"from": device.scope, "to": scope})


async def _locked(transaction: Transaction, device_id: str) -> Row[Any]:
    row = (await transaction.execute(select(devices).where(devices.c.id == device_id).with_for_update())).one_or_none()
    if row is None:
        raise not_found("device")
    return row


async def _note(transaction: Transaction, action: str, device_id: str, now: datetime, detail: dict[str, str]) -> None:
    await auditing.note(transaction, who=auditing.OPERATOR, action=action, about=device_id, now=now, detail=detail)


def read(decoder: msgspec.json.Decoder[Any], payload: bytes) -> Any:
    try:
        payload.decode()  # what a reader ignores has to be UTF-8 too
        return decoder.decode(payload)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        raise InvalidInput(where.rstrip("`"), what[:1].lower() + what[1:]) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Untrusted("what is signed is not JSON", code="MALFORMED") from error
