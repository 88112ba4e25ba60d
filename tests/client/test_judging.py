"""`tallystick vectors judge` and `vectors protocol`: this client on its own vectors, and what it says of bad inputs."""

from __future__ import annotations

import base64
import json
import sqlite3
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from tallystick_client import exchange, requests
from tallystick_client.errors import InvalidInput, Untrusted
from tallystick_client.journal import Writing
from tallystick_client.judging import CHECKS, judge
from tallystick_client.timekeeping import read_clock
from tallystick_shared.bundle import Root
from tallystick_shared.journal import Position
from tallystick_shared.signing import open_general, sha256_hex
from tests.client.conftest import ONCE, TEN, Shop, order, sell
from tests.client.fake_clock import FakeClock
from tests.client.fake_server import FakeServer
from tests.client.test_cli import COMMAND, run

Doc = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "tests" / "vectors" / "protocol"
FILES = {path.stem: json.loads(path.read_text("utf-8")) for path in PUBLISHED.glob("*.json")}


def vector(id_: str) -> Doc:
    return next(one for file in FILES.values() for one in file["vectors"] if one["id"] == id_)


def judged(document: Doc) -> Doc:
    found: Doc = json.loads(judge(json.dumps(document).encode()))
    return found


def test_the_command_passes_its_own_vectors() -> None:
    """`vectors judge` behind `vectors protocol`, all checks in one process."""
    done = run("vectors", "protocol", "--from", str(PUBLISHED), "--", COMMAND, "vectors", "judge", "-")
    count = sum(len(file["vectors"]) for file in FILES.values())
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{count} vectors: {count} agree, 0 differ\n", "")


def test_only_some_checks_are_asked_for() -> None:
    """`--check`, for a client that has only these; another one gets one sentence."""
    count = len(FILES["token"]["vectors"]) + len(FILES["chain"]["vectors"])
    asked = ["vectors", "protocol", "--from", str(PUBLISHED), "--check", "token", "--check", "chain"]
    done = run(*asked, "--", COMMAND, "vectors", "judge", "-")
    assert done.stdout == f"{count} vectors: {count} agree, 0 differ\n"
    for wrong, code in (
        (["--check", "tokens"], "INVALID_FIELD"),
        (["--check", "token", "--only", "chain-three"], "NO_VECTORS"),
    ):
        refused = run("vectors", "protocol", "--from", str(PUBLISHED), *wrong, "--", COMMAND, "vectors", "judge", "-")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.endswith(f" ({code})\n")


def test_a_client_that_believes_too_much_is_found() -> None:
    """One that accepts whatever is signed: every difference has its vector, and the exit code is 1."""
    program = (
        "import json, subprocess, sys\n"
        f"right = subprocess.Popen([{COMMAND!r}, 'vectors', 'judge', '-'], stdin=-1, stdout=-1)\n"
        "for line in sys.stdin.buffer:\n"
        "    right.stdin.write(line); right.stdin.flush(); said = json.loads(right.stdout.readline())\n"
        "    print(json.dumps({'accept': {}} if said.get('refuse') == 'ROLLBACK' else said), flush=True)\n"
    )
    asked = ["vectors", "protocol", "--from", str(PUBLISHED), "--check", "manifest", "--json"]
    done = run(*asked, "--", sys.executable, "-c", program)
    differ = [one["id"] for one in map(json.loads, done.stdout.splitlines()) if not one["agrees"]]
    assert (done.returncode, differ) == (1, ["manifest-older-version", "manifest-older-epoch"])


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda given: given.pop("check"), ""),
        (lambda given: given.update(check="manifests"), "check"),
        (lambda given: given.pop("message"), ""),
        (lambda given: given.update(message="no base64!"), "message"),
        (lambda given: given.update(message=[{"base64": "YQ==", "times": 0}]), "message[0].times"),
        (lambda given: given.update(more=1), ""),
        (lambda given: given["root"].update(version="1"), "root.version"),
        (lambda given: given.update(now="yesterday"), "now"),
    ],
)
def test_a_bad_input_is_one_sentence(change: Callable[[Doc], object], path: str) -> None:
    """What is wrong with the input is no verdict: it names the field."""
    given = json.loads(json.dumps(vector("manifest-good")["input"]))
    change(given)
    with pytest.raises(InvalidInput) as caught:
        judged(given)
    assert caught.value.path == path, str(caught.value)


def test_what_is_no_json_is_one_sentence() -> None:
    """On its own and, for programs, in its place among good lines."""
    for raw in (b"{", b"[1]", b"\xff", b"[" * 100_000):
        with pytest.raises(InvalidInput):
            judge(raw)
    good = json.dumps(vector("chain-start")["input"])
    done = run("vectors", "judge", "-", given=f'{good}\n{{"check": "chain"}}\n{good}\n')
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [sorted(answer) for answer in answers] == [["accept"], ["code", "error"], ["accept"]]
    assert done.returncode == 2


def test_parts_that_repeat_are_the_bytes() -> None:
    """A message in parts is judged like the same one whole."""
    given = vector("envelope-good")["input"]
    parts = [{"base64": given["message"]}]
    assert judged({**given, "message": parts}) == judged(given)
    assert judged({**given, "message": [*parts, {"base64": "IA==", "times": 70_000}]}) == judged(given)
    assert judged({**given, "message": [*parts, *parts]}) == {"refuse": "UNREADABLE"}


def test_a_missing_blob_is_no_verdict() -> None:
    """The input has to hold what this client would ask for."""
    given = {**vector("bundle-delta")["input"], "blobs": {}}
    with pytest.raises(InvalidInput, match="is needed for this manifest"):
        judged(given)


def test_what_a_till_sends_is_accepted(shop: Shop) -> None:
    """The sync of a real till with three redemptions in its journal, as the bytes it would send."""
    shop.server.publish(TEN, ONCE)
    till = shop.enroll()
    sell(till, 3)
    keeper = till._keeper
    with keeper.journal.read() as view:
        reading = exchange.reading(view)
    clock = read_clock(shop.clock)
    body = requests.sync_body(keeper.config.device, keeper.key, reading, clock, "0123456789abcdef")
    told = judged({"check": "sync", "message": _b64(body), "key": keeper.key.jwk()})
    assert told["accept"]["events"] == reading.head.seq - reading.after.seq >= 3
    assert judged({"check": "sync", "message": _b64(body[:-1]), "key": keeper.key.jwk()}) == {"refuse": "WRONG_DIGEST"}


def test_what_a_till_takes_is_accepted(server: FakeServer, clock: FakeClock) -> None:
    """The root and the manifest of the server that tills of other tests sell from; after its days it is over."""
    server.publish(TEN, ONCE)
    root = json.loads(msgspec.json.encode(msgspec.json.decode(open_general(server.roots[0]), type=Root)))
    now = f"{clock.now():%Y-%m-%dT%H:%M:%SZ}"
    pinned = {"message": _b64(server.roots[0]), "version": 1, "sha256": sha256_hex(server.roots[0])}
    assert judged({"check": "first_root", **pinned})["accept"]["version"] == 1
    raw = server.manifest()
    asked = {"check": "manifest", "message": _b64(raw), "root": root, "scope": server.scope, "floor": None, "now": now}
    assert judged(asked)["accept"]["version"] == server.version
    later = f"{clock.now() + timedelta(days=30):%Y-%m-%dT%H:%M:%SZ}"
    assert judged({**asked, "now": later}) == {"refuse": "EXPIRED"}


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def test_a_bomb_is_not_unpacked() -> None:
    """Neither behind a sync nor as a blob: what is too much is cut off."""
    bomb = zstandard.compress(b"\n" * 5_000_000)
    assert len(bomb) < 1000
    given = vector("sync-good")["input"]
    assert judged({**given, "message": [{"base64": given["message"]}, {"base64": _b64(bomb)}]}) == {
        "refuse": "WRONG_DIGEST"
    }
    assert judged(vector("bundle-bomb")["input"]) == {"refuse": "TOO_LARGE"}


def test_every_check_has_its_file() -> None:
    """And its vectors are of that check alone."""
    assert set(FILES) == set(CHECKS)
    for name, file in FILES.items():
        assert file["call"] == name
        assert {one["input"]["check"] for one in file["vectors"]} == {name}


def test_the_journals_own_check_agrees(shop: Shop) -> None:
    """Of every answer that comes so far, `exchange` says of its places what the judge says."""
    state = shop.enroll(sync=False)._keeper.journal.state()
    said = []
    for one in FILES["answer"]["vectors"]:
        if one["rule"] != "31" or one["id"] in ("answer-above-the-head", "answer-durable-above-acknowledged"):
            continue
        held = one["input"]["journal"]
        connection = sqlite3.connect(":memory:")
        connection.execute("CREATE TABLE events (seq INTEGER, hash TEXT)")
        later = list(enumerate(held["hashes"], held["base"]))[1:]
        connection.executemany("INSERT INTO events VALUES (?, ?)", later)
        view = Writing(connection, msgspec.structs.replace(state, base_seq=held["base"], base_hash=held["hashes"][0]))
        payload = json.loads(base64.urlsafe_b64decode(base64.b64decode(one["input"]["message"]).split(b".")[1] + b"=="))
        refused = None
        try:
            exchange.demand_our_journal(view, Position(**payload["acknowledged"]), Position(**payload["durable"]))
        except Untrusted as error:
            refused = error.code
        connection.close()
        if one["id"] != "answer-forgets":  # that is asked by `accept`, of what was acknowledged before
            assert refused == one["output"].get("refuse"), one["id"]
            said.append(refused)
    assert len(said) >= 8
    assert {*said} == {None, "NOT_OUR_JOURNAL"}


@pytest.mark.parametrize("mistake", ["two leases for one voucher", "one number twice"])
def test_a_mistake_of_the_server_stops_no_sync(shop: Shop, mistake: str) -> None:
    """What no journal could hold is left alone; the first lease is taken and used, and later syncs go on."""
    shop.server.publish(TEN, ONCE)
    till = shop.enroll()
    first = shop.server.grant(shop.server.device, "ONCE", units=2)
    if mistake == "one number twice":
        other = msgspec.structs.replace(first, id="01978000-0000-7000-8000-00000000ffff")
        shop.server.device.leases[other.id] = other
        shop.server.device.fresh.append(other)
    else:
        shop.server.grant(shop.server.device, "ONCE", units=2)
    assert till.sync().leases_granted == 1
    assert [lease.units for lease in till.status().leases] == [2]
    assert till.redeem(order(), ["ONCE"]).redeemed
    assert till.sync().acknowledged == 1
