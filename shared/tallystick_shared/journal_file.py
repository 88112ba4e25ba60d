"""A journal as a file, for a device that will not be online again: what it writes and the server reads.

Text, one line for each batch, each line ended by a newline (LF):

    line       = digest SP content LF
    digest     = SHA-256 of the content's bytes, 64 hexadecimal digits in lower case
    content    = header on the first line, batch on each line after it
    header     = compact JSON, `FileHeader`; a reader ignores fields it does not know
    batch      = the body of a sync (`POST /v1/sync`), byte for byte, in base64 (RFC 4648, section 4, padded)

There are exactly `batches` lines after the header, in the order of the journal: each begins where the one before ends.
So a file that was cut short or changed in any byte is noticed, and at which batch. The header is not signed and decides
nothing: every batch is signed by the device, and is checked as if it had come over the line.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

import msgspec
from msgspec import Meta

from tallystick_shared.errors import Untrusted
from tallystick_shared.journal import Count, Id, Instant, encode
from tallystick_shared.signing import NOT_JSON, sha256_hex
from tallystick_shared.wire import Name

FORMAT = "tallystick-journal"
VERSION = 1
LINE_BYTES_MAX = 16 * 1024 * 1024
"""More than any batch can have."""


class FileHeader(msgspec.Struct, frozen=True):
    """`events` in all its batches; `final`: the device was retired with this file, and has closed its leases.

    `again`: the device's `EnrolAgain`, signed, for a server that was restored and does not know it.
    """

    format: str
    v: int
    device: Id
    server: Id
    name: Name
    store_id: Name
    made_at: Instant
    batches: Annotated[int, Meta(ge=1, le=10**6)]
    events: Count
    final: bool
    again: Annotated[str, Meta(max_length=64 * 1024)] | None = None


_HEADER = msgspec.json.Decoder(FileHeader)


def write_header(header: FileHeader) -> bytes:
    return _line(encode(header))


def write_batch(body: bytes) -> bytes:
    return _line(base64.b64encode(body))


def read_header(line: bytes) -> FileHeader:
    """Raises `Untrusted` (`NOT_A_JOURNAL_FILE`, `DAMAGED_FILE`, `NEEDS_UPDATE`)."""
    content = _content(line)
    try:
        header = _HEADER.decode(content)
    except NOT_JSON as error:
        raise Untrusted(f"its first line is no header of a journal: {error}", code="NOT_A_JOURNAL_FILE") from error
    if header.format != FORMAT:
        raise Untrusted("it is no journal of Tallystick", code="NOT_A_JOURNAL_FILE")
    if header.v != VERSION:
        raise Untrusted("it was written by a newer Tallystick: update this one", code="NEEDS_UPDATE")
    return header


def read_batch(line: bytes) -> bytes:
    """The body of a sync. Raises `Untrusted` (`DAMAGED_FILE`)."""
    content = _content(line)
    try:
        body = base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise Untrusted("it is not base64", code="DAMAGED_FILE") from error
    if base64.b64encode(body) != content:
        raise Untrusted("it is not canonical base64", code="DAMAGED_FILE")
    return body


def _line(content: bytes) -> bytes:
    return sha256_hex(content).encode() + b" " + content + b"\n"


def _content(line: bytes) -> bytes:
    digest, _, rest = line.partition(b" ")
    content = rest[:-1]
    if not line.endswith(b"\n"):
        raise Untrusted("it is cut short", code="DAMAGED_FILE")
    if digest != sha256_hex(content).encode():
        raise Untrusted("its digest is not that of what it holds", code="DAMAGED_FILE")
    return content
