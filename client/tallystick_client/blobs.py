"""The blobs of a bundle, from bytes to vouchers: the snapshot, and the deltas after it. Pure; source: protocol.md, 3.

Rules 17 to 25 of `trust`. A state is changed only by what was checked as a whole before: a delta that does not lead to
the digest that the manifest names leaves everything as it was, and the snapshot is fetched in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import msgspec
import zstandard
from msgspec import Meta

from tallystick_shared.bundle import (
    BLOB_BYTES_MAX,
    BLOB_UNPACKED_BYTES_MAX,
    BlobRef,
    BundleVoucher,
    DeltaRef,
    Manifest,
    read_lines,
    state_digest,
    voucher_digest,
)
from tallystick_shared.errors import Untrusted
from tallystick_shared.signing import sha256_hex

_UNPACK_STEP_BYTES = 512
"""Packed; they unpack to 16 MiB at most."""
_UNPACK_WINDOW_BYTES_MAX = 128 * 1024 * 1024

Changes = Mapping[str, BundleVoucher | None]
"""Vouchers by id as they are at the end of one or more deltas; None: dropped."""


class Part(msgspec.Struct, frozen=True):
    """One blob of a bundle on a till; `manifest`: the digest of the signed manifest that names it."""

    sha256: str
    bytes: Annotated[int, Meta(ge=0, le=BLOB_BYTES_MAX)]
    manifest: str


class Vouchers:
    """The vouchers of one version of a scope, by code as they travel, with the sum that `state_digest` is made of."""

    def __init__(self, by_code: dict[str, BundleVoucher], parts_sum: int) -> None:
        self.by_code = by_code
        self._code_of = {one.id: code for code, one in by_code.items()}
        self.parts_sum = parts_sum

    def __len__(self) -> int:
        return len(self.by_code)

    def code_of(self, voucher_id: str) -> str | None:
        return self._code_of.get(voucher_id)

    def sum_after(self, changes: Changes) -> int:
        """What `parts_sum` will be. Raises `Untrusted` (`MALFORMED`) where a code would come twice. (Rule 25.)"""
        total = self.parts_sum
        for voucher_id, new in changes.items():
            old = self._code_of.get(voucher_id)
            if old is not None:
                total -= _part(self.by_code[old])
            if new is not None:
                total += _part(new)
                other = self.by_code.get(new.code)
                if other is not None and other.id != new.id and changes.get(other.id, other) is not None:
                    raise Untrusted("a delta has the code of another voucher", code="MALFORMED")
        return total

    def apply(self, changes: Changes, parts_sum: int) -> None:
        """Makes them; in place, as the work is to be that of the change and not of the scope."""
        for voucher_id in changes:
            old = self._code_of.pop(voucher_id, None)
            if old is not None:
                del self.by_code[old]
        for voucher_id, new in changes.items():
            if new is not None:
                self.by_code[new.code] = new
                self._code_of[voucher_id] = new.code
        self.parts_sum = parts_sum


def _part(one: BundleVoucher) -> int:
    return voucher_digest(one.id, sha256_hex(bytes(one.voucher)))


def snapshot(raw: bytes, ref: BlobRef) -> dict[str, BundleVoucher]:
    """The vouchers of a snapshot by code, by rules 17 to 21."""
    _demand_blob(raw, ref, "snapshot")
    by_code: dict[str, BundleVoucher] = {}
    ids: set[str] = set()
    lines = 0
    for line in read_lines(unpack(raw, BLOB_UNPACKED_BYTES_MAX)):
        if isinstance(line, str):
            raise Untrusted("a snapshot drops nothing", code="MALFORMED")
        by_code[line.code] = line
        ids.add(line.id)
        lines += 1
    if len(by_code) != lines or len(ids) != lines:
        raise Untrusted("the snapshot has a voucher twice", code="MALFORMED")
    if lines != ref.vouchers:
        raise Untrusted(f"the snapshot has {lines} vouchers, not {ref.vouchers}", code="STATE_DIGEST")
    return by_code


def summed(by_code: dict[str, BundleVoucher]) -> Vouchers:
    """With the sum made from every voucher; where it is known already, `Vouchers` takes it."""
    return Vouchers(by_code, sum(map(_part, by_code.values())))


def delta(raw: bytes, ref: DeltaRef) -> Changes:
    """What a delta changes, by rules 17 to 19 and 22."""
    _demand_blob(raw, ref, "delta")
    changes: dict[str, BundleVoucher | None] = {}
    lines = 0
    codes: set[str] = set()
    for line in read_lines(unpack(raw, BLOB_UNPACKED_BYTES_MAX)):
        lines += 1
        if isinstance(line, str):
            changes[line] = None
        else:
            changes[line.id] = line
            codes.add(line.code)
    if len(changes) != lines or len(codes) != sum(one is not None for one in changes.values()):
        raise Untrusted("the delta has a voucher twice", code="MALFORMED")
    return changes


def together(deltas: Iterable[Changes]) -> Changes:
    """Several deltas, in order, as one."""
    merged: dict[str, BundleVoucher | None] = {}
    for one in deltas:
        merged.update(one)
    return merged


def demand_state(parts_sum: int, manifest: Manifest) -> None:
    """Rule 24."""
    if state_digest(parts_sum) != manifest.state_digest:
        raise Untrusted("the blobs do not lead to the state that the manifest names", code="STATE_DIGEST")


def same_history(one: Manifest, other: Manifest) -> bool:
    """Whether one can lead on to the other: the same scope, epoch and salt. (Rule 23.)"""
    return (one.scope, one.server_epoch, one.code_salt) == (other.scope, other.server_epoch, other.code_salt)


def ends_of(manifest: Manifest) -> Sequence[tuple[DeltaRef, int]]:
    """Each delta with the version that it leads to."""
    ends = [*(one.from_version for one in manifest.deltas), manifest.version][1:]
    return list(zip(manifest.deltas, ends, strict=True))


def deltas_after(manifest: Manifest, version: int) -> list[DeltaRef] | None:
    """Those that lead from a state of `version` to the manifest's; None where they begin after it."""
    if version == manifest.version:
        return []
    if not manifest.deltas or manifest.deltas[0].from_version > version or version > manifest.version:
        return None
    return [ref for ref, end in ends_of(manifest) if end > version]


def unpack(raw: bytes, bytes_max: int, window_bytes_max: int = _UNPACK_WINDOW_BYTES_MAX) -> bytes:
    """One whole zstd frame and nothing else, of at most `bytes_max` bytes unpacked; never holds more than what one
    step unpacks to beyond that. (Rule 19.)"""
    parts: list[bytes] = []
    size = start = 0
    frame = zstandard.ZstdDecompressor(max_window_size=window_bytes_max).decompressobj()
    try:
        while start < len(raw) and not frame.eof:
            parts.append(frame.decompress(raw[start : start + _UNPACK_STEP_BYTES]))
            start += _UNPACK_STEP_BYTES
            size += len(parts[-1])
            if size > bytes_max:
                raise Untrusted(f"it unpacks to more than {bytes_max} bytes", code="TOO_LARGE")
    except zstandard.ZstdError as error:
        raise Untrusted("it is not zstd", code="MALFORMED") from error
    # readers of zstd differ in what they make of what is cut short, of skippable frames and of what follows a frame
    if not frame.eof or frame.unused_data or start < len(raw) or not raw.startswith(zstandard.FRAME_HEADER):
        raise Untrusted("it is not one frame of zstd", code="MALFORMED")
    return b"".join(parts)


def _demand_blob(raw: bytes, ref: BlobRef | DeltaRef, what: str) -> None:
    """Rules 17 and 18."""
    if len(raw) != ref.bytes or len(raw) > BLOB_BYTES_MAX:
        raise Untrusted(f"the {what} has {len(raw)} bytes, not {ref.bytes}", code="TOO_LARGE")
    if sha256_hex(raw) != ref.sha256:
        raise Untrusted(f"the {what}'s digest is not the manifest's", code="WRONG_DIGEST")
