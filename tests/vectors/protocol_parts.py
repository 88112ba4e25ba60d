"""What the protocol's vectors are made of: published test keys, one server, one device, and messages by hand.

Messages are plain JSON signed here, not the project's structs: a vector must be able to say what no struct would.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tallystick_shared.signing import PublicKey, Typ, b64u, sha256_hex

Doc = dict[str, Any]

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
SERVER = "01978000-0000-7000-8000-00000000a001"
DEVICE = "01978000-0000-7000-8000-00000000b001"
OTHER = "01978000-0000-7000-8000-00000000b002"
SALT = "000102030405060708090a0b0c0d0e0f"
ALGORITHM = "Ed25519"


class Key:
    """An Ed25519 key that everybody knows: its private half is the SHA-256 of `tallystick test key NAME`."""

    def __init__(self, name: str) -> None:
        self.seed = hashlib.sha256(f"tallystick test key {name}".encode()).digest()
        self._key = Ed25519PrivateKey.from_private_bytes(self.seed)
        self.jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64u(self._key.public_key().public_bytes_raw())}
        self.private_jwk = self.jwk | {"d": b64u(self.seed)}
        self.kid = PublicKey.from_jwk(self.jwk).kid

    def signature(self, signed: bytes) -> bytes:
        return self._key.sign(signed)

    def header(self, typ: str) -> Doc:
        return {"alg": ALGORITHM, "kid": self.kid, "typ": typ}


class Point(Key):
    """A key that nobody made: 32 bytes. Where the point is of order 1, the one signature here holds for any message."""

    def __init__(self, raw: str) -> None:
        self.jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64u(bytes.fromhex(raw))}
        self.kid = b64u(hashlib.sha256(compact({name: self.jwk[name] for name in ("crv", "kty", "x")})).digest())

    def signature(self, signed: bytes) -> bytes:
        return b"\1" + b"\0" * 63


NAMES = "root_a root_b root_c root_d bundle bundle_new receipt device other_device stranger"
KEYS = {name: Key(name) for name in NAMES.split()}
ROOT_A, ROOT_B, ROOT_C, ROOT_D, BUNDLE, BUNDLE_NEW, RECEIPT, *_ = KEYS.values()
DEVICE_KEY, OTHER_KEY, STRANGER = (KEYS[name] for name in ("device", "other_device", "stranger"))


class Case(NamedTuple):
    """One vector; `base`: the accepted one from which a refused one differs by one thing."""

    id: str
    shows: str
    rule: str
    input: Doc
    base: str = ""


def time(offset_s: int = 0) -> str:
    return f"{NOW + timedelta(seconds=offset_s):%Y-%m-%dT%H:%M:%SZ}"


def compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def b64(raw: bytes) -> str | list[Doc]:
    """Bytes as an input holds them: base64, or, where they are many, parts of which some come many times."""
    runs = list(re.finditer(rb"(.{1,4}?)\1{999,}", raw, re.DOTALL)) if len(raw) > 8192 else []
    if not runs:
        return base64.b64encode(raw).decode("ascii")
    parts, at = [], 0
    for run in runs:
        start, end = run.span()
        parts += [(raw[at:start], 1), (run[1], (end - start) // len(run[1]))]
        at = end
    parts.append((raw[at:], 1))
    return [{"base64": base64.b64encode(part).decode("ascii"), "times": times} for part, times in parts if part]


def jws(key: Key, typ: str, payload: Any, *, header: Any = None) -> bytes:
    """Compact JWS; `payload` and `header` as JSON, or as exact bytes."""
    first = key.header(typ) if header is None else header
    parts = [one if isinstance(one, bytes) else compact(one) for one in (first, payload)]
    signed = b".".join(b64u(one).encode() for one in parts)
    return signed + b"." + b64u(key.signature(signed)).encode()


NOT_UTF8 = b'"\xff"'
DEEP = b"[" * 20_000 + b"]" * 20_000


def noted(document: Doc, note: bytes) -> bytes:
    """With one field more, which nobody knows."""
    return b'{"note":' + note + b"," + compact(document)[1:]


def filled_to(size: int, key: Key, typ: str, document: Doc) -> bytes:
    """A compact JWS of this many bytes: an unknown field makes up the rest, and spaces in the header what is left."""
    for spaces in range(3):
        header = compact(key.header(typ)) + b" " * spaces
        empty = len(jws(key, typ, {"filling": ""} | document, header=header))
        for length in range((size - empty) * 3 // 4 - 2, (size - empty) * 3 // 4 + 3):
            made = jws(key, typ, {"filling": "a" * length} | document, header=header)
            if len(made) == size:
                return made
    raise ValueError(f"no JWS has {size} bytes")


def flat(key: Key, payload: bytes, *, header: Any = None) -> Doc:
    """One entry of a root's `signatures`."""
    first, _, signature = jws(key, Typ.ROOT, payload, header=header).decode().split(".")
    return {"protected": first, "signature": signature}


def general(payload: Any, signers: list[Key]) -> bytes:
    """A root: JWS in general JSON serialisation."""
    raw = payload if isinstance(payload, bytes) else compact(payload)
    return compact({"payload": b64u(raw), "signatures": [flat(key, raw) for key in signers]})


def with_part(document: Doc, path: str, value: Any) -> Doc:
    """A copy with one part other than it was; `...` takes it out. `a.b.0` is the first entry of b in a."""
    made = copy.deepcopy(document)
    *way, last = path.split(".")
    inner: Any = made
    for step in way:
        inner = inner[int(step) if isinstance(inner, list) else step]
    if value is ...:
        del inner[last]
    else:
        inner[int(last) if isinstance(inner, list) else last] = value
    return made


# ---- roots


def root(version: int = 1, **changed: Any) -> Doc:
    """Two of three root keys sign it, and one key each signs manifests and answers."""
    keys = [ROOT_A, ROOT_B, ROOT_C, BUNDLE, RECEIPT]
    return {
        "version": version,
        "server_id": SERVER,
        "expires_at": time(365 * 86_400),
        "keys": {key.kid: key.jwk for key in keys},
        "roles": {
            "root": {"kids": [ROOT_A.kid, ROOT_B.kid, ROOT_C.kid], "threshold": 2},
            "bundle": {"kids": [BUNDLE.kid], "threshold": 1},
            "receipt": {"kids": [RECEIPT.kid], "threshold": 1},
        },
    } | changed


def with_keys(document: Doc, role: str, keys: list[Key], threshold: int = 1) -> Doc:
    """A root whose `role` is of these keys; those it had before stay in `keys` only where a role names them."""
    roles = document["roles"] | {role: {"kids": [key.kid for key in keys], "threshold": threshold}}
    named = {kid for one in roles.values() for kid in one["kids"]}
    known = {key.kid: key.jwk for key in KEYS.values() if key.kid in named}
    return document | {"roles": roles, "keys": known}


# ---- manifests and blobs


VOUCHERS = {
    number: compact({"code": code, "discount": {"type": "percentage", "percent": 10 * number}})
    for number, code in enumerate(("TEN", "TWENTY", "THIRTY", "FORTY"), 1)
}


def voucher_id(number: int) -> str:
    return f"01978000-0000-7000-8000-00000000c00{number}"


def put(number: int, *, raw: bytes | None = None, **changed: Any) -> bytes:
    """The line of a blob that puts a voucher: its revision's bytes as they are."""
    voucher = VOUCHERS[number] if raw is None else raw
    told = {"id": voucher_id(number), "revision": 1, "code": json.loads(VOUCHERS[number])["code"].lower()} | changed
    return b'{"put":' + compact(told)[:-1] + b',"voucher":' + voucher + b"}}\n"


def drop(number: int) -> bytes:
    return compact({"drop": voucher_id(number)}) + b"\n"


def digest_of_state(vouchers: dict[str, bytes]) -> str:
    """By id: the sum of SHA-256("ID SHA256-OF-REVISION") over all, modulo 2**256."""
    total = 0
    for one, raw in vouchers.items():
        total += int.from_bytes(hashlib.sha256(f"{one} {sha256_hex(raw)}".encode()).digest(), "big")
    return f"{total % 2**256:064x}"


def state(*numbers: int) -> str:
    return digest_of_state({voucher_id(number): VOUCHERS[number] for number in numbers})


def packed(lines: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(lines)


def framed(lines: bytes, parameters: zstandard.ZstdCompressionParameters) -> bytes:
    """As a stream, so that the frame says its window and not its size."""
    made = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return made.compress(lines) + made.flush()


def in_blocks(lines: bytes) -> bytes:
    """One frame of two blocks, the last one with nothing in it: three bytes."""
    made = zstandard.ZstdCompressor(level=3).compressobj()
    return made.compress(lines) + made.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) + made.flush()


SKIPPABLE_FRAME = b"\x50\x2a\x4d\x18\4\0\0\0note"


def no_frames(first: bytes, second: bytes) -> list[tuple[str, str, bytes]]:
    """By name and sentence: what a lenient reader of zstd takes for one frame of these lines."""
    whole = packed(first + second)
    return [
        ("two-frames", "Two frames follow each other, and the lines are in both.", packed(first) + packed(second)),
        ("frame-behind", "Another frame follows, with nothing in it.", whole + packed(b"")),
        ("skippable-frame", "A skippable frame stands before the frame.", SKIPPABLE_FRAME + whole),
        ("skippable-frame-behind", "A skippable frame follows the frame.", whole + SKIPPABLE_FRAME),
        ("byte-behind", "A byte follows the frame.", whole + b"\0"),
        ("cut-off", "The frame has no end: its last block, with nothing in it, is missing.",
         in_blocks(first + second)[:-3]),
    ]  # fmt: skip


def ref(blob: bytes, **more: Any) -> Doc:
    return {"sha256": sha256_hex(blob), "bytes": len(blob)} | more


def manifest(**changed: Any) -> Doc:
    """Version 7 of `main`, with one delta since version 6 after a snapshot of 6."""
    first, second = packed(put(1) + put(2)), packed(drop(1) + put(3))
    return {
        "scope": "main",
        "server_epoch": 2,
        "version": 7,
        "issued_at": time(-3600),
        "expires_at": time(7 * 86_400 - 3600),
        "snapshot": {"version": 6, **ref(first), "vouchers": 2},
        "deltas": [{"from_version": 6, **ref(second)}],
        "state_digest": state(2, 3),
        "code_salt": SALT,
        "engine_min": "1.0.0",
        "poll_after_s": 900,
        "caps": {"offline_s": 86_400, "redemptions": 10_000, "amount_minor": None},
    } | changed


# ---- the journal


def envelope(seq: int, **changed: Any) -> bytes:
    """Of event `seq`: one unit of a lease redeemed."""
    return compact(
        {
            "v": 1,
            "type": "redeem",
            "id": f"01978000-0000-7000-8000-00000000e{seq:03d}",
            "seq": seq,
            "at": time(60 * seq - 3600),
            "boot_id": "boot-1",
            "monotonic_s": 100 + 60 * seq,
            "bundle_version": 7,
            "engine_version": "1.0.0",
            "uses": [
                {
                    "voucher_id": voucher_id(2),
                    "revision_sha256": sha256_hex(VOUCHERS[2]),
                    "lease": "01978000-0000-7000-8000-00000000d001",
                    "units": 1,
                    "minor": 250,
                }
            ],
            "body_sha256": sha256_hex(body(seq)),
            "ref": None,
        }
        | changed
    )


def body(seq: int) -> bytes:
    """A stand-in: what stands in a body is the engine's, and no chain reads it."""
    return compact({"salt": f"{seq:032x}", "note": "a test"})


def chain(key: Key, envelopes: list[bytes]) -> list[str]:
    raw = base64.urlsafe_b64decode(key.jwk["x"] + "=")
    digest = hashlib.sha256(b"tallystick-journal-v1" + SERVER.encode() + DEVICE.encode() + raw).digest()
    found = [digest.hex()]
    for one in envelopes:
        digest = hashlib.sha256(digest + one).digest()
        found.append(digest.hex())
    return found


HASHES = chain(DEVICE_KEY, [envelope(seq) for seq in (1, 2, 3)])


def position(seq: int) -> Doc:
    return {"seq": seq, "hash": HASHES[seq]}
