"""The bundle in force, in memory: vouchers by code, each decoded and compiled when it is first asked for."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from tallystick_client.actions import Held
from tallystick_client.blobs import Changes, Part, Vouchers
from tallystick_shared.bundle import HIDDEN_PREFIX, BundleVoucher, Manifest, hidden_code
from tallystick_shared.codes import fold, trimmed
from tallystick_shared.engine import CompiledVoucher, compile_voucher
from tallystick_shared.errors import InvalidInput
from tallystick_shared.model import load_voucher
from tallystick_shared.signing import sha256_hex

PARTS_MAX = 1024
"""More than a till ever keeps: whoever writes more into the cache is not to be followed."""


class Parts(msgspec.Struct, frozen=True):
    """What a bundle is made of: the newest manifest, by its digest, and the blobs in order, the snapshot first."""

    manifest: str
    etag: str
    blobs: Annotated[list[Part], Meta(max_length=PARTS_MAX)]


class Entry:
    """One voucher of the bundle in force. `compiled` is None where this engine cannot read it (`NEEDS_UPDATE`)."""

    __slots__ = ("compiled", "id", "revision_sha256")

    def __init__(self, one: BundleVoucher, spelled: str) -> None:
        self.id = one.id
        raw = bytes(one.voucher)
        self.revision_sha256 = sha256_hex(raw)
        self.compiled: CompiledVoucher | None = None
        try:
            voucher = load_voucher(raw)
            if one.code.startswith(HIDDEN_PREFIX):
                # a hidden code is in no bundle: what was typed, and led here, is it
                readable, voucher = voucher.code == one.code, msgspec.structs.replace(voucher, code=spelled)
            else:
                readable = fold(voucher.code) == one.code
            if readable:
                self.compiled = compile_voucher(voucher)
        except InvalidInput:
            # written for a newer engine: unusable here, and only here; the terminal says NEEDS_UPDATE
            return


class Bundle:
    """The bundle in force, and what it was made of; `digest` is of its signed manifest."""

    def __init__(self, manifest: Manifest, digest: str, etag: str, vouchers: Vouchers, parts: list[Part]) -> None:
        self.manifest, self.digest, self.etag, self.vouchers, self.parts = manifest, digest, etag, vouchers, parts
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self.vouchers)

    @property
    def held(self) -> Held:
        return Held(self.manifest, self.digest, self.etag, self.vouchers, self.parts)

    def advance(
        self, manifest: Manifest, digest: str, etag: str, changes: Changes, parts_sum: int, parts: list[Part]
    ) -> None:
        """Makes it the one of `manifest`, in place: the work is that of the changes."""
        for voucher_id, new in changes.items():
            # what was decoded of the voucher that had this id or this code
            for code in (self.vouchers.code_of(voucher_id), None if new is None else new.code):
                if code is not None:
                    self._entries.pop(code, None)
        self.vouchers.apply(changes, parts_sum)
        self.manifest, self.digest, self.etag, self.parts = manifest, digest, etag, parts

    def find(self, folded: str, spelled: str) -> Entry | None:
        """The voucher of a code; `spelled` as it was typed. What a hidden code travels as is no code."""
        if folded.startswith(HIDDEN_PREFIX):
            return None
        if folded in self.vouchers.by_code:
            return self._entry(folded, spelled)
        hidden = hidden_code(self.manifest.code_salt, folded)
        return self._entry(hidden, trimmed(spelled)) if hidden in self.vouchers.by_code else None

    def by_id(self, voucher_id: str) -> Entry | None:
        """As `find`; a hidden one shows the digest of its code."""
        code = self.vouchers.code_of(voucher_id)
        return None if code is None else Entry(self.vouchers.by_code[code], code)

    def _entry(self, code: str, spelled: str) -> Entry:
        entry = self._entries.get(code)
        hidden = code.startswith(HIDDEN_PREFIX)
        if entry is None or (hidden and entry.compiled is not None and entry.compiled.voucher.code != spelled):
            entry = self._entries[code] = Entry(self.vouchers.by_code[code], spelled)
        return entry
