"""What a till says of what it does not believe: a whole sentence for each refusal, with the code that programs read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import msgspec
import pytest
import zstandard

from tallystick_client.blobs import delta, demand_state, snapshot, summed, unpack
from tallystick_client.trust import Trusted
from tallystick_shared.bundle import BlobRef, DeltaRef, Role, Roles, drop_line, put_line
from tallystick_shared.errors import Untrusted
from tallystick_shared.journal import Position, encode
from tallystick_shared.signing import (
    COMPACT_BYTES_MAX,
    PublicKey,
    SigningKey,
    Typ,
    b64u,
    b64u_decode,
    count_signatures,
    peek,
    sha256_hex,
    verify,
)
from tallystick_shared.wire import Enrolled, RedeemAnswer
from tests.client.conftest import ONCE, TEN
from tests.client.fake_clock import START, FakeClock
from tests.client.fake_server import FakeServer
from tests.client.test_trust import HASH, LATER, answered, roles

OTHER = "00000000-0000-4000-8000-000000000000"
KEY = SigningKey.generate()
JWK = KEY.jwk()
GOOD = KEY.sign(Typ.REQUEST, b"{}")


class Scene:
    """A server and what a till believes of it."""

    def __init__(self) -> None:
        self.server = FakeServer(FakeClock())
        self.server.publish(TEN, ONCE)
        raw = self.server.roots[0]
        self.trusted = Trusted.pin(raw, version=1, sha256=sha256_hex(raw))

    def pin(self, raw: bytes) -> object:
        return Trusted.pin(raw, version=1, sha256=sha256_hex(raw))

    def root(self, version: int = 2, **changed: Any) -> object:
        return self.trusted.next_root(self.server.make_root(version, **changed))

    def manifest(self, **changed: Any) -> object:
        return self.trusted.manifest(self.server.manifest(**changed), "main", now=LATER)

    def held(self, **changed: Any) -> object:
        """After one of version 7."""
        floor = self.trusted.with_floor(self.trusted.vouching(self.server.manifest(version=7), "main"))
        return floor.manifest(self.server.manifest(**changed), "main", now=LATER)

    def answer(self, **changed: Any) -> object:
        return answered(self.trusted, self.server, **changed)

    def enrolled(self, **changed: Any) -> object:
        said = Enrolled(OTHER, self.server.id, "309", "main", HASH, 1, 1, 0, START)
        raw = self.server.receipt_key.sign(Typ.ENROLLED, encode(msgspec.structs.replace(said, **changed)))
        return self.trusted.enrolled(raw, request_sha256=HASH, now=START)

    def redeemed(self, **changed: Any) -> object:
        said = RedeemAnswer(OTHER, START, True, msgspec.Raw(b"{}"), device=OTHER, request_sha256=HASH)
        raw = self.server.receipt_key.sign(Typ.REDEEMED, encode(msgspec.structs.replace(said, **changed)))
        return self.trusted.redeemed(raw, device=OTHER, request_sha256=HASH, now=START)

    def nothing(self, typ: Typ) -> bytes:
        """`{}`, well signed."""
        return (self.server.bundle_key if typ is Typ.MANIFEST else self.server.receipt_key).sign(typ, b"{}")

    def snapshot(self, lines: bytes, *, vouchers: int = 2, **changed: Any) -> object:
        blob = zstandard.ZstdCompressor().compress(lines)
        ref = BlobRef(1, sha256_hex(blob), len(blob), vouchers)
        return snapshot(blob, msgspec.structs.replace(ref, **changed))

    def delta(self, lines: bytes, **changed: Any) -> object:
        blob = zstandard.ZstdCompressor().compress(lines)
        return delta(blob, msgspec.structs.replace(DeltaRef(1, sha256_hex(blob), len(blob)), **changed))

    @property
    def puts(self) -> list[bytes]:
        return [put_line(one) for one in self.server.vouchers.values()]

    def another(self) -> object:
        """A delta that gives the code of one voucher to another."""
        one, two = self.server.vouchers.values()
        held = summed({one.code: one, two.code: two})
        return held.sum_after({OTHER: msgspec.structs.replace(one, id=OTHER)})


YEARS = "cannot be read: it has a year that is not from 1970 to 9000"
FAR = START.replace(year=9001)
NOT_OURS = "the answer is not to the request in flight"
UNLED = "the manifest's deltas do not lead from its snapshot to its version"
JWK_FORM = "a key must be a JWK with kty OKP, crv Ed25519 and x, and nothing else"
JWK_X = "the key's x must be 32 bytes in base64url"


def named(header: bytes) -> bytes:
    return b".".join([b64u(header).encode(), *GOOD.split(b".")[1:]])


def opened(raw: bytes) -> object:
    return verify(raw, {KEY.kid: KEY}, Typ.REQUEST)


def key(**changed: str) -> object:
    return PublicKey.from_jwk({**JWK, **changed})


Said = tuple[str, str, Callable[[Scene], object]]

ROOTS: list[Said] = [
    ("TOO_LARGE", "the root has 65537 bytes, more than 65536", lambda on: on.pin(b" " * 65_537)),
    ("ROOT_PIN", "the root is not the one that the enrolment token names",
     lambda on: Trusted.pin(on.server.roots[0], version=1, sha256=HASH)),
    ("MALFORMED", "it is not a JWS in JSON serialisation", lambda on: on.trusted.next_root(b"{}")),
    ("ROOT_VERSION", "the root has version 2, not 1", lambda on: on.pin(on.server.make_root(2))),
    ("ROOT_VERSION", "the next root has version 4, not 2", lambda on: on.root(4)),
    ("ROOT_SERVER", "the next root is of another server", lambda on: on.root(server_id=OTHER)),
    ("ROOT_KEYS", "a key of the root does not bear its own thumbprint", lambda on: on.root(keys={"x": JWK})),
    ("ROOT_KEYS", "the root's role root cannot be met with its keys",
     lambda on: on.root(roles=roles(on.server, root=Role([KEY.kid], 1)))),
    ("ROOT_KEYS", "the root's role receipt cannot be met with its keys",
     lambda on: on.root(roles=roles(on.server, receipt=Role([KEY.kid], 1)))),
    ("ROOT_KEYS", "the root asks for several signatures of the role bundle",
     lambda on: on.root(roles=roles(on.server, bundle=Role([on.server.bundle_key.kid, on.server.root_key.kid], 2)))),
    ("ROOT_THRESHOLD", "the root has 0 of the 1 signatures that root 1 asks for",
     lambda on: on.root(root_keys=[KEY], signers=[KEY])),
    ("ROOT_THRESHOLD", "the root has 1 of the 2 signatures that root 2 asks for",
     lambda on: on.root(root_keys=[on.server.root_key, KEY], threshold=2, signers=[on.server.root_key])),
    ("ROOT_EXPIRED", "the server's root expired on 2027-11-23: the operator has to renew it",
     lambda on: on.trusted.manifest(b"", "main", now=START + timedelta(days=365))),
]  # fmt: skip

MANIFESTS: list[Said] = [
    ("MALFORMED", "the manifest cannot be read: ",
     lambda on: on.trusted.vouching(on.nothing(Typ.MANIFEST), "main")),
    ("MALFORMED", f"the manifest {YEARS}", lambda on: on.manifest(expires_at=FAR)),
    ("MALFORMED", UNLED, lambda on: on.manifest(deltas=[DeltaRef(1, HASH, 1)] * 2)),
    ("WRONG_SCOPE", "the manifest is of another scope", lambda on: on.manifest(scope="other")),
    ("ROLLBACK", "the manifest is older than one taken before", lambda on: on.held(version=6)),
    ("SAME_VERSION_DIFFERS", "two manifests of one version differ", lambda on: on.held(version=7, state_digest=HASH)),
    ("EXPIRED", "the manifest has expired", lambda on: on.manifest(expires_at=LATER)),
    ("TOO_LARGE", "it has 65537 bytes, more than 65536", lambda on: on.trusted.vouching(b"x" * 65_537, "main")),
]  # fmt: skip

ANSWERS: list[Said] = [
    ("MALFORMED", "the answer cannot be read: ",
     lambda on: on.answer(raw=on.nothing(Typ.ANSWER))),
    ("MALFORMED", f"the answer {YEARS}", lambda on: on.answer(server_time=FAR)),
    ("NOT_OUR_REQUEST", NOT_OURS, lambda on: on.answer(device=OTHER)),
    ("OLD_EPOCH", "the answer is of an epoch that is over", lambda on: on.answer(server_epoch=1)),
    ("OLD_LEDGER_MARK", "the server's ledger mark went down: it was restored from a backup and does not say so",
     lambda on: on.answer(ledger_mark=9)),
    ("NOT_OUR_JOURNAL", "the answer acknowledges what this till has not written",
     lambda on: on.answer(acknowledged=Position(4, HASH))),
    ("MALFORMED", "the answer cannot be read: ",
     lambda on: on.trusted.enrolled(on.nothing(Typ.ENROLLED), request_sha256=HASH, now=START)),
    ("MALFORMED", f"the answer {YEARS}", lambda on: on.enrolled(server_time=FAR)),
    ("NOT_OUR_REQUEST", NOT_OURS, lambda on: on.enrolled(request_sha256="1" * 64)),
    ("NOT_OUR_REQUEST", NOT_OURS, lambda on: on.enrolled(server=OTHER)),
    ("MALFORMED", "the answer cannot be read: ",
     lambda on: on.trusted.redeemed(on.nothing(Typ.REDEEMED), device=OTHER, request_sha256=HASH, now=START)),
    ("MALFORMED", f"the answer {YEARS}", lambda on: on.redeemed(at=FAR)),
    ("NOT_OUR_REQUEST", NOT_OURS, lambda on: on.redeemed(device=on.server.id)),
]  # fmt: skip

BLOBS: list[Said] = [
    ("TOO_LARGE", "the snapshot has 11 bytes, not 5", lambda on: on.snapshot(b"x\n", bytes=5)),
    ("TOO_LARGE", "the delta has 11 bytes, not 5", lambda on: on.delta(b"x\n", bytes=5)),
    ("WRONG_DIGEST", "the snapshot's digest is not the manifest's", lambda on: on.snapshot(b"", sha256=HASH)),
    ("WRONG_DIGEST", "the delta's digest is not the manifest's", lambda on: on.delta(b"", sha256=HASH)),
    ("TOO_LARGE", "it unpacks to more than 9 bytes",
     lambda on: unpack(zstandard.ZstdCompressor().compress(b"1234567890"), 9)),
    ("MALFORMED", "it is not zstd", lambda on: unpack(b"not zstd at all", 9)),
    ("MALFORMED", "it is not one frame of zstd", lambda on: unpack(b"", 9)),
    ("MALFORMED", "line 3 of the blob cannot be read: ", lambda on: on.snapshot(b"".join(on.puts) + b"{7")),
    ("MALFORMED", "line 1 of the blob must hold either put or drop", lambda on: on.delta(b"{}\n")),
    ("MALFORMED", "a snapshot drops nothing", lambda on: on.snapshot(drop_line(OTHER))),
    ("MALFORMED", "the snapshot has a voucher twice", lambda on: on.snapshot(on.puts[0] * 2)),
    ("STATE_DIGEST", "the snapshot has 2 vouchers, not 3", lambda on: on.snapshot(b"".join(on.puts), vouchers=3)),
    ("MALFORMED", "the delta has a voucher twice", lambda on: on.delta(drop_line(OTHER) * 2)),
    ("STATE_DIGEST", "the blobs do not lead to the state that the manifest names",
     lambda on: demand_state(7, on.trusted.vouching(on.server.manifest(), "main"))),
    ("MALFORMED", "a delta has the code of another voucher", Scene.another),
]  # fmt: skip

SIGNATURES: list[Said] = [
    ("TOO_LARGE", "it has 8388609 bytes, more than 8388608", lambda on: opened(b"x" * (COMPACT_BYTES_MAX + 1))),
    ("TOO_LARGE", "it has 8388609 bytes, more than 8388608",
     lambda on: peek(b"x" * (COMPACT_BYTES_MAX + 1), Typ.REQUEST)),
    ("TOO_LARGE", "it has 65537 bytes, more than 65536", lambda on: count_signatures(b" " * 65_537, {}, Typ.ROOT)),
    ("MALFORMED", "it is not a compact JWS", lambda on: opened(GOOD + b".")),
    ("MALFORMED", "it is not a compact JWS", lambda on: opened(GOOD.replace(b".", b"\xff.", 1))),
    ("MALFORMED", "it is not base64url", lambda on: b64u_decode("e3!0")),
    ("MALFORMED", "it is not base64url", lambda on: b64u_decode("e")),
    ("MALFORMED", "it is not canonical base64url", lambda on: b64u_decode("e3+0")),
    ("MALFORMED", "it is not canonical base64url", lambda on: b64u_decode("e30=")),
    ("MALFORMED", "it is not canonical base64url", lambda on: b64u_decode("e31")),
    ("MALFORMED", "it is not base64url", lambda on: opened(GOOD + b"A" * (-(len(GOOD.rpartition(b".")[2]) - 1) % 4))),
    ("MALFORMED", "its protected header is not {alg, kid, typ}", lambda on: opened(named(b'{"alg":"Ed25519"}'))),
    ("WRONG_TYPE", "its header must say alg Ed25519 and typ tallystick-sync",
     lambda on: verify(GOOD, {KEY.kid: KEY}, Typ.SYNC)),
    ("WRONG_TYPE", "its header must say alg Ed25519 and typ tallystick-request",
     lambda on: opened(named(encode({"alg": "EdDSA", "kid": KEY.kid, "typ": "tallystick-request"})))),
    ("UNKNOWN_KEY", "it is signed by a key that may not sign this", lambda on: verify(GOOD, {}, Typ.REQUEST)),
    ("BAD_SIGNATURE", "the signature does not hold",
     lambda on: opened(b".".join([*KEY.sign(Typ.REQUEST, b"7").split(b".")[:2], GOOD.split(b".")[2]]))),
    ("BAD_KEY", JWK_FORM, lambda on: key(kty="EC")),
    ("BAD_KEY", JWK_FORM, lambda on: key(crv="X25519")),
    ("BAD_KEY", JWK_FORM, lambda on: key(d="AAAA")),
    ("BAD_KEY", JWK_FORM, lambda on: PublicKey.from_jwk({"kty": "OKP", "crv": "Ed25519"})),
    ("BAD_KEY", "the key's x is a point for which anybody can sign", lambda on: key(x=b64u(b"\x01" + b"\0" * 31))),
    ("BAD_KEY", JWK_X, lambda on: key(x=b64u(b"\x09" * 31))),
    ("BAD_KEY", JWK_X, lambda on: key(x=b64u(b"\x09" * 33))),
    ("MALFORMED", "it is not base64url", lambda on: key(x="\u00e9")),
]  # fmt: skip

ALL = [*ROOTS, *MANIFESTS, *ANSWERS, *BLOBS, *SIGNATURES]


@pytest.fixture(scope="module")
def on() -> Scene:
    return Scene()


@pytest.mark.parametrize(("code", "sentence", "call"), [pytest.param(*one, id=f"{one[0]}-{one[1]}") for one in ALL])
def test_each_refusal_says_what_is_wrong(on: Scene, code: str, sentence: str, call: Callable[[Scene], object]) -> None:
    """The operator reads the sentence, whole and to the letter; programs read the code."""
    with pytest.raises(Untrusted) as caught:
        call(on)
    said = str(caught.value)
    if sentence.endswith(": "):  # the rest is what the reader of JSON says
        said = said[: len(sentence)]
    assert (caught.value.code, said) == (code, sentence)


def test_what_is_unchanged_is_believed(on: Scene) -> None:
    """Each case above is refused for what was changed in it."""
    for taken in (on.root, on.manifest, on.answer, on.enrolled, on.redeemed, key, partial(on.held, version=7)):
        assert taken()
    assert on.snapshot(b"".join(on.puts))
    assert on.delta(drop_line(OTHER))
    assert opened(GOOD) == b"{}"


def test_one_key_may_have_every_role(on: Scene) -> None:
    """A small server has one key: its root is taken, and what that key signs is believed."""
    kid = on.server.root_key.kid
    role = Role([kid], 1)
    alone = on.server.make_root(2, keys={kid: on.server.root_key.jwk()}, roles=Roles(role, role, role))
    assert on.trusted.next_root(alone).role_keys(role).keys() == {kid}


def test_a_private_key_that_is_none_is_not_echoed() -> None:
    """Whatever is in the file, the sentence tells nothing of it."""
    whole = msgspec.json.decode(KEY.to_bytes())
    assert set(whole) == {"kty", "crv", "x", "d"}
    assert SigningKey.from_bytes(KEY.to_bytes()).kid == KEY.kid
    parts = [{name: value for name, value in whole.items() if name != left_out} for left_out in whole]
    for raw in (b"", b"{", b"[]", b"\xff", encode({**whole, "d": 7}), encode({**whole, "d": "a"}), *map(encode, parts)):
        with pytest.raises(ValueError, match=r"^not an Ed25519 private key in JWK form$"):
            SigningKey.from_bytes(raw)


def test_sizes_are_taken_up_to_their_bound(on: Scene) -> None:
    """The last byte that is allowed is: of a root, of a manifest and of what a blob unpacks to."""
    spare = 65_536 - len(on.server.make_root(2))
    assert on.trusted.next_root(on.server.make_root(2) + b" " * spare)
    check = partial(unpack, zstandard.ZstdCompressor().compress(b"1234567890"))
    assert check(10) == b"1234567890"


def test_base64url_has_one_spelling_of_all_bytes() -> None:
    """Without padding, and back again, however many bytes and whatever they end with."""
    for number in range(256):
        for size in range(4):
            raw = bytes([7, 250, number][3 - size :])
            assert b64u_decode(b64u(raw)) == raw
            assert len(b64u(raw)) == (size * 8 + 5) // 6
