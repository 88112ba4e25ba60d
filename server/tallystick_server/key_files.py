"""Files that hold keys: written whole or not at all, read only where nobody else could. And sets of root keys.

A set of root keys is a directory that `tallystick-server keys init` makes, wherever the operator likes:

    public.json           the set without its secrets: public keys and threshold, 0644; this is what may be copied
    root-KID8.jwk         a private key each, 0600, named by the start of its kid; to be kept in different places
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from tallystick_shared.bundle import Role
from tallystick_shared.errors import CallerError, InvalidInput, Untrusted
from tallystick_shared.signing import PublicKey, SigningKey

ROOT_KEYS_MAX = 16
PUBLIC_NAME = "public.json"


class RootSet(NamedTuple):
    """Root keys, the threshold they are to have, and those of their private keys that are in the directory."""

    role: Role
    jwks: dict[str, dict[str, str]]
    private: list[SigningKey]


class _Public(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    threshold: int
    keys: dict[str, dict[str, str]]


def make_root_set(directory: Path, *, keys: int, threshold: int) -> list[Path]:
    """A new directory of new root keys; the paths of the private ones. Nothing of a server is needed.

    Raises `InvalidInput`, `CallerError` (`EXISTS`, `NOT_WRITABLE`).
    """
    if not 1 <= keys <= ROOT_KEYS_MAX:
        raise InvalidInput("--keys", f"must be 1 to {ROOT_KEYS_MAX}", str(keys))
    if not 1 <= threshold <= keys:
        raise InvalidInput("--threshold", f"must be 1 to {keys}, the number of keys", str(threshold))
    made = {directory / f"root-{key.kid[:8]}.jwk": key for key in (SigningKey.generate() for _ in range(keys))}
    public = _Public(threshold, {key.kid: key.jwk() for key in made.values()})
    with writing(directory):
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            raise CallerError(f"{directory} is there already: name a directory that is new", code="EXISTS") from None
        for path, key in made.items():
            write(path, key.to_bytes(), 0o600)
        # last: a set without it is not taken for one
        write(directory / PUBLIC_NAME, msgspec.json.format(msgspec.json.encode(public)) + b"\n", 0o644)
    return list(made)


def read_root_set(directory: Path, threshold: int | None = None) -> RootSet:
    """The set in `directory`, with another threshold than its own where one is given.

    Raises `InvalidInput`, `CallerError` (`NO_ROOT_KEYS`, `NOT_A_ROOT_KEY`, and those of `read_private`).
    """
    path = directory / PUBLIC_NAME
    try:
        public = msgspec.json.decode(path.read_bytes(), type=_Public)
        fits = all(PublicKey.from_jwk(jwk).kid == kid for kid, jwk in public.keys.items())
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"there is no set of root keys in {directory}: tallystick-server keys init DIR makes one"
        raise CallerError(message, code="NO_ROOT_KEYS") from error
    except OSError as error:
        raise CallerError(f"{path} cannot be read: {error.strerror}", code="NO_ROOT_KEYS") from error
    except (msgspec.DecodeError, UnicodeDecodeError, Untrusted) as error:
        raise CallerError(f"{path} is not a set of root keys: {error}", code="NO_ROOT_KEYS") from error
    threshold = public.threshold if threshold is None else threshold
    if not fits or not 1 <= len(public.keys) <= ROOT_KEYS_MAX:
        raise CallerError(f"{path} is not a set of root keys: its kids are not right", code="NO_ROOT_KEYS")
    must_be_threshold(threshold, len(public.keys))
    private = [read_private(one) for one in sorted(directory.glob("root-*.jwk"))]
    for key in private:
        if key.kid not in public.keys:
            raise CallerError(f"{directory} holds the private key {key.kid}, which {path} lacks", code="NOT_A_ROOT_KEY")
    return RootSet(Role(list(public.keys), threshold), public.keys, private)


def must_be_threshold(threshold: int, keys: int) -> None:
    """Raises `InvalidInput`."""
    if not 1 <= threshold <= keys:
        raise InvalidInput("threshold", f"must be 1 to {keys}, the number of root keys", str(threshold))


def read_private(path: Path) -> SigningKey:
    """A private root key. Raises `CallerError`: `NO_FILE`, `WRONG_MODE` where others may read it, `BAD_KEY`."""
    try:
        mode = path.stat().st_mode & 0o777
        raw = path.read_bytes()
    except OSError as error:
        raise CallerError(f"the key file {path} cannot be read: {error.strerror}", code="NO_FILE") from error
    if mode & 0o077:
        message = f"{path} has mode {mode:04o}, which lets others at a private key: it should be 0600"
        raise CallerError(message, code="WRONG_MODE")
    try:
        return SigningKey.from_bytes(raw)
    except ValueError as error:
        raise CallerError(f"{path} is {error}: it should be", code="BAD_KEY") from error


def write(path: Path, raw: bytes, mode: int) -> None:
    """The whole file or nothing of it, on the disk before this returns; one that is there is replaced.

    Written by the superuser it belongs to the owner of its directory, as the server has to read it.
    """
    making = path.with_name(f"{path.name}.new")
    making.unlink(missing_ok=True)
    descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        owner, mine = path.parent.stat(), os.fstat(descriptor)
        if os.geteuid() == 0 and (owner.st_uid, owner.st_gid) != (mine.st_uid, mine.st_gid):
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        file.write(raw)
        file.flush()
        os.fsync(descriptor)
    making.rename(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(where: Path) -> Iterator[None]:
    """What the disk says while `where` is written to, in a sentence. Raises `CallerError` (`NOT_WRITABLE`)."""
    try:
        yield
    except OSError as error:
        raise CallerError(f"{where} cannot be written to: {error.strerror}", code="NOT_WRITABLE") from error
