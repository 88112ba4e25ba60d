"""The real objects: a server, tills and what passed between them, made once a process, copied for each case."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest import mock

import msgspec

from tallystick_client import exporting, requests
from tallystick_client.actions import Answer, LineDown, Send, Woken
from tallystick_client.exchange import trusted_state
from tallystick_client.keeper import Enroller, Keeper
from tallystick_client.loops import run
from tallystick_client.trust import Trusted
from tallystick_client.voids import void
from tallystick_server import bundles, key_files, keys, operations, rotating
from tallystick_server.server import Server
from tallystick_server.settings import Settings
from tallystick_shared.errors import LineError, TallystickError
from tallystick_shared.journal import encode
from tallystick_shared.signing import SigningKey, Typ, b64u_decode
from tallystick_shared.wire import DeviceRequest
from tests.contract.chain import Clock
from tests.proof.fleet_chance import seeded
from tests.proof.fleet_server import FleetServer

URL = "http://tallystick.test"
DAY = 86_400
VOUCHERS: list[dict[str, object]] = [
    {"code": "OPEN", "discount": {"type": "percentage", "percent": 10}},
    {"code": "UNITS", "discount": {"type": "fixed", "amount_minor": 300}, "limits": {"total": 40}},
    {"code": "MONEY", "discount": {"type": "percentage", "percent": 50, "cap_minor": 400},
     "limits": {"budget_minor": 40_000}},
]  # fmt: skip
MORE: list[list[dict[str, object]]] = [
    [{"code": f"MORE{at}{one}", "discount": {"type": "percentage", "percent": 5}} for one in range(3)]
    for at in range(3)
]


@dataclass(frozen=True)
class Passed:
    """A request, and what was answered; nothing where the line was cut."""

    send: Send
    status: int
    body: bytes


@dataclass
class Wire:
    """The line between tills and the server. `cut`: paths whose requests are lost; `change`: answers on their way."""

    server: FleetServer
    passed: list[Passed] = field(default_factory=list)
    cut: str = "nothing is"
    change: Callable[[Send, int, bytes], tuple[int, bytes]] = lambda send, status, body: (status, body)

    def send(self, send: Send) -> tuple[Answer | LineDown, TallystickError | None]:
        if send.path.startswith(self.cut):
            self.passed.append(Passed(send, 0, b""))
            return LineDown("cut"), None
        status, headers, body = self.server.ask(send.method, send.path, send.headers, send.body)
        status, body = self.change(send, status, body)
        self.passed.append(Passed(send, status, body))
        return Answer(status, headers, body[: send.bytes_max + 1]), None

    def last(self, method: str, path: str) -> Passed:
        found = [one for one in self.passed if one.send.method == method and one.send.path.startswith(path)]
        return found[-1]


class Reopened(FleetServer):
    """A server's directory that is there already."""

    def __init__(self, data: Path, clock: Clock) -> None:
        self.settings = Settings(data=data, default_currency="EUR", backup="replicated")
        self.clock = clock
        self.operator_key = (data / "operator").read_text()
        self._loop = asyncio.new_event_loop()
        self._app = None
        self.start()

    @property
    def server(self) -> Server:
        """What its routes are given."""
        assert self._app is not None
        found: Server = self._app.state.server
        return found

    def rows(self) -> str:
        """Every row of every table, as one text."""
        with closing(sqlite3.connect(self.file)) as connection:
            return "\n".join(connection.iterdump())

    def put_back(self, database: Path) -> None:
        """Another database in the place of its own, which nothing has open."""
        self.run(self.server.database.close())
        for suffix in ("", "-wal", "-shm"):
            self.file.with_name(self.file.name + suffix).unlink(missing_ok=True)
        shutil.copy(database, self.file)


class World:
    """`work` holds `server` and a folder for each till."""

    def __init__(self, work: Path, clock: Clock, server: FleetServer) -> None:
        self.work, self.clock, self.server = work, clock, server
        self.wire = Wire(server)
        self.keepers: dict[str, Keeper] = {}

    def enrol(self, name: str, token: str) -> Keeper:
        enroller = Enroller(self.work / name, URL, token, name, self.clock)
        run(enroller.machine(), Woken(), enroller, self.wire)
        return self.open(name)

    def open(self, name: str) -> Keeper:
        if name not in self.keepers:
            self.keepers[name] = Keeper(self.work / name, self.clock)
        return self.keepers[name]

    def sync(self, name: str) -> None:
        keeper = self.open(name)
        self.clock.run(minutes=1)
        machine, start = keeper.sync_machine(False)
        run(machine, start, keeper, self.wire)

    def order(self, number: int) -> dict[str, object]:
        return {"id": f"order-{number}", "currency": "EUR", "customer": {"id": f"customer-{number}"},
                "lines": [{"id": "1", "product_id": "tea", "quantity": 2, "unit_price_minor": 500}]}  # fmt: skip

    def sell(self, name: str, number: int, *codes: str) -> str:
        """The id of the redemption. The till must take one of the codes at least."""
        self.clock.run(seconds=20)
        receipt = self.open(name).terminal.redeem(self.order(number), list(codes))
        if not receipt.redeemed:
            raise AssertionError(f"{name} does not sell any more: {receipt.result}")
        return receipt.id

    def sell_online(self, name: str, number: int, *codes: str) -> None:
        self.clock.run(seconds=20)
        keeper = self.open(name)
        run(keeper.online_machine(self.order(number), list(codes)), Woken(), keeper, self.wire)

    def publish(self, vouchers: list[dict[str, object]], scope: str = "main") -> None:
        file = self.work / "vouchers.ndjson"
        file.write_text("".join(json.dumps(one) + "\n" for one in vouchers))
        now = self.clock()
        self.server.run(operations.import_vouchers(self.server.settings, file, scope=scope, now=now))

    def close(self) -> None:
        for keeper in self.keepers.values():
            keeper.close()
        self.keepers.clear()
        self.server.close()


@dataclass
class Template:
    """What a case begins with. `passed`: all that went over the line until then; `pending`: what the server has not
    seen yet, by name; `at`: when it was made; `old_*`: keys that have left."""

    work: Path
    clock: Clock
    passed: list[Passed]
    pending: dict[str, bytes]
    roots: list[bytes]
    root_keys: list[SigningKey]
    old_root: SigningKey
    old_bundle: SigningKey
    old_receipt: SigningKey
    bundle: SigningKey
    receipt: SigningKey
    devices: dict[str, SigningKey]
    device_ids: dict[str, str]
    token: str
    trusted: Trusted
    stranger: SigningKey
    enrolled_pair: tuple[bytes, bytes]

    def all(self, method: str, path: str) -> list[Passed]:
        return [one for one in self.passed if one.send.method == method and one.send.path.startswith(path)]


@cache
def template(seed: int) -> Template:
    """Made once in a process, with the same chance every time."""
    base = Path("/dev/shm")
    work = Path(mkdtemp(prefix="tallystick-bundles-", dir=base if base.is_dir() else None))
    Finalize(None, shutil.rmtree, (work, True), exitpriority=1)  # `atexit` is not asked in worker processes
    with seeded(f"bundles {seed}"):
        return _make(work)


def _make(work: Path) -> Template:
    clock = Clock()
    world = World(work, clock, FleetServer(work / "server", clock, backup="replicated"))
    server = world.server
    directory = server.settings.keys
    old_root = SigningKey.from_bytes((directory / "root.jwk").read_bytes())
    first = _keys(server)
    world.publish(VOUCHERS)
    server.run(_add_scope(server, clock, "other"))
    world.publish(MORE[0], "other")
    for name in ("anna", "ben"):
        world.enrol(name, server.token(name))
    world.enrol("otto", server.token("otto", "other"))
    for name in ("anna", "ben", "otto"):
        world.sync(name)
        world.sync(name)
    for number in range(3):
        world.sell("anna", number, "OPEN", "UNITS")
    world.sell("ben", 9, "OPEN")
    world.sync("anna")
    # new keys of every kind, two of three for roots
    key_files.make_root_set(work / "roots", keys=3, threshold=2)
    change = rotating.Change(bundle=True, receipt=True, root=work / "roots", threshold=2)
    rotating.begin(server.settings, change, [directory / "root.jwk"], now=clock())
    root_keys = [SigningKey.from_bytes(one.read_bytes()) for one in sorted((work / "roots").glob("root-*.jwk"))]
    second = _keys(server)
    world.publish(MORE[1])
    for name in ("anna", "ben"):
        world.sync(name)
    clock.run(hours=1)
    world.publish(MORE[2])
    world.sync("anna")
    dora = server.token("dora")
    world.enrol("dora", dora)
    world.sync("dora")
    enrolled = world.wire.last("POST", "/v1/devices")
    world.sell_online("anna", 20, "MONEY")
    for number in range(30, 33):
        world.sell("anna", number, "OPEN", "UNITS")
    world.sync("anna")
    trusted = _trusted(world.open("anna"))
    token = server.token("carl")
    pending = _pending(world, token)
    # what the tills do not know yet
    signers = sorted((work / "roots").glob("root-*.jwk"))[:2]
    rotating.begin(server.settings, rotating.Change(), signers, now=clock())
    world.publish([{"code": "NEWEST", "discount": {"type": "percentage", "percent": 7}}])
    roots = [(directory / f"root-{number}.json").read_bytes() for number in (1, 2, 3)]
    devices = {name: keeper.key for name, keeper in world.keepers.items()}
    ids = {name: keeper.config.device for name, keeper in world.keepers.items()}
    passed = world.wire.passed
    world.close()
    shutil.rmtree(work / "carl", ignore_errors=True)
    return Template(
        work, clock, passed, pending, roots, root_keys, old_root, first[0], first[1], second[0], second[1], devices,
        ids, token, trusted, SigningKey.generate(), (enrolled.send.body, enrolled.body),
    )  # fmt: skip


async def _add_scope(server: FleetServer, clock: Clock, name: str) -> None:
    async with operations.opened(server.settings, clock()) as opened:
        await opened.database.write(lambda transaction: bundles.create_scope(transaction, name, now=clock()))


def _keys(server: FleetServer) -> tuple[SigningKey, SigningKey]:
    """The keys of the roles bundle and receipt, as they are now."""
    found = keys.load(server.settings)
    return found.bundle, found.receipt


def _trusted(keeper: Keeper) -> Trusted:
    with keeper.journal.read() as view:
        return trusted_state(view)


def _pending(world: World, token: str) -> dict[str, bytes]:
    """Good requests that have not been delivered: of the state of the server as a case begins with it."""
    anna, ben, wire, found = world.open("anna"), world.open("ben"), world.wire, {}
    for number in range(40, 44):
        voided = world.sell("anna", number, "OPEN", "UNITS")
    void(anna.terminal, voided, [], "came back")
    wire.cut = "/v1/sync"
    _cut_off(lambda: world.sync("anna"))
    found["sync"] = wire.passed[-1].send.body
    wire.cut = "/v1/devices"
    _cut_off(lambda: world.enrol("carl", token))
    found["enrolment"] = wire.passed[-1].send.body
    wire.cut = "/v1/redemptions"
    world.sell_online("dora", 60, "OPEN")
    found["online redemption"] = wire.passed[-1].send.body
    wire.cut = "nothing is"
    _, start = anna.sync_machine(False)
    assert start.proof is not None
    again = requests.enrol_again(anna.config.device, anna.key, start.proof, "nonce-of-once-more-1234")
    found["enrolment again"] = again.body
    path = "/v1/scopes/main/manifest"
    asked = DeviceRequest(anna.config.device, "GET", path, world.clock())
    found["manifest request"] = anna.key.sign(Typ.REQUEST, encode(asked))
    for number in range(70, 76):
        world.sell("ben", number, "OPEN")
    file = world.work / "ben.journal"
    with mock.patch.object(exporting, "BATCH_EVENTS_MAX", 3):
        exporting.export(ben, file, final=True)
    found["journal file"] = file.read_bytes()
    return found


def _cut_off(work: Callable[[], object]) -> None:
    try:
        work()
    except LineError:
        return
    raise AssertionError("the line was not cut")


def scene(work: Path, seed: int) -> tuple[Template, World]:
    """A copy of the template, open, an hour later."""
    made = template(seed)
    shutil.copytree(made.work, work, dirs_exist_ok=True)
    clock = Clock()
    clock.at, clock.turned = made.clock.at, made.clock.turned
    return made, World(work, clock, Reopened(work / "server", clock))


def payload(token: bytes) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(b64u_decode(token.split(b".")[1].decode()))
    return found
