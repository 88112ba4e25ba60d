"""The next root: made, signed with as many keys as it takes, and put into use (protocol.md, section 3).

Root n+1 needs the thresholds of root n and its own. Until it has them it waits in `root-N.partial.json` and nothing
changes for devices. It waits together with the root it follows, so that it can be signed (`sign`) on a machine that
has no server, and nobody need bring a private root key to one that has.

On the disk, in this order, each step durable before the next one:

1. the new private keys of bundle and receipt
2. the waiting root as often as it is signed, and at last the root itself: from here on it is in use
3. what is over is removed: private keys that the root does without (a stolen key is of use to thieves only, and
   nothing is ever signed with it again), the waiting root, what power cuts left
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from tallystick_server import key_files
from tallystick_server import keys as keys_of
from tallystick_server.key_files import RootSet
from tallystick_server.settings import Settings
from tallystick_shared.bundle import Role, Roles, Root
from tallystick_shared.errors import CallerError, Untrusted
from tallystick_shared.journal import encode
from tallystick_shared.signing import (
    NOT_JSON,
    PublicKey,
    SigningKey,
    Typ,
    count_signatures,
    join_signatures,
    open_general,
)


class Change(msgspec.Struct, frozen=True):
    """What the next root changes besides its expiry. `threshold`: of root keys, instead of what they have now."""

    bundle: bool = False
    receipt: bool = False
    root: Path | None = None
    threshold: int | None = None


class Rotation(msgspec.Struct, frozen=True):
    """Where the next root stands. `missing` says which signatures it waits for; empty: it is in use."""

    version: int
    expires_at: datetime
    file: Path
    missing: list[str]


class Waiting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A root that waits for signatures, and the one it follows; both are JWS in JSON serialisation."""

    follows: msgspec.Raw
    root: msgspec.Raw


def begin(settings: Settings, change: Change, signers: Sequence[Path], *, now: datetime) -> Rotation:
    """Make the next root, sign it with `signers` and, if that is enough, put it into use.

    Raises `InvalidInput`, `CallerError`: `ROOT_WAITING` where another one waits for signatures, `NOT_A_ROOT_KEY`,
    `NO_KEYS`, `NOT_WRITABLE`, `BUSY`, and those of `key_files`.
    """
    with _alone(settings.keys):
        keys = keys_of.load(settings)
        path = waiting_path(settings.keys, keys.root)
        if path.exists():
            raise CallerError(
                f"root {keys.root_version + 1} waits for signatures already: add them with keys rotate --continue, "
                f"or delete {path} to start again",
                code="ROOT_WAITING",
            )
        new = {name: SigningKey.generate() for name in ("bundle", "receipt") if getattr(change, name)}
        roots = None if change.root is None else key_files.read_root_set(change.root, change.threshold)
        root = _following(keys.root, new, roots, change.threshold)
        root = msgspec.structs.replace(root, expires_at=now + timedelta(seconds=settings.root_ttl_s))
        waiting = Waiting(msgspec.Raw(keys.roots[keys.root_version]), msgspec.Raw(join_signatures(encode(root), [])))
        private = [*map(key_files.read_private, signers), *([] if roots is None else roots.private)]
        waiting = add_signatures(waiting, private)
        for name, key in new.items():
            key_files.write(settings.keys / f"{name}-{key.kid[:8]}.jwk", key.to_bytes(), 0o600)
        return _settle(settings.keys, waiting)


def go_on(settings: Settings, signed: Sequence[Path], signers: Sequence[Path], *, now: datetime) -> Rotation:
    """Add signatures to the waiting root, those in the files `signed` and those of the keys `signers`.

    Raises `CallerError`: `NO_ROOT_WAITING`, `TOO_FEW_SIGNATURES` where nothing came, `ANOTHER_ROOT` where a file holds
    another one, `ROOT_EXPIRED`, `BAD_ROOT`, `NOT_A_ROOT_KEY`, and those of `begin`.
    """
    with _alone(settings.keys):
        keys = keys_of.load(settings)
        path = waiting_path(settings.keys, keys.root)
        if not path.exists():
            raise CallerError(f"no root waits for signatures in {settings.keys}", code="NO_ROOT_WAITING")
        before = read_waiting(path)
        if bytes(before.follows) != keys.roots[keys.root_version]:
            raise CallerError(f"{path} does not follow root {keys.root_version} of this server", code="ANOTHER_ROOT")
        root = root_of(before)
        if now >= root.expires_at:
            day = root.expires_at.date().isoformat()
            message = f"root {root.version} waited until it expired on {day}: delete {path} and start again"
            raise CallerError(message, code="ROOT_EXPIRED")
        waiting = before
        for file in signed:
            other = read_waiting(file)
            if other.follows != before.follows or open_general(other.root) != open_general(before.root):
                raise CallerError(f"{file} holds another root than the one that waits", code="ANOTHER_ROOT")
            waiting = _joined(waiting, _signatures(other.root))
        waiting = add_signatures(waiting, [key_files.read_private(file) for file in signers])
        lacking = missing(waiting)
        if lacking and waiting == before:
            raise CallerError(
                f"root {root.version} has {' and '.join(lacking)}, and no new one was given", code="TOO_FEW_SIGNATURES"
            )
        return _settle(settings.keys, waiting)


def sign(path: Path, signers: Sequence[Path]) -> Rotation:
    """Sign the waiting root in the file `path`, on any machine. Raises `CallerError` as `go_on` does."""
    waiting = add_signatures(read_waiting(path), [key_files.read_private(file) for file in signers])
    with key_files.writing(path.parent):
        key_files.write(path, msgspec.json.encode(waiting), 0o644)
    root = root_of(waiting)
    return Rotation(root.version, root.expires_at, path, missing(waiting))


def add_signatures(waiting: Waiting, signers: Sequence[SigningKey]) -> Waiting:
    """Raises `CallerError` (`NOT_A_ROOT_KEY`) for a key that is a root key neither of this root nor of the last."""
    last, root = _read(waiting.follows), root_of(waiting)
    payload = open_general(waiting.root)
    for key in signers:
        if key.kid not in _signing_keys(last) | _signing_keys(root):
            raise CallerError(
                f"the key {key.kid} is a root key neither of root {last.version} nor of root {root.version}",
                code="NOT_A_ROOT_KEY",
            )
        waiting = _joined(waiting, [key.sign_flat(Typ.ROOT, payload)])
    return waiting


def missing(waiting: Waiting) -> list[str]:
    """Which thresholds the signatures do not meet, in words; the same rules as the client's `trust`, 7 and 8."""
    found = []
    for by in (_read(waiting.follows), root_of(waiting)):
        good, threshold = count_signatures(waiting.root, _signing_keys(by), Typ.ROOT), by.roles.root.threshold
        if good < threshold:
            found.append(f"{good} of the {threshold} signatures that root {by.version} asks for")
    return found


def read_waiting(path: Path) -> Waiting:
    """A waiting root that devices would take, were all its signatures there: rules 4 to 6 of the client's `trust`.

    Whoever holds the file may have changed it. Raises `CallerError` (`NO_FILE`, `BAD_ROOT`).
    """
    try:
        waiting = msgspec.json.decode(path.read_bytes(), type=Waiting)
        last, root = _read(waiting.follows), root_of(waiting)
        allowed = _signing_keys(last) | _signing_keys(root)
        if root.version != last.version + 1 or root.server_id != last.server_id:
            raise Untrusted("it is not the next root of the same server")
        for kid, jwk in root.keys.items():
            if PublicKey.from_jwk(jwk).kid != kid:
                raise Untrusted("a key does not bear its own thumbprint")
        for name in ("root", "bundle", "receipt"):
            role: Role = getattr(root.roles, name)
            if len(set(role.kids)) < max(len(role.kids), role.threshold) or (name != "root" and role.threshold != 1):
                raise Untrusted(f"its role {name} cannot be met")
            if not set(role.kids) <= set(root.keys):
                raise Untrusted(f"its role {name} names a key that it does not have")
        for one in _signatures(waiting.root):
            if count_signatures(join_signatures(open_general(waiting.root), [one]), allowed, Typ.ROOT) != 1:
                raise Untrusted("it bears a signature that is not good")
    except OSError as error:
        raise CallerError(f"{path} cannot be read: {error.strerror}", code="NO_FILE") from error
    except (Untrusted, *NOT_JSON, KeyError) as error:
        raise CallerError(f"{path} is not a root that waits for signatures: {error}", code="BAD_ROOT") from error
    return waiting


def changes(waiting: Waiting) -> list[str]:
    """All that the waiting root says, a line each, for whoever is asked to sign it.

    What stays is told as well: the root that it claims to follow may be an invention, too.
    """
    last, root = _read(waiting.follows), root_of(waiting)
    lines = [f"root {root.version} of server {root.server_id}, until {root.expires_at.date().isoformat()}"]
    for name in ("root", "bundle", "receipt"):
        old, new = getattr(last.roles, name), getattr(root.roles, name)
        lines += [f"{name} key {kid} {'stays' if kid in old.kids else 'comes'}" for kid in new.kids]
        lines += [f"{name} key {kid} goes" for kid in old.kids if kid not in new.kids]
    was, will = last.roles.root.threshold, root.roles.root.threshold
    lines.append(f"root keys that have to sign: {will}, and {was} until now")
    return lines


def root_of(waiting: Waiting) -> Root:
    return _read(waiting.root)


def waiting_path(directory: Path, last: Root) -> Path:
    return directory / f"root-{last.version + 1}.partial.json"


def _following(last: Root, new: dict[str, SigningKey], roots: RootSet | None, threshold: int | None) -> Root:
    """The next root, but for its expiry: roles that are not asked to change keep their keys."""
    if roots is None:
        role = last.roles.root if threshold is None else Role(last.roles.root.kids, threshold)
        key_files.must_be_threshold(role.threshold, len(role.kids))
    else:
        role = roots.role
    fresh = {name: Role([key.kid], 1) for name, key in new.items()}
    roles = Roles(role, fresh.get("bundle", last.roles.bundle), fresh.get("receipt", last.roles.receipt))
    jwks = last.keys | ({} if roots is None else roots.jwks) | {key.kid: key.jwk() for key in new.values()}
    used = {*roles.root.kids, *roles.bundle.kids, *roles.receipt.kids}
    keys = {kid: jwk for kid, jwk in jwks.items() if kid in used}
    return msgspec.structs.replace(last, version=last.version + 1, keys=keys, roles=roles)


def _settle(directory: Path, waiting: Waiting) -> Rotation:
    """The root in use if it has its signatures, and kept waiting if not."""
    root, lacking = root_of(waiting), missing(waiting)
    if lacking:
        path = directory / f"root-{root.version}.partial.json"
        key_files.write(path, msgspec.json.encode(waiting), 0o644)
        return Rotation(root.version, root.expires_at, path, lacking)
    keys_of.find_private(directory, "bundle", root.roles.bundle, root)
    keys_of.find_private(directory, "receipt", root.roles.receipt, root)
    path = directory / keys_of.root_name(root.version)
    key_files.write(path, bytes(waiting.root), 0o644)
    _remove_what_is_over(directory, root)
    return Rotation(root.version, root.expires_at, path, [])


def _remove_what_is_over(directory: Path, root: Root) -> None:
    over = [*directory.glob("*.new"), *directory.glob("root-*.partial.json")]
    for name, role in (("bundle", root.roles.bundle), ("receipt", root.roles.receipt)):
        found = keys_of.private_keys(directory, name)
        over += [path for path, key in found.items() if key.kid not in role.kids]
    for path in over:
        path.unlink(missing_ok=True)
    key_files.sync_directory(directory)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One rotation at a time. Raises `CallerError`: `NO_KEYS`, `BUSY`, `NOT_WRITABLE`."""
    keys_of.read_roots(directory)  # says where there is no server
    with key_files.writing(directory):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise CallerError(f"another command is changing the keys in {directory}", code="BUSY") from None
        finally:
            os.close(descriptor)


def _read(raw: msgspec.Raw) -> Root:
    return msgspec.json.decode(open_general(bytes(raw)), type=Root)


def _signing_keys(root: Root) -> dict[str, PublicKey]:
    return {kid: PublicKey.from_jwk(root.keys[kid]) for kid in root.roles.root.kids}


def _signatures(raw: msgspec.Raw) -> list[dict[str, str]]:
    whole: dict[str, Any] = msgspec.json.decode(raw)
    return list(whole["signatures"])


def _joined(waiting: Waiting, more: Sequence[dict[str, str]]) -> Waiting:
    """With these signatures too, each once: Ed25519 gives the same bytes every time."""
    there = _signatures(waiting.root)
    both = [*there, *(one for one in more if one not in there)]
    return msgspec.structs.replace(waiting, root=msgspec.Raw(join_signatures(open_general(waiting.root), both)))
