"""The bodies that operators send, and how every body gets into the OpenAPI document: from the struct that reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar.openapi.spec import OpenAPIMediaType, Operation, Reference, RequestBody, Schema
from msgspec import UNSET, Meta

from tallystick_server.server import FIRST_SCOPE
from tallystick_shared import model
from tallystick_shared.wire import EnrolAgain, EnrolRequest, Name, RedeemRequest, SyncHead


class NewCampaign(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: Annotated[str, Meta(min_length=1, max_length=256)]
    name: Annotated[str, Meta(max_length=256)] = ""


class NewScope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=128, pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class NewPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Into which scope a device is moved."""

    scope: Name


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`ttl_s`: how long the token may be used, in seconds; the server's setting where it is missing."""

    store_id: Name
    scope: Name = FIRST_SCOPE
    ttl_s: Annotated[int, Meta(ge=60, le=30 * 86_400)] | None = None


class Resolution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    note: Annotated[str, Meta(max_length=2_000)] = ""


class NoBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing has to be said: an empty body, or an empty object."""


@dataclass
class _JsonSchema(Schema):
    """A JSON schema as msgspec writes it, put into the OpenAPI document as it is."""

    document: dict[str, Any] = field(default_factory=dict)

    def to_schema(self) -> dict[str, Any]:
        return self.document


def body(*media: tuple[str, str], required: bool = True) -> type[Operation]:
    """An operation whose request body is documented: (media type, name of a struct of `body_schemas`), one or more."""
    content = {
        media_type: OpenAPIMediaType(schema=Reference(ref=f"#/components/schemas/{name}")) for media_type, name in media
    }

    @dataclass
    class Documented(Operation):
        def __post_init__(self) -> None:
            self.request_body = RequestBody(content=dict(content), required=required)

    return Documented


def body_schemas() -> dict[str, Schema]:
    """The components of the OpenAPI document: every struct that is a body, and what these are made of."""
    kinds = (
        NewCampaign, NewPlace, NewScope, NewToken, Resolution, NoBody, _voucher(), EnrolRequest, EnrolAgain, SyncHead,
        RedeemRequest,
    )  # fmt: skip
    _, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}", schema_hook=_schema_of
    )
    return {name: _JsonSchema(document=document) for name, document in components.items()}


def _schema_of(kind: type[Any]) -> dict[str, Any]:
    if issubclass(kind, datetime):
        return {"type": "string", "format": "date-time"}
    return {"anyOf": [{"type": "number"}, {"type": "string"}]}  # Percent: a decimal, as number or text


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
    made = msgspec.defstruct(struct.__name__, fields, tag=config.tag, forbid_unknown_fields=True, kw_only=True)
    made.__doc__ = struct.__doc__
    return made
