"""Everything that is random in client and server, from one seed; and a database driver without threads.

What a world does is then the same for ever. Only this process is changed, and only while `seeded` is on.
"""

from __future__ import annotations

import logging
import random
import secrets
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import aiosqlite.core
import msgspec
import uuid_utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tallystick_shared.signing import SigningKey, b64u


class Killed(BaseException):
    """The server's process ends here, in the midst of a request."""


class Fuse:
    """Ends the server, or its disk, at a statement that is chosen before a request."""

    def __init__(self) -> None:
        self.statements = 0
        self._blow_at: int | None = None
        self._kill = False

    def set(self, statements: int, *, kill: bool) -> None:
        """At the `statements`-th from now: `kill` the server, or else fail that statement."""
        self._blow_at, self._kill = self.statements + statements, kill

    def clear(self) -> bool:
        """Whether it had blown."""
        blown, self._blow_at = self._blow_at == -1, None
        return blown

    def burn(self) -> None:
        self.statements += 1
        if self._blow_at is not None and self.statements == self._blow_at:
            self._blow_at = -1
            if self._kill:
                raise Killed
            raise sqlite3.OperationalError("disk I/O error")


FUSE = Fuse()


class _InPlace:
    """Instead of the queue to a connection's thread: what is put in is done here, at once."""

    def put_nowait(self, asked: tuple[Any, Callable[[], Any]]) -> None:
        future, work = asked
        name = getattr(getattr(work, "func", None), "__name__", "")
        try:
            if name in ("execute", "executemany"):
                FUSE.burn()
            result = work()
        except Exception as error:  # noqa: BLE001 - the driver hands on whatever it was, and so does this
            if future is not None:
                future.set_exception(error)
        else:
            if future is not None:
                future.set_result(result)


class _NoThread:
    def __init__(self, *_: Any, **__: Any) -> None:
        self.daemon = True

    def start(self) -> None:
        """Nothing waits in a thread."""


class Seeded:
    """The stand-ins for the sources of chance."""

    def __init__(self, seed: str) -> None:
        self.begin(seed)

    def begin(self, seed: str) -> None:
        """From here all is drawn as after any other `begin` with this seed."""
        self._chance = random.Random(seed)

    def token_hex(self, size: int | None = None) -> str:
        return self._chance.randbytes(size or 32).hex()

    def token_urlsafe(self, size: int | None = None) -> str:
        return b64u(self._chance.randbytes(size or 32))

    def token_bytes(self, size: int | None = None) -> bytes:
        return self._chance.randbytes(size or 32)

    def randbelow(self, bound: int) -> int:
        return self._chance.randrange(bound)

    def uuid7(self, nanoseconds: int) -> uuid.UUID:
        whole = (nanoseconds // 10**6) << 80 | 7 << 76 | self._chance.getrandbits(12) << 64 | 2 << 62
        return uuid.UUID(int=whole | self._chance.getrandbits(62))

    def uuid4(self) -> uuid.UUID:
        return uuid.UUID(int=self._chance.getrandbits(128), version=4)

    def key(self) -> SigningKey:
        private = self._chance.randbytes(32)
        public = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
        jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64u(public), "d": b64u(private)}
        return SigningKey.from_bytes(msgspec.json.encode(jwk))


@contextmanager
def seeded(seed: str) -> Iterator[Seeded]:
    chance = Seeded(seed)
    with ExitStack() as stack:
        for where, name, stand_in in (
            (secrets, "token_hex", chance.token_hex),
            (secrets, "token_urlsafe", chance.token_urlsafe),
            (secrets, "token_bytes", chance.token_bytes),
            (secrets, "randbelow", chance.randbelow),
            (uuid_utils, "uuid7", chance.uuid7),
            (uuid, "uuid4", chance.uuid4),
            (SigningKey, "generate", chance.key),
            (aiosqlite.core, "SimpleQueue", _InPlace),
            (aiosqlite.core, "Thread", _NoThread),
            (logging.getLogger("tallystick_server"), "disabled", True),  # what it would say of a fault is known here
        ):
            stack.enter_context(mock.patch.object(where, name, stand_in))
        yield chance
