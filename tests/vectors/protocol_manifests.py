"""Cases of manifests, and with them of what holds for every compact signature."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

from tallystick_shared.signing import Typ, b64u
from tests.vectors.protocol_parts import (
    BUNDLE,
    BUNDLE_NEW,
    DEEP,
    NOT_UTF8,
    RECEIPT,
    ROOT_A,
    SALT,
    STRANGER,
    Case,
    Doc,
    Key,
    b64,
    compact,
    filled_to,
    jws,
    manifest,
    noted,
    packed,
    put,
    ref,
    root,
    state,
    time,
    with_part,
)

ORDER_OF_THE_CURVE = 2**252 + 27742317777372353535851937790883648493
MANIFEST_BYTES_MAX = 64 * 1024


def of_manifest(message: bytes, *, floor: tuple[int, int, str] | None = None, **changed: Any) -> Doc:
    names = ("server_epoch", "version", "digest")
    return {
        "check": "manifest",
        "message": b64(message),
        "root": root(),
        "scope": "main",
        "floor": None if floor is None else dict(zip(names, floor, strict=True)),
        "now": time(),
    } | changed


def sign(document: Any, *, header: Any = None, key: Key = BUNDLE) -> bytes:
    return jws(key, Typ.MANIFEST, document, header=header)


def manifests() -> Iterator[Case]:
    def case(
        id_: str, shows: str, rule: str, message: bytes, *, base: str = "manifest-good", ok: bool = False, **how: Any
    ) -> Case:
        return Case(f"manifest-{id_}", shows, rule, of_manifest(message, **how), "" if ok else base)

    good = manifest()
    token = sign(good)
    now_state = good["state_digest"]
    one = packed(put(1) + put(2))
    no_deltas = good | {"deltas": [], "snapshot": {"version": 7, **ref(one), "vouchers": 2}}
    yield case("good", "A manifest by the bundle key, of the scope, with no floor yet.", "10", token, ok=True)
    yield case("unknown-field", "A field that is not known is ignored.", "11", sign(good | {"theme": "red"}), ok=True)
    yield case(
        "repeated-name", "Of a name that comes twice in one object the last counts: the scope is main.", "11",
        sign(b'{"scope":"other",' + compact(good)[1:]), ok=True,
    )  # fmt: skip
    yield case(
        "header-order", "The members of the header come in any order, with any space between them.", "J3",
        sign(good, header=json.dumps(dict(reversed(BUNDLE.header(Typ.MANIFEST).items()))).encode()), ok=True,
    )  # fmt: skip
    yield case("caps-left-out", "Caps that are left out have their defaults.", "11", sign(good | {"caps": {}}), ok=True)
    yield case(
        "times-with-offset", "Times may have any offset.", "16",
        sign(good | {"expires_at": "2026-06-01T14:00:01+02:00"}), ok=True,
    )  # fmt: skip
    yield case("same-again", "At the version of the floor, with its digest.", "15", token, ok=True,
               floor=(2, 7, now_state))  # fmt: skip
    yield case("newer", "Above the floor.", "14", token, ok=True, floor=(2, 6, "0" * 64))
    yield case(
        "new-epoch", "A higher epoch goes before any version.", "14",
        sign(good | {"server_epoch": 3, "version": 7}), ok=True, floor=(2, 99, "0" * 64),
    )  # fmt: skip
    yield case("last-second", "One second before it expires.", "16", sign(good | {"expires_at": time(1)}), ok=True)
    yield case(
        "in-force-and-over", "The one in force, read again, is not asked its age: the caps judge that.", "16",
        sign(good | {"expires_at": time(-86_400)}), ok=True, now=None,
    )  # fmt: skip
    yield case(
        "in-force-under-a-root-that-is-over", "Nor is its root.", "9", token, ok=True, now=None,
        root=root(expires_at=time(-1)),
    )  # fmt: skip
    yield case(
        "roots-last-second", "One second before the root expires.", "9", token, ok=True, root=root(expires_at=time(1))
    )
    yield case("without-deltas", "Without deltas the snapshot is of its version.", "12", sign(no_deltas), ok=True)
    yield case(
        "deltas-before-the-snapshot", "Deltas may begin before the snapshot and end after it.", "12",
        sign(good | {"deltas": [{"from_version": version, **ref(one)} for version in (3, 5, 6)]}), ok=True,
    )  # fmt: skip
    yield case(
        "snapshot-of-its-version", "With deltas too the snapshot may be of the manifest's version.", "12",
        sign(good | {"snapshot": no_deltas["snapshot"]}), ok=True,
    )  # fmt: skip
    many = [{"from_version": version, **ref(one)} for version in range(1, 67)]
    grown = good | {"version": 100}
    yield case("64-deltas", "64 deltas are not too many.", "11", sign(grown | {"deltas": many[:64]}), ok=True)
    yield case("65-deltas", "65 deltas are.", "11", sign(grown | {"deltas": many[:65]}), base="manifest-64-deltas")
    yield case(
        "largest",
        "65,536 bytes are not too many.",
        "J1",
        filled_to(MANIFEST_BYTES_MAX, BUNDLE, Typ.MANIFEST, good),
        ok=True,
    )
    yield case("too-large", "65,537 bytes are.", "J1", filled_to(MANIFEST_BYTES_MAX + 1, BUNDLE, Typ.MANIFEST, good))
    yield from _of_form(case, good, token)
    yield from _of_signatures(case, good, token)
    yield from _of_bounds(case, good)
    for id_, shows, path, value in (
        ("version-0", "The version is 0.", "version", 0),
        ("no-epoch", "server_epoch is missing.", "server_epoch", ...),
        ("null-scope", "The scope is null.", "scope", None),
        ("no-offset", "issued_at has no offset.", "issued_at", "2026-06-01T11:00:00"),
        ("digest-upper-case", "The state's digest is in upper case.", "state_digest", now_state.upper()),
        ("digest-line-end", "A line end follows the digest of a blob.", "snapshot.sha256", "0" * 64 + "\n"),
        ("short-salt", "The salt has 31 digits.", "code_salt", SALT[:31]),
        ("negative-bytes", "A blob has -1 bytes.", "snapshot.bytes", -1),
        ("poll-0", "poll_after_s is 0.", "poll_after_s", 0),
        ("no-caps", "caps is missing.", "caps", ...),
    ):
        yield case(id_, shows, "11", sign(with_part(good, path, value)))
    yield case("array", "The payload is a list.", "11", sign([good]))
    yield case("byte-order-mark", "A byte order mark stands before the payload.", "11",
               sign(b"\xef\xbb\xbf" + compact(good)))  # fmt: skip
    yield case("not-utf8", "A field that is not known is not UTF-8.", "11", sign(noted(good, NOT_UTF8)),
               base="manifest-unknown-field")  # fmt: skip
    yield case("deep", "A field that is not known has lists in lists, 20,000 deep.", "11", sign(noted(good, DEEP)),
               base="manifest-unknown-field")  # fmt: skip

    def starts(*versions: int) -> bytes:
        return sign(good | {"deltas": [{"from_version": version, **ref(one)} for version in versions]})

    for id_, shows, message in (
        ("deltas-stand-still", "Two deltas begin at one version.", starts(5, 5, 6)),
        ("deltas-go-back", "A delta begins before the one in front of it.", starts(5, 4, 6)),
        ("delta-at-the-end", "A delta begins at the manifest's own version.", starts(6, 7)),
        ("snapshot-too-new", "The snapshot is newer than the manifest.", sign(with_part(good, "snapshot.version", 8))),
        ("snapshot-in-a-gap", "The snapshot is older than the first delta.",
         sign(with_part(good, "snapshot.version", 5))),
        ("snapshot-without-deltas", "The snapshot is older than the manifest, and no delta leads on.", starts()),
    ):  # fmt: skip
        yield case(id_, shows, "12", message)
    yield case("other-scope", "It is of another scope.", "13", sign(good | {"scope": "Main"}))
    yield case("scope-with-space", "Names of scopes are equal letter by letter.", "13", sign(good | {"scope": "main "}))
    above = "manifest-same-again"
    yield case("older-version", "One version below the floor.", "14", token, base=above, floor=(2, 8, now_state))
    yield case("older-epoch", "A higher version of a lower epoch.", "14", token, base=above, floor=(3, 1, now_state))
    yield case("same-version-differs", "At the floor's version, with another state.", "15", token, base=above,
               floor=(2, 7, state(1)))  # fmt: skip
    yield case("expired", "At the second it expires.", "16", sign(good | {"expires_at": time(0)}),
               base="manifest-last-second")  # fmt: skip
    yield case("root-expired", "At the second the root expires.", "9", token, root=root(expires_at=time(0)),
               base="manifest-roots-last-second")  # fmt: skip


def _of_form(case: Any, good: Doc, token: bytes) -> Iterator[Case]:
    """Size, form and header: J2 and J3, which hold for every compact message."""
    header, payload, signature = token.split(b".")
    kid, typ = BUNDLE.kid, Typ.MANIFEST

    def headed(document: Any) -> bytes:
        return sign(good, header=document)

    noted = base64.b64encode(compact(good | {"note": "~~~???>>>"})).rstrip(b"=")
    other = header + b"." + noted
    last = signature[-1:]
    loose = bytes([last[0] + 1])  # only the last two bits of 64 bytes in base64url are free
    for id_, shows, message in (
        ("two-parts", "The signature is missing with its dot.", header + b"." + payload),
        ("four-parts", "A fourth part follows.", token + b"."),
        ("line-end", "A line end follows.", token + b"\n"),
        ("padding", "The signature is padded.", token + b"=="),
        ("loose-bits", "The signature's last character has bits set that carry nothing.", token[:-1] + loose),
        ("base64", "The payload is in base64 with + and /, not base64url.",
         other + b"." + b64u(BUNDLE.signature(other)).encode()),
        ("not-ascii", "A character is not ASCII.", token[:-1] + "é".encode()),
        ("extra-header", "The header has a member jwk with a key of its own.",
         headed({**BUNDLE.header(typ), "jwk": BUNDLE.jwk})),
        ("critical-header", "The header has a member crit.", headed({**BUNDLE.header(typ), "crit": ["exp"]})),
        ("header-without-kid", "The header names no key.", headed({"alg": "Ed25519", "typ": typ})),
        ("header-no-json", "The header is no JSON.", headed(b"alg: Ed25519")),
    ):  # fmt: skip
        yield case(id_, shows, "J3" if "header" in id_ else "J2", message)
    secret = compact(BUNDLE.jwk)
    signed = f"{b64u(compact({'alg': 'HS256', 'kid': kid, 'typ': typ}))}.{payload.decode()}".encode()
    mac = hmac.new(secret, signed, hashlib.sha256).digest()
    for id_, shows, message in (
        ("alg-none", "alg is none, and the signature empty.",
         b64u(compact({"alg": "none", "kid": kid, "typ": typ})).encode() + b"." + payload + b"."),
        ("alg-eddsa", "alg is EdDSA, the older name of the algorithm, and the signature good.",
         headed({"alg": "EdDSA", "kid": kid, "typ": typ})),
        ("alg-hs256", "alg is HS256, with the public key as the secret.", signed + b"." + b64u(mac).encode()),
        ("alg-lower-case", "alg is ed25519 in lower case.", headed({"alg": "ed25519", "kid": kid, "typ": typ})),
    ):  # fmt: skip
        yield case(id_, shows, "J3", message)


def _of_bounds(case: Any, good: Doc) -> Iterator[Case]:
    """Numbers and times that a till could not reckon with: rule 11."""
    numbers = {"caps.offline_s": 10**9, "caps.redemptions": 10**9, "caps.amount_minor": 10**15, "poll_after_s": 10**9}
    largest = good
    for path, most in numbers.items():
        largest = with_part(largest, path, most)
    yield case("largest-numbers", "The largest caps and the longest wait.", "11", sign(largest), ok=True)
    for path, most in numbers.items():
        name = path.rpartition(".")[2]
        id_, shows = f"{name.replace('_', '-')}-too-large", f"{name} is {most + 1:,}."
        yield case(id_, shows, "11", sign(with_part(largest, path, most + 1)), base="manifest-largest-numbers")
    for path, value in (("caps.offline_s", -1), ("caps.redemptions", 0), ("caps.amount_minor", -1)):
        name = path.partition(".")[2]
        message = sign(with_part(good, path, value))
        yield case(f"{name.replace('_', '-')}-too-small", f"{name} is {value}.", "11", message)
    years = good | {"issued_at": "1970-01-01T00:00:00Z", "expires_at": "9000-12-31T23:59:59Z"}
    yield case("years", "Issued in 1970, until the end of 9000.", "11", sign(years), ok=True)
    for id_, shows, changed in (
        ("issued-in-1969", "It is issued in 1969.", {"issued_at": "1969-12-31T23:59:59Z"}),
        ("issued-in-9001", "It is issued in 9001.", {"issued_at": "9001-01-01T00:00:00Z"}),
        ("expires-in-9001", "It expires in 9001.", {"expires_at": "9001-01-01T00:00:00Z"}),
    ):
        yield case(id_, shows, "11", sign(years | changed), base="manifest-years")


def _of_signatures(case: Any, good: Doc, token: bytes) -> Iterator[Case]:
    """Type, key and signature: J4 to J6."""
    for typ in Typ:
        if typ is not Typ.MANIFEST:
            name = typ.value.removeprefix("tallystick-")
            message = jws(BUNDLE, typ, good)
            yield case(f"typ-{name}", f"Signed by the bundle key for another purpose: {typ.value}.", "J4", message)
    yield case("typ-jwt", "typ is JWT.", "J4", jws(BUNDLE, "JWT", good))
    for id_, shows, key in (
        ("receipt-key", "Signed by the key of the role receipt, which is in the root.", RECEIPT),
        ("root-key", "Signed by a key of the role root.", ROOT_A),
        ("stranger", "Signed by a key that is not in the root.", STRANGER),
        ("key-that-left", "Signed by a bundle key of another root.", BUNDLE_NEW),
    ):
        yield case(id_, shows, "J5", sign(good, key=key))
    header, payload, signature = token.split(b".")
    raw = base64.urlsafe_b64decode(signature + b"==")
    other = sign(good | {"version": 8, "snapshot": good["snapshot"]}).split(b".")[1]
    larger = int.from_bytes(raw[32:], "little") + ORDER_OF_THE_CURVE
    for id_, shows, changed in (
        ("other-payload", "The payload is of another manifest.", other + b"." + signature),
        ("claimed-kid", "The header names the bundle key, and another key signed.",
         sign(good, header=BUNDLE.header(Typ.MANIFEST), key=STRANGER).split(b".", 1)[1]),
        ("flipped-bit", "One bit of the signature is another.",
         payload + b"." + b64u(raw[:5] + bytes([raw[5] ^ 1]) + raw[6:]).encode()),
        ("short-signature", "The signature has 63 bytes.", payload + b"." + b64u(raw[:63]).encode()),
        ("empty-signature", "The signature is empty.", payload + b"."),
        ("second-spelling", "The signature's S has the order of the group added, a second spelling of the same.",
         payload + b"." + b64u(raw[:32] + larger.to_bytes(32, "little")).encode()),
    ):  # fmt: skip
        yield case(id_, shows, "J6", header + b"." + changed)
