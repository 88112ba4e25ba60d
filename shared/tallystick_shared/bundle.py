"""What a bundle carries: root, manifest, and blobs of NDJSON lines, with the digest of the state they lead to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from tallystick_shared.errors import Untrusted
from tallystick_shared.journal import Count, Digest, Id, Instant

BLOB_BYTES_MAX = 64 * 1024 * 1024
"""Compressed size of a blob, in bytes."""
BLOB_UNPACKED_BYTES_MAX = 512 * 1024 * 1024
MANIFEST_BYTES_MAX = 64 * 1024
Version = Annotated[int, Meta(ge=1, le=2**53)]


class Role(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kids: Annotated[list[str], Meta(min_length=1, max_length=16)]
    threshold: Annotated[int, Meta(ge=1, le=16)]


class Roles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may sign what: `root` the next root, `bundle` manifests, `receipt` answers to devices."""

    root: Role
    bundle: Role
    receipt: Role


class Root(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`keys` are public JWKs by kid."""

    version: Version
    server_id: Id
    expires_at: Instant
    keys: dict[str, dict[str, str]]
    roles: Roles


class BlobRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The snapshot: digest and size of the compressed blob, and how many vouchers it holds."""

    sha256: Digest
    bytes: Count
    vouchers: Count


class DeltaRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    from_version: Version
    sha256: Digest
    bytes: Count


class Caps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Device-wide limits while offline, as payment terminals have them.

    `offline_s`: how long after the manifest's expiry a device goes on redeeming. `redemptions` and `amount_minor`: how
    many redemptions, and what sum of discounts, may wait to be sent (null: no cap).
    """

    offline_s: Annotated[int, Meta(ge=0)] = 86_400
    redemptions: Annotated[int, Meta(ge=1)] | None = 10_000
    amount_minor: Annotated[int, Meta(ge=0)] | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    scope: str
    server_epoch: Version
    version: Version
    issued_at: Instant
    expires_at: Instant
    snapshot: BlobRef
    deltas: list[DeltaRef]
    state_digest: Digest
    engine_min: str
    poll_after_s: Annotated[int, Meta(ge=1)]
    caps: Caps


class BundleVoucher(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A voucher on its way to devices: `voucher` is the published revision, byte for byte.

    `code` is the folded code, so that a device can index a bundle without decoding the vouchers.
    """

    id: Id
    revision: Version
    code: str
    voucher: msgspec.Raw


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    put: BundleVoucher | None = None
    drop: Id | None = None


_DECODER = msgspec.json.Decoder(_Line)


def put_line(voucher: BundleVoucher) -> bytes:
    return msgspec.json.encode({"put": voucher}) + b"\n"


def drop_line(voucher_id: str) -> bytes:
    return msgspec.json.encode({"drop": voucher_id}) + b"\n"


def read_lines(raw: bytes) -> Iterator[BundleVoucher | str]:
    """Each line of an unpacked blob: a voucher to put, or the id of one to drop. Raises `Untrusted` (`MALFORMED`)."""
    for number, line in enumerate(raw.splitlines(), 1):
        try:
            one = _DECODER.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Untrusted(f"line {number} of the blob cannot be read: {error}", code="MALFORMED") from error
        if (one.put is None) == (one.drop is None):
            raise Untrusted(f"line {number} of the blob must hold either put or drop", code="MALFORMED")
        yield one.put if one.put is not None else str(one.drop)


def voucher_digest(voucher_id: str, revision_sha256: str) -> int:
    """One voucher's part of a state digest."""
    return int.from_bytes(hashlib.sha256(f"{voucher_id} {revision_sha256}".encode()).digest(), "big")


def state_digest(parts_sum: int) -> str:
    """The digest of a set of vouchers: the sum of `voucher_digest` of each, modulo 2**256, in hexadecimal.

    A sum, so that a change to one voucher costs one subtraction and one addition on both sides. It only tells an
    honest device that its copy went wrong: what may be in the copy is decided by signatures and digests of blobs.
    """
    return f"{parts_sum % 2**256:064x}"
