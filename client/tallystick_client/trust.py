"""What this till believes, and why. Pure: bytes in, verified structs out; the time is an argument.

Every rule is checked in the order written here; the first one broken raises `Untrusted`, whose code is in brackets.
Signatures bring their own rules in order (`tallystick_shared.signing`): size [TOO_LARGE], form [MALFORMED], typ
[WRONG_TYPE], a key in that role [UNKNOWN_KEY], the signature itself [BAD_SIGNATURE].

Root (source: protocol.md, section 3)
 1. at most `ROOT_BYTES_MAX` bytes [TOO_LARGE]
 2. the first one: its digest is the pin of the enrolment token [ROOT_PIN]
 3. it reads as a root [MALFORMED]
 4. its version is the pinned one, or exactly one more than the last [ROOT_VERSION]
 5. it is of the same server [ROOT_SERVER]
 6. its keys bear their own thumbprints, roles name keys it has, thresholds can be met, and the roles that sign compact
    messages ask for one signature, as those hold no more [ROOT_KEYS]
 7. signatures of the last root's root role meet the last root's threshold [ROOT_THRESHOLD]
 8. signatures of its own root role meet its own threshold [ROOT_THRESHOLD]
 9. of a chain of roots only the last must not have expired, and only where something is believed for it [ROOT_EXPIRED]
A root that changes the keys of `bundle` resets the floors of all scopes. A root and what it verifies are kept together;
one with new bundle keys waits for the bundle that they signed, so that the one in force stays in force until then.

Manifest
10. signature, by a key of the role `bundle`
11. it reads as a manifest [MALFORMED]
12. its deltas follow each other: from_version rises and ends below its version; where there are none its snapshot is of
    its version, else the snapshot's version is not above its version, nor below the first delta's from_version
    [MALFORMED]
13. it is of the scope asked for [WRONG_SCOPE]
14. (server_epoch, version) is not below the scope's floor [ROLLBACK]
15. at an equal version, the state digest is the floor's [SAME_VERSION_DIFFERS]
16. it has not expired; not asked of the one in force, whose age `terminal` judges [EXPIRED]

Blobs, in `blobs`: a snapshot, and the deltas after it
17. it has the size the manifest says, and at most `BLOB_BYTES_MAX` [TOO_LARGE]
18. its digest is the manifest's [WRONG_DIGEST]
19. it unpacks to at most `BLOB_UNPACKED_BYTES_MAX` bytes [TOO_LARGE]; it is zstd, and each line reads [MALFORMED]
20. snapshot: every line puts a voucher; no id and no code comes twice [MALFORMED]
21. snapshot: the number of vouchers is the manifest's [STATE_DIGEST]
22. delta: no id and no code comes twice [MALFORMED]
23. delta: it is of the manifest's epoch, and leads on from the version that is held; that is chosen by `machine`, else
    the snapshot is taken
24. what all of them lead to has the manifest's state digest [STATE_DIGEST]; after a delta this, or any other rule that
    one breaks, means that the snapshot is taken instead
25. delta: no voucher has the code of another one [MALFORMED]

Answer to a sync, to an enrolment (26, 27 and 28 only), and to an online redemption (26, 27 and 28 only)
26. signature, by a key of the role `receipt`
27. it reads as such an answer [MALFORMED]
28. it is for this device and answers exactly the request in flight [NOT_OUR_REQUEST]
29. its epoch is not below ours [OLD_EPOCH]
30. in the same epoch, its ledger mark is not below ours [OLD_LEDGER_MARK]
31. what it acknowledges is within our journal, and at least what it calls durable [NOT_OUR_JOURNAL]; that its hashes
    are those of our chain is checked by `exchange`, in the transaction that takes the answer
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise
from typing import TypeVar

import msgspec

from tallystick_shared.bundle import MANIFEST_BYTES_MAX, Manifest, Role, Root
from tallystick_shared.errors import Untrusted
from tallystick_shared.journal import Position
from tallystick_shared.signing import (
    NOT_JSON,
    ROOT_BYTES_MAX,
    PublicKey,
    Typ,
    count_signatures,
    open_general,
    sha256_hex,
    verify,
)
from tallystick_shared.wire import Enrolled, RedeemAnswer, SyncAnswer

_T = TypeVar("_T")


class Floor(msgspec.Struct, frozen=True):
    """What of a scope was accepted last: nothing below it ever is again."""

    server_epoch: int
    version: int
    digest: str


class Trusted:
    """The verified state: the last root, and the floor of every scope. Never changed; each step gives a new one."""

    def __init__(self, root: Root, floors: Mapping[str, Floor] | None = None) -> None:
        self.root = root
        self.floors: dict[str, Floor] = dict(floors or {})
        self._keys = _keys_of(root)

    def role_keys(self, role: Role) -> dict[str, PublicKey]:
        return {kid: self._keys[kid] for kid in role.kids}

    @classmethod
    def pin(cls, raw: bytes, *, version: int, sha256: str) -> Trusted:
        """The first root, by rules 1 to 6 and 8."""
        _cap_root(raw)
        if sha256_hex(raw) != sha256:
            raise Untrusted("the root is not the one that the enrolment token names", code="ROOT_PIN")
        root = _read_root(raw)
        if root.version != version:
            raise Untrusted(f"the root has version {root.version}, not {version}", code="ROOT_VERSION")
        first = cls(root)
        _demand_threshold(raw, first, root)
        return first

    def next_root(self, raw: bytes) -> Trusted:
        """The state after one more root, by rules 1 and 3 to 8."""
        _cap_root(raw)
        root = _read_root(raw)
        if root.version != self.root.version + 1:
            wanted = self.root.version + 1
            raise Untrusted(f"the next root has version {root.version}, not {wanted}", code="ROOT_VERSION")
        if root.server_id != self.root.server_id:
            raise Untrusted("the next root is of another server", code="ROOT_SERVER")
        following = Trusted(root, self.floors if _same_keys(root.roles.bundle, self.root.roles.bundle) else {})
        _demand_threshold(raw, self, self.root)
        _demand_threshold(raw, following, root)
        return following

    def with_floor(self, manifest: Manifest) -> Trusted:
        """The state after `manifest` has been taken."""
        floor = Floor(manifest.server_epoch, manifest.version, manifest.state_digest)
        return Trusted(self.root, {**self.floors, manifest.scope: floor})

    def demand_current_root(self, now: datetime) -> None:
        """Rule 9."""
        if now >= self.root.expires_at:
            day = self.root.expires_at.date().isoformat()
            raise Untrusted(f"the server's root expired on {day}: the operator has to renew it", code="ROOT_EXPIRED")

    def manifest(self, raw: bytes, scope: str, *, now: datetime | None) -> Manifest:
        """A manifest, by rules 9 to 16; `now` None: it is the one in force, whose age does not matter here."""
        if now is not None:
            self.demand_current_root(now)
        manifest = self.vouching(raw, scope)
        floor = self.floors.get(scope)
        if floor is not None:
            theirs, ours = (manifest.server_epoch, manifest.version), (floor.server_epoch, floor.version)
            if theirs < ours:
                raise Untrusted("the manifest is older than one taken before", code="ROLLBACK")
            if theirs == ours and manifest.state_digest != floor.digest:
                raise Untrusted("two manifests of one version differ", code="SAME_VERSION_DIFFERS")
        if now is not None and now >= manifest.expires_at:
            raise Untrusted("the manifest has expired", code="EXPIRED")
        return manifest

    def vouching(self, raw: bytes, scope: str) -> Manifest:
        """A manifest that may be of any version: one that vouches for blobs taken earlier. Rules 10 to 13."""
        payload = verify(raw, self.role_keys(self.root.roles.bundle), Typ.MANIFEST, bytes_max=MANIFEST_BYTES_MAX)
        manifest = _read(payload, _MANIFEST, "manifest")
        _demand_times("manifest", manifest.issued_at, manifest.expires_at)
        _demand_deltas(manifest)
        if manifest.scope != scope:
            raise Untrusted("the manifest is of another scope", code="WRONG_SCOPE")
        return manifest

    def answer(
        self, raw: bytes, *, device: str, request_sha256: str, epoch: int, mark: int, head: Position, now: datetime
    ) -> SyncAnswer:
        """An answer to a sync, by rules 9 and 26 to 31. `epoch` and `mark` are the highest seen before."""
        self.demand_current_root(now)
        payload = verify(raw, self.role_keys(self.root.roles.receipt), Typ.ANSWER)
        answer = _read(payload, _ANSWER, "answer")
        _demand_times("answer", answer.server_time, *(lease.expires_at for lease in answer.leases))
        if answer.device != device or answer.request_sha256 != request_sha256:
            raise Untrusted("the answer is not to the request in flight", code="NOT_OUR_REQUEST")
        if answer.server_epoch < epoch:
            raise Untrusted("the answer is of an epoch that is over", code="OLD_EPOCH")
        if answer.server_epoch == epoch and answer.ledger_mark < mark:
            raise Untrusted(
                "the server's ledger mark went down: it was restored from a backup and does not say so",
                code="OLD_LEDGER_MARK",
            )
        if not answer.durable.seq <= answer.acknowledged.seq <= head.seq:
            raise Untrusted("the answer acknowledges what this till has not written", code="NOT_OUR_JOURNAL")
        return answer

    def enrolled(self, raw: bytes, *, request_sha256: str, now: datetime) -> Enrolled:
        """The answer to an enrolment, by rules 9 and 26 to 28."""
        self.demand_current_root(now)
        payload = verify(raw, self.role_keys(self.root.roles.receipt), Typ.ENROLLED)
        enrolled = _read(payload, _ENROLLED, "answer")
        _demand_times("answer", enrolled.server_time)
        if enrolled.request_sha256 != request_sha256 or enrolled.server != self.root.server_id:
            raise Untrusted("the answer is not to the request in flight", code="NOT_OUR_REQUEST")
        return enrolled

    def redeemed(self, raw: bytes, *, device: str, request_sha256: str, now: datetime) -> RedeemAnswer:
        """The answer to an online redemption, by rules 9 and 26 to 28."""
        self.demand_current_root(now)
        payload = verify(raw, self.role_keys(self.root.roles.receipt), Typ.REDEEMED)
        answer = _read(payload, _REDEEMED, "answer")
        _demand_times("answer", answer.at)
        if answer.device != device or answer.request_sha256 != request_sha256:
            raise Untrusted("the answer is not to the request in flight", code="NOT_OUR_REQUEST")
        return answer


_ROOT = msgspec.json.Decoder(Root)
_MANIFEST = msgspec.json.Decoder(Manifest)
_ANSWER = msgspec.json.Decoder(SyncAnswer)
_ENROLLED = msgspec.json.Decoder(Enrolled)
_REDEEMED = msgspec.json.Decoder(RedeemAnswer)


def _read(payload: bytes, decoder: msgspec.json.Decoder[_T], what: str) -> _T:
    try:
        payload.decode()  # what a reader ignores has to be UTF-8 too
        return decoder.decode(payload)
    except NOT_JSON as error:
        raise Untrusted(f"the {what} cannot be read: {error}", code="MALFORMED") from error


def _cap_root(raw: bytes) -> None:
    if len(raw) > ROOT_BYTES_MAX:
        raise Untrusted(f"the root has {len(raw)} bytes, more than {ROOT_BYTES_MAX}", code="TOO_LARGE")


def _read_root(raw: bytes) -> Root:
    root = _read(open_general(raw), _ROOT, "root")
    _demand_times("root", root.expires_at)
    return root


def _keys_of(root: Root) -> dict[str, PublicKey]:
    """Rule 6."""
    keys = {kid: PublicKey.from_jwk(jwk) for kid, jwk in root.keys.items()}
    if any(key.kid != kid for kid, key in keys.items()):
        raise Untrusted("a key of the root does not bear its own thumbprint", code="ROOT_KEYS")
    for name in ("root", "bundle", "receipt"):
        role: Role = getattr(root.roles, name)
        if not set(role.kids) <= set(keys) or len(set(role.kids)) < max(len(role.kids), role.threshold):
            raise Untrusted(f"the root's role {name} cannot be met with its keys", code="ROOT_KEYS")
        if name != "root" and role.threshold != 1:
            raise Untrusted(f"the root asks for several signatures of the role {name}", code="ROOT_KEYS")
    return keys


def _demand_times(what: str, *times: datetime) -> None:
    """Rules 3, 11 and 27: with a time at the end of all times nothing can be reckoned, so it would stop the till."""
    if any(not 1970 <= one.year <= 9000 for one in times):
        raise Untrusted(f"the {what} cannot be read: it has a year that is not from 1970 to 9000", code="MALFORMED")


def _demand_deltas(manifest: Manifest) -> None:
    """Rule 12."""
    starts = [one.from_version for one in manifest.deltas]
    rising = all(one < other for one, other in pairwise([*starts, manifest.version]))
    version = manifest.snapshot.version
    fits = starts[0] <= version <= manifest.version if starts else version == manifest.version
    if not rising or not fits:
        raise Untrusted("the manifest's deltas do not lead from its snapshot to its version", code="MALFORMED")


def _demand_threshold(raw: bytes, signers: Trusted, by: Root) -> None:
    """Rules 7 and 8."""
    good = count_signatures(raw, signers.role_keys(by.roles.root), Typ.ROOT)
    if good < by.roles.root.threshold:
        raise Untrusted(
            f"the root has {good} of the {by.roles.root.threshold} signatures that root {by.version} asks for",
            code="ROOT_THRESHOLD",
        )


def _same_keys(one: Role, other: Role) -> bool:
    return set(one.kids) == set(other.kids)
