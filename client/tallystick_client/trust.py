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
A root that changes the keys of `bundle` resets the floors of all scopes.

Manifest
10. signature, by a key of the role `bundle`
11. it reads as a manifest [MALFORMED]
12. it is of the scope asked for [WRONG_SCOPE]
13. (server_epoch, version) is not below the scope's floor [ROLLBACK]
14. at an equal version, the state digest is the floor's [SAME_VERSION_DIFFERS]
15. it has not expired; not asked of the one in force, whose age `terminal` judges [EXPIRED]

Snapshot
16. it has the size the manifest says, and at most `BLOB_BYTES_MAX` [TOO_LARGE]
17. its digest is the manifest's [WRONG_DIGEST]
18. it unpacks to at most `BLOB_UNPACKED_BYTES_MAX` bytes [TOO_LARGE]
19. every line puts a voucher; no id and no code comes twice [MALFORMED]
20. the number of vouchers and the digest of their state are the manifest's [STATE_DIGEST]

Answer to a sync, and to an enrolment (21, 22 and 23 only)
21. signature, by a key of the role `receipt`
22. it reads as such an answer [MALFORMED]
23. it is for this device and answers exactly the request in flight [NOT_OUR_REQUEST]
24. its epoch is not below ours [OLD_EPOCH]
25. in the same epoch, its ledger mark is not below ours [OLD_LEDGER_MARK]
26. what it acknowledges is within our journal, and at least what it calls durable [NOT_OUR_JOURNAL]; that its hashes
    are those of our chain is checked by `exchange`, in the transaction that takes the answer
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TypeVar

import msgspec
import zstandard

from tallystick_shared.bundle import (
    BLOB_BYTES_MAX,
    BLOB_UNPACKED_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    BlobRef,
    BundleVoucher,
    Manifest,
    Role,
    Root,
    read_lines,
    state_digest,
    voucher_digest,
)
from tallystick_shared.errors import Untrusted
from tallystick_shared.journal import Position
from tallystick_shared.signing import (
    ROOT_BYTES_MAX,
    PublicKey,
    Typ,
    count_signatures,
    open_general,
    sha256_hex,
    verify,
)
from tallystick_shared.wire import Enrolled, SyncAnswer

_UNPACK_STEP_BYTES = 1024 * 1024
_UNPACK_WINDOW_BYTES_MAX = 128 * 1024 * 1024
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
        """A manifest, by rules 9 to 15; `now` None: it is the one in force, whose age does not matter here."""
        if now is not None:
            self.demand_current_root(now)
        payload = verify(raw, self.role_keys(self.root.roles.bundle), Typ.MANIFEST, bytes_max=MANIFEST_BYTES_MAX)
        manifest = _read(payload, _MANIFEST, "manifest")
        if manifest.scope != scope:
            raise Untrusted("the manifest is of another scope", code="WRONG_SCOPE")
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

    def answer(
        self, raw: bytes, *, device: str, request_sha256: str, epoch: int, mark: int, head: Position, now: datetime
    ) -> SyncAnswer:
        """An answer to a sync, by rules 9 and 21 to 26. `epoch` and `mark` are the highest seen before."""
        self.demand_current_root(now)
        payload = verify(raw, self.role_keys(self.root.roles.receipt), Typ.ANSWER)
        answer = _read(payload, _ANSWER, "answer")
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
        """The answer to an enrolment, by rules 9 and 21 to 23."""
        self.demand_current_root(now)
        payload = verify(raw, self.role_keys(self.root.roles.receipt), Typ.ENROLLED)
        enrolled = _read(payload, _ENROLLED, "answer")
        if enrolled.request_sha256 != request_sha256 or enrolled.server != self.root.server_id:
            raise Untrusted("the answer is not to the request in flight", code="NOT_OUR_REQUEST")
        return enrolled


def snapshot(raw: bytes, ref: BlobRef, digest: str | None) -> dict[str, BundleVoucher]:
    """The vouchers of a snapshot by folded code, by rules 16 to 20; `digest` None leaves out the costly half of rule 20
    for a blob that passed it before it was stored."""
    if len(raw) != ref.bytes or len(raw) > BLOB_BYTES_MAX:
        raise Untrusted(f"the snapshot has {len(raw)} bytes, not {ref.bytes}", code="TOO_LARGE")
    if sha256_hex(raw) != ref.sha256:
        raise Untrusted("the snapshot's digest is not the manifest's", code="WRONG_DIGEST")
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
    if digest is not None:
        parts = sum(voucher_digest(one.id, sha256_hex(bytes(one.voucher))) for one in by_code.values())
        if state_digest(parts) != digest:
            raise Untrusted("the snapshot does not lead to the state that the manifest names", code="STATE_DIGEST")
    return by_code


def unpack(raw: bytes, bytes_max: int) -> bytes:
    """One zstd frame, of at most `bytes_max` bytes unpacked; never holds more than a step beyond that. (Rule 18.)"""
    parts: list[bytes] = []
    size = 0
    try:
        with zstandard.ZstdDecompressor(max_window_size=_UNPACK_WINDOW_BYTES_MAX).stream_reader(raw) as reader:
            while part := reader.read(_UNPACK_STEP_BYTES):
                size += len(part)
                if size > bytes_max:
                    raise Untrusted(f"it unpacks to more than {bytes_max} bytes", code="TOO_LARGE")
                parts.append(part)
    except zstandard.ZstdError as error:
        raise Untrusted("it is not zstd", code="MALFORMED") from error
    return b"".join(parts)


_ROOT = msgspec.json.Decoder(Root)
_MANIFEST = msgspec.json.Decoder(Manifest)
_ANSWER = msgspec.json.Decoder(SyncAnswer)
_ENROLLED = msgspec.json.Decoder(Enrolled)


def _read(payload: bytes, decoder: msgspec.json.Decoder[_T], what: str) -> _T:
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Untrusted(f"the {what} cannot be read: {error}", code="MALFORMED") from error


def _cap_root(raw: bytes) -> None:
    if len(raw) > ROOT_BYTES_MAX:
        raise Untrusted(f"the root has {len(raw)} bytes, more than {ROOT_BYTES_MAX}", code="TOO_LARGE")


def _read_root(raw: bytes) -> Root:
    return _read(open_general(raw), _ROOT, "root")


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
