"""The vouchers of one scope, every version of them, and the blobs that lead from one to the next."""

from __future__ import annotations

import uuid
from itertools import pairwise
from typing import Any

import msgspec
import zstandard

from tallystick_shared.bundle import (
    BlobRef,
    BundleVoucher,
    DeltaRef,
    drop_line,
    hidden_code,
    put_line,
    state_digest,
    voucher_digest,
)
from tallystick_shared.codes import fold
from tallystick_shared.model import load_voucher, parse_voucher, voucher_json
from tallystick_shared.signing import sha256_hex

States = dict[str, BundleVoucher]


class FakeScope:
    """`snapshot_version` None: the snapshot is always of the newest version. `deltas_from`: the oldest one named."""

    def __init__(self) -> None:
        self.version = 0
        self.vouchers: States = {}
        self.states: dict[int, States] = {0: {}}
        self.blobs: dict[str, bytes] = {}
        self.salt = "5a" * 16
        self.snapshot_version: int | None = None
        self.deltas_from: int | None = 1

    def publish(self, *vouchers: dict[str, Any], raw: dict[str, bytes] | None = None, hidden: bool = False) -> None:
        """Adds or replaces vouchers by code; `raw` ones go out as they are."""
        made = {one["code"]: voucher_json(parse_voucher(one, default_currency="EUR")) for one in vouchers}
        for code, text in {**made, **(raw or {})}.items():
            folded = fold(code)
            before = self.vouchers.get(folded)
            travels = folded
            if hidden:
                travels = hidden_code(self.salt, folded)
                text = voucher_json(msgspec.structs.replace(load_voucher(text), code=travels))
            self.vouchers[folded] = BundleVoucher(
                id=before.id if before else str(uuid.uuid4()),
                revision=before.revision + 1 if before else 1,
                code=travels,
                voucher=msgspec.Raw(text),
            )
        self.next_version()

    def drop(self, code: str) -> None:
        del self.vouchers[fold(code)]
        self.next_version()

    def next_version(self) -> None:
        self.version += 1
        self.states[self.version] = dict(self.vouchers)

    def voucher_id(self, code: str) -> str:
        return self.vouchers[fold(code)].id

    # ---- blobs

    def _keep(self, lines: bytes) -> tuple[str, int]:
        blob = zstandard.ZstdCompressor().compress(lines)
        self.blobs[sha256_hex(blob)] = blob
        return sha256_hex(blob), len(blob)

    def blob(self) -> tuple[bytes, str]:
        """The snapshot of what there is now, and the digest of its state."""
        sha256, _ = self._keep(b"".join(put_line(one) for one in self.vouchers.values()))
        return self.blobs[sha256], self.state()

    def state(self) -> str:
        return state_digest(sum(voucher_digest(one.id, _revision(one)) for one in self.vouchers.values()))

    def snapshot_ref(self) -> BlobRef:
        version = self.version if self.snapshot_version is None else self.snapshot_version
        state = self.vouchers if version == self.version else self.states[version]
        sha256, size = self._keep(b"".join(put_line(one) for one in state.values()))
        return BlobRef(max(1, version), sha256, size, len(state))

    def delta_refs(self) -> list[DeltaRef]:
        """One for each version, from `deltas_from` on."""
        if self.deltas_from is None:
            return []
        steps = range(self.deltas_from, self.version)[-64:]
        return [DeltaRef(version, *self._keep(self.delta(version, version + 1))) for version in steps]

    def delta(self, old: int, new: int) -> bytes:
        """The lines that lead from one version, or any between, to another: all that changed, as it is at the end."""
        states = [{one.id: one for one in self.states[version].values()} for version in range(old, new + 1)]
        changed = {
            name
            for before, after in pairwise(states)
            for name in {*before, *after}
            if before.get(name) != after.get(name)
        }
        return b"".join(
            put_line(states[-1][name]) if name in states[-1] else drop_line(name) for name in sorted(changed)
        )


def _revision(one: BundleVoucher) -> str:
    return sha256_hex(bytes(one.voucher))
