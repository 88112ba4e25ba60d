"""Cases of roots and manifests. Each refused one differs from an accepted one, its `base`, by one thing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

from tallystick_shared.signing import Typ, b64u, sha256_hex
from tests.vectors.protocol_parts import (
    BUNDLE,
    BUNDLE_NEW,
    RECEIPT,
    ROOT_A,
    ROOT_B,
    ROOT_C,
    ROOT_D,
    SALT,
    SERVER,
    STRANGER,
    Case,
    Doc,
    Key,
    b64,
    compact,
    filled_to,
    flat,
    general,
    jws,
    manifest,
    packed,
    put,
    ref,
    root,
    state,
    time,
    with_keys,
    with_part,
)

ORDER_OF_THE_CURVE = 2**252 + 27742317777372353535851937790883648493
OTHER_SERVER = "01978000-0000-7000-8000-00000000a002"
SIGNERS = [ROOT_A, ROOT_B]
ROOT_BYTES_MAX = MANIFEST_BYTES_MAX = 64 * 1024


def pinned(message: bytes, *, version: int = 1, sha256: str = "") -> Doc:
    return {
        "check": "first_root",
        "message": b64(message),
        "version": version,
        "sha256": sha256 or sha256_hex(message),
    }


def first_roots() -> Iterator[Case]:
    good = general(root(), SIGNERS)
    raw = compact(root())
    whole = json.loads(good)

    def case(id_: str, shows: str, rule: str, message: bytes, *, ok: bool = False, **pin: Any) -> Case:
        return Case(f"first-root-{id_}", shows, rule, pinned(message, **pin), "" if ok else "first-root-good")

    def signed(*entries: Doc) -> bytes:
        return compact({"payload": b64u(raw), "signatures": list(entries)})

    yield case("good", "A root with two of its three root keys' signatures is taken.", "8", good, ok=True)
    yield case(
        "all-signatures", "More signatures than the threshold are good too.", "8",
        general(root(), [ROOT_A, ROOT_B, ROOT_C]), ok=True,
    )  # fmt: skip
    yield case(
        "stranger-signs-too", "A signature by a key that is not of the role does not count, and does no harm.", "8",
        general(root(), [STRANGER, *SIGNERS]), ok=True,
    )  # fmt: skip
    yield case(
        "unknown-field", "A field that is not known is ignored.", "3", general(root(motto="new"), SIGNERS), ok=True
    )
    yield case(
        "unknown-field-in-role", "So is one within a role.", "3",
        general(with_part(root(), "roles.root.note", 1), SIGNERS), ok=True,
    )  # fmt: skip
    yield case(
        "layout", "Spaces and line ends around the values of the outer JSON change nothing; the pin is of the bytes.",
        "2", json.dumps(whole, indent=2).encode() + b"\n", ok=True,
    )  # fmt: skip
    yield case(
        "repeated-name", "Of a name that comes twice in one object the last counts.", "3",
        general(b'{"version":9,' + raw[1:], SIGNERS), ok=True,
    )  # fmt: skip
    yield case(
        "over", "A root that has expired is pinned all the same: a newer one may follow it.", "9",
        general(root(expires_at=time(0)), SIGNERS), ok=True,
    )  # fmt: skip
    room = ROOT_BYTES_MAX - len(good)
    yield case("largest", "65,536 bytes are not too many.", "1", good + b" " * room, ok=True)
    yield case("too-large", "65,537 bytes are.", "1", good + b" " * (room + 1))
    yield case("not-the-pinned", "Its digest is not the one of the token.", "2", good, sha256="0" * 64)
    yield case(
        "other-bytes", "One space more is another root than the pinned one.", "2", good + b" ", sha256=sha256_hex(good)
    )
    for id_, shows, message in (
        ("no-json", "It is no JSON.", good[:-1]),
        ("outer-field", "The outer object has a field besides payload and signatures.", compact({**whole, "alg": 1})),
        (
            "unprotected-header", "A signature has an unprotected header.",
            compact({**whole, "signatures": [{**one, "header": {}} for one in whole["signatures"]]}),
        ),
        ("padded", "The payload's base64url is padded.", good.replace(b'","signatures"', b'=","signatures"', 1)),
        ("wrong-alphabet", "The payload is base64 and not base64url.",
         general(root(note="~~~???>>>"), SIGNERS).translate(bytes.maketrans(b"-_", b"+/"))),
        ("empty", "The payload is an empty object.", general({}, SIGNERS)),
        ("version-text", "The version is text.", general(root(version="1"), SIGNERS)),
        ("version-zero", "The version is 0.", general(root(version=0), SIGNERS)),
        ("no-offset", "expires_at has no offset.", general(root(expires_at="2027-06-01T12:00:00"), SIGNERS)),
        ("no-server", "server_id is missing.", general(with_part(root(), "server_id", ...), SIGNERS)),
        ("server-upper-case", "server_id is in upper case.", general(root(server_id=SERVER.upper()), SIGNERS)),
        ("no-kids", "The role receipt has no key.", general(with_part(root(), "roles.receipt.kids", []), SIGNERS)),
    ):  # fmt: skip
        yield case(id_, shows, "3", message)
    yield case("other-version", "It is version 1 and the token names version 2.", "4", good, version=2)
    stranger = with_part(root(), f"keys.{BUNDLE.kid}", STRANGER.jwk)
    yield case("not-its-thumbprint", "A key stands under another key's thumbprint.", "6", general(stranger, SIGNERS))
    for id_, shows, document in (
        ("role-without-key", "A role names a key that the root does not hold.",
         with_part(root(), "roles.bundle.kids", [STRANGER.kid])),
        ("threshold-above-keys", "Four of three keys are asked for.", with_part(root(), "roles.root.threshold", 4)),
        ("kid-twice", "A role names one key twice, so that one key could sign for two.",
         with_part(root(), "roles.root.kids", [ROOT_A.kid, ROOT_A.kid, ROOT_B.kid])),
        ("bundle-threshold-2", "Two signatures are asked for of the role bundle, whose messages hold one.",
         with_keys(root(), "bundle", [BUNDLE, BUNDLE_NEW], 2)),
    ):  # fmt: skip
        yield case(id_, shows, "6", general(document, SIGNERS))
    for id_, shows, jwk in (
        ("private-key", "A key has a member d.", BUNDLE.private_jwk),
        ("other-curve", "A key is of another curve.", BUNDLE.jwk | {"crv": "X25519"}),
        ("short-key", "A key has 31 bytes.", BUNDLE.jwk | {"x": b64u(b"\1" * 31)}),
    ):
        yield case(id_, shows, "6", general(with_part(root(), f"keys.{BUNDLE.kid}", jwk), SIGNERS))
    first, second = flat(ROOT_A, raw), flat(ROOT_B, raw)
    bad = {**second, "signature": b64u(ROOT_B.signature(b"something else"))}
    for id_, shows, message in (
        ("one-signature", "One of the two signatures is missing.", signed(first)),
        ("one-key-twice", "Two signatures by one key count as one.", signed(first, first)),
        ("other-role", "The second signature is by a key of the root, but not of the role root.",
         signed(first, flat(BUNDLE, raw))),
        ("bad-signature", "The second signature does not hold.", signed(first, bad)),
        ("claimed-kid", "The second signature is by another key than its kid names.",
         signed(first, flat(STRANGER, raw, header=ROOT_B.header(Typ.ROOT)))),
    ):  # fmt: skip
        yield case(id_, shows, "8", message)
    yield case(
        "signature-of-other-typ", "One signature too many, good but for a manifest: the root is refused as a whole.",
        "J4", signed(first, second, flat(ROOT_C, raw, header=ROOT_C.header(Typ.MANIFEST))),
    )  # fmt: skip
    yield case(
        "signature-eddsa", "The same with alg EdDSA, the older name of the algorithm.", "J3",
        signed(first, second, flat(ROOT_C, raw, header=ROOT_C.header(Typ.ROOT) | {"alg": "EdDSA"})),
    )  # fmt: skip
    yield case(
        "signature-crit", "The same with a member crit in its protected header.", "J3",
        signed(first, second, flat(ROOT_C, raw, header=ROOT_C.header(Typ.ROOT) | {"crit": ["b64"]})),
    )  # fmt: skip


def next_roots() -> Iterator[Case]:
    def case(id_: str, shows: str, rule: str, message: bytes, *, held: Doc | None = None, ok: bool = False) -> Case:
        given = {
            "check": "next_root",
            "message": b64(message),
            "root": root() if held is None else held,
            "floors": ["main", "outlet"],
        }
        return Case(f"next-root-{id_}", shows, rule, given, "" if ok else "next-root-good")

    good = general(root(2), SIGNERS)
    yield case("good", "The next root with the same keys; the floors stay.", "7", good, ok=True)
    yield case(
        "new-bundle-key", "Another key for the role bundle: the floors of all scopes are forgotten.", "9",
        general(with_keys(root(2), "bundle", [BUNDLE_NEW]), SIGNERS), ok=True,
    )  # fmt: skip
    both = with_keys(root(2), "bundle", [BUNDLE, BUNDLE_NEW])
    yield case(
        "second-bundle-key", "One more key for the role bundle is another set of keys too.", "9",
        general(both, SIGNERS), ok=True,
    )  # fmt: skip
    turned = with_keys(root(2), "bundle", [BUNDLE_NEW, BUNDLE])
    yield case(
        "order-of-kids", "The same keys in another order are the same keys: the floors stay.", "9",
        general(turned | {"version": 3}, SIGNERS), held=both, ok=True,
    )  # fmt: skip
    moved = with_keys(root(2), "root", [ROOT_C, ROOT_D], 2)
    yield case(
        "new-root-keys", "Signed by two of the last root's keys and by two of its own, of which one is both.", "8",
        general(moved, [ROOT_A, ROOT_C, ROOT_D]), ok=True,
    )  # fmt: skip
    yield case(
        "over", "A next root that has expired is passed through.", "9", general(root(2, expires_at=time(-1)), SIGNERS),
        ok=True,
    )  # fmt: skip
    yield case(
        "after-one-that-is-over", "So is the root before it: only the last one's expiry counts.", "9", good,
        held=root(expires_at=time(-1)), ok=True,
    )  # fmt: skip
    yield case("too-large", "65,537 bytes are too many.", "1", good + b" " * (ROOT_BYTES_MAX + 1 - len(good)))
    yield case("malformed", "It is signed, and no root.", "3", general({"version": 2}, SIGNERS))
    yield case("skips-one", "Version 3 does not follow version 1.", "4", general(root(3), SIGNERS))
    yield case("same-version", "Nor does version 1.", "4", general(root(1), SIGNERS))
    yield case("other-server", "It is of another server.", "5", general(root(2, server_id=OTHER_SERVER), SIGNERS))
    again = general(root(2, server_id=SERVER[:-1] + "2"), [ROOT_A, ROOT_B, ROOT_C])
    yield case("other-server-all-signatures", "So it is with all three signatures.", "5", again)
    without = with_part(root(2), f"keys.{RECEIPT.kid}", ...)
    yield case("without-key", "It does not hold the key that its role receipt names.", "6", general(without, SIGNERS))
    yield case(
        "without-the-old-keys", "Signed by its own keys, and by one only of the last root's two.", "7",
        general(moved, [ROOT_C, ROOT_D]),
    )  # fmt: skip
    yield case(
        "without-its-own-keys", "Signed by two of the last root's keys, and by one only of its own two.", "8",
        general(moved, [ROOT_A, ROOT_C]),
    )  # fmt: skip
    yield case(
        "one-key-twice", "Two signatures by one of the last root's keys count as one.", "7",
        general(root(2), [ROOT_A, ROOT_A]),
    )  # fmt: skip


# ---- manifests


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


def _of_signatures(case: Any, good: Doc, token: bytes) -> Iterator[Case]:
    """Type, key and signature: J4 to J6."""
    for other in Typ:
        if other is not Typ.MANIFEST:
            name = other.value.removeprefix("tallystick-")
            message = jws(BUNDLE, other, good)
            yield case(f"typ-{name}", f"Signed by the bundle key for another purpose: {other.value}.", "J4", message)
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
