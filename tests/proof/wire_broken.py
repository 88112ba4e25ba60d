"""Products that are broken on purpose, each with the faults that must bring it to light: the controls of the wire."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import msgspec
import uuid_utils

from tallystick_client import line
from tallystick_client.actions import FallBack, Kept
from tallystick_client.keeper import Keeper
from tallystick_client.trust import Trusted
from tallystick_shared.signing import Typ, verify
from tallystick_shared.wire import Enrolled, RedeemAnswer, RedeemRequest, SyncAnswer
from tests.proof.wire_case import COUNTERS
from tests.proof.wire_tills import changed


class Broken(NamedTuple):
    """`server`: its break in `wire_serving`; `till`: one in this process, for a while."""

    pairs: list[tuple[str, str]]
    server: str = ""
    till: Callable[[], AbstractContextManager[None]] = nullcontext


def _any_answer() -> AbstractContextManager[None]:
    """A till that believes every answer that is signed, whoever asked for it: rule 28 is left out."""

    def reader(typ: Typ, kind: type[Any]) -> Callable[..., Any]:
        def read(self: Trusted, raw: bytes, **_: Any) -> Any:
            return msgspec.json.decode(verify(raw, self.role_keys(self.root.roles.receipt), typ), type=kind)

        return read

    return changed(
        Trusted,
        answer=reader(Typ.ANSWER, SyncAnswer),
        enrolled=reader(Typ.ENROLLED, Enrolled),
        redeemed=reader(Typ.REDEEMED, RedeemAnswer),
    )


def _new_id() -> AbstractContextManager[None]:
    """A till that falls back to an offline redemption under an id of its own."""

    def fall_back(self: Keeper, change: FallBack) -> Kept:
        with self.journal.read() as view:
            raw = view.run("SELECT request FROM attempts WHERE id = ?", (change.id,)).fetchone()[0]
        request = msgspec.json.decode(raw, type=RedeemRequest)
        other = str(uuid_utils.uuid7())
        return Kept(self.terminal.redeem(bytes(request.order), request.codes, redemption_id=other))

    return changed(Keeper, _fall_back=fall_back)


def _with(**arguments: Any) -> Callable[[], AbstractContextManager[None]]:
    real = line._arguments
    return lambda: changed(line, _arguments=lambda *given: real(*given) | arguments)


def _used_again() -> AbstractContextManager[None]:
    """A till that sends its next request over the connection that brought the last answer."""
    import httpx2

    return _with(limits=httpx2.Limits(keepalive_expiry=600))()


def _all(call: str, *names: str) -> list[tuple[str, str]]:
    """One round for each of these faults, met by all tills at this call."""
    return [(call, name) for name in names for _ in range(COUNTERS)]


TAKES = {
    "a server that takes a repeated sync for news": Broken(
        _all("sync", "closed after the commit"), server="sync that takes a repeat for news"
    ),
    "a server that forgets the ids of online redemptions": Broken(
        _all("online", "reset after the commit"), server="online redemption that forgets its id"
    ),
    "a till that takes any signed answer for its own": Broken(
        _all("enrol", "100 Continue first", "another till's answer instead"), till=_any_answer
    ),
    "a till that falls back offline under a new id": Broken(_all("online", "reset after the commit"), till=_new_id),
    "a till that uses its connections again": Broken(
        _all("online", "a stray refusal after the answer"), till=_used_again
    ),
    "a till that follows redirects": Broken(
        _all("sync", "a redirect", "a redirect"), till=_with(follow_redirects=True)
    ),
}
"""By what is broken."""
