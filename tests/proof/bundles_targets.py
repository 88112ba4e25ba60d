"""What believes the objects: for each the function that the machine or the route calls, with the state it has then."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import msgspec

from tallystick_client import blobs
from tallystick_client.exchange import demand_our_journal
from tallystick_client.trust import Trusted
from tallystick_server import devices, enrolling_again, journals, redemptions
from tallystick_server import sync as syncing
from tallystick_shared.bundle import Manifest
from tallystick_shared.errors import CallerError, Untrusted
from tallystick_shared.journal_file import LINE_BYTES_MAX, read_batch, read_header
from tallystick_shared.signing import b64u_decode, open_general, sha256_hex
from tallystick_shared.wire import EnrolmentToken, SyncAnswer, SyncHead
from tests.proof.bundles_world import Passed, Reopened, Template, World

JOSE = {"content-type": "application/jose"}
SYNC_TYPE = {"content-type": "application/vnd.tallystick.sync"}


@dataclass(frozen=True)
class Target:
    """`raw` is good: `accept` takes it. Anything else it must refuse, by raising `Untrusted` or `CallerError`.

    `same`: whether a mutation says nothing else by the reading that docs/reference/protocol.md gives of what is not
    signed. `jws`: the part that is a compact JWS, signed by the key whose x is `public_x`.
    """

    name: str
    raw: bytes
    accept: Callable[[bytes], object]
    same: Callable[[bytes], bool] = lambda raw: False
    jws: bytes = b""
    public_x: str = ""
    around: Callable[[bytes], bytes] = field(default=lambda jws: jws)
    """The whole message around such a JWS."""


# ---- what a till takes


def of_tills(made: Template, world: World) -> list[Target]:
    trusted, now = made.trusted, world.clock()
    older = made.all("GET", "/v1/scopes/main/manifest")
    newest, manifest = older[-1], _manifest(older[-1])
    floors = trusted.with_floor(manifest)
    snapshot, delta = _blob(made, manifest.snapshot.sha256), _blob(made, manifest.deltas[-1].sha256)
    bundle_x, receipt_x = made.bundle.jwk()["x"], made.receipt.jwk()["x"]
    enrolled = made.all("POST", "/v1/devices")[3]
    online = made.all("POST", "/v1/redemptions")[0]
    return [
        Target("first root", made.roots[0], lambda raw: Trusted.pin(raw, version=1, sha256=sha256_hex(made.roots[0]))),
        Target("next root", made.roots[2], trusted.next_root, same_root(made.roots[2])),
        Target(
            "root with new keys", made.roots[1],
            Trusted.pin(made.roots[0], version=1, sha256=sha256_hex(made.roots[0])).next_root, same_root(made.roots[1]),
        ),
        Target("manifest", newest.body, lambda raw: floors.manifest(raw, "main", now=now), jws=newest.body,
               public_x=bundle_x),
        Target("snapshot", snapshot, lambda raw: blobs.snapshot(raw, manifest.snapshot)),
        Target("delta", delta, lambda raw: blobs.delta(raw, manifest.deltas[-1])),
        answer_target(made, world),
        Target(
            "enrolment's answer", enrolled.body, jws=enrolled.body, public_x=receipt_x,
            accept=lambda raw: trusted.enrolled(raw, request_sha256=sha256_hex(enrolled.send.body), now=now),
        ),
        Target(
            "online answer", online.body, jws=online.body, public_x=receipt_x,
            accept=lambda raw: trusted.redeemed(
                raw, device=made.device_ids["anna"], request_sha256=sha256_hex(online.send.body), now=now
            ),
        ),
        Target("enrolment token", made.token.encode(), token_of(made), lambda raw: raw.strip() == made.token.encode()),
        Target("journal file", made.pending["journal file"], read_file),
    ]  # fmt: skip


def answer_target(made: Template, world: World) -> Target:
    """Rules 26 to 31, as the machine and then the journal's transaction ask them."""
    trusted, now = made.trusted, world.clock()
    syncs = [one for one in made.all("POST", "/v1/sync") if one.status == 200]
    (passed,) = [one for one in syncs[-1:] if one.body]
    asked = head_of(passed.send.body)
    keeper = world.open("anna")
    before = msgspec.json.decode(_payload(passed.body), type=SyncAnswer).ledger_mark

    def accept(raw: bytes) -> SyncAnswer:
        answer = trusted.answer(
            raw, device=asked.device, request_sha256=sha256_hex(passed.send.body), epoch=asked.server_epoch,
            mark=before, head=asked.head, now=now,
        )  # fmt: skip
        with keeper.journal.read() as view:
            demand_our_journal(view, answer.acknowledged, answer.durable)
        return answer

    return Target("sync answer", passed.body, accept, jws=passed.body, public_x=made.receipt.jwk()["x"])


def head_of(body: bytes) -> SyncHead:
    return msgspec.json.decode(_payload(body.partition(b"\n")[0]), type=SyncHead)


def _payload(token: bytes) -> bytes:
    return b64u_decode(token.split(b".")[1].decode())


def _manifest(passed: Passed) -> Manifest:
    return msgspec.json.decode(_payload(passed.body), type=Manifest)


def _blob(made: Template, sha256: str) -> bytes:
    return made.all("GET", f"/v1/blobs/{sha256}")[-1].body


def same_root(original: bytes) -> Callable[[bytes], bool]:
    """The outer object of a root is not signed: the signed payload is the very same, and nothing else counts."""
    return lambda raw: open_general(raw) == open_general(original)


def token_of(made: Template) -> Callable[[bytes], object]:
    """A till reads the token and pins the root; the server knows the secret. All three must be the operator's."""
    secret = made.token.split(".")[1]

    def accept(raw: bytes) -> EnrolmentToken:
        try:
            token = EnrolmentToken.parse(raw.decode())
        except ValueError as error:  # `InvalidInput` to whoever calls `Till.enroll`
            raise CallerError(str(error), code="INVALID_FIELD") from None
        root = made.roots[token.root_version - 1] if 0 < token.root_version <= len(made.roots) else b""
        if not root:
            raise CallerError("there is no such root", code="NOT_FOUND")
        Trusted.pin(root, version=token.root_version, sha256=token.root_sha256)
        if token.secret != secret:  # the server looks for the digest of these very characters
            raise CallerError("unknown", code="BAD_TOKEN")
        return token

    return accept


def read_file(raw: bytes) -> int:
    """As `journals` reads it; whole files go through it in `bundles_server`."""
    reading = BytesIO(raw)
    header = read_header(reading.readline(LINE_BYTES_MAX))
    number = 0
    while line := reading.readline(LINE_BYTES_MAX):
        read_batch(line)
        number += 1
    if number != header.batches:
        raise Untrusted("another number of batches", code="DAMAGED_FILE")
    return number


# ---- what a server takes


def of_server(made: Template, world: World) -> list[Target]:
    server = world.server
    assert isinstance(server, Reopened)
    anna_x = made.devices["anna"].jwk()["x"]
    body, again = made.pending["sync"], made.pending["enrolment again"]
    line, _, packed = body.partition(b"\n")
    enrolment, online = made.pending["enrolment"], made.pending["online redemption"]
    enrol_x = str(json.loads(_payload(enrolment))["jwk"]["x"])
    request = made.pending["manifest request"]
    path = "/v1/scopes/main/manifest"
    return [
        Target("sync", body, lambda raw: server.run(syncing.sync(server.server, raw)), jws=line, public_x=anna_x,
               around=lambda jws: jws + b"\n" + packed),
        Target("enrolment", enrolment, lambda raw: server.run(devices.enrol(server.server, raw)), jws=enrolment,
               public_x=enrol_x),
        Target("enrolment again", again, lambda raw: server.run(enrolling_again.enrol_again(server.server, raw)),
               jws=again, public_x=anna_x),
        Target("online redemption", online,
               lambda raw: server.run(redemptions.redeem_by_device(server.server, raw)), jws=online,
               public_x=made.devices["dora"].jwk()["x"]),
        Target("manifest request", request, jws=request, public_x=anna_x, accept=lambda raw: server.run(
            devices.active_request(server.server, "Tallystick " + raw.decode("latin-1"), "GET", path)),
            same=lambda raw: raw.strip() == request),
    ]  # fmt: skip


def over_http(world: World, target: Target) -> Target:
    """The same through the application: a 4xx with problem details, or it was taken."""
    asked = {
        "sync": ("POST", "/v1/sync", SYNC_TYPE),
        "enrolment": ("POST", "/v1/devices", JOSE),
        "enrolment again": ("POST", "/v1/devices/again", JOSE),
        "online redemption": ("POST", "/v1/redemptions", JOSE),
    }[target.name]

    def accept(raw: bytes) -> bytes:
        status, headers, body = world.server.ask(asked[0], asked[1], asked[2], raw)
        if 200 <= status < 300:
            return body
        problem = json.loads(body)
        told = headers["content-type"], problem["status"], bool(problem["code"]), bool(problem["detail"])
        if told != ("application/problem+json", status, True, True) or not 400 <= status < 500:
            raise AssertionError(f"answered {status}: {problem}")
        raise Untrusted(problem["detail"], code=problem["code"])

    return replace(target, accept=accept)


def whole_file(world: World, work: Path) -> Callable[[bytes], object]:
    """A journal as a file, imported as an operator does it."""
    file = work / "changed.journal"
    settings = world.server.settings

    def accept(raw: bytes) -> object:
        file.write_bytes(raw)
        (done,) = world.server.run(journals.import_journals(settings, [file], now=world.clock()))
        if done.refused:
            sentence, code = re.fullmatch(r"(.*) \(([A-Z_]+)\)", done.refused, re.DOTALL).groups()  # type: ignore[union-attr]
            raise Untrusted(sentence, code=code)
        return done

    return accept
