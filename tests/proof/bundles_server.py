"""What a rightful device, or one in the wrong place, may send to a server; and journals as files, changed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

from tallystick_shared.journal import BATCH_BYTES_MAX
from tallystick_shared.signing import SigningKey, Typ, b64u, sha256_hex
from tests.proof.bundles_blobs import bomb, frames, packed, streamed
from tests.proof.bundles_changes import Changed, compact
from tests.proof.bundles_fields import wrong_fields
from tests.proof.bundles_signed import AGAINST, DIGEST, FIELD, OTHER_ID, REPLAYED, WRONG_KEY, Try, deep, wrong_keys
from tests.proof.bundles_targets import Target
from tests.proof.bundles_world import Template, payload

Doc = dict[str, Any]


def device_tries(made: Template, targets: dict[str, Target]) -> Iterator[Try]:
    yield from _syncs(made, targets["sync"])
    yield from _sync_heads(made, targets["sync"])
    yield from _enrolments(made, targets["enrolment"])
    yield from _enrolments_again(made, targets["enrolment again"])
    yield from _online(made, targets["online redemption"])
    yield from _manifest_requests(made, targets["manifest request"])


# ---- syncs


def _syncs(made: Template, target: Target) -> Iterator[Try]:
    anna, accept = made.devices["anna"], target.accept
    line, _, frame = target.raw.partition(b"\n")
    good = payload(line)
    lines = zstandard.ZstdDecompressor().decompress(frame).splitlines(keepends=True)

    def attempt(how: str, changed: Doc, code: str, rule: str, events: bytes = frame, end: bytes = b"\n") -> Try:
        raw = anna.sign(Typ.SYNC, compact(good | changed)) + end + events
        return Try("sync", AGAINST, how, raw, accept, code, rule)

    def with_events(events: bytes, count: int | None = None, **changed: Any) -> Doc:
        told = {"count": good["events"]["count"] if count is None else count, "bytes": len(events)}
        return {"events": told | {"sha256": sha256_hex(events)}} | changed

    yield attempt("no line end", {}, "MALFORMED", "S1", b"", b"")
    yield attempt("CR LF", {}, "MALFORMED", "S1", frame, b"\r\n")
    yield attempt("an empty line", {}, "WRONG_DIGEST", "S3", b"\n" + frame)
    for how, other in (
        ("a byte more", frame + b"\0"),
        ("a byte less", frame[:-1]),
        ("nothing", b""),
        ("twice", frame * 2),
    ):
        yield attempt(f"events: {how}", {}, "WRONG_DIGEST", "S3", other)
    yield attempt("another digest", {"events": good["events"] | {"sha256": DIGEST}}, "WRONG_DIGEST", "S3")
    yield attempt("501 events", {"events": good["events"] | {"count": 501}}, "TOO_LARGE", "S3")
    for how, raw, code in frames(lines, window_log=24):
        if raw:
            yield attempt(f"zstd: {how}", with_events(raw), code, "S4", raw)
    big = packed([b"a" * (BATCH_BYTES_MAX + 140_000) + b"\n"])
    for how, raw in (
        ("too much", big),
        ("a bomb", bomb(2**26)),
        ("a window of 1 GiB", streamed(bytes(9), window_log=30)),
    ):
        yield attempt(f"zstd: {how}", with_events(raw), "" if "window" in how else "TOO_LARGE", "S4", raw)
    after, through, head = good["after"], good["through"], good["head"]
    for how, events, changed in (
        ("an odd line", [*lines, b"{}\n"], {}), ("no last line end", [*lines[:-1], lines[-1][:-1]], {}),
        ("an event less", lines[:-2], {}), ("an event more", [*lines, *lines[:2]], {}),
        ("a blank line in front", [b"\n", *lines], {}), ("blank lines behind", [*lines, b"\n", b"\n"], {}),
        ("through one less", lines, {"through": through | {"seq": through["seq"] - 1}}),
        ("after one more", lines, {"after": after | {"seq": after["seq"] + 1}}),
        ("through above head", lines, {"head": head | {"seq": through["seq"] - 1}}),
    ):  # fmt: skip
        raw = packed(events)
        yield attempt(how, with_events(raw, **changed), "MALFORMED", "S5", raw)
    changed_line = lines[0].replace(b'"minor":', b'"minor":1', 1)
    for how, events, changed in (
        ("events turned round", [*lines[2:4], *lines[:2], *lines[4:]], {}),
        ("an envelope and a body exchanged", [lines[1], lines[0], *lines[2:]], {}),
        ("a changed envelope", [changed_line, *lines[1:]], {}),
        ("CR at an envelope", [lines[0][:-1] + b"\r\n", *lines[1:]], {}),
        ("a space at an envelope", [b" " + lines[0], *lines[1:]], {}),
        ("an event twice", [*lines[:2], *lines[:2], *lines[4:]], {}),
        ("another hash before", lines, {"after": after | {"hash": DIGEST}}),
        ("another hash at its end", lines, {"through": through | {"hash": DIGEST}}),
    ):  # fmt: skip
        raw = packed(events)
        yield attempt(how, with_events(raw, **changed), "BROKEN_CHAIN", "S6", raw)


def _sync_heads(made: Template, target: Target) -> Iterator[Try]:
    """Line 1 over events as they are."""
    anna, accept = made.devices["anna"], target.accept
    line, _, frame = target.raw.partition(b"\n")
    good = payload(line)
    yield from wrong_keys(made, "sync", Typ.SYNC, compact(good), lambda raw: accept(target.around(raw)), anna, "J5")
    for how, device in (("nobody", OTHER_ID), ("ben", made.device_ids["ben"]), ("otto", made.device_ids["otto"])):
        raw = anna.sign(Typ.SYNC, compact(good | {"device": device})) + b"\n" + frame
        yield Try("sync", WRONG_KEY, f"as {how}", raw, accept, "", "J5")
    for how, raw in wrong_fields(good):
        yield Try("sync", FIELD, how, anna.sign(Typ.SYNC, raw) + b"\n" + frame, accept, "", "S2")
    for one in deep("sync", anna, Typ.SYNC, good, accept, "S2"):
        yield one._replace(raw=one.raw + b"\n" + frame)
    for passed in made.passed:
        if passed.status in range(200, 300) and passed.send.path != "/v1/sync":
            raw = (passed.send.body or passed.body) + b"\n" + frame
            yield Try("sync", REPLAYED, f"a message of {passed.send.path}", raw, accept)


# ---- the others


def _enrolments(made: Template, target: Target) -> Iterator[Try]:
    good, accept, key = payload(target.raw), target.accept, SigningKey.generate()
    mine = good | {"jwk": key.jwk()}

    def attempt(how: str, changed: Doc, code: str = "", signer: SigningKey = key, typ: Typ = Typ.ENROL) -> Try:
        return Try("enrolment", AGAINST, how, signer.sign(typ, compact(mine | changed)), accept, code)

    used = payload(made.enrolled_pair[0])["token"]
    yield attempt("a token that is used", {"token": used}, "TOKEN_USED")
    for how, token in (
        ("invented", "a" * 43), ("the whole token", made.token), ("in other case", str(good["token"]).swapcase()),
        ("with a space", f" {good['token']}"), ("its digest", sha256_hex(str(good["token"]).encode())),
    ):  # fmt: skip
        yield attempt(f"a token: {how}", {"token": token}, "" if len(token) > 128 else "BAD_TOKEN")
    yield attempt("a token too short", {"token": "a" * 15}, "INVALID_FIELD")
    yield attempt("a key that is enrolled", {"jwk": made.devices["anna"].jwk()}, "EXISTS", made.devices["anna"])
    yield attempt("signed by another key", {}, "UNKNOWN_KEY", made.stranger)
    yield attempt("somebody else's key", {"jwk": made.devices["ben"].jwk()}, "UNKNOWN_KEY")
    for typ in (Typ.SYNC, Typ.REQUEST, Typ.ENROL_AGAIN, Typ.ENROLLED):
        yield attempt(f"as {typ.value}", {}, "WRONG_TYPE", key, typ)
    jwk = key.jwk()
    for how, other in (
        ("with d", jwk | {"d": jwk["x"]}), ("for X25519", jwk | {"crv": "X25519"}), ("with use", jwk | {"use": "sig"}),
        ("without crv", {"kty": "OKP", "x": jwk["x"]}), ("of 31 bytes", jwk | {"x": b64u(bytes(31))}),
        ("symmetric", {"kty": "oct", "k": jwk["x"]}),
    ):  # fmt: skip
        yield attempt(f"a key {how}", {"jwk": other}, "BAD_KEY")
    for how, point in _low_order():
        jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64u(point)}
        yield Try(
            "enrolment", WRONG_KEY, f"a key that anybody signs for: {how}", forged(jwk, good | {"jwk": jwk}), accept
        )
    yield attempt("too large", {"name": "a" * 8_192}, "TOO_LARGE")
    for name in ("", "a\nb", "\u0000", "a" * 129):
        yield attempt(f"a name {name[:5]!r}", {"name": name}, "INVALID_FIELD")
    for how, raw in wrong_fields(mine):
        yield Try("enrolment", FIELD, how, key.sign(Typ.ENROL, raw), accept)
    yield from deep("enrolment", key, Typ.ENROL, mine, accept, "")


def _low_order() -> Iterator[tuple[str, bytes]]:
    """Points of small order: k times them is one of eight points, and often none, so a signature needs no secret."""
    yield "the identity", (1).to_bytes(32, "little")
    yield "order 2", (2**255 - 20).to_bytes(32, "little")
    yield "order 4", bytes(32)
    yield "order 4, the other", (2**255).to_bytes(32, "little")
    yield "order 8", bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
    yield "order 8, the other", bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
    yield "the identity, misspelled", (2**255 - 18).to_bytes(32, "little")


def forged(jwk: Doc, document: Doc) -> bytes:
    """R the identity and S zero: good wherever the hash is a multiple of the key's order. Tried until it is."""
    from tallystick_shared.errors import Untrusted
    from tallystick_shared.signing import PublicKey, verify

    try:
        key = PublicKey.from_jwk(jwk)
        kid = key.kid
    except Untrusted:
        key, kid = None, ""
    token = b""
    for number in range(40):
        header = {"alg": "Ed25519", "kid": kid, "typ": Typ.ENROL.value}
        signed = f"{b64u(compact(header))}.{b64u(compact(document | {'name': f'till {number}'}))}"
        token = f"{signed}.{b64u((1).to_bytes(32, 'little') + bytes(32))}".encode()
        if key is None:
            return token
        try:
            verify(token, {kid: key}, Typ.ENROL)
        except Untrusted:
            continue
        return token
    return token


def _enrolments_again(made: Template, target: Target) -> Iterator[Try]:
    good, accept, anna = payload(target.raw), target.accept, made.devices["anna"]
    request, answer = (one.decode() for one in made.enrolled_pair)

    def attempt(how: str, changed: Doc, code: str = "", signer: SigningKey = anna) -> Try:
        raw = signer.sign(Typ.ENROL_AGAIN, compact(good | changed))
        return Try("enrolment again", AGAINST, how, raw, accept, code)

    dora, own = made.devices["dora"], str(good["enrolled"])
    told = payload(own.encode())
    yield from wrong_keys(made, "enrolment again", Typ.ENROL_AGAIN, compact(good), accept, anna, "")
    yield attempt("the answer to another", {"enrolled": answer}, "WRONG_ENROLMENT")
    yield attempt("the request of another", {"request": request}, "UNKNOWN_KEY")
    yield attempt("both of another", {"request": request, "enrolled": answer}, "UNKNOWN_KEY")
    yield attempt("both of another, signed by it", {"request": request, "enrolled": answer}, "WRONG_ENROLMENT", dora)
    yield attempt("another device", {"device": made.device_ids["ben"]}, "WRONG_ENROLMENT")
    for how, signer in (
        ("a bundle key", made.bundle),
        ("a root key", made.root_keys[0]),
        ("itself", anna),
        ("a stranger", made.stranger),
    ):
        forged_answer = signer.sign(Typ.ENROLLED, compact(told)).decode()
        yield attempt(f"an answer signed by {how}", {"enrolled": forged_answer}, "UNKNOWN_KEY")
    for typ in (Typ.ANSWER, Typ.REDEEMED):
        yield attempt(
            f"an answer as {typ.value}", {"enrolled": made.receipt.sign(typ, compact(told)).decode()}, "WRONG_TYPE"
        )
    for changed in ({"server": OTHER_ID}, {"device": OTHER_ID}, {"request_sha256": DIGEST}):
        other = made.receipt.sign(Typ.ENROLLED, compact(told | changed)).decode()
        yield attempt(f"a signed answer with {list(changed)}", {"enrolled": other}, "WRONG_ENROLMENT")
    yield attempt("too large", {"nonce": "n" * 70_000}, "TOO_LARGE")
    for part in ("request", "enrolled"):
        for at in range(0, len(good[part]), 7):
            turned = good[part][:at] + ("A" if good[part][at] != "A" else "B") + good[part][at + 1 :]
            yield attempt(f"{part} with a letter changed at {at}", {part: turned})
    for how, raw in wrong_fields(good):
        yield Try("enrolment again", FIELD, how, anna.sign(Typ.ENROL_AGAIN, raw), accept)
    yield from deep("enrolment again", anna, Typ.ENROL_AGAIN, good, accept, "")


def _online(made: Template, target: Target) -> Iterator[Try]:
    good, accept, dora = payload(target.raw), target.accept, made.devices["dora"]

    def attempt(how: str, changed: Doc, code: str = "INVALID_FIELD") -> Try:
        return Try("online redemption", AGAINST, how, dora.sign(Typ.REDEEM, compact(good | changed)), accept, code)

    yield from wrong_keys(made, "online redemption", Typ.REDEEM, compact(good), accept, dora, "")
    yield attempt("as another device", {"device": made.device_ids["ben"]}, "UNKNOWN_KEY")
    yield attempt("as nobody", {"device": OTHER_ID}, "UNKNOWN_DEVICE")
    yield attempt("no device", {"device": None}, "UNKNOWN_DEVICE")
    yield attempt("an unknown member", {"note": "x"})
    yield attempt("no codes", {"codes": []})
    yield attempt("33 codes", {"codes": ["OPEN"] * 33})
    yield attempt("a code of nothing", {"codes": [""]}, "")
    yield attempt("another currency", {"order": good["order"] | {"currency": "eur"}}, "")
    lines = good["order"]["lines"]
    for how, line in (
        ("a negative price", lines[0] | {"unit_price_minor": -1}), ("no quantity", lines[0] | {"quantity": 0}),
        ("a huge price", lines[0] | {"unit_price_minor": 10**30}),
        ("a price with a fraction", lines[0] | {"unit_price_minor": 1.5}),
    ):  # fmt: skip
        yield attempt(how, {"order": good["order"] | {"lines": [line]}}, "")
    yield attempt("a line twice", {"order": good["order"] | {"lines": lines * 2}}, "")
    for how, raw in wrong_fields(good):
        yield Try("online redemption", FIELD, how, dora.sign(Typ.REDEEM, raw), accept)
    yield from deep("online redemption", dora, Typ.REDEEM, good, accept, "")


def _manifest_requests(made: Template, target: Target) -> Iterator[Try]:
    good, accept, anna = payload(target.raw), target.accept, made.devices["anna"]
    for one in wrong_keys(made, "manifest request", Typ.REQUEST, compact(good), accept, anna, ""):
        yield one._replace(code="")  # whatever is wrong with a signature, the caller is not authenticated
    for how, changed in (
        ("another method", {"method": "POST"}), ("in other case", {"method": "get"}),
        ("another path", {"path": "/v1/scopes/other/manifest"}), ("a path behind it", {"path": good["path"] + "/"}),
        ("a query", {"path": good["path"] + "?"}), ("encoded", {"path": "/v1/scopes/mai%6e/manifest"}),
        ("another device", {"device": made.device_ids["ben"]}), ("nobody", {"device": OTHER_ID}),
    ):  # fmt: skip
        yield Try("manifest request", AGAINST, how, anna.sign(Typ.REQUEST, compact(good | changed)), accept)
    for how, raw in wrong_fields(good):
        yield Try("manifest request", FIELD, how, anna.sign(Typ.REQUEST, raw), accept)
    yield from deep("manifest request", anna, Typ.REQUEST, good, accept, "")


# ---- journals as files


def changed_files(made: Template, accept: Callable[[bytes], object]) -> Iterator[tuple[Changed, bool]]:
    """Files whose digests were made good again, so that only what is signed speaks; and whether all that is signed is
    in them, as it was: then the file is taken, as its header decides nothing."""
    header, *batches = made.pending["journal file"].splitlines(keepends=True)
    told, bodies = json.loads(header.partition(b" ")[2]), [base64.b64decode(one.partition(b" ")[2]) for one in batches]

    def file(head: Doc, parts: list[bytes]) -> bytes:
        lines = [compact(head), *map(base64.b64encode, parts)]
        return b"".join(sha256_hex(one).encode() + b" " + one + b"\n" for one in lines)

    def one(how: str, raw: bytes, *, same: bool = False) -> tuple[Changed, bool]:
        return Changed("file with its digests made good", how, raw), same

    count = len(bodies)
    yield one("batches turned round", file(told, bodies[::-1]))
    yield one("a batch twice", file(told | {"batches": count + 1}, [*bodies, bodies[-1]]), same=True)
    yield one("the first batch left out", file(told | {"batches": count - 1}, bodies[1:]))
    yield one("fewer than it says", file(told, bodies[:-1]))
    yield one("fewer, as it says", file(told | {"batches": count - 1}, bodies[:-1]), same=True)
    yield one("more than it says", file(told | {"batches": count - 1}, bodies))
    yield one("of another device", file(told | {"device": made.device_ids["anna"]}, bodies))
    yield one("a header of another name", file(told | {"name": "someone else"}, bodies), same=True)
    for name, value in (("v", 2), ("format", "journal"), ("batches", 0), ("device", "ben"), ("batches", 10**6 + 1)):
        yield one(f"{name} {value}", file(told | {name: value}, bodies))
    nested = compact(told)[:-1] + b',"x":' + b"[" * 9_000 + b"]" * 9_000 + b"}"
    lines = [nested, *map(base64.b64encode, bodies)]
    yield one("nested deeply", b"".join(sha256_hex(line).encode() + b" " + line + b"\n" for line in lines))
    loose = base64.b64encode(bodies[0])
    for how, text in (
        ("loose last bits", _loose(loose)),
        ("a line end within", loose[:9] + b"\r" + loose[9:]),
        ("padding", loose + b"="),
    ):
        lines = [compact(told), text, *map(base64.b64encode, bodies[1:])]
        raw = b"".join(sha256_hex(line).encode() + b" " + line + b"\n" for line in lines)
        yield one(f"base64: {how}", raw, same=text == loose)
    for at, body in enumerate(bodies):
        yield one(f"batch {at} with a bit flipped", file(told, [*bodies[:at], _flipped(body), *bodies[at + 1 :]]))
    yield one("batches of anna", file(told, [made.pending["sync"]] * count))


def _loose(text: bytes) -> bytes:
    bare = text.rstrip(b"=")
    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    if len(bare) == len(text):
        return text
    return bare[:-1] + bytes([letters[letters.index(bare[-1]) | 1]]) + text[len(bare) :]


def _flipped(body: bytes) -> bytes:
    return body[:-3] + bytes([body[-3] ^ 4]) + body[-2:]
