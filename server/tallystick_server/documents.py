"""The bodies of operators' requests and answers, and how every body gets into the OpenAPI document: from its struct.

A route says `operation_class=described(...)`: what it takes and gives, and nothing else is written anywhere. `complete`
adds what follows from that, such as the refusals. A JWS is described by the payload that is signed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec
from litestar import Litestar
from litestar.openapi.spec import (
    Components,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Reference,
    RequestBody,
    Schema,
    SecurityScheme,
)
from litestar.openapi.spec.enums import OpenAPIType
from litestar.routes import HTTPRoute
from msgspec import UNSET, Meta

from tallystick_server.operating import CampaignView, DeviceView, FlaggedView, ScopeView
from tallystick_server.problems import PROBLEM_MEDIA_TYPE
from tallystick_server.server import FIRST_SCOPE
from tallystick_server.vouchers import VoucherView
from tallystick_shared import model
from tallystick_shared.results import Result
from tallystick_shared.terms import Label
from tallystick_shared.wire import AUTH_SCHEME, Name, Problem, RedeemAnswer, RedeemRequest

JSON, JOSE, JOSE_JSON = "application/json", "application/jose", "application/jose+json"
SYNC, ZSTD = "application/vnd.tallystick.sync", "application/zstd"
Bodies = Mapping[str, Any]
"""Media type -> the struct, or `bytes`."""

NO_NUL: Final = r"^[^\x00]*$"
"""U+0000 fits into no column of PostgreSQL's."""

# what operators send


class NewCampaign(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: Label
    name: Annotated[str, Meta(max_length=256, pattern=NO_NUL)] = ""


class NewScope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=128, pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class NewPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Into which scope a device is moved."""

    scope: Name


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`ttl_s`: how long the token may be used, in seconds; the server's setting where it is missing."""

    store_id: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$(?!\n)")]
    scope: Name = FIRST_SCOPE
    ttl_s: Annotated[int, Meta(ge=60, le=30 * 86_400)] | None = None


class Resolution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    note: Annotated[str, Meta(max_length=2_000, pattern=NO_NUL)] = ""


class NoBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing has to be said: an empty body, or an empty object."""


# what they get


class Ok(msgspec.Struct, frozen=True):
    status: str = "ok"


class TokenView(msgspec.Struct, frozen=True):
    """An `EnrolmentToken` as text."""

    token: str


class DeviceChanged(msgspec.Struct, frozen=True):
    id: str
    state: str


class DeviceMoved(msgspec.Struct, frozen=True):
    id: str
    scope: str


class Campaigns(msgspec.Struct, frozen=True):
    campaigns: list[CampaignView]


class Scopes(msgspec.Struct, frozen=True):
    scopes: list[ScopeView]


class VoucherPage(msgspec.Struct, frozen=True):
    """`next` is the cursor of the page after this one, or null; so it is in the other pages."""

    vouchers: list[VoucherView]
    next: str | None


class DevicePage(msgspec.Struct, frozen=True):
    devices: list[DeviceView]
    next: str | None


class FlaggedPage(msgspec.Struct, frozen=True):
    flagged: list[FlaggedView]
    next: int | None


# the document

SECURITY: Final = {
    "operator": SecurityScheme(type="http", scheme="bearer", description="An operator key: `tallyop_...`"),
    "device": SecurityScheme(
        type="apiKey",
        name="Authorization",
        security_scheme_in="header",
        description=f"`{AUTH_SCHEME} JWS`, the JWS a `DeviceRequest`, signed by the device",
    ),
}
_HEADERS: Final[dict[int, dict[str, str]]] = {
    401: {"WWW-Authenticate": "the schemes that this server takes"},
    503: {"Retry-After": "in seconds"},
}
_REQUEST_ID: Final = {"X-Request-Id": "finds the request in the log"}
_OF_CACHED: Final = {"ETag": "of these bytes", "Cache-Control": "who may keep them, and for how long"}


@dataclass
class _JsonSchema(Schema):
    """A JSON schema as msgspec writes it, put into the OpenAPI document as it is."""

    document: dict[str, Any] = field(default_factory=dict)

    def to_schema(self) -> dict[str, Any]:
        return self.document


class Described(Operation):
    """What a route says of itself, see `described`."""

    takes: Bodies
    gives: Bodies
    refuses: tuple[int, ...]
    empty: bool
    cached: tuple[int, ...] | None


def described(
    gives: Bodies,
    takes: Bodies | None = None,
    *,
    empty: bool = False,
    refuses: tuple[int, ...] = (),
    cached: tuple[int, ...] | None = None,
) -> type[Operation]:
    """An operation: its bodies, whether the request's may be `empty`, and statuses it `refuses` with that do not follow
    from what it takes. `cached`: it sends an `ETag`, and these statuses without a body."""
    parts = {"takes": takes or {}, "gives": gives, "refuses": refuses, "empty": empty, "cached": cached}
    return type("Described", (Described,), parts)


def complete(app: Litestar, guards: Mapping[Callable[..., Any], str]) -> None:
    """Puts what the routes say into the document of `app`. `guards`: which of `SECURITY` each of them asks for."""
    document = app.openapi_schema
    found: list[tuple[Described, int]] = []
    for route in app.routes:
        if not isinstance(route, HTTPRoute):
            continue
        item = (document.paths or {}).get(route.path_format)
        for method, (handler, _) in route.route_handler_map.items():
            operation = getattr(item, method.lower(), None)
            if isinstance(operation, Described):
                needs = [{name: list[str]()} for guard, name in guards.items() if guard in handler.resolve_guards()]
                operation.security = [*(operation.security or []), *needs] or None
                found.append((operation, handler.status_code))
    kinds = {kind for operation, _ in found for kind in (*operation.takes.values(), *operation.gives.values())}
    named = sorted((kinds | {Problem}) - {bytes}, key=lambda kind: str(kind.__name__))
    references, schemas = msgspec.json.schema_components(
        [_spelled_out(kind) for kind in named], ref_template="#/components/schemas/{name}", schema_hook=_schema_of
    )
    of = {kind: Reference(ref=one["$ref"]) for kind, one in zip(named, references, strict=True)}
    for operation, status in found:
        _write(operation, status, of)
    components = {name: _JsonSchema(document=schema) for name, schema in schemas.items()}
    document.components = Components(schemas={**components}, security_schemes={**SECURITY})


def _write(operation: Described, status: int, of: Mapping[Any, Reference]) -> None:
    if operation.takes:
        operation.request_body = RequestBody(content=_content(operation.takes, of), required=not operation.empty)
    headers = {} if operation.cached is None else _OF_CACHED
    answers = {status: _answer(status, headers, _content(operation.gives, of))}
    answers |= {other: _answer(other, headers, None) for other in operation.cached or ()}
    for refused in _refusals(operation):
        answers[refused] = _answer(refused, _HEADERS.get(refused, {}), _content({PROBLEM_MEDIA_TYPE: Problem}, of))
    operation.responses = {str(one): answers[one] for one in sorted(answers)}


def _refusals(operation: Described) -> set[int]:
    """What follows from what an operation takes, and what it says by itself."""
    where = {getattr(one, "param_in", "") for one in operation.parameters or []}
    signed = {JOSE, SYNC} & {*operation.takes}
    follow = {
        400: "query" in where,
        401: bool(operation.security or signed),
        404: "path" in where,
        413: bool(operation.takes),
        422: bool(operation.takes or where),
        503: True,
    }
    return {status for status, does in follow.items() if does} | {*operation.refuses}


def _answer(status: int, headers: Mapping[str, str], content: dict[str, OpenAPIMediaType] | None) -> OpenAPIResponse:
    text = Schema(type=OpenAPIType.STRING)
    sent = {
        name: OpenAPIHeader(schema=text, description=said, required=True)
        for name, said in {**headers, **_REQUEST_ID}.items()
    }
    return OpenAPIResponse(description=HTTPStatus(status).phrase, headers={**sent}, content=content)


def _content(bodies: Bodies, of: Mapping[Any, Reference]) -> dict[str, OpenAPIMediaType]:
    binary = Schema(type=OpenAPIType.STRING, content_media_type="application/octet-stream")
    return {media: OpenAPIMediaType(schema=of.get(kind, binary)) for media, kind in bodies.items()}


def _schema_of(kind: type[Any]) -> dict[str, Any]:
    if issubclass(kind, datetime):
        return {"type": "string", "format": "date-time"}
    return model.schema_hook(kind)


def _spelled_out(kind: Any) -> Any:
    """The struct with what it holds as it was sent, `msgspec.Raw`, spelled out."""
    inside: dict[Any, dict[str, tuple[Any, ...]]] = {
        VoucherView: {"voucher": (_voucher(),)},
        RedeemRequest: {"order": (model.Order,)},
        RedeemAnswer: {"result": (Result,)},
    }
    if kind is model.Voucher:
        return _voucher()
    return _mirror(kind, **inside[kind]) if kind in inside else kind


@cache
def _voucher() -> Any:
    """`Voucher` without the one default that msgspec cannot write into a schema: 100 %, of `Shipping`."""
    shipping = _mirror(model.Shipping, percent=(model.Percent, UNSET))
    plain: Any = (
        model.Percentage | model.Fixed | model.FixedPrice | model.BundlePrice | model.Bogo | model.GiftCard | shipping
    )
    tier: Any = _mirror(model.Tier, discount=(plain,))
    case: Any = _mirror(model.Case, discount=(plain,))
    tiered = _mirror(model.Tiered, tiers=(tuple.__class_getitem__((tier, ...)),))
    conditional = _mirror(
        model.Conditional, cases=(tuple.__class_getitem__((case, ...)),), otherwise=(plain | None, None)
    )
    return _mirror(model.Voucher, discount=(plain | tiered | conditional,))


def _mirror(struct: type[msgspec.Struct], **changed: tuple[Any, ...]) -> Any:
    """The same struct with other types, and perhaps defaults, for some of its fields."""
    fields: list[Any] = []
    for one in msgspec.structs.fields(struct):
        options: dict[str, Any] = {"name": one.encode_name}
        if one.name in changed:
            kind, *default = changed[one.name]
            options |= {"default": default[0]} if default else {}
        else:
            kind = one.type
            options |= {"default": one.default} if one.default is not msgspec.NODEFAULT else {}
            options |= {"default_factory": one.default_factory} if one.default_factory is not msgspec.NODEFAULT else {}
        fields.append((one.name, kind, msgspec.field(**options)))
    config = struct.__struct_config__
    strict = config.forbid_unknown_fields
    made = msgspec.defstruct(struct.__name__, fields, tag=config.tag, forbid_unknown_fields=strict, kw_only=True)
    made.__doc__ = struct.__doc__
    return made
