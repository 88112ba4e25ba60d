"""What a till believes: one refused case for each rule of `trust`, by exactly that rule."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import pytest

from tallystick_client.trust import Trusted
from tallystick_shared.bundle import BlobRef, Caps, DeltaRef, Manifest, Role, Roles, Root
from tallystick_shared.errors import Untrusted
from tallystick_shared.journal import Position, encode
from tallystick_shared.signing import PublicKey, SigningKey, Typ, b64u, join_signatures, open_general, peek, sha256_hex
from tallystick_shared.wire import DeviceState, EventOutcome, Lease, RedeemAnswer, SyncAnswer
from tests.client.conftest import ONCE, TEN
from tests.client.fake_clock import START, FakeClock
from tests.client.fake_server import FakeServer

LATER = START + timedelta(hours=1)
HASH = "0" * 64


@pytest.fixture
def server() -> FakeServer:
    server = FakeServer(FakeClock())
    server.publish(TEN, ONCE)
    return server


@pytest.fixture
def trusted(server: FakeServer) -> Trusted:
    return Trusted.pin(server.roots[0], version=1, sha256=sha256_hex(server.roots[0]))


def check_refused(code: str, call: Callable[[], object]) -> None:
    with pytest.raises(Untrusted) as caught:
        call()
    assert caught.value.code == code, str(caught.value)


def roles(server: FakeServer, **changed: Role) -> Roles:
    root = msgspec.json.decode(open_general(server.roots[0]), type=Root)
    return msgspec.structs.replace(root.roles, **changed)


# ---- root


def test_rule_1_a_root_is_small(server: FakeServer, trusted: Trusted) -> None:
    """More than `ROOT_BYTES_MAX` bytes are not even hashed."""
    check_refused("TOO_LARGE", lambda: Trusted.pin(b" " * (64 * 1024 + 1), version=1, sha256=HASH))
    check_refused("TOO_LARGE", lambda: trusted.next_root(b" " * (64 * 1024 + 1)))


def test_rule_2_the_first_root_is_the_pinned_one(server: FakeServer) -> None:
    """A good root of another digest is refused."""
    check_refused("ROOT_PIN", lambda: Trusted.pin(server.roots[0], version=1, sha256=HASH))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b'{"payload":"e30","signatures":[]}',
        b"\xff",
        b'{"p\xe1yload":"e30","signatures":[]}',  # one bit flipped: `make prove-bundles ARGS="--seed 1 --case 0"`
        join_signatures(b'{"x":' + b"[" * 9_000 + b"]" * 9_000 + b"}", []),
        b'{"payload":' + b"[" * 30_000,
    ],
)
def test_rule_3_a_root_reads_as_one(trusted: Trusted, raw: bytes) -> None:
    """What is no root is refused before any signature is looked at; also no UTF-8, and what is nested too deeply."""
    check_refused("MALFORMED", lambda: trusted.next_root(raw))


@pytest.mark.parametrize("version", [1, 3])
def test_rule_4_root_versions_go_up_by_exactly_one(server: FakeServer, trusted: Trusted, version: int) -> None:
    """The same version again and a skipped one are refused; so is a pinned root of another version."""
    check_refused("ROOT_VERSION", lambda: trusted.next_root(server.make_root(version)))
    raw = server.make_root(version + 1)
    check_refused("ROOT_VERSION", lambda: Trusted.pin(raw, version=1, sha256=sha256_hex(raw)))


def test_rule_5_the_next_root_is_of_the_same_server(server: FakeServer, trusted: Trusted) -> None:
    """A root of another server, though well signed, is refused."""
    other = "00000000-0000-4000-8000-000000000000"
    check_refused("ROOT_SERVER", lambda: trusted.next_root(server.make_root(2, server_id=other)))


@pytest.mark.parametrize("case", ["stranger", "missing", "unmeetable", "twice", "several"])
def test_rule_6_keys_and_roles_fit(server: FakeServer, trusted: Trusted, case: str) -> None:
    """Wrong thumbprints, roles without their keys, thresholds that cannot be met, several signatures where one fits."""
    kid, other = server.root_key.kid, SigningKey.generate()
    root = msgspec.json.decode(open_general(server.roots[0]), type=Root)
    cases: dict[str, dict[str, Any]] = {
        "stranger": {"keys": {**root.keys, kid: other.jwk()}},
        "missing": {"roles": roles(server, bundle=Role([other.kid], 1))},
        "unmeetable": {"roles": roles(server, root=Role([kid], 2))},
        "twice": {"roles": roles(server, root=Role([kid, kid], 2))},
        "several": {"roles": roles(server, receipt=Role([kid, server.receipt_key.kid], 2))},
    }
    check_refused("ROOT_KEYS", lambda: trusted.next_root(server.make_root(2, **cases[case])))


@pytest.mark.parametrize("y", [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18, 2**255 - 1, 2**255 + 1])
def test_a_key_for_which_anybody_can_sign_is_none(y: int) -> None:
    """A point of small order, or one that is misspelled (prove-bundles, seed 1, case 0: such a till was enrolled)."""
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64u(y.to_bytes(32, "little"))}
    check_refused("BAD_KEY", lambda: PublicKey.from_jwk(jwk))


def test_rule_7_the_last_root_must_have_signed(server: FakeServer, trusted: Trusted) -> None:
    """A root signed by its own new keys alone is refused."""
    new = SigningKey.generate()
    check_refused("ROOT_THRESHOLD", lambda: trusted.next_root(server.make_root(2, root_keys=[new], signers=[new])))


def test_rule_8_a_root_must_have_signed_itself(server: FakeServer, trusted: Trusted) -> None:
    """A root signed by the old keys alone is refused, and so is a first root below its own threshold."""
    new = SigningKey.generate()
    raw = server.make_root(2, root_keys=[new], signers=[server.root_key])
    check_refused("ROOT_THRESHOLD", lambda: trusted.next_root(raw))
    both = server.make_root(1, root_keys=[server.root_key, new], threshold=2, signers=[new, new])
    check_refused("ROOT_THRESHOLD", lambda: Trusted.pin(both, version=1, sha256=sha256_hex(both)))
    good = server.make_root(2, root_keys=[new], signers=[server.root_key, new])
    assert trusted.next_root(good).root.version == 2


def test_rule_9_only_the_last_root_may_not_be_over(server: FakeServer, trusted: Trusted) -> None:
    """A root that is over is passed through on the way to the next, and believed for nothing."""
    over = trusted.next_root(server.make_root(2, expires_at=START))
    check_refused("ROOT_EXPIRED", lambda: over.manifest(server.manifest(), "main", now=LATER))
    check_refused("ROOT_EXPIRED", lambda: over.enrolled(b"", request_sha256=HASH, now=LATER))
    check_refused("ROOT_EXPIRED", lambda: answered(over, server, now=LATER))
    assert over.next_root(server.make_root(3)).manifest(server.manifest(), "main", now=LATER)


def test_new_bundle_keys_reset_the_floors(server: FakeServer, trusted: Trusted) -> None:
    """A root with other bundle keys forgets the floors; one with the same keys does not."""
    held = trusted.with_floor(trusted.manifest(server.manifest(version=7), "main", now=LATER))
    assert held.next_root(server.make_root(2)).floors == held.floors
    server.bundle_key = SigningKey.generate()
    assert held.next_root(server.make_root(2)).floors == {}


# ---- manifest


def test_rule_10_a_manifest_is_signed_by_the_bundle_role(server: FakeServer, trusted: Trusted) -> None:
    """Size, form, typ, key and signature, each by its own code; a good key of another role is a stranger."""
    raw = server.manifest()
    payload = encode({})
    check_refused("TOO_LARGE", lambda: trusted.manifest(b"x" * (64 * 1024 + 1), "main", now=LATER))
    check_refused("MALFORMED", lambda: trusted.manifest(b"x", "main", now=LATER))
    check_refused(
        "WRONG_TYPE", lambda: trusted.manifest(server.bundle_key.sign(Typ.ANSWER, payload), "main", now=LATER)
    )
    check_refused(
        "UNKNOWN_KEY", lambda: trusted.manifest(server.receipt_key.sign(Typ.MANIFEST, payload), "main", now=LATER)
    )
    other = server.manifest(version=99).split(b".")
    forged = b".".join([raw.split(b".")[0], other[1], raw.split(b".")[2]])
    check_refused("BAD_SIGNATURE", lambda: trusted.manifest(forged, "main", now=LATER))


def test_rule_11_a_manifest_reads_as_one(server: FakeServer, trusted: Trusted) -> None:
    """Signed, and still not a manifest."""
    check_refused("MALFORMED", lambda: trusted.manifest(server.bundle_key.sign(Typ.MANIFEST, b"{}"), "main", now=LATER))


@pytest.mark.parametrize("offline_s", [10**9 + 1, 2**63, 10**40])
def test_rule_11_no_cap_is_beyond_reckoning(server: FakeServer, trusted: Trusted, offline_s: int) -> None:
    """A till that took it would find an OverflowError at each sale (prove-bundles, seed 1, case 0)."""
    raw = server.manifest(caps=Caps(offline_s=offline_s))
    check_refused("MALFORMED", lambda: trusted.manifest(raw, "main", now=LATER))
    assert trusted.manifest(server.manifest(caps=Caps(offline_s=10**9)), "main", now=LATER)


@pytest.mark.parametrize("at", [datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(9001, 1, 1, tzinfo=UTC)])
def test_rules_11_and_27_the_years_are_from_1970_to_9000(server: FakeServer, trusted: Trusted, at: datetime) -> None:
    """The first and the last of them are good, in a manifest and in an answer; one second earlier or later is not."""
    first, last = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert trusted.manifest(server.manifest(issued_at=first, expires_at=last), "main", now=LATER)
    assert answered(trusted, server, server_time=first)
    assert answered(trusted, server, server_time=last)
    check_refused("MALFORMED", lambda: trusted.manifest(server.manifest(issued_at=at), "main", now=None))
    check_refused("MALFORMED", lambda: trusted.manifest(server.manifest(expires_at=at), "main", now=None))
    check_refused("MALFORMED", lambda: answered(trusted, server, server_time=at))


def test_what_is_ignored_is_utf_8_too(server: FakeServer, trusted: Trusted) -> None:
    """Of a member that this release does not know (prove-bundles, seed 1, case 0); what is nested deeply is none."""
    _, good = peek(server.manifest(), Typ.MANIFEST)
    for value in (b'"\xc3\x28"', b"[" * 9_000 + b"]" * 9_000):
        raw = server.bundle_key.sign(Typ.MANIFEST, good[:-1] + b',"x":' + value + b"}")
        check_refused("MALFORMED", lambda raw=raw: trusted.manifest(raw, "main", now=LATER))  # type: ignore[misc]


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59"])
def test_rules_11_and_27_times_can_be_reckoned_with(server: FakeServer, trusted: Trusted, at: str) -> None:
    """A till that took one would stand still with an OverflowError, and no later answer could mend it."""
    when = datetime.fromisoformat(at)
    lease = Lease(server.id, 1, server.id, 1, None, when)
    check_refused("MALFORMED", lambda: answered(trusted, server, server_time=when))
    check_refused("MALFORMED", lambda: answered(trusted, server, leases=[lease]))
    for field in ("issued_at", "expires_at"):
        raw = server.manifest(**{field: when})
        check_refused("MALFORMED", lambda raw=raw: trusted.manifest(raw, "main", now=LATER))  # type: ignore[misc]


def test_rule_12_deltas_lead_from_the_snapshot_to_the_version(server: FakeServer, trusted: Trusted) -> None:
    """A gap, an end before its beginning, or a snapshot that no delta leads on from: not a manifest."""

    def of(version: int) -> BlobRef:
        return msgspec.structs.replace(server.snapshot_ref(), version=version)

    def delta_of(version: int) -> DeltaRef:
        return DeltaRef(version, HASH, 1)

    good = [(5, [], 5), (5, [delta_of(1)], 5), (3, [delta_of(1), delta_of(3)], 5), (2, [delta_of(2)], 5)]
    for snapshot_version, deltas, version in good:
        raw = server.manifest(snapshot=of(snapshot_version), deltas=deltas, version=version)
        assert trusted.manifest(raw, "main", now=LATER).version == version
    bad = [
        (4, [], 5),
        (6, [], 5),
        (6, [delta_of(1)], 5),
        (1, [delta_of(2)], 5),
        (5, [delta_of(5)], 5),
        (5, [delta_of(3), delta_of(3)], 5),
        (5, [delta_of(3), delta_of(2)], 5),
    ]
    for snapshot_version, deltas, version in bad:
        raw = server.manifest(snapshot=of(snapshot_version), deltas=deltas, version=version)
        check_refused("MALFORMED", partial(trusted.manifest, raw, "main", now=LATER))


def test_rule_13_a_manifest_is_of_our_scope(server: FakeServer, trusted: Trusted) -> None:
    """One of another scope is refused."""
    check_refused("WRONG_SCOPE", lambda: trusted.manifest(server.manifest(scope="other"), "main", now=LATER))


def test_rule_14_a_manifest_is_not_below_the_floor(server: FakeServer, trusted: Trusted) -> None:
    """Neither an older version nor an older epoch, whatever its version."""
    held = trusted.with_floor(trusted.manifest(server.manifest(version=7, server_epoch=2), "main", now=LATER))
    check_refused("ROLLBACK", lambda: held.manifest(server.manifest(version=6, server_epoch=2), "main", now=LATER))
    check_refused("ROLLBACK", lambda: held.manifest(server.manifest(version=9, server_epoch=1), "main", now=LATER))
    assert held.manifest(server.manifest(version=1, server_epoch=3), "main", now=LATER)


def test_rule_15_an_equal_version_has_an_equal_digest(server: FakeServer, trusted: Trusted) -> None:
    """Signed again with the same state is good; with another state it is not."""
    held = trusted.with_floor(trusted.manifest(server.manifest(), "main", now=LATER))
    server.clock.run(hours=1)
    assert held.manifest(server.manifest(), "main", now=LATER)
    check_refused("SAME_VERSION_DIFFERS", lambda: held.manifest(server.manifest(state_digest=HASH), "main", now=LATER))


def test_rule_16_a_manifest_has_not_expired(server: FakeServer, trusted: Trusted) -> None:
    """One that is over is refused when it comes, and not when it is in force."""
    raw = server.manifest(expires_at=LATER)
    check_refused("EXPIRED", lambda: trusted.manifest(raw, "main", now=LATER))
    assert trusted.manifest(raw, "main", now=None)


# ---- answers


def answered(
    trusted: Trusted, server: FakeServer, *, now: Any = START, raw: bytes | None = None, **changed: Any
) -> object:
    answer = SyncAnswer(
        device=server.id,
        request_sha256=HASH,
        state=DeviceState.ACTIVE,
        acknowledged=Position(3, HASH),
        durable=Position(0, HASH),
        exceptions=[],
        leases=[],
        leases_full=False,
        leases_digest=HASH,
        recall=[],
        server_epoch=2,
        ledger_mark=10,
        server_time=START,
        root_version=1,
        scope="main",
        manifest_version=1,
        retry_after_s=0,
    )
    token = raw or server.receipt_key.sign(Typ.ANSWER, encode(msgspec.structs.replace(answer, **changed)))
    head = Position(3, HASH)
    return trusted.answer(token, device=server.id, request_sha256=HASH, epoch=2, mark=10, head=head, now=now)


def test_rule_26_an_answer_is_signed_by_the_receipt_role(server: FakeServer, trusted: Trusted) -> None:
    """The bundle key signs no answers; what the till itself signs is none either."""
    check_refused("UNKNOWN_KEY", lambda: answered(trusted, server, raw=server.bundle_key.sign(Typ.ANSWER, b"{}")))
    check_refused("WRONG_TYPE", lambda: answered(trusted, server, raw=server.receipt_key.sign(Typ.SYNC, b"{}")))
    assert answered(trusted, server)


def test_rule_27_an_answer_reads_as_one(server: FakeServer, trusted: Trusted) -> None:
    """Signed, and still not an answer, to a sync or to an enrolment."""
    check_refused("MALFORMED", lambda: answered(trusted, server, raw=server.receipt_key.sign(Typ.ANSWER, b"{}")))
    raw = server.receipt_key.sign(Typ.ENROLLED, b"{}")
    check_refused("MALFORMED", lambda: trusted.enrolled(raw, request_sha256=HASH, now=START))


@pytest.mark.parametrize("changed", [{"device": "0" * 8 + "-0000-4000-8000-" + "0" * 12}, {"request_sha256": "1" * 64}])
def test_rule_28_an_answer_is_to_the_request_in_flight(
    server: FakeServer, trusted: Trusted, changed: dict[str, Any]
) -> None:
    """A good answer to another device or another request is refused."""
    check_refused("NOT_OUR_REQUEST", lambda: answered(trusted, server, **changed))


def test_rule_29_an_epoch_that_is_over_says_nothing(server: FakeServer, trusted: Trusted) -> None:
    """An answer of a lower epoch is refused, however high its mark."""
    check_refused("OLD_EPOCH", lambda: answered(trusted, server, server_epoch=1, ledger_mark=99))


def test_rule_30_the_ledger_mark_does_not_go_down_within_an_epoch(server: FakeServer, trusted: Trusted) -> None:
    """A lower mark is an undeclared restore; in a new epoch it is a declared one."""
    check_refused("OLD_LEDGER_MARK", lambda: answered(trusted, server, ledger_mark=9))
    assert answered(trusted, server, ledger_mark=1, server_epoch=3)


@pytest.mark.parametrize(
    "changed", [{"acknowledged": Position(4, HASH)}, {"acknowledged": Position(1, HASH), "durable": Position(2, HASH)}]
)
def test_rule_31_only_what_was_written_is_acknowledged(
    server: FakeServer, trusted: Trusted, changed: dict[str, Any]
) -> None:
    """Neither past the head of the journal, nor durable past acknowledged."""
    check_refused("NOT_OUR_JOURNAL", lambda: answered(trusted, server, **changed))


def test_rule_28_holds_for_an_online_redemption_too(server: FakeServer, trusted: Trusted) -> None:
    """A signed answer to another request, or to another till, is not to this one."""
    said = RedeemAnswer(server.id, START, True, msgspec.Raw(b"{}"), device=server.id, request_sha256=HASH)

    def redeemed(**changed: Any) -> RedeemAnswer:
        raw = server.receipt_key.sign(Typ.REDEEMED, encode(msgspec.structs.replace(said, **changed)))
        return trusted.redeemed(raw, device=server.id, request_sha256=HASH, now=START)

    assert redeemed() == said
    for changed in ({"device": None}, {"device": START.isoformat()}, {"request_sha256": "1" * 64}):
        check_refused("MALFORMED" if changed.get("device") else "NOT_OUR_REQUEST", partial(redeemed, **changed))


def test_what_a_newer_server_adds_is_ignored(server: FakeServer, trusted: Trusted) -> None:
    """A field or a flag that this release does not know is no reason to refuse an answer or a manifest."""
    for key, typ, known in ((server.bundle_key, Typ.MANIFEST, server.manifest()),):
        document = msgspec.json.decode(peek(known, typ)[1])
        document["from_the_future"] = {"deep": [1]}
        document["snapshot"]["colour"] = "red"
        assert trusted.manifest(key.sign(typ, encode(document)), "main", now=LATER)
    flagged = EventOutcome(1, server.id, "weighed", ["TOO_HEAVY"])
    assert answered(trusted, server, exceptions=[flagged])


def test_the_held_manifest_is_a_value(server: FakeServer, trusted: Trusted) -> None:
    """Verifying changes nothing: the state before is as it was."""
    before = dict(trusted.floors)
    manifest = trusted.manifest(server.manifest(), "main", now=LATER)
    assert isinstance(manifest, Manifest)
    assert trusted.with_floor(manifest).floors.keys() == {"main"}
    assert trusted.floors == before
