"""Mutations of bytes, and of the form of a JWS, by whoever has no key: what comes out must never be believed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from tallystick_shared.signing import SigningKey, Typ, b64u, b64u_decode

Doc = dict[str, Any]
ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the group of Ed25519: a signature whose S is larger by this is a second spelling of it."""
_STRAY = (b"\n", b" ", b"=", b"A", b"\x00", b".", b'"', b"\xff", b"\r", b"0")


class Changed(NamedTuple):
    """`kind`: of the mutation, as the tally counts it; `how`: in words, for whoever looks into a failure."""

    kind: str
    how: str
    raw: bytes


# ---- every place of a message


def _flip(bit: int, raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]


_AT: tuple[tuple[str, Callable[[bytes, int], bytes]], ...] = (
    *(("bit flipped", partial(_flip, bit)) for bit in range(8)),
    ("byte taken out", lambda raw, at: raw[:at] + raw[at + 1 :]),
    ("byte doubled", lambda raw, at: raw[:at] + raw[at : at + 1] + raw[at:]),
    ("byte put in", lambda raw, at: raw[:at] + _STRAY[at % len(_STRAY)] + raw[at:]),
    ("cut short", lambda raw, at: raw[:at]),
    ("bytes exchanged", lambda raw, at: raw[:at] + raw[at + 1 : at + 2] + raw[at : at + 1] + raw[at + 2 :]),
)


def places(raw: bytes) -> int:
    """How many mutations `at_place` has of these bytes."""
    return len(_AT) * len(raw)


def at_place(raw: bytes, number: int) -> Changed:
    """The mutation of this number: every bit, every byte and every length has one."""
    kind, change = _AT[number // len(raw)]
    at = number % len(raw)
    return Changed(kind, f"{kind} at {at} ({number})", change(raw, at))


def by_chance(raw: bytes, other: bytes, chance: random.Random) -> Changed:
    """Several places at once, or a part of another message."""
    start, end = sorted(chance.randrange(len(raw) + 1) for _ in range(2))
    match chance.randrange(6):
        case 0:
            made = bytearray(raw)
            for _ in range(chance.randrange(2, 9)):
                made[chance.randrange(len(made))] = chance.randrange(256)
            return Changed("several bytes changed", "several bytes", bytes(made))
        case 1:
            return Changed("part taken out", f"{start} to {end}", raw[:start] + raw[end:])
        case 2:
            return Changed("part doubled", f"{start} to {end}", raw[:end] + raw[start:])
        case 3:
            return Changed("part turned round", f"{start} to {end}", raw[:start] + raw[start:end][::-1] + raw[end:])
        case 4:
            cut = chance.randrange(len(other) + 1)
            return Changed("spliced", f"{start} with {cut}", raw[:start] + other[cut:])
        case _:
            letters = bytearray(raw)
            for _ in range(chance.randrange(1, 4)):
                at = chance.randrange(len(letters))
                letters[at] = chance.choice(b'ABCDEFGHIJabcdefghij0123456789-_.{}[]",:\n')
            return Changed("letters changed", "letters", bytes(letters))


# ---- the form of a compact JWS


def header_of(token: bytes) -> Doc:
    found: Doc = json.loads(b64u_decode(token.split(b".")[0].decode()))
    return found


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _join(*parts: bytes) -> bytes:
    return b".".join(b64u(one).encode() for one in parts)


def _headers(header: Doc, stranger: SigningKey, public_x: str) -> Iterator[tuple[str, bytes]]:
    """Other headers over the same payload: what a library that asks the message for its algorithm would follow."""
    for alg in ("none", "None", "", "HS256", "EdDSA", "ES256", "RS256", "ed25519", "Ed448"):
        yield f"alg {alg!r}", compact(header | {"alg": alg})
    for typ in [*Typ, "JWT", "", header["typ"].upper(), header["typ"] + " "]:
        if typ != header["typ"]:
            yield f"typ {typ!r}", compact(header | {"typ": str(typ)})
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": public_x}
    extra: Doc = {
        "crit": ["exp"], "b64": False, "jku": "https://example.org/keys", "jwk": stranger.jwk(), "x5c": ["MIIB"],
        "x5u": "https://example.org/x", "cty": "JWT", "zip": "DEF", "nonce": "1", "kid ": header["kid"],
    }  # fmt: skip
    for name, value in extra.items():
        yield f"header with {name}", compact(header | {name: value})
    yield "crit and b64", compact(header | {"b64": False, "crit": ["b64"]})
    yield "own key in the header", compact(header | {"jwk": jwk})
    yield "no kid", compact({name: header[name] for name in ("alg", "typ")})
    yield "kid null", compact(header | {"kid": None})
    yield "kid a list", compact(header | {"kid": [header["kid"]]})
    yield "kid with a line end", compact(header | {"kid": header["kid"] + "\n"})
    yield "a stranger's kid", compact(header | {"kid": stranger.kid})
    yield "alg twice", b'{"alg":"none",' + compact(header)[1:]
    yield "kid twice", compact(header)[:-1] + b',"kid":"' + stranger.kid.encode() + b'"}'
    yield "spaces", json.dumps(header).encode()
    yield "a space behind", compact(header) + b" "
    yield "other order", compact(dict(reversed(header.items())))
    yield "escaped letters", compact(header).replace(b"Ed25519", b"\\u0045d25519")
    yield "byte order mark", b"\xef\xbb\xbf" + compact(header)
    yield "invalid UTF-8", compact(header).replace(b"Ed", b"\xc3")
    yield "lone surrogate", compact(header).replace(b"Ed25519", b"\\ud800")
    yield "no JSON", b"header"
    yield "nested deeply", b'{"alg":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    yield "an unknown member nested deeply", b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b"," + compact(header)[1:]
    yield "a list", compact([header])
    yield "empty", b""


def _second_spelling(signature: bytes) -> bytes:
    return signature[:32] + (int.from_bytes(signature[32:], "little") + ORDER).to_bytes(32, "little")


def _signatures(token: bytes, public_x: str) -> Iterator[tuple[str, bytes]]:
    """Other signatures over the same header and payload."""
    signed, _, last = token.rpartition(b".")
    signature = b64u_decode(last.decode())
    raw = b64u_decode(public_x)
    jwk = compact({"crv": "Ed25519", "kty": "OKP", "x": public_x})
    spki = bytes.fromhex("302a300506032b6570032100") + raw
    pem = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(spki) + b"\n-----END PUBLIC KEY-----\n"
    yield "no signature", b""
    yield "64 zeros", bytes(64)
    yield "S beyond the order", _second_spelling(signature)
    yield "R of the identity", (1).to_bytes(32, "little") + bytes(32)
    yield "halves exchanged", signature[32:] + signature[:32]
    yield "a byte short", signature[:-1]
    yield "a byte more", signature + b"\x00"
    yield "twice", signature * 2
    for name, secret in (
        ("key's bytes", raw),
        ("JWK", jwk),
        ("PEM", pem),
        ("SPKI", spki),
        ("text of x", public_x.encode()),
    ):
        yield f"HMAC with the {name}", hmac.new(secret, signed, hashlib.sha256).digest()


def _forms(token: bytes) -> Iterator[tuple[str, bytes]]:
    """The same three parts, written otherwise."""
    head, payload, signature = token.split(b".")
    for name, tail in (
        ("line end", b"\n"), ("CR LF", b"\r\n"), ("space", b" "), ("NUL", b"\x00"), ("padding", b"="), ("dot", b"."),
        ("four parts", b".AAAA"), ("itself", token), ("a line end and itself", b"\n" + token),
    ):  # fmt: skip
        yield f"{name} behind", token + tail
    for name, front in (("line end", b"\n"), ("space", b" "), ("byte order mark", b"\xef\xbb\xbf"), ("dot", b".")):
        yield f"{name} in front", front + token
    yield "no dots", token.replace(b".", b"")
    yield "two parts", head + b"." + payload
    yield "payload detached", head + b".." + signature
    yield "parts turned round", b".".join((signature, payload, head))
    yield "header twice", b".".join((head, head, signature))
    yield "folded into lines", b"\n".join(token[at : at + 76] for at in range(0, len(token), 76))
    yield "CR in the payload", b".".join((head, payload[:8] + b"\r" + payload[8:], signature))
    yield "percent-encoded", token.replace(b".", b"%2E")
    yield "quoted", b'"' + token + b'"'
    for part in range(3):
        parts = [head, payload, signature]
        parts[part] = parts[part].translate(bytes.maketrans(b"-_", b"+/"))
        yield f"the other alphabet in part {part}", b".".join(parts)
        parts = [head, payload, signature]
        parts[part] += b"=" * (-len(parts[part]) % 4)
        yield f"padding in part {part}", b".".join(parts)
        parts = [head, payload, signature]
        parts[part] = _loose(parts[part])
        yield f"loose last bits in part {part}", b".".join(parts)
    texts = {"protected": head.decode(), "signature": signature.decode()}
    yield "flattened JSON", compact({"payload": payload.decode(), **texts})
    yield "general JSON", compact({"payload": payload.decode(), "signatures": [texts]})


def _loose(part: bytes) -> bytes:
    """The same bytes to whoever ignores the bits that the last letter has too many."""
    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    unused = len(part) % 4
    return part[:-1] + bytes([letters[letters.index(part[-1]) | 1]]) if unused in (2, 3) else part


def dressed(token: bytes, public_x: str, stranger: SigningKey) -> Iterator[Changed]:
    """The form of a compact JWS; `public_x` is of its signer. None of them is signed by who may sign it."""
    head, payload, signature = token.split(b".")
    body = b64u_decode(payload.decode())
    header, last = header_of(token), b64u_decode(signature.decode())
    for how, other in _headers(header, stranger, public_x):
        yield Changed("another header", how, _join(other, body, last))
    for how, other in _signatures(token, public_x):
        yield Changed("another signature", how, head + b"." + payload + b"." + b64u(other).encode())
        none = compact(header | {"alg": "HS256" if "HMAC" in how else "none"})
        yield Changed("another signature", f"{how}, and so the header", _join(none, body, other))
    for how, raw in _forms(token):
        yield Changed("written otherwise", how, raw)
    typ = Typ(header["typ"])
    yield Changed("signed by a stranger", "its own kid", stranger.sign(typ, body))
    claimed = head + b"." + payload
    forged = b64u_decode(stranger.sign(typ, body).rpartition(b".")[2].decode())
    yield Changed(
        "signed by a stranger", "signature put under the right header", claimed + b"." + b64u(forged).encode()
    )


def exchanged(one: bytes, other: bytes) -> Iterator[Changed]:
    """Header, payload and signature of two good messages, in every mixture that is neither of them."""
    mine, theirs = one.split(b"."), other.split(b".")
    for mask in range(1, 7):
        parts = [(theirs if mask >> at & 1 else mine)[at] for at in range(3)]
        if parts not in (mine, theirs):
            yield Changed("parts of two messages", f"mixture {mask:03b}", b".".join(parts))
