"""Signed bodies: a generated payload, made to fit as far as it is drawn to, under the signature of a device."""

from __future__ import annotations

import copy
import random
from typing import Any
from urllib.parse import unquote

import msgspec
import schemathesis
import zstandard

from tallystick_server.documents import JOSE, SYNC
from tallystick_shared.journal import encode, join_events
from tallystick_shared.signing import SigningKey, Typ, b64u_decode, peek, sha256_hex
from tests.proof.api_shop import Filled
from tests.server.conftest import ORDER, voucher
from tests.server.tiny_device import TinyDevice, new_id

TYPES = {
    "/v1/devices": Typ.ENROL,
    "/v1/devices/again": Typ.ENROL_AGAIN,
    "/v1/sync": Typ.SYNC,
    "/v1/redemptions": Typ.REDEEM,
}
SPOILED = 0.2


class Signer:
    """Signs for the devices of one case, `signs_all` also what has no body.

    `spoiled`: the bodies whose signature was broken on purpose.
    """

    def __init__(self, shop: Filled, chance: random.Random, spoiled: set[bytes], *, signs_all: bool) -> None:
        self.shop, self.chance, self.spoiled, self.signs_all = shop, chance, spoiled, signs_all
        # each sync of a case starts from the journal as it was when the shop was filled, so that some are forks
        self.devices = [copy.copy(one) for one in shop.devices]
        self.fresh = [SigningKey.generate() for _ in range(3)]
        self.key, self.packed, self.spoils = self.fresh[0], b"", False
        # a few a device, so that some come again; a generated one may be an operator's too, and be counted twice
        self.ids = {one.id: [new_id() for _ in range(3)] for one in shop.devices}

    def help(self, case: schemathesis.Case[Any]) -> None:
        """Puts what is there into some of the requests, so that they get further than `there is no such`."""
        known, chance, path, body = self.shop.known, self.chance, case.operation.path, case.body
        for name in case.path_parameters or {}:
            if name in known and chance.random() < 0.7:
                case.path_parameters[name] = chance.choice(
                    self.shop.suspended if path.endswith("/resume") else known[name]
                )
        if isinstance(body, dict):
            _as_written(body)
            if (
                path.startswith("/v1/vouchers")
                and "discount" in body
                and case.method in ("POST", "PUT")
                and chance.random() < 0.5
            ):
                self._publish(case, body)
            elif case.media_type in (JOSE, SYNC):
                self._fit(path, body)
            elif path == "/v1/redemptions":
                body.pop("device", None)
                if chance.random() < 0.5:
                    body["order"] = ORDER
            if "codes" in body and chance.random() < 0.6:
                body["codes"] = chance.sample(known["code"], chance.randint(1, 3))
            if path == "/v1/scopes" and chance.random() < 0.3:
                body["name"] = chance.choice(known["scope_name"])
            if "scope" in body and chance.random() < 0.6:
                body["scope"] = chance.choice(known["scope_name"])
        # one that is signed already is a copy that a check made to see what happens without
        if self.signs_all and not case._has_explicit_auth:
            case._has_explicit_auth = True
            device = chance.choice(self.devices)
            signed = device.authorization(unquote(case.formatted_path), case.method.upper())
            case.headers.update(signed)

    def _publish(self, case: schemathesis.Case[Any], body: dict[str, Any]) -> None:
        """A voucher that is sound; where it is a new revision, one of a voucher whose limit may change."""
        code = f"c{new_id()}"
        if "voucher_id" in (case.path_parameters or {}):
            code = "jam"
            case.path_parameters["voucher_id"] = self.shop.known["voucher_id"][self.shop.known["code"].index(code)]
        body.clear()
        body.update(voucher(code, total=self.chance.randint(100, 300)))

    def _fit(self, path: str, body: dict[str, Any]) -> None:
        """Puts into a generated payload what only a device can know, and draws how much of it."""
        device = self.chance.choice(self.devices)
        self.key, self.packed, self.spoils = device.key, b"", self.chance.random() < SPOILED
        parts = {
            "/v1/devices": self._enrol,
            "/v1/devices/again": self._again,
            "/v1/sync": self._sync,
            "/v1/redemptions": self._redeem,
        }
        if path in parts:
            good = parts[path](device)
            # a signature is tried on what would be good with another one
            whole = self.spoils or self.chance.random() < 0.7
            body.update({name: value for name, value in good.items() if whole or self.chance.random() < 0.5})
            if path == "/v1/redemptions" and len(str(body.get("id"))) == len(good["id"]):
                body["id"] = good["id"]

    def _enrol(self, _: TinyDevice) -> dict[str, Any]:
        self.key = self.chance.choice(self.fresh) if self.chance.random() < 0.5 else SigningKey.generate()
        return {"token": self.chance.choice(self.shop.tokens).split(".")[1], "jwk": self.key.jwk()}

    def _again(self, device: TinyDevice) -> dict[str, Any]:
        request, answer = (part.decode() for part in device.enrolment)
        return {"device": device.id, "request": request, "enrolled": answer}

    def _redeem(self, device: TinyDevice) -> dict[str, Any]:
        return {"device": device.id, "order": ORDER, "id": self.chance.choice(self.ids[device.id])}

    def _sync(self, device: TinyDevice) -> dict[str, Any]:
        after = device.acknowledged if self.chance.random() < 0.7 else self.chance.randrange(len(device.events) + 1)
        chosen = device.events[after:]
        self.packed = zstandard.compress(join_events(chosen)) if chosen else b""
        line = device.request(after=after).partition(b"\n")[0]
        good: dict[str, Any] = msgspec.json.decode(peek(line, Typ.SYNC)[1])
        good["events"] = {"count": len(chosen), "bytes": len(self.packed), "sha256": sha256_hex(self.packed)}
        good.pop("wants"), good.pop("nonce")
        return good

    def sign(self, path: str, media_type: str, body: Any) -> bytes:
        typ = TYPES.get(path, self.chance.choice(list(Typ)))
        payload = body if isinstance(body, bytes) else encode(body)
        whole = self.key.sign(typ, payload)
        if self.spoils:
            whole = self._spoil(whole, typ, payload)
        if media_type == SYNC:
            whole += b"\n" + self.packed
        if self.spoils:
            self.spoiled.add(whole)
        return whole

    def _spoil(self, token: bytes, typ: Typ, payload: bytes) -> bytes:
        head, body, signature = token.split(b".")
        at = self.chance.randrange(len(signature))
        other = self.chance.choice([one for one in Typ if one is not typ])
        return self.chance.choice([
            b".".join([head, body, signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :]]),
            b".".join([head, body, b""]),
            b".".join([b"eyJhbGciOiJub25lIn0", body, b""]),
            b".".join([head, body[: len(body) // 2], signature]),
            SigningKey.generate().sign(typ, payload),
            self.key.sign(other, payload),
            token + b".",
            token + b"=",
            b"\xff" + token,
            token.replace(b".", b"\x00.", 1),
            token * 2,
        ])  # fmt: skip


def _as_written(value: Any) -> Any:
    """In a JSON schema `93.0` is an integer, and for this server it is none: the generator writes `93`."""
    if isinstance(value, dict):
        for name, one in value.items():
            value[name] = _as_written(one)
    elif isinstance(value, list):
        value[:] = [_as_written(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case[Any], __: dict[str, Any]) -> None:
    signer = getattr(case.operation.app, "signer", None)
    if isinstance(signer, Signer):
        signer.help(case)


@schemathesis.serializer(JOSE, SYNC)
def signed(context: schemathesis.SerializationContext, body: Any) -> bytes:
    """A body of these media types, signed by the signer of the case that asks."""
    case = context.case
    signer: Signer = case.operation.app.signer
    return signer.sign(case.operation.path, case.media_type or JOSE, body)


@schemathesis.deserializer(JOSE)
def opened(_: schemathesis.DeserializationContext, response: schemathesis.Response) -> Any:
    """What is signed, so that it is compared with its schema."""
    return msgspec.json.decode(b64u_decode(response.content.split(b".")[1].decode("ascii")))
