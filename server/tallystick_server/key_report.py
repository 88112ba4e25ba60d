"""What there is of keys and roots on this machine: the answer to `tallystick-server keys show`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import msgspec

from tallystick_server import keys as keys_of
from tallystick_server import rotating
from tallystick_server.settings import Settings
from tallystick_shared.bundle import Role, Root


class RoleView(msgspec.Struct, frozen=True):
    """The keys of a role, the signatures it takes, and which of its private keys are in the directory: kid to file."""

    kids: list[str]
    threshold: int
    private: dict[str, str]


class WaitingView(msgspec.Struct, frozen=True):
    """A root that waits for signatures; `missing` says which, in words."""

    version: int
    expires_at: datetime
    file: str
    missing: list[str]


class KeysView(msgspec.Struct, frozen=True):
    """`days_left` until the root expires, below 0 once it has. `notes` says what an operator should know or do."""

    directory: str
    server_id: str
    root_version: int
    root_sha256: str
    expires_at: datetime
    days_left: int
    roles: dict[str, RoleView]
    waiting: WaitingView | None
    notes: list[str]


def report(settings: Settings, *, now: datetime) -> KeysView:
    """Raises `CallerError` (`NO_KEYS`; `BAD_ROOT` for a waiting root that is damaged)."""
    keys = keys_of.load(settings)
    root = keys.root
    waiting = _waiting(settings.keys, root)
    notes = keys.notes(now) + _loose_notes(settings.keys, root)
    if waiting is not None:
        notes.append(f"root {waiting.version} waits in {waiting.file}: it has {' and '.join(waiting.missing)}")
    return KeysView(
        directory=str(settings.keys),
        server_id=root.server_id,
        root_version=root.version,
        root_sha256=keys.root_sha256,
        expires_at=root.expires_at,
        days_left=keys_of.days_left(root, now),
        roles={
            name: _role(settings.keys, name, role)
            for name, role in (
                ("root", root.roles.root),
                ("bundle", root.roles.bundle),
                ("receipt", root.roles.receipt),
            )
        },
        waiting=waiting,
        notes=notes,
    )


def _role(directory: Path, name: str, role: Role) -> RoleView:
    found = keys_of.private_keys(directory, name)
    private = {key.kid: path.name for path, key in found.items() if key.kid in role.kids}
    return RoleView(role.kids, role.threshold, private)


def _waiting(directory: Path, root: Root) -> WaitingView | None:
    path = rotating.waiting_path(directory, root)
    if not path.exists():
        return None
    waiting = rotating.read_waiting(path)
    following = rotating.root_of(waiting)
    return WaitingView(following.version, following.expires_at, str(path), rotating.missing(waiting))


def _loose_notes(directory: Path, root: Root) -> list[str]:
    """Private keys that others can read, and root keys that are of no use any more."""
    notes = []
    for path in sorted(directory.glob("*.jwk")):
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            notes.append(f"{path} has mode {mode:04o}, which lets others at a private key: it should be 0600")
    for path, key in keys_of.private_keys(directory, "root").items():
        if key.kid not in root.roles.root.kids:
            notes.append(f"{path} is no root key of root {root.version}: delete it")
    return notes
