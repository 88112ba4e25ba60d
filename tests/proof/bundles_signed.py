"""What a rightful signer of the wrong role, or the right one with content against the rules, may send to a till.

Each is one `Try`: by which rule of `trust` it must be refused, and with which code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import msgspec

from tallystick_client.actions import Held
from tallystick_client.blobs import snapshot as read_snapshot
from tallystick_client.blobs import summed
from tallystick_client.fetching import Fetching
from tallystick_client.trust import Trusted
from tallystick_shared.bundle import Manifest, Root
from tallystick_shared.signing import SigningKey, Typ, b64u, join_signatures, open_general, sha256_hex
from tests.proof.bundles_blobs import frames, lines_of, snapshots_and_deltas
from tests.proof.bundles_changes import compact
from tests.proof.bundles_fields import wrong_fields
from tests.proof.bundles_targets import Target
from tests.proof.bundles_world import Template, World, payload

Doc = dict[str, Any]
DIGEST = "7" * 64
OTHER_ID = "01978000-0000-7000-8000-00000000b0ff"


class Try(NamedTuple):
    """`code` and `rule`: by which it must be refused; empty: by any, or, with `open`, by none."""

    target: str
    kind: str
    how: str
    raw: bytes
    accept: Callable[[bytes], object]
    code: str = ""
    rule: str = ""


AGAINST, FIELD, REPLAYED, WRONG_KEY = (
    "signed, but against the rules", "signed, with a wrong field", "replayed", "signed by another role"
)  # fmt: skip


def signed_tries(made: Template, world: World, targets: dict[str, Target]) -> Iterator[Try]:
    yield from _roots(made, targets["next root"])
    yield from _manifests(made, world, targets["manifest"])
    yield from _blobs(made, world)
    yield from _answers(made, world, targets)


# ---- roots


def sign_root(document: Any, signers: list[SigningKey], typ: Typ = Typ.ROOT) -> bytes:
    raw = document if isinstance(document, bytes) else compact(document)
    return join_signatures(raw, [key.sign_flat(typ, raw) for key in signers])


def _roots(made: Template, target: Target) -> Iterator[Try]:
    good: Doc = json.loads(open_general(target.raw))
    two, accept = made.root_keys[:2], target.accept
    kids = [key.kid for key in made.root_keys]
    bundle, stranger = made.bundle, made.stranger

    def attempt(how: str, raw: bytes, code: str, rule: str) -> Try:
        return Try("next root", AGAINST, how, raw, accept, code, rule)

    def roles(**changed: Doc) -> Doc:
        return good | {"roles": good["roles"] | changed}

    def keys(**changed: Any) -> Doc:
        return good | {"keys": good["keys"] | changed}

    yield attempt("one byte too large", target.raw + b" " * (65_537 - len(target.raw)), "TOO_LARGE", "1")
    yield attempt(
        "a manifest's payload",
        sign_root(payload(made.all("GET", "/v1/scopes/main/manifest")[-1].body), two),
        "MALFORMED",
        "3",
    )
    for version in (1, 2, 4, 2**53):
        yield attempt(f"version {version}", sign_root(good | {"version": version}, two), "ROOT_VERSION", "4")
    yield attempt("of another server", sign_root(good | {"server_id": OTHER_ID}, two), "ROOT_SERVER", "5")
    x = stranger.jwk()["x"]
    for how, document, code in (
        ("a key under the kid of another", keys(**{kids[0]: stranger.jwk()}), "ROOT_KEYS"),
        ("a role without its key", roles(bundle={"kids": [stranger.kid], "threshold": 1}), "ROOT_KEYS"),
        ("a threshold above its keys", roles(root={"kids": kids, "threshold": 4}), "ROOT_KEYS"),
        ("one key twice for two", roles(root={"kids": [kids[0]] * 2, "threshold": 2}), "ROOT_KEYS"),
        ("two signatures for manifests", roles(bundle={"kids": [bundle.kid, kids[0]], "threshold": 2}), "ROOT_KEYS"),
        ("a private key", keys(**{stranger.kid: stranger.jwk() | {"d": x}}), "BAD_KEY"),
        ("a key for TLS", keys(**{stranger.kid: stranger.jwk() | {"crv": "X25519"}}), "BAD_KEY"),
        ("a key of 31 bytes", keys(**{stranger.kid: stranger.jwk() | {"x": b64u(bytes(31))}}), "BAD_KEY"),
        ("an RSA key", keys(**{stranger.kid: {"kty": "RSA", "n": "AQAB", "e": "AQAB"}}), "BAD_KEY"),
        ("x with padding", keys(**{stranger.kid: stranger.jwk() | {"x": x + "="}}), "MALFORMED"),
    ):
        yield attempt(how, sign_root(document, two), code, "6")
    for how, signers in (
        ("one signature of two", two[:1]), ("one key twice", [two[0], two[0]]), ("none", []),
        ("strangers", [stranger, two[0]]), ("the root key that left", [made.old_root, two[1]]),
        ("other roles", [two[0], bundle, made.receipt]), ("a device", [two[0], made.devices["anna"]]),
    ):  # fmt: skip
        yield attempt(f"signed by {how}", sign_root(good, signers), "ROOT_THRESHOLD", "7")
    new = [stranger, made.old_root]
    fresh = good["keys"] | {key.kid: key.jwk() for key in new}
    own = roles(root={"kids": [key.kid for key in new], "threshold": 2}) | {"keys": fresh}
    yield attempt("new root keys that have not signed", sign_root(own, two), "ROOT_THRESHOLD", "8")
    yield attempt("new root keys, one of which has signed", sign_root(own, [*two, stranger]), "ROOT_THRESHOLD", "8")
    yield attempt("signed as a manifest", sign_root(good, two, Typ.MANIFEST), "WRONG_TYPE", "7")
    yield from _root_forms(target, good, two)
    yield from _root_pins(made, two)
    for how, raw in wrong_fields(good):
        yield Try("next root", FIELD, how, sign_root(raw, two), accept)


def _root_pins(made: Template, two: list[SigningKey]) -> Iterator[Try]:
    """The first root, and one that is over."""
    pin = Trusted.pin
    digest = sha256_hex(made.roots[0])
    for how, raw in (
        ("pinned, another root", made.roots[1]),
        ("pinned, signed by others", sign_root(open_general(made.roots[0]), two)),
    ):
        yield Try("first root", AGAINST, how, raw, lambda raw: pin(raw, version=1, sha256=digest), "ROOT_PIN", "2")
    second = made.roots[1]
    yield Try("first root", AGAINST, "pinned, of another version", second,
              lambda raw: pin(raw, version=1, sha256=sha256_hex(second)), "ROOT_VERSION", "4")  # fmt: skip
    past: Root = msgspec.structs.replace(made.trusted.root, expires_at=made.clock())
    newest = made.all("GET", "/v1/scopes/main/manifest")[-1].body
    yield Try("manifest", AGAINST, "under a root that is over", newest,
              lambda raw: Trusted(past).manifest(raw, "main", now=made.clock()), "ROOT_EXPIRED", "9")  # fmt: skip


def _root_forms(target: Target, good: Doc, two: list[SigningKey]) -> Iterator[Try]:
    """The outer object, which is not signed."""
    whole: Doc = json.loads(target.raw)
    first = whole["signatures"][0]
    for how, document in (
        ("an unprotected header", whole | {"header": {"alg": "none"}}),
        ("a header beside a signature", whole | {"signatures": [one | {"header": {}} for one in whole["signatures"]]}),
        ("flattened", {"payload": whole["payload"], **first}),
        ("signatures an object", whole | {"signatures": first}),
        ("a signature null", whole | {"signatures": [*whole["signatures"], None]}),
        ("payload padded", whole | {"payload": whole["payload"] + "="}),
        ("payload of other letters", whole | {"payload": whole["payload"].replace("e", "/", 1)}),
        ("nested", [whole]),
    ):
        yield Try("next root", AGAINST, f"outer object: {how}", compact(document), target.accept, "", "3")
    for how, raw in (
        ("no UTF-8", target.raw.replace(b"payload", b"payl\xffad")), ("byte order mark", b"\xef\xbb\xbf" + target.raw),
        ("something behind", target.raw + b"{}"), ("empty", b""), ("nested deeply", b"[" * 20_000 + b"]" * 20_000),
        ("a member nested deeply", b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b"," + target.raw[1:]),
    ):  # fmt: skip
        yield Try("next root", AGAINST, f"outer object: {how}", raw, target.accept, "MALFORMED", "3")
    deep = compact(good)[:-1] + b',"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    yield Try(
        "next root", AGAINST, "nested deeply in the payload", sign_root(deep, two), target.accept, "MALFORMED", "3"
    )
    raw = compact(good)
    extras: tuple[Doc, ...] = ({"crit": ["x"]}, {"b64": False}, {"jwk": {}})
    for extra in extras:
        header = {"alg": "Ed25519", "kid": two[0].kid, "typ": "tallystick-root", **extra}
        entry = {"protected": b64u(compact(header)), "signature": two[0].sign_flat(Typ.ROOT, raw)["signature"]}
        made = join_signatures(raw, [*(key.sign_flat(Typ.ROOT, raw) for key in two), entry])
        yield Try("next root", AGAINST, f"one signature with {list(extra)}", made, target.accept, "MALFORMED", "3")


# ---- manifests


def _manifests(made: Template, world: World, target: Target) -> Iterator[Try]:
    good: Doc = payload(target.raw)
    accept = target.accept

    def attempt(how: str, changed: Doc, code: str, rule: str) -> Try:
        return Try(
            "manifest", AGAINST, how, made.bundle.sign(Typ.MANIFEST, compact(good | changed)), accept, code, rule
        )

    yield from wrong_keys(made, "manifest", Typ.MANIFEST, compact(good), accept, made.bundle, "10")
    one, two = good["deltas"][0], good["deltas"][-1]
    version: int = good["version"]
    for how, changed in (
        ("deltas turned round", {"deltas": [two, one]}), ("a delta twice", {"deltas": [one, one]}),
        ("a delta from its own version", {"deltas": [two | {"from_version": version}]}),
        ("a delta from above", {"deltas": [one, two | {"from_version": version + 7}]}),
        ("no deltas and an old snapshot", {"deltas": []}),
        ("a snapshot from above", {"snapshot": good["snapshot"] | {"version": version + 1}}),
        ("a gap behind the snapshot", {"deltas": [two], "snapshot": good["snapshot"] | {"version": 1}}),
    ):  # fmt: skip
        yield attempt(how, changed, "MALFORMED", "12")
    many = [one | {"from_version": at} for at in range(1, 66)]
    yield attempt("65 deltas", {"deltas": many, "version": 99}, "MALFORMED", "11")
    yield attempt("too large", {"filling": "a" * 65_536}, "TOO_LARGE", "10")
    for scope in ("other", "Main", "main ", "main\u0000", "", "../main"):
        yield attempt(f"of the scope {scope!r}", {"scope": scope}, "WRONG_SCOPE", "13")
    alone = {"deltas": [], "snapshot": good["snapshot"] | {"version": version - 1}}
    yield attempt("an older version", {"version": version - 1, **alone}, "ROLLBACK", "14")
    floor = made.trusted.with_floor(msgspec.convert(good | {"server_epoch": 2}, Manifest))
    now = world.clock()
    below = lambda raw: floor.manifest(raw, "main", now=now)  # noqa: E731 - one line reads better
    yield Try("manifest", AGAINST, "an older epoch", target.raw, below, "ROLLBACK", "14")
    yield attempt("the same version of something else", {"state_digest": DIGEST}, "SAME_VERSION_DIFFERS", "15")
    for ago in (0, 1, 10**6):
        over = (world.clock() - timedelta(seconds=ago)).isoformat()
        yield attempt(f"over since {ago} s", {"expires_at": over}, "EXPIRED", "16")
    for how, raw in wrong_fields(good):
        yield Try("manifest", FIELD, how, made.bundle.sign(Typ.MANIFEST, raw), accept)
    yield from deep("manifest", made.bundle, Typ.MANIFEST, good, accept, "11")
    for passed in (*made.all("GET", "/v1/scopes"), *made.all("POST", "/v1/sync"), *made.all("POST", "/v1/devices")):
        if passed.body and passed.status < 300 and passed.body != target.raw:
            if passed.send.path.endswith("/main/manifest") and payload(passed.body)["version"] == version:
                continue
            yield Try("manifest", REPLAYED, f"the answer to {passed.send.path}", passed.body, accept)


def wrong_keys(
    made: Template, name: str, typ: Typ, raw: bytes, accept: Callable[[bytes], object], right: SigningKey, rule: str
) -> Iterator[Try]:
    """The same payload, signed by every other key there is, and under every other type."""
    others = {
        "root": made.root_keys[0], "bundle": made.bundle, "receipt": made.receipt, "old bundle": made.old_bundle,
        "old receipt": made.old_receipt, "old root": made.old_root, "stranger's": made.stranger,
        **{f"{one}'s": key for one, key in made.devices.items()},
    }  # fmt: skip
    for how, key in others.items():
        if key.kid != right.kid:
            yield Try(name, WRONG_KEY, f"the {how} key", key.sign(typ, raw), accept, "UNKNOWN_KEY", rule)
    for other in Typ:
        if other is not typ:
            yield Try(name, AGAINST, f"as {other.value}", right.sign(other, raw), accept, "WRONG_TYPE", rule)


def deep(
    name: str, key: SigningKey, typ: Typ, good: Doc, accept: Callable[[bytes], object], rule: str
) -> Iterator[Try]:
    """JSON that no reader follows to its end."""
    whole = compact(good)
    for how, raw in (
        ("nested deeply", whole[:-1] + b',"x":' + b"[" * 5_000 + b"]" * 5_000 + b"}"),
        ("nested deeply, in objects", whole[:-1] + b',"x":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}"),
        ("a list of it", b"[" + whole + b"]"), ("twice", whole + whole), ("cut short", whole[:-1]), ("nothing", b""),
        ("null", b"null"), ("byte order mark", b"\xef\xbb\xbf" + whole), ("UTF-16", whole.decode().encode("utf-16")),
        ("no UTF-8", whole.replace(b":", b":\xff", 1)), ("NUL behind", whole + b"\x00"), ("a comment", b"/**/" + whole),
        ("no UTF-8 in an unknown member", whole[:-1] + b',"x":"\xc3\x28"}'),
    ):  # fmt: skip
        yield Try(name, FIELD, how, key.sign(typ, raw), accept, "", rule)


# ---- blobs


def _blobs(made: Template, world: World) -> Iterator[Try]:
    """A manifest that is signed rightly, and names what breaks a rule."""
    passed = made.all("GET", "/v1/scopes/main/manifest")[-1]
    good: Manifest = msgspec.convert(payload(passed.body), Manifest)
    raws = {one.send.path.rpartition("/")[2]: one.body for one in made.all("GET", "/v1/blobs/")}
    before = read_snapshot(raws[good.snapshot.sha256], good.snapshot)
    held = Held(msgspec.structs.replace(good, version=good.snapshot.version, deltas=[]), "", "", summed(before), [])
    sum_before, codes_before = held.vouchers.parts_sum, list(held.vouchers.by_code)

    def fetch(manifest: Manifest, sha256: str, own: Held | None, raw: bytes) -> object:
        """As the machine does it, `raw` for `sha256`; whatever comes of it, what is held has not changed."""
        fetching = Fetching(b"", manifest, "", own)
        all_blobs = raws | {sha256: raw}
        try:
            while (ref := fetching.wanted()) is not None:
                fetching.take(all_blobs[ref.sha256])
            return fetching.change([])
        finally:
            if (held.vouchers.parts_sum, list(held.vouchers.by_code)) != (sum_before, codes_before):
                raise AssertionError("what was held has changed")

    last = raws[good.deltas[-1].sha256]
    for one in snapshots_and_deltas(good, raws[good.snapshot.sha256], last, made.all("GET", "/v1/blobs/")):
        yield Try(
            one.name, AGAINST, one.how, one.blob,
            partial(fetch, one.manifest, one.sha256, held if one.from_held else None), one.code, one.rule,
        )  # fmt: skip
    for how, raw, code in frames(lines_of(raws[good.snapshot.sha256])):
        ref = msgspec.structs.replace(good.snapshot, sha256=sha256_hex(raw), bytes=len(raw))
        alone = msgspec.structs.replace(good, snapshot=ref)
        yield Try("snapshot", AGAINST, f"zstd: {how}", raw, partial(fetch, alone, ref.sha256, None), code, "19")


# ---- answers


def _answers(made: Template, world: World, targets: dict[str, Target]) -> Iterator[Try]:
    named = (("sync answer", Typ.ANSWER), ("enrolment's answer", Typ.ENROLLED), ("online answer", Typ.REDEEMED))
    everything = [one for one in made.passed if one.send.method == "POST" and one.body and one.status < 300]
    for name, typ in named:
        target = targets[name]
        good, accept = payload(target.raw), target.accept

        def attempt(how: str, changed: Doc, code: str, rule: str) -> Try:
            raw = made.receipt.sign(typ, compact(good | changed))  # noqa: B023 - used up within the round
            return Try(name, AGAINST, how, raw, accept, code, rule)  # noqa: B023 - as above

        yield from wrong_keys(made, name, typ, compact(good), accept, made.receipt, "26")
        yield attempt("to another request", {"request_sha256": DIGEST}, "NOT_OUR_REQUEST", "28")
        if name == "enrolment's answer":
            yield attempt("of another server", {"server": OTHER_ID}, "NOT_OUR_REQUEST", "28")
        else:
            yield attempt("to another device", {"device": made.device_ids["ben"]}, "NOT_OUR_REQUEST", "28")
        if name == "sync answer":
            yield from _positions(attempt, good)
        for how, raw in wrong_fields(good):
            yield Try(name, FIELD, how, made.receipt.sign(typ, raw), accept)
        yield from deep(name, made.receipt, typ, good, accept, "27")
        for passed in everything:
            if passed.body != target.raw:
                yield Try(name, REPLAYED, f"the answer to another {passed.send.path}", passed.body, accept)


def _positions(attempt: Callable[[str, Doc, str, str], Try], good: Doc) -> Iterator[Try]:
    """Rules 29 to 31."""
    there, mark = good["acknowledged"], good["ledger_mark"]
    yield attempt("of an epoch that is over", {"server_epoch": 0}, "OLD_EPOCH", "29")
    for lower in {1, mark - 1}:
        yield attempt(f"a ledger mark of {lower}", {"ledger_mark": lower}, "OLD_LEDGER_MARK", "30")
    beyond, before = there | {"seq": there["seq"] + 100}, there | {"seq": there["seq"] - 1}
    for how, changed in (
        ("acknowledges what is not written", {"acknowledged": beyond}),
        ("acknowledges 2^53", {"acknowledged": beyond | {"seq": 2**53}}),
        ("durable above acknowledged", {"durable": there, "acknowledged": before}),
        ("durable what is not written", {"durable": beyond}),
        ("another hash", {"acknowledged": there | {"hash": DIGEST}}),
        ("another durable hash", {"durable": there | {"hash": DIGEST}}),
        ("the place before with this hash", {"acknowledged": before, "durable": there | {"seq": 0}}),
        ("another start", {"durable": {"seq": 0, "hash": DIGEST}}),
    ):  # fmt: skip
        yield attempt(how, changed, "NOT_OUR_JOURNAL", "31")
