"""The server's own keys and roots: files in `keys/`, 0600 (protocol.md, section 3).

`root.jwk` is needed only to make a new root and belongs offline; `bundle.jwk` and `receipt.jwk` are used all the time.
`root-N.json` are the signed roots, all of which stay served.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path

from tallystick_server.settings import Settings
from tallystick_shared.bundle import Role, Roles, Root
from tallystick_shared.errors import CallerError
from tallystick_shared.journal import encode
from tallystick_shared.signing import SigningKey, Typ, join_signatures, sha256_hex


class Keys:
    """The keys in use and the roots that vouch for them, as loaded from disk."""

    def __init__(self, bundle: SigningKey, receipt: SigningKey, roots: dict[int, bytes]) -> None:
        self.bundle, self.receipt, self.roots = bundle, receipt, roots
        self.root_version = max(roots)
        self.root_sha256 = sha256_hex(roots[self.root_version])


def create(settings: Settings, server_id: str, *, now: datetime) -> None:
    """New keys and root 1 in `keys/`. Raises `CallerError` where there are some already or it cannot be written."""
    root, bundle, receipt = (SigningKey.generate() for _ in range(3))
    document = Root(
        version=1,
        server_id=server_id,
        expires_at=now + timedelta(seconds=settings.root_ttl_s),
        keys={key.kid: key.jwk() for key in (root, bundle, receipt)},
        roles=Roles(root=Role([root.kid], 1), bundle=Role([bundle.kid], 1), receipt=Role([receipt.kid], 1)),
    )
    payload = encode(document)
    signed = join_signatures(payload, [root.sign_flat(Typ.ROOT, payload)])
    try:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.keys.mkdir(mode=0o700)
        for name, key in (("root", root), ("bundle", bundle), ("receipt", receipt)):
            _write(settings.keys / f"{name}.jwk", key.to_bytes(), 0o600)
        _write(settings.keys / "root-1.json", signed, 0o644)
    except FileExistsError as error:
        if not settings.data.is_dir():
            raise CallerError(f"{settings.data} is a file, not a directory", code="NOT_WRITABLE") from error
        raise CallerError(f"{settings.keys} is there already: it is not overwritten", code="EXISTS") from error
    except OSError as error:
        raise CallerError(f"{settings.data} cannot be written to: {error.strerror}", code="NOT_WRITABLE") from error


def load(settings: Settings) -> Keys:
    """Raises `CallerError` (`NO_KEYS`) where a file is missing or is not what it should be."""
    try:
        roots = {int(path.stem.partition("-")[2]): path.read_bytes() for path in settings.keys.glob("root-*.json")}
        bundle = SigningKey.from_bytes((settings.keys / "bundle.jwk").read_bytes())
        receipt = SigningKey.from_bytes((settings.keys / "receipt.jwk").read_bytes())
        return Keys(bundle, receipt, roots)
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"there are no keys in {settings.keys}: run tallystick-server init first"
        raise CallerError(message, code="NO_KEYS") from error
    except (OSError, ValueError) as error:
        raise CallerError(f"the keys in {settings.keys} cannot be read: {error}", code="NO_KEYS") from error


def _write(path: Path, raw: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
