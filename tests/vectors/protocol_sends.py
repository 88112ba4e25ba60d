"""Cases of what a client sends and computes: syncs, envelopes, tokens, hashes, digests, signatures, the time."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import zstandard

from tallystick_shared.signing import Typ, sha256_hex
from tests.vectors.protocol_answers import lease
from tests.vectors.protocol_parts import (
    BUNDLE,
    DEEP,
    DEVICE,
    DEVICE_KEY,
    HASHES,
    NOT_UTF8,
    OTHER_KEY,
    RECEIPT,
    ROOT_A,
    SALT,
    SERVER,
    VOUCHERS,
    Case,
    Doc,
    Key,
    Point,
    b64,
    body,
    compact,
    envelope,
    framed,
    in_blocks,
    jws,
    no_frames,
    noted,
    packed,
    position,
    time,
    voucher_id,
    with_part,
)

ZEROS = "0" * 64
BATCH_EVENTS_MAX = 500


def lines(*seqs: int) -> bytes:
    return b"".join(envelope(seq) + b"\n" + body(seq) + b"\n" for seq in seqs)


def head(frame: bytes, **changed: Any) -> Doc:
    """Line 1 of a sync of events 2 and 3, after the server has acknowledged the first."""
    return {
        "device": DEVICE,
        "nonce": "bm9uY2UtMDAwMS1hYmNkZWZnaA",
        "server_epoch": 2,
        "ledger_mark": 40,
        "head": position(3),
        "after": position(1),
        "through": position(3),
        "events": {"count": 2, "bytes": len(frame), "sha256": sha256_hex(frame)},
        "leases": [{"id": lease(1)["id"], "units": 3, "minor": 750}],
        "leases_digest": digest_of([lease(1)]),
        "lease_number": 1,
        "wants": [],
        "clock": {"at": time(), "boot_id": "boot-1", "monotonic_s": 3700},
        "manifest_version": 7,
    } | changed


def sync_body(document: Doc | bytes, frame: bytes, *, key: Key = DEVICE_KEY, typ: str = Typ.SYNC) -> bytes:
    return jws(key, typ, document) + b"\n" + frame


def syncs() -> Iterator[Case]:
    frame = packed(lines(2, 3))

    def case(id_: str, shows: str, rule: str, raw: bytes, *, base: str = "sync-good", ok: bool = False) -> Case:
        given = {"check": "sync", "message": b64(raw), "key": DEVICE_KEY.jwk}
        return Case(f"sync-{id_}", shows, rule, given, "" if ok else base)

    def whole(blob: bytes, **changed: Any) -> bytes:
        return sync_body(head(blob, **changed), blob)

    good = whole(frame)
    none = head(b"", after=position(3), events={"count": 0, "bytes": 0, "sha256": sha256_hex(b"")})
    yield case("good", "Two events after the first, one frame of zstd behind line 1.", "S5", good, ok=True)
    yield case("empty", "A sync without events is line 1 and its line end.", "S3", sync_body(none, b""), ok=True)
    yield case(
        "part", "A batch may end before the head.", "S5",
        whole(packed(lines(2)), through=position(2), events=_events(packed(lines(2)), 1)), ok=True,
    )  # fmt: skip
    yield case("unknown-field", "A field that is not known is ignored.", "S2", whole(frame, shoe_size=43), ok=True)
    yield case("held", "While the server recovers, all leases held go with it.", "S2", whole(frame, held=[lease(1)]),
               ok=True)  # fmt: skip
    fast = zstandard.ZstdCompressor(level=19).compress(lines(2, 3))
    yield case("other-level", "Any level of compression.", "S4", whole(fast), ok=True)
    yield case("blocks", "A frame may have several blocks, and not say its size.", "S4",
               whole(in_blocks(lines(2, 3))), ok=True)  # fmt: skip
    raws = [_of_number(seq) for seq in range(1, BATCH_EVENTS_MAX + 2)]
    for count in (BATCH_EVENTS_MAX, BATCH_EVENTS_MAX + 1):
        many = packed(b"".join(raw + b"\n{}\n" for raw in raws[:count]))
        end = {"seq": count, "hash": _through(raws[:count])}
        made = whole(many, after={"seq": 0, "hash": HASHES[0]}, through=end, head=end, events=_events(many, count))
        if count == BATCH_EVENTS_MAX:
            yield case("500-events", "500 events are not too many.", "S3", made, ok=True)
        else:
            yield case("501-events", "501 events are.", "S3", made, base="sync-500-events")
    yield case("nothing", "The body is empty.", "S1", b"", base="sync-empty")
    yield case("no-line-end", "Line 1 has no end.", "S1", good.split(b"\n")[0], base="sync-empty")
    yield case("other-typ", "Line 1 is signed as a request without a body.", "J4",
               sync_body(head(frame), frame, typ=Typ.REQUEST))  # fmt: skip
    yield case("other-key", "Line 1 is signed by another device's key.", "J5",
               sync_body(head(frame), frame, key=OTHER_KEY))  # fmt: skip
    for id_, shows, path, value in (
        ("without-clock", "clock is missing.", "clock", ...),
        ("short-nonce", "The nonce has 15 characters.", "nonce", "a" * 15),
        ("want-below-0", "A want is of -1 units.", "wants", [{"voucher_id": voucher_id(1), "units": -1}]),
        ("boot-id-line-end", "The boot's id has a line end.", "clock.boot_id", "a\nb"),
    ):
        yield case(id_, shows, "S2", sync_body(with_part(head(frame), path, value), frame))
    for id_, shows, note in (
        ("not-utf8", "A field that is not known is not UTF-8.", NOT_UTF8),
        ("deep", "A field that is not known has lists in lists, 20,000 deep.", DEEP),
    ):
        yield case(id_, shows, "S1", sync_body(noted(head(frame), note), frame), base="sync-unknown-field")
    flipped = frame[:-1] + bytes([frame[-1] ^ 1])
    yield case("flipped-bit", "One bit of the frame is another.", "S3", sync_body(head(frame), flipped))
    yield case("one-byte-more", "The frame has one byte more than line 1 says.", "S3", good + b"\0")
    yield case("no-zstd", "The events are not compressed.", "S4", whole(lines(2, 3)))
    for id_, shows, blob in no_frames(lines(2), lines(3)):
        yield case(id_, shows, "S4", whole(blob), base="sync-blocks")
    for log, id_, size in ((23, "window", "8"), (24, "wide-window", "16")):
        parameters = zstandard.ZstdCompressionParameters(window_log=log)
        streamed = whole(framed(lines(2, 3), parameters))
        shows = f"The frame asks for a window of {size} MiB."
        yield case(id_, shows, "S4", streamed, base="sync-window", ok=log == 23)
    yield case("bomb", "A small frame unpacks to more than a batch may have.", "S4", whole(packed(b"\n" * 1_200_000)))
    for id_, shows, rule, raw in (
        ("odd-lines", "An envelope has no body.", "S5", lines(2) + envelope(3) + b"\n"),
        ("last-line-end", "The last body has no line end.", "S5", lines(2, 3)[:-1]),
        ("one-event-less", "One event less than line 1 says.", "S5", lines(2)),
    ):
        yield case(id_, shows, rule, whole(packed(raw)))
    swapped = packed(lines(3, 2))
    yield case("order", "The events are in another order than the chain has them.", "S6", whole(swapped))
    elsewhere = whole(frame, through=position(3) | {"hash": ZEROS})
    yield case("other-through", "The chain does not lead to through.", "S6", elsewhere)
    elsewhere = whole(frame, after=position(1) | {"hash": ZEROS})
    yield case("other-after", "The chain does not begin at after.", "S6", elsewhere)
    yield case("gap", "after is event 2, and event 2 follows.", "S5", whole(frame, after=position(2)))
    yield case("through-above-head", "through is above the head.", "S5", whole(frame, head=position(2)))


def _events(frame: bytes, count: int) -> Doc:
    return {"count": count, "bytes": len(frame), "sha256": sha256_hex(frame)}


def _of_number(seq: int) -> bytes:
    return envelope(seq, type="clock_anomaly", id=f"01978000-0000-7000-8000-{seq:012x}", uses=[])


def _through(envelopes: list[bytes]) -> str:
    digest = bytes.fromhex(HASHES[0])
    for one in envelopes:
        digest = hashlib.sha256(digest + one).digest()
    return digest.hex()


def envelopes() -> Iterator[Case]:
    def case(id_: str, shows: str, raw: bytes, *, ok: bool = False) -> Case:
        given = {"check": "envelope", "message": b64(raw)}
        return Case(f"envelope-{id_}", shows, "E1", given, "" if ok else "envelope-good")

    first = {"voucher_id": voucher_id(1), "revision_sha256": None, "lease": lease(1)["id"], "units": 3, "minor": 750}
    yield case("good", "An envelope of a redemption with one use.", envelope(1), ok=True)
    yield case("close", "A lease_close has one use: all that was ever used of the lease.",
               envelope(2, type="lease_close", uses=[first]), ok=True)  # fmt: skip
    yield case("void", "A void names the redemption in ref.", envelope(3, type="void", ref=DEVICE, uses=[]), ok=True)
    yield case("no-ref", "ref may be left out.", compact(_without(envelope(1), "ref")), ok=True)
    yield case("anomaly", "A clock_anomaly has no uses.", envelope(4, type="clock_anomaly", uses=[]), ok=True)
    for id_, shows, changed in (
        ("unknown-field", "An envelope with a field that is not known is not read: what it says may count.",
         {"tip_minor": 1}),
        ("version-2", "Version 2 of the envelope is not known here.", {"v": 2}),
        ("unknown-type", "A type that is not known.", {"type": "gift"}),
        ("seq-0", "Events are numbered from 1.", {"seq": 0}),
        ("no-offset", "The time has no offset.", {"at": "2026-06-01T11:01:00"}),
        ("id-upper-case", "The id is in upper case.", {"id": "01978000-0000-7000-8000-00000000E001"}),
        ("negative-minor", "A use gives -1 minor.", {"uses": [first | {"minor": -1}]}),
        ("use-unknown-field", "A use has a field that is not known.", {"uses": [first | {"note": ""}]}),
        ("65-uses", "65 uses are too many.", {"uses": [first] * 65}),
    ):  # fmt: skip
        yield case(id_, shows, compact(json.loads(envelope(1)) | changed))
    yield case("no-body-digest", "body_sha256 is missing.", compact(_without(envelope(1), "body_sha256")))
    yield case("cut-off", "The end is missing.", envelope(1)[:-1])


def _without(raw: bytes, name: str) -> Doc:
    document: Doc = json.loads(raw)
    return with_part(document, name, ...)


def tokens() -> Iterator[Case]:
    pin = "5f" * 32
    good = f"tally1.c2VjcmV0LW9mLWEtdG9rZW4.3.{pin}"

    def case(id_: str, shows: str, text: str, *, ok: bool = False) -> Case:
        return Case(f"token-{id_}", shows, "T1", {"check": "token", "text": text}, "" if ok else "token-good")

    yield case("good", "Secret, version and digest of the root.", good, ok=True)
    yield case("pasted", "White space around it, as it comes with a paste, does not count.", f"  {good}\n", ok=True)
    yield case("other-prefix", "It does not begin with tally1.", good.replace("tally1", "tally2"))
    yield case("three-parts", "The digest is missing.", good.rpartition(".")[0])
    yield case("version-no-number", "The version is no number.", good.replace(".3.", ".x."))
    yield case("short-digest", "The digest has 63 digits.", good[:-1])
    yield case("long-digest", "The digest has 65 digits.", good + "f")
    yield case("digest-upper-case", "The digest is in upper case.", good.replace(pin, pin.upper()))
    yield case("digest-no-hex", "The digest has a letter that is no hexadecimal digit.", good[:-1] + "g")
    yield case("digest-base64", "The digest is in base64, padded.",
               good.replace(pin, base64.b64encode(bytes.fromhex(pin)).decode()))  # fmt: skip
    for id_, shows, secret in (
        ("no-secret", "The secret is empty.", ""),
        ("secret-padded", "The secret has a letter that none has.", "c2VjcmV0LW9mLWEtdG9rZW4="),
        ("secret-with-space", "White space stands in the secret.", "c2VjcmV0 LW9mLWEtdG9rZW4"),
    ):
        yield case(id_, shows, good.replace("c2VjcmV0LW9mLWEtdG9rZW4", secret))
    for id_, shows, version in (
        ("version-0", "The version is 0.", "0"),
        ("version-leading-0", "The version begins with a 0.", "03"),
        ("version-signed", "The version has a sign.", "+3"),
        ("version-other-digits", "The version's digit is not ASCII.", "\u0663"),
        ("version-with-space", "White space stands before the version.", " 3"),
        ("version-above-2-53", "The version is 2^53 + 1.", str(2**53 + 1)),
        ("version-too-large", "The version has 17 digits.", "1" + "0" * 16),
    ):
        yield case(id_, shows, good.replace(".3.", f".{version}."))
    yield case("two-lines", "A line end stands before the digest.", good.replace(pin, f"\n{pin}"))


# ---- computations


def given(check: str, id_: str, shows: str, **fields: Any) -> Case:
    return Case(f"{check.replace('_', '-')}-{id_}", shows, "C1", {"check": check, **fields})


def thumbprints() -> Iterator[Case]:
    for name, key in (("device", DEVICE_KEY), ("root", ROOT_A), ("bundle", BUNDLE)):
        yield given("thumbprint", name, f"The kid of the test key {name}: RFC 7638.", key=key.jwk)
    backwards = dict(reversed(RECEIPT.jwk.items()))
    yield given("thumbprint", "order", "The order of the members does not count.", key=backwards)
    rfc = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    yield given("thumbprint", "rfc-8037", "The example of RFC 8037, A.3.", key=rfc)
    yield Case("thumbprint-padded", "The key's x is padded.", "6",
               {"check": "thumbprint", "key": rfc | {"x": rfc["x"] + "="}}, "thumbprint-rfc-8037")  # fmt: skip
    for id_, shows, raw in _POINTS:
        yield Case(f"thumbprint-{id_}", shows, "6", {"check": "thumbprint", "key": Point(raw).jwk},
                   "thumbprint-device")  # fmt: skip


_POINTS = [
    ("order-1", "The key is the point of order 1: anybody can sign for it.", "01" + "00" * 31),
    ("order-2", "The key is the point of order 2.", "ec" + "ff" * 30 + "7f"),
    ("order-4", "The key is a point of order 4.", "00" * 32),
    ("order-4-other-sign", "The key is the other point of order 4.", "00" * 31 + "80"),
    ("order-8", "The key is a point of order 8.", "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    ("order-8-other", "The key is another point of order 8.",
     "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    ("order-8-other-sign", "The key is a third point of order 8.",
     "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"),
    ("order-1-other-sign", "The key is the point of order 1, with a sign that it does not have.",
     "01" + "00" * 30 + "80"),
    ("order-1-other-spelling", "The key is the point of order 1, its y with 2^255 - 19 added.",
     "ee" + "ff" * 30 + "7f"),
    ("y-too-large", "The key's y is 2^255 - 16: a y is below 2^255 - 19.", "f0" + "ff" * 30 + "7f"),
]  # fmt: skip


def signatures() -> Iterator[Case]:
    key = DEVICE_KEY.private_jwk
    for typ, shows, payload in (
        (Typ.SYNC, "Line 1 of a sync.", compact(head(packed(lines(2, 3))))),
        (Typ.REQUEST, "The proof of a request without a body.",
         compact({"device": DEVICE, "method": "GET", "path": "/v1/scopes/main/manifest", "at": time()})),
        (Typ.ENROL, "An enrolment.",
         compact({"token": "c2VjcmV0LW9mLWEtdG9rZW4", "jwk": DEVICE_KEY.jwk, "name": "Till 1"})),
        (Typ.REDEEM, "An empty payload.", b""),
    ):  # fmt: skip
        name = typ.value.removeprefix("tallystick-")
        yield given("sign", name, f"{shows} Ed25519 has one signature for one message.", key=key, typ=typ.value,
                    payload=b64(payload))  # fmt: skip


def chains() -> Iterator[Case]:
    common = {"server": SERVER, "device": DEVICE, "key": DEVICE_KEY.jwk}
    yield given("chain", "start", "hash_0 of a journal.", **common, envelopes=[])
    yield given("chain", "three", "Three events.", **common, envelopes=[b64(envelope(seq)) for seq in (1, 2, 3)])
    yield given("chain", "other-key", "Another key, another chain.", **common | {"key": OTHER_KEY.jwk},
                envelopes=[b64(envelope(1))])  # fmt: skip
    spaced = envelope(1).replace(b":", b": ")
    yield given("chain", "bytes", "The bytes are hashed, and not what they say.", **common, envelopes=[b64(spaced)])


def digest_of(leases: list[Doc]) -> str:
    def text(value: object) -> str:
        return "None" if value is None else str(value)

    rows = sorted(f"{one['id']} {one['number']} {text(one['units'])} {text(one['minor'])}\n" for one in leases)
    return sha256_hex("".join(rows).encode())


def lease_digests() -> Iterator[Case]:
    for id_, shows, leases in (
        ("none", "No open lease.", []),
        ("one", "One lease, without an amount: None stands for null.", [lease(1)]),
        ("order", "The order does not count: lines are sorted.", [lease(3, minor=0), lease(1), lease(2, units=None)]),
        ("expiry", "When it expires is not part of it.", [lease(1, expires_at=time(1))]),
    ):
        yield given("leases_digest", id_, shows, leases=leases)


def state_digests() -> Iterator[Case]:
    for id_, shows, numbers in (
        ("none", "No voucher.", []),
        ("one", "One voucher.", [1]),
        ("three", "Three vouchers: the sum passes 2**256.", [1, 2, 3]),
        ("order", "In another order it is the same.", [3, 1, 2]),
    ):
        held = [{"id": voucher_id(n), "code": "", "voucher": b64(VOUCHERS[n])} for n in numbers]
        yield given("state_digest", id_, shows, vouchers=held)


def hidden_codes() -> Iterator[Case]:
    for id_, shows, folded in (
        ("ascii", "Sixteen random letters and digits, folded.", "k7pw2mxq9r4tz8vb"),
        ("letters", "Any folded code is hashed as UTF-8.", "größe-2026"),
        ("empty-salt", "Another salt, another digest.", "k7pw2mxq9r4tz8vb"),
    ):
        salt = "0" * 32 if id_ == "empty-salt" else SALT
        yield given("hidden_code", id_, shows, code_salt=salt, folded=folded)


def times() -> Iterator[Case]:
    mark = {
        "at": time(), "boot_id": "boot-1", "monotonic_s": 1000, "gained_s": 0, "signed_at": time(-60),
        "signed_boot_id": "boot-1",
    }  # fmt: skip

    def case(id_: str, shows: str, wall: int, boot: str = "boot-1", monotonic: int = 1100, **changed: Any) -> Case:
        clock = {"at": time(wall), "boot_id": boot, "monotonic_s": monotonic}
        return given("time", id_, shows, mark=mark | changed, clock=clock, step_s=90_000)

    yield case("steady", "Both clocks ran 100 seconds.", 100)
    yield case("behind", "600 seconds behind what is expected: normal, the time is what is expected.", -500)
    yield case("far-behind", "601 seconds behind: an anomaly.", -501)
    yield case("ahead", "A wall clock ahead is followed, and what it gained is counted.", 200)
    yield case("step", "Up to 90,000 seconds in one boot.", 100 + 90_000)
    yield case("past-step", "One second more: an anomaly, and the time is what is expected.", 101 + 90_000)
    yield case("gained-before", "What was gained in this boot before counts.", 400, gained_s=89_701)
    yield case("other-boot", "After another boot nothing is known to have run, and the gain counts anew.", 3600,
               boot="boot-2", monotonic=5, gained_s=90_000)  # fmt: skip
    yield case("other-boot-behind", "After another boot with a clock set back the time stands still.", -7200,
               boot="boot-2", monotonic=5)  # fmt: skip
    yield case("monotonic-back", "A monotonic clock that went back is another boot.", 100, monotonic=999)
    yield case("far-ahead-unsure", "In a boot without signed time the latest it may be is the wall clock's.", 400_000,
               boot="boot-2", monotonic=5)  # fmt: skip
    low = given("time", "least-step", "The step is 86,400 seconds at least.", mark=mark,
                clock={"at": time(86_500), "boot_id": "boot-1", "monotonic_s": 1100}, step_s=60)  # fmt: skip
    yield low


def signed_times() -> Iterator[Case]:
    mark = {
        "at": time(5000), "boot_id": "boot-1", "monotonic_s": 1000, "gained_s": 4000, "signed_at": time(-60),
        "signed_boot_id": "boot-0",
    }  # fmt: skip
    clock = {"at": time(900), "boot_id": "boot-1", "monotonic_s": 1100}
    for id_, shows, held, at, new_epoch in (
        ("first", "The first signed time, at an enrolment.", None, 0, False),
        ("replaces", "It replaces what unsigned time gained, also where that sets the time back.", mark, 120, False),
        ("not-below", "It never goes below earlier signed time.", mark, -120, False),
        ("new-epoch", "But for a new server epoch.", mark, -120, True),
    ):
        yield given("signed_time", id_, shows, mark=held, clock=clock, server_time=time(at), new_epoch=new_epoch)
