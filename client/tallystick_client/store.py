"""The vouchers on this till: bundles in a hardened `diskcache`, and the index that sales are made from.

Source: protocol.md, section 8. Everything in the cache is the exact bytes that were verified, and is verified again
when it is read: whoever can write to it can at most make this till fetch the bundle again. A cache that cannot be
trusted is renamed aside. Few and large values: a bundle is one manifest and its blob in chunks; the index over it is
made once a version, and a voucher is decoded and compiled when it is first asked for.
"""

from __future__ import annotations

import gc
import os
import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import diskcache

from tallystick_client.actions import Held, KeepBundle
from tallystick_client.errors import StorageError, TallystickError, Untrusted
from tallystick_client.schema import explained
from tallystick_client.trust import Trusted, snapshot
from tallystick_shared.bundle import BLOB_BYTES_MAX, BundleVoucher, Manifest
from tallystick_shared.engine import CompiledVoucher, compile_voucher
from tallystick_shared.errors import InvalidInput
from tallystick_shared.model import load_voucher
from tallystick_shared.signing import sha256_hex

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


class Entry:
    """One voucher of the bundle in force. `compiled` is None where this engine cannot read it (`NEEDS_UPDATE`)."""

    __slots__ = ("compiled", "id", "revision_sha256")

    def __init__(self, one: BundleVoucher) -> None:
        self.id = one.id
        raw = bytes(one.voucher)
        self.revision_sha256 = sha256_hex(raw)
        self.compiled: CompiledVoucher | None
        try:
            self.compiled = compile_voucher(load_voucher(raw))
        except InvalidInput:
            # written for a newer engine: unusable here, and only here; the terminal says NEEDS_UPDATE
            self.compiled = None
        if self.compiled is not None and self.compiled.folded != one.code:
            self.compiled = None


class Bundle:
    """The bundle in force, in memory. Vouchers are decoded when first asked for, and kept."""

    def __init__(self, manifest: Manifest, etag: str, vouchers: dict[str, BundleVoucher]) -> None:
        self.manifest, self.etag = manifest, etag
        self._raw = vouchers
        self._entries: dict[str, Entry] = {}

    def signed_again(self, manifest: Manifest, etag: str) -> Bundle:
        """The same vouchers, and what was decoded of them, under a newer manifest."""
        again = Bundle(manifest, etag, self._raw)
        again._entries = self._entries
        return again

    @property
    def held(self) -> Held:
        return Held(self.manifest, self.etag)

    @property
    def vouchers(self) -> dict[str, BundleVoucher]:
        return self._raw

    def __len__(self) -> int:
        return len(self._raw)

    def find(self, folded: str) -> Entry | None:
        entry = self._entries.get(folded)
        if entry is None and folded in self._raw:
            entry = self._entries[folded] = Entry(self._raw[folded])
        return entry


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

        `before`: the one this process has in memory; of the same snapshot only the manifest is read.
        """
        with self._lock:
            try:
                return self._load(trusted, scope, before)
            except (Untrusted, sqlite3.DatabaseError, diskcache.Timeout) as error:
                self._refuse(error)
                return None

    def keep(self, change: KeepBundle) -> None:
        """Commits a verified bundle in one transaction; all others of the cache leave with it."""
        with self._lock:
            try:
                self._keep(change)
            except (Untrusted, sqlite3.DatabaseError, diskcache.Timeout) as error:
                self._refuse(error)
                raise StorageError(
                    "the cache could not be trusted and was set aside: sync again to fetch the bundle", code="DISK"
                ) from error

    def _load(self, trusted: Trusted, scope: str, before: Bundle | None) -> Bundle | None:
        cache = self._open()
        raw = cache.get(f"manifest/{scope}")
        if raw is None:
            return None
        manifest = trusted.manifest(raw, scope, now=None)
        etag = (cache.get(f"etag/{scope}") or b"").decode("ascii", "replace")
        if before is not None and before.manifest.snapshot == manifest.snapshot:
            return before.signed_again(manifest, etag)
        sha256 = manifest.snapshot.sha256
        chunks = [cache.get(f"blob/{sha256}/{index}") for index in range(_chunk_count(manifest.snapshot.bytes))]
        if None in chunks:
            raise Untrusted("a part of the snapshot is missing", code="WRONG_DIGEST")
        collecting = gc.isenabled()
        gc.disable()  # a hundred thousand young objects and no garbage among them: half the time otherwise
        try:
            return Bundle(manifest, etag, snapshot(b"".join(chunks), manifest.snapshot, None))
        finally:
            if collecting:
                gc.enable()

    def _keep(self, change: KeepBundle) -> None:
        scope, ref = change.manifest.scope, change.manifest.snapshot
        cache = self._open()
        wanted = {f"manifest/{scope}": change.raw, f"etag/{scope}": change.etag.encode("ascii", "replace")}
        blob_keys = {f"blob/{ref.sha256}/{index}" for index in range(_chunk_count(ref.bytes))}
        if change.blob is not None:
            for index in range(_chunk_count(ref.bytes)):
                chunk = change.blob[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                wanted[f"blob/{ref.sha256}/{index}"] = chunk
        with cache.transact():
            for key in list(cache):
                if key not in wanted and key not in blob_keys:
                    cache.delete(key)
            for key, value in wanted.items():
                cache.set(key, value)

    def _open(self) -> Any:
        path = self.directory / diskcache.core.DBNAME
        if self._cache is not None and (not path.exists() or path.stat().st_ino != self._inode):
            self._cache.close()  # another process of this till set the cache aside
            self._cache = None
        if self._cache is None:
            make_private(self.directory)
            inspect(path)
            self._cache = diskcache.Cache(str(self.directory), timeout=TIMEOUT_S, disk=BytesDisk, **SETTINGS)
            self._inode = path.stat().st_ino
        return self._cache

    def _refuse(self, error: Exception) -> None:
        """What is only full or busy is left where it is; what cannot be believed is renamed aside."""
        if isinstance(error, diskcache.Timeout):
            raise StorageError("another process of this till is writing the cache: try again", code="BUSY") from error
        if isinstance(error, sqlite3.Error):
            what: TallystickError = explained(error, self.directory)
            if what.code not in ("JOURNAL_DAMAGED", "CONSTRAINT") and not _is_malformed(error):
                raise what from error
        if self._cache is not None:
            self._cache.close()
            self._cache = None
        aside = self.directory.with_name(f"{self.directory.name}.refused-{self._label()}")
        self.directory.rename(aside)
        self.notes.append(
            f"the cache could not be trusted ({error}); it is kept as {aside.name}, sync to fetch it again"
        )


def _is_malformed(error: sqlite3.Error) -> bool:
    """Tables that are not diskcache's own give a plain SQL error."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF == sqlite3.SQLITE_ERROR


def _chunk_count(size_bytes: int) -> int:
    return max(1, -(-size_bytes // CHUNK_BYTES))


def check_owner(directory: Path) -> None:
    """Raises `StorageError` (`NOT_OURS`) where the directory is not this user's own: others could change it."""
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
    """Makes the directory if need be, 0700, whoever made it. Raises `StorageError`."""
    check_owner(directory)
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        directory.chmod(0o700)
    except OSError as error:
        raise StorageError(f"{directory} cannot be made: {error.strerror}", code="DISK") from error


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
