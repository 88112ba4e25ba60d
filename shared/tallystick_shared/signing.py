"""Signatures over exact bytes: JWS (RFC 7515) with Ed25519 (RFC 8037, algorithm name of RFC 9864), by joserfc.

What holds for every verification here:

1. the size is capped before anything is parsed;
2. base64url is canonical, so that one message has one spelling;
3. the protected header is exactly `{alg: "Ed25519", kid, typ}`: nothing in the message chooses an algorithm;
4. `typ` is the one the caller expects, so that a signature for one purpose serves no other;
5. `kid` is among the keys of the role the caller gives: a key is never taken by `kid` alone;
6. the signature holds over the bytes as they came; those bytes are what is returned.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from tallystick_shared.errors import Untrusted

ALGORITHM = "Ed25519"
COMPACT_BYTES_MAX = 8 * 1024 * 1024
"""Largest compact JWS taken, in bytes. joserfc's own limit of 128,000 is too small for an answer with many leases."""
ROOT_BYTES_MAX = 64 * 1024
NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What reading bytes as a message raises: no JSON or not of that form, no UTF-8, or nested too deeply."""


_PRIME: Final = 2**255 - 19
_Y_OF_SMALL_ORDER: Final = (
    0,
    1,
    _PRIME - 1,
    2707385501144840649318225287225658788936804267575313519463743609750303402022,
    _PRIME - 2707385501144840649318225287225658788936804267575313519463743609750303402022,
)
"""Of points whose multiples are eight at most, so that the signature of one message holds for many (RFC 7748, 7)."""


class Typ(StrEnum):
    """The `typ` header: what a signature is for."""

    ROOT = "tallystick-root"
    MANIFEST = "tallystick-manifest"
    ENROL = "tallystick-enrol"
    ENROLLED = "tallystick-enrolled"
    REQUEST = "tallystick-request"
    SYNC = "tallystick-sync"
    ANSWER = "tallystick-answer"
    REDEEM = "tallystick-redeem"
    REDEEMED = "tallystick-redeemed"
    ENROL_AGAIN = "tallystick-enrol-again"


class _Registry(jws.JWSRegistry):
    max_payload_length = COMPACT_BYTES_MAX


_REGISTRY = _Registry(algorithms=[ALGORITHM])


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alg: str
    kid: str
    typ: str


class PublicKey:
    """An Ed25519 public key; `kid` is its RFC 7638 thumbprint, never chosen by anyone."""

    def __init__(self, key: OKPKey) -> None:
        self._key = key
        self.kid: str = key.thumbprint()

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> PublicKey:
        """From `{"kty": "OKP", "crv": "Ed25519", "x": ..}`; raises `Untrusted` (`BAD_KEY`) for anything else."""
        if set(jwk) != {"kty", "crv", "x"} or jwk["kty"] != "OKP" or jwk["crv"] != "Ed25519":
            raise Untrusted("a key must be a JWK with kty OKP, crv Ed25519 and x, and nothing else", code="BAD_KEY")
        raw = b64u_decode(str(jwk["x"]))
        y = int.from_bytes(raw, "little") % 2**255
        if y in _Y_OF_SMALL_ORDER or y >= _PRIME:
            raise Untrusted("the key's x is a point for which anybody can sign", code="BAD_KEY")
        try:
            if len(raw) != 32:
                raise ValueError("length")
            return cls(OKPKey.import_key({str(k): str(v) for k, v in jwk.items()}))
        except (JoseError, ValueError) as error:
            raise Untrusted("the key's x must be 32 bytes in base64url", code="BAD_KEY") from error

    def jwk(self) -> dict[str, str]:
        whole = self._key.as_dict(private=False)
        return {name: str(whole[name]) for name in ("kty", "crv", "x")}


class SigningKey(PublicKey):
    """An Ed25519 private key."""

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(OKPKey.generate_key("Ed25519"))

    @classmethod
    def from_bytes(cls, raw: bytes) -> SigningKey:
        """From what `to_bytes` gave; raises `ValueError` for anything else, without echoing it."""
        try:
            jwk = msgspec.json.decode(raw, type=dict[str, str])
            key = OKPKey.import_key({name: jwk[name] for name in ("kty", "crv", "x", "d")})
        except (JoseError, msgspec.DecodeError, KeyError, ValueError) as error:
            raise ValueError("not an Ed25519 private key in JWK form") from error
        return cls(key)

    def to_bytes(self) -> bytes:
        """The private JWK as JSON; whoever stores it keeps it 0600."""
        whole = self._key.as_dict(private=True)
        return msgspec.json.encode({name: str(whole[name]) for name in ("kty", "crv", "x", "d")})

    def public(self) -> PublicKey:
        return PublicKey.from_jwk(self.jwk())

    def _header(self, typ: Typ) -> dict[str, str]:
        return {"alg": ALGORITHM, "kid": self.kid, "typ": typ.value}

    def sign(self, typ: Typ, payload: bytes) -> bytes:
        """`payload` as compact JWS."""
        token: str = jws.serialize_compact(self._header(typ), payload, self._key, registry=_REGISTRY)
        return token.encode("ascii")

    def sign_flat(self, typ: Typ, payload: bytes) -> dict[str, str]:
        """One entry for the `signatures` of a JWS in JSON serialisation (`join_signatures`)."""
        whole = jws.serialize_json({"protected": self._header(typ)}, payload, self._key, registry=_REGISTRY)
        return {"protected": str(whole["protected"]), "signature": str(whole["signature"])}


def join_signatures(payload: bytes, signatures: list[dict[str, str]]) -> bytes:
    """A JWS in general JSON serialisation over `payload`, with one signature a key."""
    return msgspec.json.encode({"payload": b64u(payload), "signatures": signatures})


def verify(token: bytes, keys: Mapping[str, PublicKey], typ: Typ, *, bytes_max: int = COMPACT_BYTES_MAX) -> bytes:
    """The payload of a compact JWS, exactly as it was signed.

    `keys` are those of the one role that may sign this, by `kid`. Raises `Untrusted` with `TOO_LARGE`, `MALFORMED`,
    `WRONG_TYPE`, `UNKNOWN_KEY` or `BAD_SIGNATURE`, in this order.
    """
    segments = _segments(token, bytes_max)
    key = keys.get(_header_of(segments[0], typ).kid)
    if key is None:
        raise Untrusted("it is signed by a key that may not sign this", code="UNKNOWN_KEY")
    try:
        return bytes(jws.deserialize_compact(token, key._key, registry=_REGISTRY).payload)
    except (JoseError, ValueError) as error:
        raise Untrusted("the signature does not hold", code="BAD_SIGNATURE") from error


def peek(token: bytes, typ: Typ, *, bytes_max: int = COMPACT_BYTES_MAX) -> tuple[str, bytes]:
    """`kid` and payload of a compact JWS **before** verification: only to find whose key must verify it."""
    segments = _segments(token, bytes_max)
    return _header_of(segments[0], typ).kid, b64u_decode(segments[1].decode("ascii"))


class GeneralJws(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A JWS in general JSON serialisation: one payload, several signatures; all fields are base64url."""

    payload: str
    signatures: list[JwsSignature]


class JwsSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    protected: str
    signature: str


def open_general(raw: bytes, *, bytes_max: int = ROOT_BYTES_MAX) -> bytes:
    """The payload of a JWS in general JSON serialisation **before** verification; `count_signatures` verifies."""
    return b64u_decode(_general(raw, bytes_max).payload)


def count_signatures(raw: bytes, keys: Mapping[str, PublicKey], typ: Typ, *, bytes_max: int = ROOT_BYTES_MAX) -> int:
    """How many different keys of `keys` have a good signature on it; signatures of other keys do not count."""
    whole = _general(raw, bytes_max)
    good: set[str] = set()
    for one in whole.signatures:
        token = f"{one.protected}.{whole.payload}.{one.signature}".encode()
        try:
            verify(token, keys, typ, bytes_max=bytes_max)
        except Untrusted as error:
            if error.code in ("UNKNOWN_KEY", "BAD_SIGNATURE"):
                continue  # roots may carry the signatures of keys that have left; they only do not count
            raise
        good.add(_header_of(one.protected.encode(), typ).kid)
    return len(good)


def sha256_hex(raw: bytes) -> str:
    """SHA-256 as 64 lower-case hexadecimal digits, the form of every digest in a message."""
    return hashlib.sha256(raw).hexdigest()


def b64u(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def b64u_decode(text: str) -> bytes:
    """Canonical base64url without padding; raises `Untrusted` (`MALFORMED`) for any other spelling."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise Untrusted("it is not base64url", code="MALFORMED") from error
    if b64u(raw) != text:
        raise Untrusted("it is not canonical base64url", code="MALFORMED")
    return raw


def _segments(token: bytes, bytes_max: int) -> list[bytes]:
    if len(token) > bytes_max:
        raise Untrusted(f"it has {len(token)} bytes, more than {bytes_max}", code="TOO_LARGE")
    segments = token.split(b".")
    if len(segments) != 3 or not token.isascii():
        raise Untrusted("it is not a compact JWS", code="MALFORMED")
    for segment in segments:
        b64u_decode(segment.decode("ascii"))
    return segments


def _header_of(segment: bytes, typ: Typ) -> _Header:
    try:
        header = msgspec.json.decode(b64u_decode(segment.decode("ascii")), type=_Header)
    except NOT_JSON as error:
        raise Untrusted("its protected header is not {alg, kid, typ}", code="MALFORMED") from error
    if header.alg != ALGORITHM or header.typ != typ.value:
        raise Untrusted(f"its header must say alg {ALGORITHM} and typ {typ.value}", code="WRONG_TYPE")
    return header


def _general(raw: bytes, bytes_max: int) -> GeneralJws:
    if len(raw) > bytes_max:
        raise Untrusted(f"it has {len(raw)} bytes, more than {bytes_max}", code="TOO_LARGE")
    try:
        return msgspec.json.decode(raw, type=GeneralJws)
    except NOT_JSON as error:
        raise Untrusted("it is not a JWS in JSON serialisation", code="MALFORMED") from error
