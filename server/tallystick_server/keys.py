"""The server's own keys and roots: files in `keys/` (protocol.md, section 3).

    root-N.json           the signed roots, 0644, all of which stay served
    bundle.jwk            private keys of the roles bundle and receipt, 0600; after a change bundle-KID8.jwk. The newest
    receipt.jwk           root says which are in use, a file's name does not
    root.jwk              private root key of an `init` without root keys of its own, 0600: belongs offline
    root-N.partial.json   a root that waits for signatures (`rotating`): no device is told of it
    NAME.new              what a power cut left of a file

A root is written after the private keys it names, and they are removed only after the root that does without them: at
any moment the newest root finds its keys.
"""

from __future__ import annotations

import os
import re
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from tallystick_server import key_files
from tallystick_server.logs import LOG
from tallystick_server.settings import DAY_S, Settings
from tallystick_shared.bundle import Role, Roles, Root
from tallystick_shared.errors import CallerError, Untrusted
from tallystick_shared.journal import encode
from tallystick_shared.signing import SigningKey, Typ, join_signatures, open_general, sha256_hex

WARN_DAYS = 90
"""A root that expires within so many days is to be renewed."""
_ROOT_NAME = re.compile(r"root-([1-9][0-9]*)\.json")


class Keys:
    """The keys in use and the roots that vouch for them. Raises `CallerError` (`NO_KEYS`) where one is not there."""

    root: Root
    bundle: SigningKey
    receipt: SigningKey
    roots: dict[int, bytes]
    root_version: int
    root_sha256: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._complaint = ""
        self._load()

    def _load(self) -> None:
        roots = read_roots(self.directory)
        root = read_root(roots[max(roots)])
        bundle = find_private(self.directory, "bundle", root.roles.bundle, root)
        receipt = find_private(self.directory, "receipt", root.roles.receipt, root)
        # all or nothing: what is half there is not used
        self.roots, self.root, self.bundle, self.receipt = roots, root, bundle, receipt
        self.root_version = root.version
        self.root_sha256 = sha256_hex(roots[root.version])

    def refresh(self) -> None:
        """Take a newer root into use, if there is one; if not, this costs one look into the directory.

        Keys never change within one step of the event loop: it is called at the start of a request.
        """
        if not os.path.exists(self.directory / root_name(self.root_version + 1)):
            return
        try:
            self._load()
        except CallerError as error:
            # what this process has is still good for devices; said once, not with each request
            if error.message != self._complaint:
                self._complaint = error.message
                LOG.error("a new root is there, but not its keys", error=error.message)
        else:
            LOG.info("new root in use", root_version=self.root_version)

    def must_not_be_over(self, now: datetime) -> None:
        """Raises `CallerError` (`ROOT_EXPIRED`)."""
        if now >= self.root.expires_at:
            raise CallerError(f"{self._over()}: renew it with tallystick-server keys rotate", code="ROOT_EXPIRED")

    def expiry_note(self, now: datetime) -> str | None:
        """What an operator must know of the newest root's end, or None while that is far off."""
        if now >= self.root.expires_at:
            return f"{self._over()} and devices believe nothing any more: renew it with tallystick-server keys rotate"
        days = days_left(self.root, now)
        if days < WARN_DAYS:
            day = self.root.expires_at.date().isoformat()
            return f"root {self.root_version} expires on {day}, in {days} days: renew it with keys rotate"
        return None

    def notes(self, now: datetime) -> list[str]:
        """What an operator should know or do about root and root keys."""
        note = self.expiry_note(now)
        notes = [] if note is None else [note]
        for path in sorted(self.directory.glob("root*.jwk")):
            notes.append(f"a root key is still on this machine: move {path} offline")
        return notes

    def _over(self) -> str:
        return f"root {self.root_version} expired on {self.root.expires_at.date().isoformat()}"


def create(settings: Settings, server_id: str, *, root_keys: Path | None = None, now: datetime) -> None:
    """New keys and root 1 in `keys/`, all or nothing.

    `root_keys`: a set of root keys, which stays where it is; without one a root key is made and kept in `keys/`.
    Raises `CallerError`: `EXISTS` where there are some already, `NOT_WRITABLE`, `TOO_FEW_SIGNATURES` where the set
    lacks private keys, and those of `key_files.read_root_set`.
    """
    bundle, receipt = SigningKey.generate(), SigningKey.generate()
    files = {"bundle.jwk": bundle.to_bytes(), "receipt.jwk": receipt.to_bytes()}
    if root_keys is None:
        root = SigningKey.generate()
        files["root.jwk"] = root.to_bytes()
        roots = key_files.RootSet(Role([root.kid], 1), {root.kid: root.jwk()}, [root])
    else:
        roots = key_files.read_root_set(root_keys)
    if len(roots.private) < roots.role.threshold:
        raise CallerError(
            f"{root_keys} holds {len(roots.private)} private keys, but root 1 needs signatures of "
            f"{roots.role.threshold}",
            code="TOO_FEW_SIGNATURES",
        )
    document = Root(
        version=1,
        server_id=server_id,
        expires_at=now + timedelta(seconds=settings.root_ttl_s),
        keys=roots.jwks | {key.kid: key.jwk() for key in (bundle, receipt)},
        roles=Roles(root=roots.role, bundle=Role([bundle.kid], 1), receipt=Role([receipt.kid], 1)),
    )
    payload = encode(document)
    signed = join_signatures(payload, [key.sign_flat(Typ.ROOT, payload) for key in roots.private])
    _fill(settings, {**files, root_name(1): signed})


def _fill(settings: Settings, files: dict[str, bytes]) -> None:
    """The directory of the keys with these files, or none: what an earlier crash left is made anew."""
    making = settings.data / f"{settings.keys.name}.new"
    with key_files.writing(settings.data):
        if settings.keys.exists():
            raise CallerError(f"{settings.keys} is there already: it is not overwritten", code="EXISTS")
        if settings.data.exists() and not settings.data.is_dir():
            raise CallerError(f"{settings.data} is a file, not a directory", code="NOT_WRITABLE")
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if making.exists():
            shutil.rmtree(making)
        making.mkdir(mode=0o700)
        for name, raw in files.items():
            key_files.write(making / name, raw, 0o600 if name.endswith(".jwk") else 0o644)
        making.rename(settings.keys)
        key_files.sync_directory(settings.data)


def load(settings: Settings) -> Keys:
    """Raises `CallerError` (`NO_KEYS`) where a file is missing or is not what it should be."""
    return Keys(settings.keys)


def read_roots(directory: Path) -> dict[int, bytes]:
    """Every signed root by its version, at least one. Raises `CallerError` (`NO_KEYS`)."""
    try:
        names = (_ROOT_NAME.fullmatch(path.name) for path in sorted(directory.iterdir()))
        roots = {int(name[1]): (directory / name[0]).read_bytes() for name in names if name}
    except (FileNotFoundError, NotADirectoryError):
        roots = {}
    except OSError as error:
        raise CallerError(f"the keys in {directory} cannot be read: {error}", code="NO_KEYS") from error
    if not roots:
        raise CallerError(f"there are no keys in {directory}: run tallystick-server init first", code="NO_KEYS")
    return roots


def read_root(raw: bytes) -> Root:
    """A root of this server's own directory, verified before it came there. Raises `CallerError` (`NO_KEYS`)."""
    try:
        return msgspec.json.decode(open_general(raw), type=Root)
    except (Untrusted, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CallerError(f"a root in the directory of the keys cannot be read: {error}", code="NO_KEYS") from error


def root_name(version: int) -> str:
    return f"root-{version}.json"


def days_left(root: Root, now: datetime) -> int:
    """Whole days until the root expires; below 0 once it has."""
    return int((root.expires_at - now).total_seconds() // DAY_S)


def private_keys(directory: Path, name: str) -> dict[Path, SigningKey]:
    """The private keys of the role `name` in the directory, in use or not. Raises `CallerError` (`NO_KEYS`)."""
    found: dict[Path, SigningKey] = {}
    for path in sorted(directory.glob(f"{name}*.jwk")):
        try:
            found[path] = SigningKey.from_bytes(path.read_bytes())
        except FileNotFoundError:
            continue  # a rotation under way has just removed it
        except (OSError, ValueError) as error:
            raise CallerError(f"the key {path} cannot be read: {error}", code="NO_KEYS") from error
    return found


def find_private(directory: Path, name: str, role: Role, root: Root) -> SigningKey:
    """The private key with which the role `name` of `root` signs. Raises `CallerError` (`NO_KEYS`)."""
    for key in private_keys(directory, name).values():
        if key.kid in role.kids:
            return key
    message = f"root {root.version} names a {name} key whose private key is not in {directory}"
    raise CallerError(message, code="NO_KEYS")
