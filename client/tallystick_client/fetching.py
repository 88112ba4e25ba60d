"""Which blobs a manifest needs, and what they come to. Pure; source: protocol.md, section 3.

From what is held only the deltas after it are fetched, if there are some and they are less than the snapshot; else the
snapshot, and the deltas after that.
"""

from __future__ import annotations

from tallystick_client.actions import Blob, Held, KeepBundle, NewRoot
from tallystick_client.blobs import (
    Changes,
    Vouchers,
    delta,
    deltas_after,
    demand_state,
    same_history,
    snapshot,
    summed,
    together,
)
from tallystick_shared.bundle import BLOB_BYTES_MAX, BlobRef, BundleVoucher, DeltaRef, Manifest
from tallystick_shared.errors import Untrusted

BLOBS_MAX = 256
"""Of which a bundle is made on a till; past it the snapshot is taken, so that a start stays quick."""


class Fetching:
    """The blobs of one manifest, one after another: `wanted`, then `take`, until nothing is wanted; then `change`."""

    def __init__(self, raw: bytes, manifest: Manifest, etag: str, held: Held | None) -> None:
        self._raw, self.manifest, self._etag = raw, manifest, etag
        following = None if held is None else _following(manifest, held)
        self.from_held = following is not None
        """Whether it goes on from what is held; if that fails, the same again without it."""
        self._held = held if self.from_held else None
        self._refs: list[BlobRef | DeltaRef]
        if following is None:
            after = deltas_after(manifest, manifest.snapshot.version)
            self._refs = [manifest.snapshot, *(after or [])]
        else:
            self._refs = [*following]
        self._by_code: dict[str, BundleVoucher] = {}
        self._deltas: list[Changes] = []
        self._blobs: list[Blob] = []

    def anew(self) -> Fetching:
        """The same manifest from its snapshot."""
        return Fetching(self._raw, self.manifest, self._etag, None)

    def wanted(self) -> BlobRef | DeltaRef | None:
        """The next blob. Raises `Untrusted` (`TOO_LARGE`) where it would be larger than any may be."""
        if len(self._blobs) == len(self._refs):
            return None
        ref = self._refs[len(self._blobs)]
        if ref.bytes > BLOB_BYTES_MAX:
            raise Untrusted(f"a blob of the bundle would have {ref.bytes} bytes", code="TOO_LARGE")
        return ref

    def take(self, raw: bytes) -> None:
        """Raises `Untrusted` by rules 17 to 22."""
        ref = self._refs[len(self._blobs)]
        if isinstance(ref, BlobRef):
            self._by_code = snapshot(raw, ref)
        else:
            self._deltas.append(delta(raw, ref))
        self._blobs.append(Blob(ref, raw))

    def change(self, roots: list[NewRoot]) -> KeepBundle:
        """What is to be kept. Raises `Untrusted` by rules 24 and 25."""
        changes = together(self._deltas)
        vouchers = summed(self._by_code) if self._held is None else self._held.vouchers
        parts_sum = vouchers.sum_after(changes)
        demand_state(parts_sum, self.manifest)
        fresh: Vouchers | None = None
        if self._held is None:
            fresh = vouchers
            fresh.apply(changes, parts_sum)
            changes = {}
        base = [] if self._held is None else self._held.parts
        return KeepBundle(self._raw, self.manifest, self._etag, self._blobs, fresh, changes, parts_sum, base, roots)


def _following(manifest: Manifest, held: Held) -> list[DeltaRef] | None:
    """The deltas that lead on from the held state, where that is the cheaper way. (Rule 23.)"""
    ours = held.manifest
    if not same_history(ours, manifest):
        return None
    following = deltas_after(manifest, ours.version)
    if following is None or len(held.parts) + len(following) > BLOBS_MAX:
        return None
    anew = deltas_after(manifest, manifest.snapshot.version) or []
    cost, cost_anew = (sum(one.bytes for one in refs) for refs in (following, anew))
    return following if cost <= manifest.snapshot.bytes + cost_anew else None
