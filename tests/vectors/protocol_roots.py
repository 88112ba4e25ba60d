"""Cases of roots. Each refused one differs from an accepted one, its `base`, by one thing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tallystick_shared.signing import Typ, b64u, sha256_hex
from tests.vectors.protocol_parts import (
    BUNDLE,
    BUNDLE_NEW,
    DEEP,
    NOT_UTF8,
    RECEIPT,
    ROOT_A,
    ROOT_B,
    ROOT_C,
    ROOT_D,
    SERVER,
    STRANGER,
    Case,
    Doc,
    Point,
    b64,
    compact,
    flat,
    general,
    noted,
    root,
    time,
    with_keys,
    with_part,
)

OTHER_SERVER = "01978000-0000-7000-8000-00000000a002"
SIGNERS = [ROOT_A, ROOT_B]
ROOT_BYTES_MAX = 64 * 1024


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
        ("version-text", "The version is text.", general(root() | {"version": "1"}, SIGNERS)),
        ("version-zero", "The version is 0.", general(root(version=0), SIGNERS)),
        ("no-offset", "expires_at has no offset.", general(root(expires_at="2027-06-01T12:00:00"), SIGNERS)),
        ("no-server", "server_id is missing.", general(with_part(root(), "server_id", ...), SIGNERS)),
        ("server-upper-case", "server_id is in upper case.", general(root(server_id=SERVER.upper()), SIGNERS)),
        ("no-kids", "The role receipt has no key.", general(with_part(root(), "roles.receipt.kids", []), SIGNERS)),
        ("not-utf8", "A field that is not known is not UTF-8.", general(noted(root(), NOT_UTF8), SIGNERS)),
        ("expires-in-9001", "It expires in 9001.", general(root(expires_at="9001-01-01T00:00:00Z"), SIGNERS)),
        ("deep", "A field that is not known has lists in lists, 20,000 deep.", general(noted(root(), DEEP), SIGNERS)),
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
    weak = Point("01" + "00" * 31)
    of_anybody = root(keys=root()["keys"] | {weak.kid: weak.jwk})
    for id_, shows, role, kids, signers in (
        ("small-order", "The key of the role bundle is a point of order 1: anybody can sign for it.", "bundle",
         [weak.kid], SIGNERS),
        ("small-order-signs", "So is one of the two root keys that signed it, with a signature that holds for all.",
         "root", [ROOT_A.kid, weak.kid], [ROOT_A, weak]),
    ):  # fmt: skip
        yield case(id_, shows, "6", general(with_part(of_anybody, f"roles.{role}.kids", kids), signers))
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
