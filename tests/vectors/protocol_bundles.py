"""Cases of blobs: which are taken, what they lead to, and when the snapshot is taken instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import zstandard

from tests.vectors.protocol_parts import (
    NOT_UTF8,
    SKIPPABLE_FRAME,
    VOUCHERS,
    Case,
    Doc,
    b64,
    compact,
    digest_of_state,
    drop,
    framed,
    in_blocks,
    manifest,
    no_frames,
    packed,
    put,
    ref,
    state,
    voucher_id,
)

UNPACKED_BYTES_MAX = 512 * 1024 * 1024
FIRST = put(1) + put(2)


def of_bundle(
    snapshot: bytes,
    deltas: dict[int, bytes],
    end: str,
    *,
    held: tuple[int, int, list[int]] | None = None,
    version: int = 7,
    snapshot_version: int | None = None,
    served: dict[int, bytes] | None = None,
    **of_snapshot: Any,
) -> Doc:
    """`deltas` by the version they begin at; `served`: what comes in the place of one of them (0: of the snapshot)."""
    document = manifest(
        version=version,
        snapshot={
            "version": snapshot_version or (min(deltas) if deltas else version),
            **ref(snapshot, vouchers=2),
            **of_snapshot,
        },
        deltas=[{"from_version": start, **ref(blob)} for start, blob in deltas.items()],
        state_digest=end,
    )
    came = {0: snapshot, **deltas, **(served or {})}
    names = {0: document["snapshot"]["sha256"], **{one["from_version"]: one["sha256"] for one in document["deltas"]}}
    mine = None
    if held is not None:
        epoch, held_version, numbers = held
        mine = {
            "server_epoch": epoch,
            "version": held_version,
            "vouchers": [
                {"id": voucher_id(one), "code": put(one).split(b'"code":"')[1].split(b'"')[0].decode(),
                 "voucher": b64(VOUCHERS[one])}
                for one in numbers
            ],
        }  # fmt: skip
    return {
        "check": "bundle",
        "manifest": document,
        "held": mine,
        "blobs": {names[start]: b64(blob) for start, blob in came.items()},
    }


def bundles() -> Iterator[Case]:
    def case(id_: str, shows: str, rule: str, given: Doc, base: str = "") -> Case:
        return Case(f"bundle-{id_}", shows, rule, given, base)

    one, two, both = packed(FIRST), packed(drop(1) + put(3)), state(1, 2)
    yield case("snapshot", "A new device takes the snapshot.", "20", of_bundle(one, {}, both))
    yield case(
        "snapshot-and-delta", "A new device takes the snapshot and the delta after it.", "23",
        of_bundle(one, {6: two}, state(2, 3)),
    )  # fmt: skip
    yield case(
        "delta", "A device at the version where a delta begins takes that delta.", "23",
        of_bundle(one, {6: two}, state(2, 3), held=(2, 6, [1, 2])),
    )  # fmt: skip
    three = {3: packed(put(1)), 5: packed(put(2)), 6: two}
    yield case(
        "delta-between", "A device at a version between takes each delta that ends past it: they may overlap.", "23",
        of_bundle(one, {3: packed(drop(4)), 5: packed(drop(4)), 6: two}, state(2, 3), snapshot_version=6,
                  held=(2, 4, [1, 2, 4])),
    )  # fmt: skip
    yield case(
        "dearer", "Deltas that have more bytes in all than the snapshot and what follows it are not taken.", "23",
        of_bundle(one, three, state(2, 3), snapshot_version=6, held=(2, 4, [1])),
    )  # fmt: skip
    yield case(
        "deltas-that-ended", "A delta that ends at its version is not taken.", "23",
        of_bundle(one, three, state(2, 3), snapshot_version=6, held=(2, 5, [1])),
    )  # fmt: skip
    yield case(
        "held-is-too-old", "A device older than the first delta takes the snapshot and what ends past that.", "23",
        of_bundle(one, three, state(2, 3), snapshot_version=6, held=(2, 2, [4])),
    )  # fmt: skip
    yield case(
        "nothing-new", "A device at the manifest's version takes nothing.", "24",
        of_bundle(one, {6: two}, state(2, 3), held=(2, 7, [2, 3])),
    )  # fmt: skip
    yield case(
        "other-epoch", "What is held of another epoch leads nowhere: the snapshot is taken.", "23",
        of_bundle(one, {6: two}, state(2, 3), held=(1, 6, [1, 2])),
    )  # fmt: skip
    yield case(
        "held-is-newer", "A device above the manifest's version, which a new epoch may bring, takes the snapshot.",
        "23", of_bundle(one, {6: two}, state(2, 3), held=(2, 9, [1, 2])),
    )  # fmt: skip
    yield case(
        "order-of-lines", "The order of lines means nothing.", "20", of_bundle(packed(put(2) + put(1)), {}, both)
    )
    yield case("crlf", "A line may end with CR LF.", "19",
               of_bundle(packed(FIRST.replace(b"\n", b"\r\n")), {}, both))  # fmt: skip
    yield case("last-line-end", "The last line's end may be missing.", "19", of_bundle(packed(FIRST[:-1]), {}, both))
    yield case("empty", "A scope without vouchers has an empty snapshot.", "21",
               of_bundle(packed(b""), {}, "0" * 64, vouchers=0))  # fmt: skip
    yield case(
        "unknown-field", "A field of a voucher's line that is not known is ignored.", "19",
        of_bundle(packed(put(1, label="x") + put(2)), {}, both),
    )  # fmt: skip
    yield case(
        "unknown-voucher", "A voucher that no engine here can read is no reason to refuse: only its bytes count.", "20",
        of_bundle(packed(FIRST.replace(b'"type":"percentage"', b'"type":"lottery"   ')), {}, _lottery()),
    )  # fmt: skip
    yield case(
        "drop-of-nothing", "A drop of what is not there is nothing.", "24",
        of_bundle(one, {6: packed(drop(4) + drop(1) + put(3))}, state(2, 3), held=(2, 6, [1, 2])),
    )  # fmt: skip
    yield case(
        "put-again", "A put replaces what is there.", "24",
        of_bundle(one, {6: packed(put(1) + put(3))}, state(1, 2, 3), held=(2, 6, [1, 2])),
    )  # fmt: skip
    yield case(
        "code-moves", "A code may go to another voucher where the one that had it is dropped in the same delta.", "25",
        of_bundle(one, {6: packed(put(3, code="ten") + drop(1))}, state(2, 3), held=(2, 6, [1, 2])),
    )  # fmt: skip
    window = zstandard.ZstdCompressionParameters(window_log=27)
    yield case("window", "A frame may ask for a window of 128 MiB.", "19", of_bundle(framed(FIRST, window), {}, both))
    yield case("blocks", "A frame may have several blocks, and not say its size.", "19",
               of_bundle(in_blocks(FIRST), {}, both))  # fmt: skip
    yield from _refused(case, one, both)
    yield from _fallen_back(case, one, two)


def _lottery() -> str:
    raw = {voucher_id(n): VOUCHERS[n].replace(b'"type":"percentage"', b'"type":"lottery"   ') for n in (1, 2)}
    return digest_of_state(raw)


def _refused(case: Any, one: bytes, both: str) -> Iterator[Case]:
    base = "bundle-snapshot"

    def refused(id_: str, shows: str, rule: str, lines: bytes, end: str = both, **how: Any) -> Case:
        found: Case = case(id_, shows, rule, of_bundle(packed(lines), {}, end, **how), base)
        return found

    flipped = one[:-1] + bytes([one[-1] ^ 1])
    for id_, shows, rule, came in (
        ("one-byte-more", "The blob has one byte more than the manifest says.", "17", one + b"\0"),
        ("one-byte-less", "The blob has one byte less.", "17", one[:-1]),
        ("flipped-bit", "One bit of the blob is another.", "18", flipped),
    ):
        yield case(id_, shows, rule, of_bundle(one, {}, both, served={0: came}), base)
    named = of_bundle(one, {}, both, sha256="0" * 64)
    yield case("other-digest", "The address that the manifest names gives a blob of another digest.", "18", named, base)
    plain = case("no-zstd", "The blob is not compressed.", "19", of_bundle(FIRST, {}, both), base)
    yield plain
    window = zstandard.ZstdCompressionParameters(window_log=28)
    wide = framed(FIRST, window)
    yield case("wide-window", "The frame asks for a window of 256 MiB.", "19", of_bundle(wide, {}, both),
               "bundle-window")  # fmt: skip
    for id_, shows, blob in no_frames(put(1), put(2)):
        yield case(id_, shows, "19", of_bundle(blob, {}, both), "bundle-blocks")
    for id_, shows, blob in (
        ("no-frame", "The blob has no bytes, and so no frame.", b""),
        ("skippable-frame-alone", "The blob is a skippable frame.", SKIPPABLE_FRAME),
    ):
        yield case(id_, shows, "19", of_bundle(blob, {}, "0" * 64, vouchers=0), "bundle-empty")
    bomb = _framed_lines(UNPACKED_BYTES_MAX + 1)
    yield case("bomb", "A small blob unpacks to more than 512 MiB.", "19", of_bundle(bomb, {}, both), base)
    for id_, shows, lines in (
        ("line-no-json", "A line is no JSON.", FIRST + b"{\n"),
        ("blank-line", "A line is blank.", put(1) + b"\n" + put(2)),
        ("put-and-drop", "A line holds both put and drop.", put(1) + put(2)[:-2] + b"," + drop(3)[1:]),
        ("neither", "A line holds neither.", FIRST + b"{}\n"),
        ("other-verb", "A line holds a field besides.", FIRST + b'{"patch":1}\n'),
        ("no-revision", "A voucher's line has no revision.", put(1) + put(2).replace(b'"revision":1,', b"")),
        ("not-utf8", "A line is not UTF-8.", put(1) + put(2, code="x").replace(b'"x"', b'"\xff"')),
        ("not-utf8-ignored", "A field of a voucher that is not known is not UTF-8.",
         put(1) + put(2, raw=VOUCHERS[2][:-1] + b',"note":' + NOT_UTF8 + b"}")),
    ):  # fmt: skip
        yield refused(id_, shows, "19", lines)
    for id_, shows, lines in (
        ("snapshot-drops", "A snapshot drops a voucher.", FIRST + drop(3)),
        ("same-id", "One id comes twice.", put(1) + put(2) + put(1, code="other")),
        ("same-code", "One code comes twice.", put(1) + put(2, code="ten")),
    ):
        yield refused(id_, shows, "20", lines)
    yield refused("one-voucher-less", "The manifest says three vouchers, and the snapshot holds two.", "21", FIRST,
                  vouchers=3)  # fmt: skip
    yield refused("other-state", "The vouchers are not those of the manifest's digest.", "24", FIRST, state(1, 3))
    yield case(
        "delta-after-snapshot-differs", "Snapshot and delta lead elsewhere: there is nothing left to take instead.",
        "24", of_bundle(one, {6: packed(put(3))}, state(2, 3)), "bundle-snapshot-and-delta",
    )  # fmt: skip


def _framed_lines(size: int) -> bytes:
    """So many line ends, compressed step by step."""
    made = zstandard.ZstdCompressor(level=3).compressobj()
    step = b"\n" * 2**20
    parts = [made.compress(step) for _ in range(size // len(step))]
    return b"".join([*parts, made.compress(b"\n" * (size % len(step))), made.flush()])


def _fallen_back(case: Any, one: bytes, two: bytes) -> Iterator[Case]:
    """A delta breaks a rule: the snapshot of the same version is taken, and nothing was changed on the way."""
    held = (2, 6, [1, 2])
    whole = packed(put(2) + put(3))

    def fallen(id_: str, shows: str, rule: str, blob: bytes, **how: Any) -> Case:
        given = of_bundle(whole, {6: blob}, state(2, 3), snapshot_version=7, held=held, **how)
        found: Case = case(f"fallback-{id_}", shows, rule, given)
        return found

    yield fallen("size", "The delta has another size.", "17", two, served={6: two + b"\0"})
    yield fallen("digest", "The delta has another digest.", "18", two, served={6: two[:-1] + bytes([two[-1] ^ 1])})
    yield fallen("no-zstd", "The delta is no zstd.", "19", drop(1) + drop(2))
    yield fallen("no-json", "The delta has a line that is no JSON.", "19", packed(drop(1) + put(3) + b"{\n"))
    yield fallen("frame-behind", "Another frame follows that of the delta, with nothing in it.", "19",
                 two + packed(b""))  # fmt: skip
    yield fallen("id-twice", "The delta has one voucher twice.", "22", packed(drop(1) + put(3) + drop(3)))
    yield fallen("code-twice", "The delta puts one code twice.", "22", packed(put(3) + put(4, code="thirty")))
    yield fallen("state", "The delta leads to another state.", "24", packed(put(3)))
    yield fallen(
        "taken-code", "The delta puts a voucher with the code of one that stays.", "25",
        packed(drop(1) + put(3, code="twenty")),
    )  # fmt: skip
    drifted = of_bundle(whole, {6: two}, state(2, 3), snapshot_version=7, held=(2, 6, [1, 4]))
    yield case("fallback-drifted", "What is held is not what it should be, and the delta shows it.", "24", drifted)
    at_end = of_bundle(whole, {6: two}, state(2, 3), snapshot_version=7, held=(2, 7, [1, 2]))
    yield case("fallback-nothing-new", "So it does where nothing is to be taken.", "24", at_end)
    assert compact(drifted) != compact(at_end)
