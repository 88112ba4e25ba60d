"""What a bundle carries: root, manifest, and blobs of NDJSON lines, with the digest of the state they lead to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from tallystick_shared.codes import HIDDEN_PREFIX as HIDDEN_PREFIX
from tallystick_shared.errors import Untrusted
from tallystick_shared.journal import Count, Digest, Id, Instant
from tallystick_shared.signing import NOT_JSON

BLOB_BYTES_MAX = 64 * 1024 * 1024
"""Compressed size of a blob, in bytes."""
BLOB_UNPACKED_BYTES_MAX = 512 * 1024 * 1024
MANIFEST_BYTES_MAX = 64 * 1024
DELTAS_MAX = 64
"""Deltas a manifest names; a server merges them long before."""
Version = Annotated[int, Meta(ge=1, le=2**53)]
Salt = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$(?!\n)")]


class Role(msgspec.Struct, frozen=True):
    kids: Annotated[list[str], Meta(min_length=1, max_length=16)]
    threshold: Annotated[int, Meta(ge=1, le=16)]


class Roles(msgspec.Struct, frozen=True):
    """Who may sign what: `root` the next root, `bundle` manifests, `receipt` answers to devices."""

    root: Role
    bundle: Role
    receipt: Role


class Root(msgspec.Struct, frozen=True):
    """`keys` are public JWKs by kid."""

    version: Version
    server_id: Id
    expires_at: Instant
    keys: dict[str, dict[str, str]]
    roles: Roles


class BlobRef(msgspec.Struct, frozen=True):
    """The snapshot: the version it is of, digest and size of the compressed blob, and how many vouchers it holds."""

    version: Version
    sha256: Digest
    bytes: Count
    vouchers: Count


class DeltaRef(msgspec.Struct, frozen=True):
    """What changed since `from_version`, up to the next delta's `from_version`, or up to the manifest's version.

    Each voucher that changed is put as it is at the end, or dropped; so a delta leads every state that is not older
    than `from_version` to the same end.
    """

    from_version: Version
    sha256: Digest
    bytes: Count


class Caps(msgspec.Struct, frozen=True):
    """Device-wide limits while offline, as payment terminals have them.

    `offline_s`: how long after the manifest's expiry a device goes on redeeming. `redemptions` and `amount_minor`: how
    many redemptions, and what sum of discounts, may wait to be sent (null: no cap).
    """

    offline_s: Annotated[int, Meta(ge=0, le=10**9)] = 86_400
    redemptions: Annotated[int, Meta(ge=1, le=10**9)] | None = 10_000
    amount_minor: Count | None = None


class Manifest(msgspec.Struct, frozen=True):
    """What is in force in a scope: the snapshot, and after it every delta whose end is past the snapshot's version.

    `deltas` are in order, without gaps, and the last one ends at `version`; where they are empty the snapshot's version
    is `version`. They may begin before the snapshot, for devices that hold an older version. `state_digest` is of the
    state that all of it leads to. `code_salt`: 16 bytes as hexadecimal, the same as long as the scope lives.
    """

    scope: str
    server_epoch: Version
    version: Version
    issued_at: Instant
    expires_at: Instant
    snapshot: BlobRef
    deltas: Annotated[list[DeltaRef], Meta(max_length=DELTAS_MAX)]
    state_digest: Digest
    code_salt: Salt
    engine_min: str
    poll_after_s: Annotated[int, Meta(ge=1, le=10**9)]
    caps: Caps


class BundleVoucher(msgspec.Struct, frozen=True):
    """A voucher on its way to devices: `voucher` is the published revision, byte for byte.

    `code` is the folded code, so that a device can index a bundle without decoding the vouchers; or its digest
    (`hidden_code`), which then is the voucher's `code` too.
    """

    id: Id
    revision: Version
    code: str
    voucher: msgspec.Raw


def hidden_code(salt: str, folded: str) -> str:
    """How a code of 80 bits or more travels, so that a stolen bundle is no list of live codes: `sha256:` and the
    SHA-256, in hexadecimal, of the salt's 16 bytes and the folded code in UTF-8."""
    return HIDDEN_PREFIX + hashlib.sha256(bytes.fromhex(salt) + folded.encode()).hexdigest()


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
            line.decode()  # also what is ignored is UTF-8
            one = _DECODER.decode(line)
        except NOT_JSON as error:
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
