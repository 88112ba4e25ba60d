"""Blobs that break a rule, under a manifest that names them rightly; and bytes that are not one frame of zstd."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import msgspec
import zstandard

from tallystick_shared.bundle import BlobRef, DeltaRef, Manifest
from tallystick_shared.signing import sha256_hex
from tests.proof.bundles_world import Passed

DIGEST = "7" * 64
_SKIPPED = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"


class Bad(NamedTuple):
    """`blob` is what comes for `sha256`, the digest of the blob that breaks `rule`."""

    name: str
    how: str
    manifest: Manifest
    sha256: str
    blob: bytes
    from_held: bool
    code: str
    rule: str


def lines_of(blob: bytes) -> list[bytes]:
    with zstandard.ZstdDecompressor().stream_reader(blob) as reader:
        return reader.readall().splitlines(keepends=True)


def packed(lines: Iterable[bytes], **parameters: Any) -> bytes:
    return zstandard.ZstdCompressor(**parameters).compress(b"".join(lines))


def streamed(raw: bytes, **parameters: Any) -> bytes:
    """Frames that do not say how much they hold."""
    given = zstandard.ZstdCompressionParameters.from_level(1, **parameters)
    made = zstandard.ZstdCompressor(compression_params=given).compressobj()
    return made.compress(raw) + made.flush()


@cache
def bomb(unpacked_bytes: int) -> bytes:
    """A small frame of zeros."""
    made = zstandard.ZstdCompressor(level=1).compressobj()
    step = bytes(2**22)
    parts = [made.compress(step) for _ in range(unpacked_bytes // len(step) + 1)]
    return b"".join([*parts, made.flush()])


def frames(lines: list[bytes], *, window_log: int = 28) -> Iterator[tuple[str, bytes, str]]:
    """Bytes that are not one whole frame of zstd with these lines: how, the bytes, and the code. `window_log`: above
    what the reader may be asked to hold."""
    good, half = packed(lines), len(lines) // 2
    checked = packed(lines, write_checksum=True)
    dictionary = zstandard.ZstdCompressionDict(b"".join(lines) * 40, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    trained = zstandard.ZstdCompressionDict(_dictionary_bytes())
    yield "two frames", packed(lines[:half]) + packed(lines[half:]), "MALFORMED"
    yield "itself twice", good + good, "MALFORMED"
    yield "an empty frame behind", good + packed([]), "MALFORMED"
    yield "an empty frame in front", packed([]) + good, "MALFORMED"
    yield "a skippable frame in front", _SKIPPED + good, "MALFORMED"
    yield "a skippable frame behind", good + _SKIPPED, "MALFORMED"
    yield "only a skippable frame", _SKIPPED, "MALFORMED"
    for tail in (b"\x00", b"\n", b"junk", b"\x28\xb5\x2f\xfd", bytes(100)):
        yield f"{tail[:5]!r} behind", good + tail, "MALFORMED"
    for cut in (1, 2, 5, len(good) // 2, len(good) - 5, len(good) - 3):
        yield f"{cut} bytes short", good[:-cut], "MALFORMED"
    yield "a wrong checksum", checked[:-1] + bytes([checked[-1] ^ 1]), "MALFORMED"
    yield "without its checksum", checked[:-4], "MALFORMED"
    yield "half of its checksum", checked[:-2], "MALFORMED"
    yield "a reserved bit", good[:4] + bytes([good[4] | 8]) + good[5:], "MALFORMED"
    yield "no magic", packed(lines)[4:], "MALFORMED"
    yield "a magic of an old version", b"\x27" + good[1:], "MALFORMED"
    yield "gzip", b"\x1f\x8b\x08" + good[3:], "MALFORMED"
    yield "not packed", b"".join(lines), "MALFORMED"
    yield "a window too wide", streamed(b"".join(lines), window_log=window_log), "MALFORMED"
    yield "with a dictionary", zstandard.ZstdCompressor(dict_data=trained).compress(b"".join(lines)), "MALFORMED"
    yield "with a raw dictionary", zstandard.ZstdCompressor(dict_data=dictionary).compress(b"".join(lines)), "MALFORMED"
    yield "nothing", b"", "MALFORMED"


@cache
def _dictionary_bytes() -> bytes:
    samples: list[bytes | bytearray | memoryview] = [
        f'{{"put":{{"id":"{at:036d}","revision":{at},"code":"c{at}"}}}}'.encode() * 3 for at in range(400)
    ]
    return zstandard.train_dictionary(4096, samples).as_bytes()


def snapshots_and_deltas(good: Manifest, snapshot: bytes, delta: bytes, passed: Sequence[Passed]) -> Iterator[Bad]:
    yield from _sizes_and_digests(good, snapshot, delta, passed)
    puts = lines_of(snapshot)
    first, second = (msgspec.json.decode(line)["put"] for line in puts[:2])
    for how, lines, code, rule in (
        ("a line that drops", [*puts, _drop(first["id"])], "MALFORMED", "20"),
        ("only a line that drops", [_drop(first["id"])], "MALFORMED", "20"),
        ("a line twice", [*puts, puts[0]], "MALFORMED", "20"),
        ("an id twice", [*puts, _put(second | {"id": first["id"], "code": "else"})], "MALFORMED", "20"),
        ("a code twice", [*puts, _put(second | {"id": _id(9), "code": first["code"]})], "MALFORMED", "20"),
        ("a voucher too few", puts[1:], "STATE_DIGEST", "21"),
        ("a voucher too many", [*puts, _put(second | {"id": _id(9), "code": "else"})], "STATE_DIGEST", "21"),
        ("none", [], "STATE_DIGEST", "21"),
        ("another voucher", [*puts[1:], _put(first | {"voucher": {"code": "OPEN"}})], "STATE_DIGEST", "24"),
        ("another id", [*puts[1:], _put(first | {"id": _id(9)})], "STATE_DIGEST", "24"),
        (
            "spaces in a voucher",
            [*puts[1:], _put(first).replace(b'"voucher":{', b'"voucher":{ ')],
            "STATE_DIGEST",
            "24",
        ),
    ):
        yield _with_snapshot(good, lines, how, code, rule)
    for how, line in _bad_lines(puts[0], first):
        yield _with_snapshot(good, [line, *puts[1:]], f"line: {how}", "MALFORMED", "19")
    news = lines_of(delta)
    new, newer = (msgspec.json.decode(line)["put"] for line in news[:2])
    exchanged = _put(new | {"code": newer["code"]}), _put(newer | {"code": first["code"]})
    for how, lines, code, rule in (
        ("an id twice", [*news, news[0]], "MALFORMED", "22"),
        ("put and dropped", [*news, _drop(new["id"])], "MALFORMED", "22"),
        ("dropped and put", [_drop(new["id"]), *news], "MALFORMED", "22"),
        ("dropped twice", [*news, _drop(first["id"]), _drop(first["id"])], "MALFORMED", "22"),
        ("a code twice", [*news, _put(new | {"id": _id(9)})], "MALFORMED", "22"),
        ("leads elsewhere", news[1:], "STATE_DIGEST", "24"),
        ("drops what is to stay", [*news, _drop(first["id"])], "STATE_DIGEST", "24"),
        ("nothing", [], "STATE_DIGEST", "24"),
        ("a code of another voucher", [*news[1:], _put(new | {"code": first["code"]})], "MALFORMED", "25"),
        ("two that exchange codes", [*news[2:], *exchanged], "MALFORMED", "25"),
    ):  # fmt: skip
        for from_held in (False, True):
            yield _with_delta(good, lines, how, code, rule, from_held)
    for how, line in _bad_lines(news[0], new):
        yield _with_delta(good, [line, *news[1:]], f"line: {how}", "MALFORMED", "19", True)


def _sizes_and_digests(good: Manifest, snapshot: bytes, delta: bytes, passed: Sequence[Passed]) -> Iterator[Bad]:
    for off in (-1, 1, -good.snapshot.bytes, 10**6):
        lying = msgspec.structs.replace(good.snapshot, bytes=good.snapshot.bytes + off)
        told = msgspec.structs.replace(good, snapshot=lying)
        yield Bad("snapshot", f"{off} bytes more than it has", told, lying.sha256, snapshot, False, "TOO_LARGE", "17")
    huge = msgspec.structs.replace(good.snapshot, bytes=64 * 1024 * 1024 + 1)
    told = msgspec.structs.replace(good, snapshot=huge)
    yield Bad("snapshot", "too large to be fetched", told, huge.sha256, snapshot, False, "TOO_LARGE", "17")
    for one in passed:
        if one.body not in (snapshot, delta):
            padded = (one.body + bytes(len(snapshot)))[: len(snapshot)]
            yield Bad("snapshot", "another blob", good, good.snapshot.sha256, padded, False, "WRONG_DIGEST", "18")
    last = good.deltas[-1]
    yield Bad("delta", "the snapshot instead", good, last.sha256, snapshot, True, "TOO_LARGE", "17")
    yield Bad("delta", "other bytes", good, last.sha256, delta[::-1], True, "WRONG_DIGEST", "18")
    for code_salt, epoch, how in (("7" * 32, good.server_epoch, "salt"), (good.code_salt, 7, "epoch")):
        other = msgspec.structs.replace(good, code_salt=code_salt, server_epoch=epoch, state_digest=DIGEST)
        yield Bad("delta", f"of another {how}", other, last.sha256, delta, True, "STATE_DIGEST", "23")


def _with_snapshot(good: Manifest, lines: list[bytes], how: str, code: str, rule: str) -> Bad:
    """`good`, but with a snapshot of these lines. It says how many there are, but for rule 21."""
    raw = packed(lines)
    count = good.snapshot.vouchers if rule == "21" else len(lines)
    ref = BlobRef(good.snapshot.version, sha256_hex(raw), len(raw), count)
    told = msgspec.structs.replace(good, snapshot=ref)
    return Bad("snapshot", how, told, ref.sha256, raw, False, code, rule)


def _with_delta(good: Manifest, lines: list[bytes], how: str, code: str, rule: str, from_held: bool) -> Bad:
    raw = packed(lines)
    ref = DeltaRef(good.deltas[-1].from_version, sha256_hex(raw), len(raw))
    told = msgspec.structs.replace(good, deltas=[*good.deltas[:-1], ref])
    return Bad("delta", how, told, ref.sha256, raw, from_held, code, rule)


def _id(number: int) -> str:
    return f"01978000-0000-7000-8000-00000000f00{number}"


def _put(voucher: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"put": voucher}) + b"\n"


def _drop(voucher_id: str) -> bytes:
    return msgspec.json.encode({"drop": voucher_id}) + b"\n"


def _bad_lines(line: bytes, voucher: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    yield "blank", b"\n" + line
    yield "blank behind", line + b"\n"
    yield "a space", b" \n" + line
    yield "byte order mark", b"\xef\xbb\xbf" + line
    yield "no UTF-8", line.replace(b'"put"', b'"p\xfft"')
    yield "no UTF-8 in the code", line.replace(b'"code":"', b'"code":"\xc3\x28', 1)
    yield "an overlong slash", line.replace(b'"code":"', b'"code":"\xc0\xaf', 1)
    yield "a lone surrogate", line.replace(b'"code":"', b'"code":"\\ud800', 1)
    yield "a surrogate in UTF-8", line.replace(b'"code":"', b'"code":"\xed\xa0\x80', 1)
    yield "NUL", line[:-1] + b"\x00\n"
    yield "two on one line", line[:-1] + line
    yield "cut short", line[:-3] + b"\n"
    yield "a list", b"[" + line[:-1] + b"]\n"
    yield "an unknown member", b'{"note":1,' + line[1:]
    yield "put and drop", b'{"drop":"%s",' % voucher["id"].encode() + line[1:]
    yield "neither", b"{}\n"
    yield "put null", b'{"put":null}\n'
    yield "both null", b'{"put":null,"drop":null}\n'
    yield "drop of no id", b'{"drop":"jam"}\n'
    yield "an id in upper case", _put(voucher | {"id": voucher["id"].upper()})
    yield "revision 0", _put(voucher | {"revision": 0})
    yield "revision beyond 2^53", _put(voucher | {"revision": 2**53 + 1})
    yield "revision beyond 2^64", _put(voucher | {"revision": 0}).replace(b'"revision":0', b'"revision":%d' % 2**65)
    yield "no voucher", _put({name: value for name, value in voucher.items() if name != "voucher"})
    yield "a voucher that is no JSON", line.replace(b'"voucher":{', b'"voucher":{,', 1)
    bare = _put(voucher | {"voucher": 0})
    for name, text in (("NaN", b"NaN"), ("a comment", b"/**/1"), ("Infinity", b"-Infinity"), ("a bare word", b"none")):
        yield (
            f"a voucher with {name}",
            _put(voucher | {"voucher": 0}).replace(b'"voucher":0', b'"voucher":{"a":%s}' % text),
        )
    for depth in (5_000, 50_000):
        nested = b'"voucher":' + b"[" * depth + b"]" * depth
        yield f"a voucher nested {depth} deep", bare.replace(b'"voucher":0', nested)
    yield "an unknown member nested deeply", b'{"x":' + b"[" * 9_000 + b"]" * 9_000 + b"," + line[1:]
    within = _put(voucher | {"x": 0}).replace(b'"x":0', b'"x":' + b'{"a":' * 9_000 + b"0" + b"}" * 9_000)
    yield "an unknown member of put nested deeply", within
