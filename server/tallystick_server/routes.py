"""Every address of the server. Bodies are read once, by prebuilt strict decoders, and documented from the same structs.

Device routes are those of `tallystick_shared.wire`; all others need an operator key, but for roots, blobs (whose digest
is the capability) and the health check, which tell nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
from litestar import Request, Response, get, post, put
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from litestar.params import FromPath, FromQuery, QueryParameter
from sqlalchemy import select

from tallystick_server import (
    blobs,
    bundles,
    devices,
    enrolling_again,
    forks,
    leases,
    operating,
    recovery,
    redemptions,
    vouchers,
)
from tallystick_server import sync as syncing
from tallystick_server.database import Transaction
from tallystick_server.documents import (
    JOSE,
    JOSE_JSON,
    JSON,
    SYNC,
    ZSTD,
    Campaigns,
    DeviceChanged,
    DeviceMoved,
    DevicePage,
    FlaggedPage,
    NewCampaign,
    NewPlace,
    NewScope,
    NewToken,
    NoBody,
    Ok,
    Resolution,
    Scopes,
    TokenView,
    VoucherPage,
    described,
)
from tallystick_server.operating import CampaignView
from tallystick_server.server import FIRST_SCOPE, Server, not_found
from tallystick_server.tables import server as server_table
from tallystick_server.vouchers import VoucherView
from tallystick_shared.bundle import Manifest
from tallystick_shared.codes import fold
from tallystick_shared.errors import InvalidInput
from tallystick_shared.model import Voucher
from tallystick_shared.signing import GeneralJws, sha256_hex
from tallystick_shared.wire import (
    DeviceState,
    EnrolAgain,
    Enrolled,
    EnrolRequest,
    RedeemAnswer,
    RedeemRequest,
    SyncAnswer,
    SyncHead,
)

AnyRequest = Request[Any, Any, Any]
T = TypeVar("T")
Page = VoucherPage | DevicePage | FlaggedPage
DEVICE_VERBS = {
    "suspend": DeviceState.SUSPENDED, "resume": DeviceState.ACTIVE, "revoke": DeviceState.REVOKED,
    "lost": DeviceState.LOST,
}  # fmt: skip
ScopeNames = Annotated[list[str] | None, QueryParameter(name="scope")]
Limit = Annotated[int, QueryParameter(ge=1, le=operating.PAGE_MAX)]
Cursor = Annotated[str, QueryParameter(max_length=64, pattern=r"^[0-9A-Za-z-]*$(?!\n)")]
RowCursor = Annotated[int, QueryParameter(ge=0, le=2**53)]
FlagState = Annotated[Literal["open", "resolved"], QueryParameter(name="state")]


def _server(connection: AnyRequest | ASGIConnection[Any, Any, Any, Any]) -> Server:
    return cast(Server, connection.app.state.server)


async def operator(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """The guard of every operator route."""
    await operating.must_be_operator(_server(connection), connection.headers.get("authorization", ""))


async def _read(request: AnyRequest, kind: type[T]) -> T:
    raw = await request.body()
    try:
        return cast(T, _DECODERS[kind].decode(raw or b"{}"))
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        raise InvalidInput(where.rstrip("`"), what[:1].lower() + what[1:]) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidInput("", "must be JSON") from error


_DECODERS: dict[type[Any], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (NewCampaign, NewPlace, NewScope, NewToken, Resolution, NoBody)
}


def _json(value: object, status_code: int = 200) -> Response[bytes]:
    return Response(msgspec.json.encode(value), media_type=JSON, status_code=status_code)


def _page(kind: Callable[[Any, Any], Page], items: Sequence[Any], limit: int) -> Response[bytes]:
    return _json(kind(items, items[-1].id if len(items) == limit else None))


# devices


@get("/v1/roots/{version:int}", operation_class=described({JOSE_JSON: GeneralJws}))
async def get_root(request: AnyRequest, version: FromPath[int]) -> Response[bytes]:
    root = _server(request).keys.roots.get(version)
    if root is None:
        raise not_found("root")
    return Response(root, media_type=JOSE_JSON)


@post("/v1/devices", operation_class=described({JOSE: Enrolled}, {JOSE: EnrolRequest}, refuses=(409,)))
async def enrol(request: AnyRequest) -> Response[bytes]:
    return Response(await devices.enrol(_server(request), await request.body()), media_type=JOSE)


@post("/v1/devices/again", operation_class=described({JOSE: Enrolled}, {JOSE: EnrolAgain}, refuses=(404, 409)))
async def enrol_again(request: AnyRequest) -> Response[bytes]:
    return Response(await enrolling_again.enrol_again(_server(request), await request.body()), media_type=JOSE)


@get(
    "/v1/scopes/{scope_name:str}/manifest", security=[{"device": []}],
    operation_class=described({JOSE: Manifest}, refuses=(403,), cached=(304,)),
)  # fmt: skip
async def get_manifest(request: AnyRequest, scope_name: FromPath[str]) -> Response[bytes]:
    header, server = request.headers.get("authorization", ""), _server(request)
    device = await devices.active_request(server, header, "GET", request.scope["path"])
    if device.scope != scope_name:
        raise not_found("scope")
    signed = await bundles.manifest(server, scope_name)
    etag = f'"{sha256_hex(signed)}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if etag in [one.strip() for one in request.headers.get("if-none-match", "").split(",")]:
        return Response(b"", status_code=304, headers=headers, media_type=JOSE)
    return Response(signed, headers=headers, media_type=JOSE)


@get("/v1/blobs/{sha256:str}", operation_class=described({ZSTD: bytes}, cached=()))
async def get_blob(request: AnyRequest, sha256: FromPath[str]) -> Response[bytes]:
    data = await blobs.blob(_server(request), sha256)
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "ETag": f'"{sha256}"'}
    return Response(data, headers=headers, media_type=ZSTD)


@post("/v1/sync", status_code=200, operation_class=described({JOSE: SyncAnswer}, {SYNC: SyncHead}, refuses=(409,)))
async def post_sync(request: AnyRequest) -> Response[bytes]:
    return Response(await syncing.sync(_server(request), await request.body()), media_type=JOSE)


@post(
    "/v1/redemptions", status_code=200, security=[{"operator": []}, {}],
    operation_class=described(
        {JSON: RedeemAnswer, JOSE: RedeemAnswer}, {JSON: RedeemRequest, JOSE: RedeemRequest}, refuses=(403, 409)
    ),
)  # fmt: skip
async def post_redemption(request: AnyRequest) -> Response[bytes]:
    server = _server(request)
    if request.content_type[0] == JOSE:
        return Response(await redemptions.redeem_by_device(server, await request.body()), media_type=JOSE)
    await operating.must_be_operator(server, request.headers.get("authorization", ""))
    return Response(await redemptions.redeem_by_operator(server, await request.body()), media_type=JSON)


# operators


@post(
    "/v1/vouchers", guards=[operator],
    operation_class=described({JSON: VoucherView}, {JSON: Voucher}, refuses=(404, 409)),
)  # fmt: skip
async def post_voucher(
    request: AnyRequest, scopes: ScopeNames = None, hidden: FromQuery[bool] = False
) -> Response[bytes]:
    """`hidden`: devices are told the digest of the code and not the code itself, which must be of 80 bits or more."""
    server, raw = _server(request), await request.body()

    async def work(transaction: Transaction) -> vouchers.VoucherView:
        names, now = scopes or [FIRST_SCOPE], server.clock()
        voucher_id = await vouchers.create(transaction, raw, names, server.settings, hidden=hidden, now=now)
        return (await vouchers.view(transaction, voucher_id=voucher_id, limit=1))[0]

    return _json(await server.database.write(work), 201)


@get("/v1/vouchers", guards=[operator], operation_class=described({JSON: VoucherPage}))
async def list_vouchers(
    request: AnyRequest, code: FromQuery[str | None] = None, cursor: Cursor = "", limit: Limit = 100
) -> Response[bytes]:
    try:
        folded = "" if code is None else fold(code)
    except InvalidInput as error:
        raise error.under("code") from None
    async with _server(request).database.read() as connection:
        found = await vouchers.view(connection, folded=folded, after=cursor, limit=limit)
    return _page(VoucherPage, found, limit)


@get("/v1/vouchers/{voucher_id:str}", guards=[operator], operation_class=described({JSON: VoucherView}))
async def get_voucher(request: AnyRequest, voucher_id: FromPath[str]) -> Response[bytes]:
    async with _server(request).database.read() as connection:
        found = await vouchers.view(connection, voucher_id=voucher_id, limit=1)
    if not found:
        raise not_found("voucher")
    return _json(found[0])


@put(
    "/v1/vouchers/{voucher_id:str}", guards=[operator],
    operation_class=described({JSON: VoucherView}, {JSON: Voucher}, refuses=(409,)),
)  # fmt: skip
async def put_voucher(request: AnyRequest, voucher_id: FromPath[str]) -> Response[bytes]:
    """A new revision: the whole voucher, not only what changes."""
    server, raw = _server(request), await request.body()

    async def work(transaction: Transaction) -> vouchers.VoucherView:
        await vouchers.revise(transaction, voucher_id, raw, server.settings, now=server.clock())
        return (await vouchers.view(transaction, voucher_id=voucher_id, limit=1))[0]

    return _json(await server.database.write(work))


@post(
    "/v1/vouchers/{voucher_id:str}/deactivate", status_code=200, guards=[operator],
    operation_class=described({JSON: Ok}, {JSON: NoBody}, empty=True),
)  # fmt: skip
async def deactivate_voucher(request: AnyRequest, voucher_id: FromPath[str]) -> Response[bytes]:
    server = _server(request)
    await _read(request, NoBody)
    await server.database.write(lambda t: vouchers.deactivate(t, voucher_id, now=server.clock()))
    return _json(Ok())


@post(
    "/v1/campaigns",
    guards=[operator],
    operation_class=described({JSON: CampaignView}, {JSON: NewCampaign}, refuses=(409,)),
)
async def post_campaign(request: AnyRequest) -> Response[bytes]:
    server, new = _server(request), await _read(request, NewCampaign)
    now, name = server.clock(), new.name or new.id
    view = await server.database.write(lambda t: operating.create_campaign(t, new.id, name, now=now))
    return _json(view, 201)


@get("/v1/campaigns", guards=[operator], operation_class=described({JSON: Campaigns}))
async def list_campaigns(request: AnyRequest) -> Response[bytes]:
    async with _server(request).database.read() as connection:
        return _json(Campaigns(await operating.list_campaigns(connection)))


@post("/v1/scopes", guards=[operator], operation_class=described({JSON: NewScope}, {JSON: NewScope}, refuses=(409,)))
async def post_scope(request: AnyRequest) -> Response[bytes]:
    server, new = _server(request), await _read(request, NewScope)
    await server.database.write(lambda t: bundles.create_scope(t, new.name, now=server.clock()))
    return _json(new, 201)


@get("/v1/scopes", guards=[operator], operation_class=described({JSON: Scopes}))
async def list_scopes(request: AnyRequest) -> Response[bytes]:
    async with _server(request).database.read() as connection:
        return _json(Scopes(await operating.list_scopes(connection)))


@post("/v1/tokens", guards=[operator], operation_class=described({JSON: TokenView}, {JSON: NewToken}, refuses=(404,)))
async def post_token(request: AnyRequest) -> Response[bytes]:
    server, new = _server(request), await _read(request, NewToken)
    token = await devices.make_token(server, store_id=new.store_id, scope=new.scope, ttl_s=new.ttl_s)
    return _json(TokenView(str(token)), 201)


@get("/v1/devices", guards=[operator], operation_class=described({JSON: DevicePage}))
async def list_devices(request: AnyRequest, cursor: Cursor = "", limit: Limit = 100) -> Response[bytes]:
    async with _server(request).database.read() as connection:
        return _page(DevicePage, await operating.list_devices(connection, after=cursor, limit=limit), limit)


@post(
    [f"/v1/devices/{{device_id:str}}/{verb}" for verb in DEVICE_VERBS], status_code=200,
    guards=[operator], operation_class=described({JSON: DeviceChanged}, {JSON: NoBody}, empty=True, refuses=(409,)),
)  # fmt: skip
async def change_device(request: AnyRequest, device_id: FromPath[str]) -> Response[bytes]:
    server, state = _server(request), DEVICE_VERBS[request.scope["path"].rstrip("/").rpartition("/")[2]]
    await _read(request, NoBody)
    await server.database.write(lambda t: devices.change_state(t, device_id, state, now=server.clock()))
    return _json(DeviceChanged(device_id, state))


@get("/v1/devices/{device_id:str}", guards=[operator], operation_class=described({JSON: forks.DeviceDetail}))
async def get_device(request: AnyRequest, device_id: FromPath[str]) -> Response[bytes]:
    server = _server(request)
    async with server.database.read() as connection:
        return _json(await forks.show(connection, server, device_id))


@post(
    "/v1/devices/{device_id:str}/move", status_code=200, guards=[operator],
    operation_class=described({JSON: DeviceMoved}, {JSON: NewPlace}, refuses=(409,)),
)  # fmt: skip
async def move_device(request: AnyRequest, device_id: FromPath[str]) -> Response[bytes]:
    server, new = _server(request), await _read(request, NewPlace)
    await server.database.write(lambda t: devices.move(t, device_id, new.scope, now=server.clock()))
    return _json(DeviceMoved(device_id, new.scope))


@post(
    "/v1/leases/{lease_id:str}/release", status_code=200, guards=[operator],
    operation_class=described({JSON: leases.Released}, {JSON: NoBody}, empty=True, refuses=(409,)),
)  # fmt: skip
async def release_lease(request: AnyRequest, lease_id: FromPath[str]) -> Response[bytes]:
    """At risk, and final: the device may have used more of it than is known."""
    server = _server(request)
    await _read(request, NoBody)
    return _json(await server.database.write(lambda t: leases.release(t, lease_id, now=server.clock())))


@get("/v1/recovery", guards=[operator], operation_class=described({JSON: recovery.Progress}))
async def get_recovery(request: AnyRequest) -> Response[bytes]:
    async with _server(request).database.read() as connection:
        return _json(await recovery.progress(connection))


@post(
    ["/v1/recovery/begin", "/v1/recovery/end"], status_code=200, guards=[operator],
    operation_class=described({JSON: recovery.Progress}, {JSON: NoBody}, empty=True, refuses=(409,)),
)  # fmt: skip
async def change_recovery(request: AnyRequest) -> Response[bytes]:
    """`begin` declares that the database was restored from a backup; `end` does not wait for those `unreported`."""
    server = _server(request)
    await _read(request, NoBody)
    change = recovery.begin if request.scope["path"].rstrip("/").endswith("begin") else recovery.end
    return _json(await server.database.write(lambda t: change(t, now=server.clock())))


@get("/v1/flagged", guards=[operator], operation_class=described({JSON: FlaggedPage}))
async def list_flagged(
    request: AnyRequest, flag_state: FlagState = "open", cursor: RowCursor = 0, limit: Limit = 100
) -> Response[bytes]:
    async with _server(request).database.read() as connection:
        found = await operating.list_flagged(connection, state=flag_state, after=cursor, limit=limit)
    return _page(FlaggedPage, found, limit)


@post(
    "/v1/flagged/{flag_id:int}/resolve", status_code=200, guards=[operator],
    operation_class=described({JSON: Ok}, {JSON: Resolution}, empty=True, refuses=(409,)),
)  # fmt: skip
async def resolve_flagged(request: AnyRequest, flag_id: FromPath[int]) -> Response[bytes]:
    server, said = _server(request), await _read(request, Resolution)
    await server.database.write(lambda t: operating.resolve(t, flag_id, said.note, now=server.clock()))
    return _json(Ok())


@get("/v1/status", guards=[operator], operation_class=described({JSON: operating.Status}))
async def get_status(request: AnyRequest) -> Response[bytes]:
    server = _server(request)
    async with server.database.read() as connection:
        return _json(await operating.status(server, connection))


@get("/health/live", operation_class=described({JSON: Ok}))
async def get_live(request: AnyRequest) -> Response[bytes]:
    """200 where the process runs and the database answers."""
    async with _server(request).database.read() as connection:
        await connection.execute(select(server_table.c.id))
    return _json(Ok())


HANDLERS = [
    get_root, enrol, get_manifest, get_blob, post_sync, post_redemption, post_voucher, list_vouchers, get_voucher,
    put_voucher, deactivate_voucher, post_campaign, list_campaigns, post_scope, list_scopes, post_token, list_devices,
    change_device, list_flagged, resolve_flagged, get_status, get_live, enrol_again, get_device, move_device,
    release_lease, get_recovery, change_recovery,
]  # fmt: skip
