"""The vouchers on this till: bundles in a hardened `diskcache`, and the index that sales are made from.

Source: protocol.md, section 8. Everything in the cache is the exact bytes that were verified, and is verified again
when it is read: whoever can write to it can at most make this till fetch the bundle again. A cache that cannot be
trusted is renamed aside. Few and large values: `bundle/SCOPE` says what a bundle is made of (`Parts`), its blobs are
kept in chunks, and the manifests that name them beside them. A voucher is decoded and compiled when it is first asked
for.

A bundle under new root keys is committed here before its root is in the journal. Until then the one before it stays, as
`before/SCOPE`: a power cut between the two leaves a till that has vouchers.
"""

from __future__ import annotations

import gc
import os
import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import diskcache
import msgspec

from tallystick_client.actions import KeepBundle
from tallystick_client.blobs import Changes, Part, Vouchers, delta, ends_of, same_history, snapshot, together
from tallystick_client.bundle import Bundle, Parts
from tallystick_client.errors import StorageError, TallystickError, Untrusted
from tallystick_client.schema import demand_readable, explained, on_disk, sync_folder
from tallystick_client.trust import Trusted
from tallystick_shared.bundle import BLOB_BYTES_MAX, BlobRef, BundleVoucher, Manifest
from tallystick_shared.journal import encode
from tallystick_shared.signing import NOT_JSON, sha256_hex

DIRECTORY_NAME = "cache"
CHUNK_BYTES = 1024 * 1024
KEY_CHARACTERS_MAX = 256
TIMEOUT_S = 10
SETTINGS: dict[str, Any] = {
    "eviction_policy": "none",
    "cull_limit": 0,
    "statistics": 0,
    "tag_index": 0,
    "size_limit": 2 * BLOB_BYTES_MAX,
    "sqlite_synchronous": 2,
    "disk_min_file_size": 2 * CHUNK_BYTES,
}
_MODE_RAW = 1
_PARTS = msgspec.json.Decoder(Parts)


class BytesDisk(diskcache.Disk):  # type: ignore[misc] # diskcache ships no types
    """Keys are short text, values are bytes in the row itself: no pickle, no file, on reading as on writing."""

    def put(self, key: object) -> tuple[str, bool]:
        if type(key) is not str or not 0 < len(key) <= KEY_CHARACTERS_MAX:
            raise Untrusted("a key of the cache must be short text", code="FOREIGN_CACHE")
        return key, True

    def get(self, key: object, raw: object) -> str:
        if not raw:
            raise Untrusted("a key of the cache is pickled", code="FOREIGN_CACHE")
        return self.put(key)[0]

    def store(self, value: object, read: bool, key: object = None) -> tuple[int, int, None, memoryview]:
        if read or type(value) is not bytes or len(value) > CHUNK_BYTES:
            raise Untrusted(f"a value of the cache must be at most {CHUNK_BYTES} bytes", code="FOREIGN_CACHE")
        return 0, _MODE_RAW, None, memoryview(value)

    def fetch(self, mode: object, filename: object, value: object, read: bool) -> bytes:
        if mode != _MODE_RAW or filename is not None or read or type(value) is not bytes or len(value) > CHUNK_BYTES:
            raise Untrusted("a value of the cache is not plain bytes", code="FOREIGN_CACHE")
        return value

    def filename(self, key: object = None, value: object = None) -> tuple[str, str]:
        raise Untrusted("the cache keeps no files", code="FOREIGN_CACHE")

    def remove(self, file_path: object) -> None:
        raise Untrusted("the cache keeps no files", code="FOREIGN_CACHE")


class Store:
    """The cache of one till. `label` names what is set aside; `notes` collects what a person should know."""

    def __init__(self, directory: Path, *, label: Callable[[], str]) -> None:
        self.directory = directory
        self.notes: list[str] = []
        self._label = label
        self._lock = threading.Lock()
        self._cache: Any = None
        self._inode = 0
        check_owner(directory)

    def close(self) -> None:
        with self._lock:
            if self._cache is not None:
                self._cache.close()
                self._cache = None

    def load(self, trusted: Trusted, scope: str, before: Bundle | None = None) -> Bundle | None:
        """The bundle in force, verified again; None where there is none, or none that can be believed any more.

        `before`: the one this process has in memory. Where the new one leads on from it, only what is new is read, and
        it is `before` itself that comes back, changed.
        """
        collecting = gc.isenabled()
        with self._lock:
            gc.disable()  # a hundred thousand young objects and no garbage among them: half the time otherwise
            try:
                return self._load(trusted, scope, before)
            except (Untrusted, *NOT_JSON, sqlite3.DatabaseError, diskcache.Timeout) as error:
                self._refuse(error)
                return None
            finally:
                if collecting:
                    gc.enable()

    def holds(self, bundle: Bundle) -> bool:
        """Whether the blobs of `bundle` are in the cache, so that deltas can be added to them: it may have been set
        aside, or removed, since this process read it."""
        with self._lock:
            try:
                raw = self._open().get(f"bundle/{bundle.manifest.scope}")
                return raw is not None and _leads_on(_PARTS.decode(raw), bundle.parts)
            except (Untrusted, *NOT_JSON, sqlite3.DatabaseError, diskcache.Timeout) as error:
                self._refuse(error)
                return False

    def keep(self, change: KeepBundle, in_force: str) -> list[Part]:
        """Commits a verified bundle in one transaction, and what it is made of; what no bundle needs leaves with it.

        `in_force`: the digest of the manifest that the journal goes by until it has the roots of `change`.
        """
        with self._lock:
            try:
                return self._keep(change, in_force)
            except (Untrusted, *NOT_JSON, sqlite3.DatabaseError, diskcache.Timeout) as error:
                self._refuse(error)
                raise StorageError(
                    "the cache could not be trusted and was set aside: sync again to fetch the bundle", code="DISK"
                ) from error

    def _load(self, trusted: Trusted, scope: str, before: Bundle | None) -> Bundle | None:
        cache = self._open()
        with cache.transact():  # one view: another process may be keeping the next bundle, and removing this one
            first = cache.get(f"bundle/{scope}")
            if first is None:
                return None
            try:
                return self._assemble(trusted, scope, _PARTS.decode(first), before)
            except (Untrusted, *NOT_JSON) as error:
                second = cache.get(f"before/{scope}")
                if second is None:
                    raise Untrusted(str(error), code="FOREIGN_CACHE") from error
                return self._assemble(trusted, scope, _PARTS.decode(second), before)

    def _assemble(self, trusted: Trusted, scope: str, parts: Parts, before: Bundle | None) -> Bundle:
        """Each blob must be named by a signed manifest of its own, and all of them lead on from one to the next."""
        manifest = trusted.manifest(self._manifest(parts.manifest), scope, now=None)
        if before is not None and _leads_on(parts, before.parts) and same_history(before.manifest, manifest):
            known, version = before.parts, before.manifest.version
        else:
            known, version, before = [], 0, None
        by_code: dict[str, BundleVoucher] = {}
        deltas: list[Changes] = []
        manifests: dict[str, Manifest] = {}
        for part in parts.blobs[len(known) :]:
            if part.manifest not in manifests:
                manifests[part.manifest] = trusted.vouching(self._manifest(part.manifest), scope)
            naming = manifests[part.manifest]
            if naming.server_epoch != manifest.server_epoch:
                raise Untrusted("a part of the bundle is of another epoch", code="FOREIGN_CACHE")
            if version == 0:
                _demand_named(part, naming.snapshot)
                by_code, version = snapshot(self._blob(part), naming.snapshot), naming.snapshot.version
                continue
            ref, end = next((one for one in ends_of(naming) if one[0].sha256 == part.sha256), (None, 0))
            if ref is None or not ref.from_version <= version < end:
                raise Untrusted("a part of the bundle does not lead on from the one before", code="FOREIGN_CACHE")
            deltas.append(delta(self._blob(part), ref))
            version = end
        if version != manifest.version:
            raise Untrusted("the parts of the bundle do not lead to its version", code="FOREIGN_CACHE")
        changes, total = together(deltas), int(manifest.state_digest, 16)
        if before is not None:
            before.advance(manifest, parts.manifest, parts.etag, changes, total, parts.blobs)
            return before
        vouchers = Vouchers(by_code, total)
        vouchers.apply(changes, total)
        return Bundle(manifest, parts.manifest, parts.etag, vouchers, parts.blobs)

    def _manifest(self, sha256: str) -> bytes:
        raw = self._open().get(f"manifest/{sha256}")
        if raw is None or sha256_hex(raw) != sha256:
            raise Untrusted("a manifest of the bundle is missing", code="WRONG_DIGEST")
        return bytes(raw)

    def _blob(self, part: Part) -> bytes:
        cache = self._open()
        chunks = [cache.get(f"blob/{part.sha256}/{index}") for index in range(_chunk_count(part.bytes))]
        if None in chunks:
            raise Untrusted("a part of the bundle is missing", code="WRONG_DIGEST")
        return b"".join(chunks)

    def _keep(self, change: KeepBundle, in_force: str) -> list[Part]:
        scope, digest = change.manifest.scope, sha256_hex(change.raw)
        cache = self._open()
        blobs = [*change.base, *(Part(one.ref.sha256, one.ref.bytes, digest) for one in change.blobs)]
        parts = Parts(digest, change.etag, blobs)
        wanted = {f"bundle/{scope}": encode(parts), f"manifest/{digest}": change.raw}
        for one in change.blobs:
            for index in range(_chunk_count(one.ref.bytes)):
                wanted[f"blob/{one.ref.sha256}/{index}"] = one.raw[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        kept = _keys_of(parts)
        with cache.transact():
            there = {key: _PARTS.decode(raw) for key in _heads(scope) if (raw := cache.get(key)) is not None}
            if change.vouchers is None and not any(_leads_on(one, change.base) for one in there.values()):
                raise StorageError("the cache was changed while this till synced: sync again", code="BUSY")
            earlier = next((one for one in there.values() if one.manifest == in_force), None)
            if change.roots and earlier is not None:
                wanted[f"before/{scope}"] = encode(earlier)
                kept |= _keys_of(earlier)
            for key in list(cache):
                if key not in wanted and key not in kept:
                    cache.delete(key)
            for key, value in wanted.items():
                cache.set(key, value)
        return blobs

    def _open(self) -> Any:
        path = self.directory / diskcache.core.DBNAME
        with on_disk(f"{path} cannot be opened"):
            if self._cache is not None and (not path.exists() or path.stat().st_ino != self._inode):
                self._cache.close()  # another process of this till set the cache aside
                self._cache = None
            if self._cache is None:
                make_private(self.directory)
                inspect(path)
                self._cache = diskcache.Cache(str(self.directory), timeout=TIMEOUT_S, disk=BytesDisk, **SETTINGS)
                self._inode = path.stat().st_ino
        return self._cache

    def _is_sound(self) -> bool:
        """Whether it was the disk that failed to read it, which SQLite calls malformed: a till without a line would
        have no vouchers without its cache. Raises `StorageError` where the disk still fails."""
        path = self.directory / diskcache.core.DBNAME
        demand_readable(path)
        try:
            with closing(sqlite3.connect(path, timeout=TIMEOUT_S)) as connection:
                return bool(connection.execute("PRAGMA integrity_check").fetchone() == ("ok",))
        except sqlite3.Error:
            return False

    def _refuse(self, error: Exception) -> None:
        """What is only full or busy is left where it is; what cannot be believed is renamed aside."""
        if isinstance(error, diskcache.Timeout):
            raise StorageError("another process of this till is writing the cache: try again", code="BUSY") from error
        if isinstance(error, sqlite3.Error):
            what: TallystickError = explained(error, self.directory)
            if what.code not in ("JOURNAL_DAMAGED", "CONSTRAINT") and not _is_malformed(error):
                raise what from error
            if what.code == "JOURNAL_DAMAGED" and self._is_sound():
                raise StorageError("the disk failed to read the cache: try again", code="DISK") from error
        if self._cache is not None:
            self._cache.close()
            self._cache = None
        aside = self.directory.with_name(f"{self.directory.name}.refused-{self._label()}")
        with on_disk(f"{self.directory} cannot be trusted ({error}), and cannot be renamed"):
            self.directory.rename(aside)
        self.notes.append(
            f"the cache could not be trusted ({error}); it is kept as {aside.name}, sync to fetch it again"
        )


def _is_malformed(error: sqlite3.Error) -> bool:
    """Tables that are not diskcache's own give a plain SQL error."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF == sqlite3.SQLITE_ERROR


def _heads(scope: str) -> tuple[str, str]:
    return f"bundle/{scope}", f"before/{scope}"


def _leads_on(parts: Parts, base: list[Part]) -> bool:
    """Whether all of `base` is there."""
    return parts.blobs[: len(base)] == base


def _demand_named(part: Part, ref: BlobRef) -> None:
    if part.sha256 != ref.sha256:
        raise Untrusted("the bundle does not begin with a snapshot", code="FOREIGN_CACHE")


def _keys_of(parts: Parts) -> set[str]:
    """The keys that a bundle needs."""
    manifests = {parts.manifest, *(part.manifest for part in parts.blobs)}
    blobs = {f"blob/{part.sha256}/{index}" for part in parts.blobs for index in range(_chunk_count(part.bytes))}
    return blobs | {f"manifest/{sha256}" for sha256 in manifests}


def _chunk_count(size_bytes: int) -> int:
    return max(1, -(-size_bytes // CHUNK_BYTES))


def check_owner(directory: Path) -> None:
    """Raises `StorageError` (`NOT_OURS`) where the directory is not this user's own: others could change it."""
    with on_disk(f"{directory} cannot be looked at"):
        try:
            found = os.lstat(directory)
        except FileNotFoundError:
            return
    if not stat.S_ISDIR(found.st_mode):
        raise StorageError(f"{directory} is not a directory", code="NOT_OURS")
    if found.st_uid != os.geteuid():
        raise StorageError(
            f"{directory} belongs to user {found.st_uid}, this process runs as user {os.geteuid()}", code="NOT_OURS"
        )


def make_private(directory: Path) -> None:
    """Makes the directory if need be, 0700, whoever made it; it stays through a power cut. Raises `StorageError`."""
    check_owner(directory)
    with on_disk(f"{directory} cannot be made"):
        directory.mkdir(mode=0o700, exist_ok=True)
        directory.chmod(0o700)
        sync_parent(directory)  # also where it is there: who made it may have died before this


def sync_parent(directory: Path) -> None:
    """Puts the name of a directory on the disk. One whose parent is not ours to read was made by somebody else."""
    with suppress(PermissionError):
        sync_folder(directory.parent)


_TABLES = {"Settings", "Cache"}
_SETTING_KEYS = set(diskcache.core.DEFAULT_SETTINGS) | set(diskcache.core.METADATA)


def inspect(path: Path) -> None:
    """Looks through the file before `diskcache` opens it, which would act on whatever settings and triggers it holds.

    Raises `Untrusted` (`FOREIGN_CACHE`) for anything that this module never writes.
    """
    if not path.exists():
        return
    with closing(sqlite3.connect(path, timeout=TIMEOUT_S)) as connection:
        connection.execute("PRAGMA trusted_schema = 0")
        strange = [
            name
            for kind, name, table in connection.execute("SELECT type, name, tbl_name FROM sqlite_master")
            if table not in _TABLES or kind == "view" or (kind == "trigger" and not name.startswith("Settings_"))
        ]
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if strange:
            raise Untrusted(f"the cache holds {strange[0]!r}, which is not its own", code="FOREIGN_CACHE")
        if "Settings" in tables:
            for key, value in connection.execute("SELECT key, value FROM Settings"):
                plain = isinstance(value, int) or (isinstance(value, str) and value.replace("-", "").isalpha())
                if key not in _SETTING_KEYS or not plain:
                    raise Untrusted(f"the cache has the setting {key!r}, which is not its own", code="FOREIGN_CACHE")
        if "Cache" in tables:
            row = connection.execute(
                "SELECT count(*) FROM Cache WHERE typeof(key) <> 'text' OR raw <> 1 OR mode <> ?"
                " OR filename IS NOT NULL OR typeof(value) <> 'blob' OR length(value) > ?"
                " OR expire_time IS NOT NULL OR tag IS NOT NULL",
                (_MODE_RAW, CHUNK_BYTES),
            ).fetchone()
            if row[0]:
                raise Untrusted(f"{row[0]} entries of the cache are not its own", code="FOREIGN_CACHE")
