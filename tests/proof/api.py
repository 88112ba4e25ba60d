"""The API row: schemathesis against the real server in this process, with every check it has and some of ours.

A case is one copy of a filled shop. First come requests that no schema describes (`api_hostile`); then those that are
generated as the document says, against it, and in the order that its operations depend on each other: by a device,
whose bodies are signed (`api_signing`), with the operator's key, and with a key that is none or nothing. `api_witness`
sees all of them. The document is the one of the sound product, whatever is broken on purpose.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import msgspec
import schemathesis
from litestar import Litestar
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.python import asgi

from benchmarks.audit import audit
from tallystick_server import bundles, devices, documents, operating, routes
from tallystick_server.app import create_app
from tallystick_server.settings import Settings
from tallystick_shared.errors import CallerError
from tallystick_shared.signing import peek
from tests.proof import api_hostile
from tests.proof.api_shop import database_of, filled
from tests.proof.api_signing import Signer
from tests.proof.api_witness import Witness
from tests.proof.tally import Tally
from tests.server.tiny_device import new_id

DEVICE_PATHS = r"^/v1/(devices|devices/again|sync|redemptions|scopes/\{scope_name\}/manifest|blobs/.*|roots/.*)$"
RULES_BETWEEN_FIELDS = {
    "POST /v1/vouchers": "rules between the fields of a voucher",
    "PUT /v1/vouchers/{voucher_id}": "rules between the fields of a voucher",
    "GET /v1/vouchers": "what folds to no code",
    "POST /v1/redemptions": "rules between the fields of an order, and what folds to no code",
    "POST /v1/devices": "whose key it is signed with",
    "POST /v1/devices/again": "two messages inside the message",
    "POST /v1/sync": "the chain over the events, and how many there may be",
}
"""Operations that refuse, with 422, what no JSON schema can keep out."""
REFUSALS = ["400", "401", "403", "404", "405", "409", "413", "422", "503"]
"""What is against the document is refused with one of these."""
NEVER_REFUSED = {
    "GET /health/live": "it takes nothing",
}
"""Operations that have no 4xx of their own."""


class Caller(NamedTuple):
    """Who asks, and how much of each operation.

    `in_order`: also in the order that operations depend on each other. `edges`: also each edge of what is allowed, for
    some of the operations. `only`: these paths.
    """

    name: str
    examples: int
    in_order: bool = False
    edges: bool = False
    only: str = ""


DEVICE = Caller("as a device", 12, only=DEVICE_PATHS)
OPERATOR = Caller("with the operator's key", 7, in_order=True, edges=True)
STRANGERS = (Caller("with a key that is none", 1), Caller("without a key", 1))
EDGES_A_CASE = 3
MANY_EDGES = {"POST /v1/vouchers": 61, "PUT /v1/vouchers/{voucher_id}": 62}
"""Operations with thousands of them: they have one case in 64, of this rest."""


@cache
def document() -> bytes:
    """The OpenAPI document of the sound product, as it is served."""
    app = create_app(Settings(data=filled().data, default_currency="USD"), clock=filled().devices[0].clock)
    return json.dumps(app.openapi_schema.to_schema()).encode()


def operations() -> list[str]:
    paths = msgspec.json.decode(document())["paths"]
    return sorted(f"{method.upper()} {path}" for path, item in paths.items() for method in item)


@contextmanager
def running(data: Path) -> Iterator[tuple[Litestar, Witness]]:
    """The server of this folder, in this process."""
    app = create_app(Settings(data=data, default_currency="USD"), clock=filled().devices[0].clock)
    witness = Witness(app, database_of(data))
    try:
        yield app, witness
    finally:
        asgi.shutdown_lifespans()
        witness.close()


def prove(seed: int, case: int, work: Path) -> Tally:
    return _prove(seed, case, work, [DEVICE, OPERATOR, STRANGERS[case % 2]])


def _prove(seed: int, case: int, work: Path, callers: Sequence[Caller]) -> Tally:
    tally, data = Tally(), work / "server"
    shutil.copytree(filled().data, data)
    with running(data) as (app, witness):
        api_hostile.send(app, witness, filled(), random.Random(f"{seed} {case} hostile"), tally, case)
        for caller in callers:
            _ask(witness, caller, seed, case, tally)
        _sum_up(witness, tally, case)
    report = asyncio.run(audit(f"sqlite+aiosqlite:///{database_of(data)}", []))
    tally.doubled += report.doubled
    for sentence in report.broken:
        tally.fail(case, sentence)
    return tally


def _sum_up(witness: Witness, tally: Tally, case: int) -> None:
    for answer, wrong in witness.wrong:
        tally.fail(case, f"{answer.method} {answer.path[:200]!r}: {wrong}: {answer.body[:300]!r}")
    tally.units += witness.requests
    known = {*operations()}
    for (operation, status), count in witness.seen.items():
        tally.see(f"{status // 100}xx", count)
        if operation in known:
            tally.see(f"{operation} {status // 100}xx", count)


def _ask(witness: Witness, caller: Caller, seed: int, case: int, tally: Tally) -> None:
    chance = random.Random(f"{seed} {case} {caller.name}")
    schema = schemathesis.openapi.from_dict(msgspec.json.decode(document()), config=_config(caller, seed, case))
    schema.app, schema.location = witness, "/schema/openapi.json"
    witness.signer = Signer(filled(), chance, witness.spoiled, signs_all=caller.name == DEVICE.name)
    before, told = witness.requests, set[tuple[str, str | None]]()
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            tally.fail(case, f"{caller.name}: schemathesis could not go on: {event}")
        if isinstance(event, events.ScenarioFinished):
            for checked in event.recorder.checks.values():
                for one in checked:
                    if one.failure_info is None or (one.name, one.failure_info.failure.operation) in told:
                        continue
                    told.add((one.name, one.failure_info.failure.operation))
                    tally.fail(case, _told(caller, one.name, one.failure_info))
    tally.fault(caller.name, witness.requests - before)


def _told(caller: Caller, check: str, info: Any) -> str:
    what = " ".join(f"{info.failure.operation}: {info.failure.title}: {info.failure.message}".split())
    return f"{caller.name}, {check}: {what[:500]}: {info.code_sample[:600]}"


def _config(caller: Caller, seed: int, case: int) -> SchemathesisConfig:
    headers = {
        OPERATOR.name: {"Authorization": f"Bearer {filled().operator_key}"},
        STRANGERS[0].name: {"Authorization": "Bearer tallyop_guess"},
    }.get(caller.name, {})
    accepted = ["2xx", "3xx", "401", "403", "404", "409", "413", "422", "5xx"]
    lenient = {"positive_data_acceptance": {"expected-statuses": accepted}}
    settings: list[dict[str, Any]] = [{"include-name": name, "checks": lenient} for name in RULES_BETWEEN_FIELDS]
    if caller.edges:
        others = [name for name in operations() if name not in _with_edges(case)]
        settings += [{"include-name": others, "phases": {"coverage": {"enabled": False}}}]
    if caller.only:
        settings += [{"exclude-path-regex": caller.only, "enabled": False}]
    return SchemathesisConfig.from_dict({
        "seed": seed * 1_000_003 + case,
        "headers": headers,
        "continue-on-failure": True,
        "checks": {
            "negative_data_rejection": {"expected-statuses": REFUSALS},
            # the witness looks at what else is 5xx: only a server that recovers may say so
            "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "503"]},
        },
        "generation": {"max-examples": caller.examples, "no-shrink": True, "database": "none"},
        "phases": {
            "examples": {"enabled": False},
            "coverage": {"enabled": caller.edges},
            "stateful": {"enabled": caller.in_order, "generation": {"max-examples": 3}, "max-steps": 8},
        },
        "operations": settings,
    })  # fmt: skip


def _with_edges(case: int) -> list[str]:
    """In turn, so that a dozen cases have had all of them."""
    often = [name for name in operations() if name not in MANY_EDGES]
    mine = [often[(case * EDGES_A_CASE + index) % len(often)] for index in range(EDGES_A_CASE)]
    return [*mine, *(name for name, rest in MANY_EDGES.items() if case % 64 == rest)]


def lacks(tally: Tally) -> list[str]:
    """Every operation of the document was called, answered, and refused something."""
    found = [
        f"no request {caller.name}" for caller in (DEVICE, OPERATOR, *STRANGERS) if not tally.faults.get(caller.name)
    ]
    found += [f"no hostile request of kind {kind}" for kind in api_hostile.KINDS if not tally.faults.get(kind)]
    for operation in operations():
        if not tally.seen.get(f"{operation} 2xx"):
            found.append(f"{operation} never succeeded")
        if not tally.seen.get(f"{operation} 4xx") and operation not in NEVER_REFUSED:
            found.append(f"{operation} never refused")
    return found


def _control(broken: Callable[[], AbstractContextManager[Any]], *callers: Caller) -> Callable[[int, Path], Tally]:
    def run(seed: int, work: Path) -> Tally:
        document()  # of the sound product
        with broken():
            return _prove(seed, 0, work, callers)

    return run


def _a_scope_may_be_named_anything() -> AbstractContextManager[Any]:
    lax = msgspec.defstruct("Lax", [("name", str)])
    return patch.dict(routes._DECODERS, {documents.NewScope: msgspec.json.Decoder(lax)})


def _devices_are_listed_to_everybody() -> AbstractContextManager[Any]:
    return patch.object(routes.list_devices, "guards", [])


def _bad_json_is_not_caught() -> AbstractContextManager[Any]:
    async def read(request: Any, kind: Any) -> Any:
        return routes._DECODERS[kind].decode(await request.body() or b"{}")

    return patch.object(routes, "_read", read)


def _no_signature_is_verified() -> AbstractContextManager[Any]:
    return patch.object(devices, "verify", lambda token, keys, typ, **_: peek(token, typ)[1])


def _a_refused_scope_leaves_a_campaign() -> AbstractContextManager[Any]:
    sound = bundles.create_scope

    async def half_done(transaction: Any, name: str, *, now: Any) -> None:
        try:
            await sound(transaction, name, now=now)
        except CallerError:
            await operating.create_campaign(transaction, new_id(), name, now=now)
            await transaction.commit()
            raise

    return patch.object(bundles, "create_scope", half_done)


ON_SCOPES = Caller(OPERATOR.name, 20, only="^/v1/scopes$")
ON_DEVICES = Caller(OPERATOR.name, 5, only="^/v1/devices$")
SIGNED = Caller(DEVICE.name, 30, only="^/v1/(sync|devices/again)$")
CONTROLS: dict[str, Callable[[int, Path], Tally]] = {
    "a body field that is not validated": _control(_a_scope_may_be_named_anything, ON_SCOPES),
    "a route without its guard": _control(_devices_are_listed_to_everybody, ON_DEVICES),
    "bad JSON that is not caught": _control(_bad_json_is_not_caught),
    "signatures of devices that are not verified": _control(_no_signature_is_verified, SIGNED),
    "a refusal that leaves something behind": _control(_a_refused_scope_leaves_a_campaign, ON_SCOPES),
}
