"""A till's directory: whose it is, its key, and who may sync. Nothing but these files says which till this is.

`config.json` (this till and its server), `line.json` (how that is reached), `device.key` (0600, the private JWK),
`journal.sqlite3`, `cache/` (0700) and `lock`. The config is written last when a till is enrolled: without it there is
no till. `line.json` is written before anything is sent, so that no request is made with less than was asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from tallystick_client.errors import LineError, StorageError
from tallystick_client.schema import on_disk, sync_folder
from tallystick_client.store import check_owner, make_private, sync_parent
from tallystick_shared.signing import SigningKey

CONFIG_NAME, LINE_NAME, KEY_NAME, LOCK_NAME = "config.json", "line.json", "device.key", "lock"
LOCK_WAIT_S = 60.0
_LOCK_STEP_S = 0.05


class Config(msgspec.Struct, frozen=True):
    """What does not change while a till lives. `root_sha256` is the pin that came with the enrolment token."""

    device: str
    server: str
    server_url: str
    name: str
    store_id: str
    root_version: int
    root_sha256: str


class LineConfig(msgspec.Struct, frozen=True):
    """How the server is reached; may change while a till lives. `tls.line_config` makes and checks it.

    `ca_pem`: the only CAs that are trusted; None: those of the system. `pins`: as `tls.parse_pin` gives them; none: no
    pinning. `proxy`: an address, "direct", or None for what the environment says.
    """

    ca_pem: str | None = None
    pins: tuple[str, ...] = ()
    proxy: str | None = None


class Lock:
    """One sync of a till at a time, of all its processes. Nothing here waits; `turns` says how long to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def turns(self) -> Iterator[float]:
        """Ends once the lock is taken; until then gives the seconds to wait before the next try.

        Raises `LineError` (`SYNC_RUNNING`) after `LOCK_WAIT_S`. `release` must follow, whatever happens.
        """
        waited_s = 0.0
        while not self.take():
            if waited_s >= LOCK_WAIT_S:
                raise LineError("another process of this till has been syncing for a minute", code="SYNC_RUNNING")
            waited_s += _LOCK_STEP_S
            yield _LOCK_STEP_S

    def release(self) -> None:
        if self._descriptor >= 0:
            # a process that was forked meanwhile has it open too: closing it here would not be enough
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1

    def take(self) -> bool:
        """Whether it is this one's now. Raises `StorageError`. `release` must follow, whatever happens."""
        with on_disk(f"{self._path} cannot be locked"):
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True


class Directory:
    """The files of one till. Raises `StorageError` for whatever is wrong with them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        """Makes it, for an enrolment; refuses where a till lives already."""
        with on_disk(f"{self.path.parent} cannot be made"):
            missing = [folder for folder in self.path.parents if not folder.exists()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for folder in missing:
                sync_parent(folder)
        make_private(self.path)
        if self._read(CONFIG_NAME) is not None:
            raise StorageError(
                f"{self.path} belongs to the till {self.config().name} already: enrol in another directory",
                code="MIXED_DIRECTORY",
            )

    def config(self) -> Config:
        with on_disk(f"{self.path} cannot be looked at"):
            there = self.path.is_dir()
        if not there:
            raise StorageError(
                f"{self.path} is not there: enrol this till first (tallystick enroll)", code="NOT_A_TILL"
            )
        check_owner(self.path)
        raw = self._read(CONFIG_NAME)
        if raw is None:
            raise StorageError(f"{self.path} holds no till: enrol it first (tallystick enroll)", code="NOT_A_TILL")
        try:
            return msgspec.json.decode(raw, type=Config)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StorageError(f"{self.path / CONFIG_NAME} is damaged: {error}", code="NOT_A_TILL") from error

    def key(self) -> SigningKey | None:
        """The till's private key; None where there is none yet."""
        raw = self._read(KEY_NAME)
        if raw is None:
            return None
        with on_disk(f"{self.path / KEY_NAME} cannot be kept from others"):
            if (self.path / KEY_NAME).stat().st_mode & 0o077:
                (self.path / KEY_NAME).chmod(0o600)
        try:
            return SigningKey.from_bytes(raw)
        except ValueError as error:
            raise StorageError(f"{self.path / KEY_NAME} is damaged: {error}", code="NOT_A_TILL") from error

    def keep_key(self, raw: bytes) -> None:
        self._write(KEY_NAME, raw)

    def line(self) -> LineConfig:
        """A till that never was told otherwise has no such file."""
        raw = self._read(LINE_NAME)
        if raw is None:
            return LineConfig()
        try:
            return msgspec.json.decode(raw, type=LineConfig)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            damaged = f"{self.path / LINE_NAME} is damaged: {error}; remove it, and configure this till again"
            raise StorageError(damaged, code="NOT_A_TILL") from error

    def keep_line(self, line: LineConfig) -> None:
        self._write(LINE_NAME, msgspec.json.format(msgspec.json.encode(line)) + b"\n")

    def keep_config(self, config: Config) -> None:
        self._write(CONFIG_NAME, msgspec.json.format(msgspec.json.encode(config)) + b"\n")

    def lock(self) -> Lock:
        return Lock(self.path / LOCK_NAME)

    def _read(self, name: str) -> bytes | None:
        with on_disk(f"{self.path / name} cannot be read"):
            try:
                return (self.path / name).read_bytes()
            except FileNotFoundError:
                return None

    def _write(self, name: str, raw: bytes) -> None:
        write_whole(self.path / name, [raw])


def write_whole(path: Path, parts: Iterable[bytes]) -> None:
    """Whole or not at all, 0600, on the disk before this returns. Raises `StorageError`."""
    making = path.with_name(f"{path.name}.new")
    with on_disk(f"{path} cannot be written"):
        making.unlink(missing_ok=True)
        descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            making.rename(path)
        except OSError:
            making.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
