"""Root keys and roots: made, rotated, signed in several places, cut short by crashes, and followed by tills."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import msgspec
import pytest

from tallystick_client.trust import Trusted
from tallystick_server import key_report, rotating
from tallystick_server import keys as keys_of
from tallystick_server.key_files import make_root_set
from tallystick_server.rotating import Change, Rotation
from tallystick_server.settings import Settings
from tallystick_shared.bundle import Role, Root
from tallystick_shared.errors import CallerError, InvalidInput, Untrusted
from tallystick_shared.journal import encode
from tallystick_shared.signing import SigningKey, Typ, join_signatures, open_general, sha256_hex, verify
from tests.server.conftest import voucher
from tests.server.fake_clock import FakeClock

if TYPE_CHECKING:
    from tests.server.conftest import Shop

SERVER_ID = "01890000-0000-7000-8000-000000000001"


class Offline:
    """An operator with a server's directory and sets of root keys elsewhere."""

    def __init__(self, settings: Settings, clock: FakeClock, work: Path) -> None:
        self.settings, self.clock, self.work = settings, clock, work

    def make(self, name: str, keys: int = 3, threshold: int = 2) -> list[Path]:
        """The private keys of a new set in the directory `name`."""
        return make_root_set(self.work / name, keys=keys, threshold=threshold)

    def create(self, root_keys: str | None = None) -> None:
        where = None if root_keys is None else self.work / root_keys
        keys_of.create(self.settings, SERVER_ID, root_keys=where, now=self.clock())

    def begin(self, signers: Sequence[Path], **change: Any) -> Rotation:
        return rotating.begin(self.settings, Change(**change), signers, now=self.clock())

    def go_on(self, *signers: Path, signed: Sequence[Path] = ()) -> Rotation:
        return rotating.go_on(self.settings, signed, signers, now=self.clock())

    def load(self) -> keys_of.Keys:
        return keys_of.load(self.settings)

    def names(self) -> set[str]:
        return {path.name for path in self.settings.keys.iterdir()}

    def till(self) -> Trusted:
        """A till that pinned root 1 and followed every root since."""
        roots = self.load().roots
        trusted = Trusted.pin(roots[1], version=1, sha256=sha256_hex(roots[1]))
        for version in range(2, max(roots) + 1):
            trusted = trusted.next_root(roots[version])
        return trusted

    def check_consistent(self) -> Trusted:
        """What the server signs now, a till that followed all roots believes."""
        keys, trusted = self.load(), self.till()
        assert trusted.root == keys.root
        signed = (
            keys.bundle.sign(Typ.MANIFEST, b"{}"),
            keys.receipt.sign(Typ.ANSWER, b"{}"),
        )
        assert verify(signed[0], trusted.role_keys(trusted.root.roles.bundle), Typ.MANIFEST) == b"{}"
        assert verify(signed[1], trusted.role_keys(trusted.root.roles.receipt), Typ.ANSWER) == b"{}"
        return trusted


@pytest.fixture
def offline(settings: Settings, clock: FakeClock, tmp_path: Path) -> Offline:
    return Offline(settings, clock, tmp_path)


def check_refused(code: str, call: Callable[[], object], *words: str) -> None:
    with pytest.raises(CallerError) as caught:
        call()
    assert caught.value.code == code, str(caught.value)
    for word in words:
        assert word in caught.value.message


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- sets of root keys, and root 1


def test_a_set_of_root_keys_is_for_its_owner_alone(offline: Offline) -> None:
    """The directory is 0700, private keys 0600, whatever the umask says; the public part holds no secret."""
    before = os.umask(0)
    try:
        private = offline.make("set")
    finally:
        os.umask(before)
    assert (mode(offline.work / "set"), {mode(path) for path in private}) == (0o700, {0o600})
    public = (offline.work / "set" / "public.json").read_bytes()
    for path in private:
        key = SigningKey.from_bytes(path.read_bytes())
        assert path.name == f"root-{key.kid[:8]}.jwk"
        assert key.kid.encode() in public
        assert msgspec.json.decode(path.read_bytes())["d"].encode() not in public
    assert {path.name for path in (offline.work / "set").iterdir()} == {"public.json", *(p.name for p in private)}


def test_a_set_is_never_made_over_another_one(offline: Offline) -> None:
    """A directory that is there, empty or not, is left alone; thresholds must be such that they can be met."""
    (offline.work / "there").mkdir()
    check_refused("EXISTS", lambda: offline.make("there"), "there already")
    check_refused("NOT_WRITABLE", lambda: offline.make("none/set"), "cannot be written to")
    assert list((offline.work / "there").iterdir()) == []
    for keys, threshold in ((3, 4), (3, 0), (0, 0), (17, 2)):
        with pytest.raises(InvalidInput):
            offline.make("new", keys, threshold)
    assert not (offline.work / "new").exists()


def test_init_with_root_keys_leaves_the_private_ones_where_they_are(offline: Offline) -> None:
    """Root 1 has the keys and the threshold of the set; no byte of a private root key is in the server's directory."""
    private = offline.make("set", 3, 2)
    offline.create("set")
    trusted = offline.check_consistent()
    assert trusted.root.roles.root.threshold == 2
    assert set(trusted.root.roles.root.kids) == {SigningKey.from_bytes(path.read_bytes()).kid for path in private}
    assert offline.names() == {"bundle.jwk", "receipt.jwk", "root-1.json"}
    for secret in (msgspec.json.decode(path.read_bytes())["d"].encode() for path in private):
        assert not [path for path in offline.settings.data.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert offline.load().notes(offline.clock()) == []


def test_init_with_too_few_private_keys_makes_nothing(offline: Offline) -> None:
    """One private key short of the threshold root 1 is refused, and nothing is there; with it, it is made."""
    private = offline.make("set", 3, 2)
    private[0].rename(offline.work / "away-0")
    private[1].rename(offline.work / "away-1")
    check_refused("TOO_FEW_SIGNATURES", lambda: offline.create("set"), "1 private keys", "2")
    assert not offline.settings.data.exists()
    (offline.work / "away-1").rename(private[1])
    offline.create("set")
    offline.check_consistent()


def test_a_bad_set_is_refused_in_a_sentence(offline: Offline) -> None:
    """No set, a damaged one, kids that are not thumbprints, a key of another set, a key that others can read."""
    check_refused("NO_ROOT_KEYS", lambda: offline.create("none"), "keys init DIR")
    private = offline.make("set")
    other = offline.make("other")
    public = offline.work / "set" / "public.json"
    good = public.read_bytes()
    kids = [SigningKey.from_bytes(path.read_bytes()).kid.encode() for path in private]
    for bad in (b"{", b"{}", b"\xff", good.replace(kids[0], kids[1].swapcase()), good.replace(b'"OKP"', b'"EC"')):
        public.write_bytes(bad)
        check_refused("NO_ROOT_KEYS", lambda: offline.create("set"), "not a set of root keys")
    public.write_bytes(good)
    private[0].chmod(0o640)
    check_refused("WRONG_MODE", lambda: offline.create("set"), "0640", "0600")
    private[0].chmod(0o600)
    (offline.work / "set" / "root-x.jwk").write_bytes(other[0].read_bytes())
    (offline.work / "set" / "root-x.jwk").chmod(0o600)
    check_refused("NOT_A_ROOT_KEY", lambda: offline.create("set"))
    assert not offline.settings.data.exists()


# ---- roots that follow


def test_tills_follow_through_changes_of_all_keys_and_thresholds(offline: Offline) -> None:
    """1 to 5: expiry alone, bundle and receipt, new root keys with another threshold, the threshold alone."""
    first, second = offline.make("first", 1, 1), offline.make("second", 3, 2)
    offline.create("first")
    one = offline.check_consistent()
    offline.clock.advance(days=400)
    assert offline.begin(first).missing == []
    two = offline.check_consistent()
    assert (two.root.roles, two.root.keys) == (one.root.roles, one.root.keys)
    assert two.root.expires_at - one.root.expires_at == timedelta(days=400)

    assert offline.begin(first, bundle=True, receipt=True).version == 3
    three = offline.check_consistent()
    assert three.root.roles.root == one.root.roles.root
    assert three.root.roles.bundle != one.root.roles.bundle
    assert three.root.roles.receipt != one.root.roles.receipt

    offline.begin(first, root=offline.work / "second")
    four = offline.check_consistent()
    assert (len(four.root.roles.root.kids), four.root.roles.root.threshold) == (3, 2)
    assert (four.root.roles.bundle, four.root.roles.receipt) == (three.root.roles.bundle, three.root.roles.receipt)
    assert not set(one.root.keys) & set(four.root.keys), "keys that are out of use are not in the root"

    offline.begin(second, threshold=3)
    assert offline.check_consistent().root.roles.root == Role(four.root.roles.root.kids, 3)


def test_a_key_out_of_use_is_gone(offline: Offline) -> None:
    """The files of the old bundle and receipt keys are removed with the root that does without them; modes are kept."""
    first = offline.make("first", 1, 1)
    offline.create("first")
    offline.begin(first, bundle=True)
    kid = offline.load().bundle.kid[:8]
    assert offline.names() == {f"bundle-{kid}.jwk", "receipt.jwk", "root-1.json", "root-2.json"}
    offline.begin(first, bundle=True)
    assert f"bundle-{kid}.jwk" not in offline.names()
    modes = {path.name: mode(path) for path in offline.settings.keys.iterdir()}
    assert {found for name, found in modes.items() if name.endswith(".jwk")} == {0o600}
    assert {found for name, found in modes.items() if name.endswith(".json")} == {0o644}


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser gives files away")
def test_what_the_superuser_rotates_belongs_to_the_server(offline: Offline) -> None:
    """`sudo tallystick-server keys rotate` leaves no file that the server's own user cannot read."""
    first = offline.make("first", 1, 1)
    offline.create("first")
    for path in (offline.settings.keys, *offline.settings.keys.iterdir()):
        os.chown(path, 12_345, 23_456)
    offline.begin(first, bundle=True, receipt=True)
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in offline.settings.keys.iterdir()}
    assert owners == {(12_345, 23_456)}


def test_one_signature_short_changes_nothing_on_either_side(offline: Offline) -> None:
    """A root one short of either threshold waits: the server goes on with the last one, and a till would refuse it."""
    old, new = offline.make("old", 3, 2), offline.make("new", 3, 2)
    offline.create("old")
    before, till = offline.load(), offline.till()
    for path in new[1:]:  # one private key of the new set is here
        path.rename(offline.work / path.name)
    waits = offline.begin(old[:1], root=offline.work / "new", bundle=True)
    assert waits.missing == [
        "1 of the 2 signatures that root 1 asks for",
        "1 of the 2 signatures that root 2 asks for",
    ]
    assert waits.file == offline.settings.keys / "root-2.partial.json"

    def check_waits() -> None:
        assert offline.load().roots == before.roots
        assert offline.load().bundle.kid == before.bundle.kid
        with pytest.raises(Untrusted) as caught:
            till.next_root(bytes(rotating.read_waiting(waits.file).root))
        assert caught.value.code == "ROOT_THRESHOLD"

    check_waits()
    check_refused("TOO_FEW_SIGNATURES", offline.go_on, "1 of the 2")
    check_refused("TOO_FEW_SIGNATURES", lambda: offline.go_on(old[0]), "no new one")
    assert offline.go_on(old[1]).missing == ["1 of the 2 signatures that root 2 asks for"]
    check_waits()
    assert offline.go_on(offline.work / new[1].name).missing == []
    assert offline.check_consistent().root.version == 2
    assert offline.load().bundle.kid != before.bundle.kid
    assert "root-2.partial.json" not in offline.names()


def test_a_root_is_signed_where_the_keys_are(offline: Offline) -> None:
    """Two people sign a copy each, on machines without a server; both copies together make the root."""
    old, new = offline.make("old", 3, 2), offline.make("new", 2, 2)
    offline.create("old")
    shared = offline.work / "public"  # all that the server's machine ever sees of the new set
    shared.mkdir()
    (shared / "public.json").write_bytes((offline.work / "new" / "public.json").read_bytes())
    waits = offline.begin([], root=shared)
    copies = [offline.work / "anna.json", offline.work / "ben.json"]
    for copy, keys in zip(copies, ([old[0], new[0]], [old[2], new[1]]), strict=True):
        copy.write_bytes(waits.file.read_bytes())
        assert len(rotating.sign(copy, keys).missing) == 2
    assert len(offline.go_on(signed=copies[:1]).missing) == 2
    assert offline.go_on(signed=copies).missing == []
    assert offline.check_consistent().root.roles.root.threshold == 2


def test_whoever_signs_is_told_all_that_the_root_says(offline: Offline) -> None:
    """Keys that come, go and stay are named, so that a root that follows an invented one shows as well."""
    old = offline.make("old", 2, 2)
    offline.create("old")
    waits = offline.begin(old[:1], bundle=True, threshold=1)
    root = offline.load().root
    told = rotating.changes(rotating.read_waiting(waits.file))
    assert told[0].startswith(f"root 2 of server {SERVER_ID}, until ")
    for kid in root.roles.root.kids:
        assert f"root key {kid} stays" in told
    assert f"bundle key {root.roles.bundle.kids[0]} goes" in told
    assert len([line for line in told if line.startswith("bundle key") and line.endswith("comes")]) == 1
    assert told[-1] == "root keys that have to sign: 1, and 2 until now"


# ---- refusals


def test_what_cannot_sign_is_named(offline: Offline) -> None:
    """A key of another role or set, no key at all, no file, a key that others can read; nothing is left of it."""
    old, other = offline.make("old", 2, 2), offline.make("other", 1, 1)
    offline.create("old")
    before = offline.names()
    text = offline.work / "text.jwk"
    text.write_text("{}")
    text.chmod(0o600)
    loose = offline.work / "loose.jwk"
    loose.write_bytes(old[0].read_bytes())
    loose.chmod(0o604)
    check_refused("NOT_A_ROOT_KEY", lambda: offline.begin(other, bundle=True), "neither of root 1 nor of root 2")
    bundle = offline.settings.keys / "bundle.jwk"
    check_refused("NOT_A_ROOT_KEY", lambda: offline.begin([bundle]), "root key")
    check_refused("BAD_KEY", lambda: offline.begin([text]), str(text), "JWK")
    check_refused("NO_FILE", lambda: offline.begin([offline.work / "none"]), "cannot be read")
    check_refused("WRONG_MODE", lambda: offline.begin([loose]), "0604", "0600")
    with pytest.raises(InvalidInput, match="1 to 2"):
        offline.begin(old, threshold=3)
    assert offline.names() == before


def test_only_one_root_waits(offline: Offline) -> None:
    """A second one is refused until the first is signed or deleted, and none can be continued that is not there."""
    old = offline.make("old", 2, 2)
    offline.create("old")
    check_refused("NO_ROOT_WAITING", lambda: offline.go_on(old[0]))
    waits = offline.begin(old[:1], bundle=True)
    check_refused("ROOT_WAITING", lambda: offline.begin(old), "--continue", str(waits.file))
    waits.file.unlink()
    assert offline.begin(old).missing == []
    assert offline.names() == {"bundle.jwk", "receipt.jwk", "root-1.json", "root-2.json"}, "and what it made is swept"


def test_a_root_that_waited_too_long_is_not_used(offline: Offline) -> None:
    """Its expiry has passed before its signatures came."""
    old = offline.make("old", 2, 2)
    offline.create("old")
    offline.begin(old[:1])
    offline.clock.advance(seconds=offline.settings.root_ttl_s)
    check_refused("ROOT_EXPIRED", lambda: offline.go_on(old[1]), "start again")


def test_a_waiting_root_that_was_meddled_with_is_refused(offline: Offline) -> None:
    """Whoever carries the file cannot change it: each rule that tills check is checked before anything is signed."""
    old, other = offline.make("old", 2, 2), SigningKey.generate()
    offline.create("old")
    file = offline.begin(old[:1]).file
    good = rotating.read_waiting(file)
    root = rotating.root_of(good)
    roles, kid = root.roles, root.roles.root.kids[0]
    replace = msgspec.structs.replace
    cases: dict[str, Root] = {
        "next root": replace(root, version=3),
        "same server": replace(root, server_id="01890000-0000-7000-8000-00000000000f"),
        "thumbprint": replace(root, keys=root.keys | {kid: other.jwk()}),
        "role root": replace(root, roles=replace(roles, root=Role(roles.root.kids, 3))),
        "role bundle": replace(root, roles=replace(roles, bundle=Role(roles.root.kids, 2))),
        "role receipt": replace(root, roles=replace(roles, receipt=Role([other.kid], 1))),
    }
    for words, changed in cases.items():
        waiting = rotating.Waiting(good.follows, msgspec.Raw(join_signatures(encode(changed), [])))
        file.write_bytes(msgspec.json.encode(waiting))
        check_refused("BAD_ROOT", lambda: rotating.sign(file, old), words)
        check_refused("BAD_ROOT", lambda: offline.go_on(*old), words)
    stranger = other.sign_flat(Typ.ROOT, open_general(bytes(good.root)))
    for bad in (stranger, {"protected": "e30", "signature": ""}):
        waiting = rotating.Waiting(good.follows, msgspec.Raw(join_signatures(open_general(bytes(good.root)), [bad])))
        file.write_bytes(msgspec.json.encode(waiting))
        check_refused("BAD_ROOT", lambda: offline.go_on(*old))
    for raw in (b"", b"{}", b"\xff", offline.load().roots[1]):
        file.write_bytes(raw)
        check_refused("BAD_ROOT", lambda: offline.go_on(*old))
    assert offline.load().root_version == 1


def test_copies_of_another_root_do_not_mix(offline: Offline) -> None:
    """Signatures for another root, and a waiting root of another server, are refused as such."""
    old = offline.make("old", 2, 2)
    offline.create("old")
    waits = offline.begin(old[:1], bundle=True)
    copy = offline.work / "copy.json"
    waits.file.rename(copy)
    waits = offline.begin(old[:1])
    check_refused("ANOTHER_ROOT", lambda: offline.go_on(signed=[copy]), str(copy))
    elsewhere = Offline(msgspec.structs.replace(offline.settings, data=offline.work / "b"), offline.clock, offline.work)
    elsewhere.create("old")
    elsewhere.clock.advance(seconds=1)
    waits.file.write_bytes(elsewhere.begin(old[:1]).file.read_bytes())
    check_refused("ANOTHER_ROOT", lambda: offline.go_on(old[1]), "root 1 of this server")


def test_one_rotation_at_a_time(offline: Offline) -> None:
    """While one command changes the keys, another is refused in words; without a server it is told to make one."""
    old = offline.make("old", 1, 1)
    check_refused("NO_KEYS", lambda: offline.begin(old), "tallystick-server init")
    offline.create("old")
    with rotating._alone(offline.settings.keys):
        check_refused("BUSY", lambda: offline.begin(old), "another command")
    assert offline.begin(old).missing == []


# ---- crashes


class Crash(BaseException):
    """The power goes."""


class Disk:
    """The disk until the power goes before operation number `at`; what was not synced by then may be lost.

    `lose`: which of the renames and removals that no fsync of their directory followed are undone, and with them what
    was written to files without an fsync.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, lose: str) -> None:
        self.at, self.lose, self.count = at, lose, 0
        self.moves: list[tuple[Path, bytes | None]] = []
        self.written: dict[int, Path] = {}
        """Files without an fsync since they were made, by inode."""
        self.plain = {name: getattr(os, name) for name in ("open", "fsync", "rename", "unlink", "mkdir")}
        for name in self.plain:
            monkeypatch.setattr(os, name, self._wrapped(name))

    def _wrapped(self, name: str) -> Callable[..., Any]:
        def operation(first: Any, *rest: Any, **options: Any) -> Any:
            self.count += 1
            if self.count >= self.at:
                raise Crash
            path = Path(rest[0] if name == "rename" else first) if name in ("rename", "unlink") else None
            before = path.read_bytes() if path is not None and path.is_file() else None
            done = self.plain[name](first, *rest, **options)
            if path is not None:
                self.moves.append((path, before))
            if name == "rename":
                new = {inode: Path(rest[0]) for inode, old in self.written.items() if old == Path(first)}
                self.written |= new
            elif name == "open" and rest[0] & os.O_CREAT:
                self.written[os.fstat(done).st_ino] = Path(first)
            elif name == "fsync" and stat.S_ISDIR(os.fstat(first).st_mode):
                self.moves.clear()
            elif name == "fsync":
                self.written.pop(os.fstat(first).st_ino)
            return done

        return operation

    def lose_what_was_not_synced(self) -> None:
        undone = {"none": [], "all": self.moves[::-1], "oldest": self.moves[:1]}[self.lose]
        if self.lose != "none":
            for path in filter(Path.exists, self.written.values()):
                path.write_bytes(b"")
        for path, content in undone:
            if content is not None:
                path.write_bytes(content)
                path.chmod(0o600)
            elif path.is_file():
                path.unlink()


def crash(at: int, lose: str, work: Callable[[], object]) -> bool:
    """Whether `work` came to its end before the power went."""
    with pytest.MonkeyPatch.context() as patched:
        disk = Disk(patched, at, lose)
        try:
            work()
        except Crash:
            done = False
        else:
            done = True
    if not done:
        disk.lose_what_was_not_synced()
    return done


@pytest.mark.parametrize("lose", ["none", "all", "oldest"])
def test_a_crash_at_any_moment_leaves_a_server_that_loads(tmp_path: Path, clock: FakeClock, lose: str) -> None:
    """Before each file operation of a rotation: old root or new, its keys are there, tills follow, and it can go on."""
    private = make_root_set(tmp_path / "set", keys=2, threshold=2)
    versions = set()
    for at in range(1, 100):
        offline = Offline(Settings(data=tmp_path / f"{at}"), clock, tmp_path)
        offline.create("set")
        done = crash(at, lose, lambda: offline.begin(private, bundle=True, receipt=True))  # noqa: B023
        versions.add(offline.check_consistent().root.version)
        offline.begin(private, bundle=True)
        last = offline.check_consistent().root.version
        names = {f"bundle-{offline.load().bundle.kid[:8]}.jwk", *(f"root-{n}.json" for n in range(1, last + 1))}
        assert {name for name in offline.names() if not name.startswith("receipt")} == names
        assert len(offline.names() - names) == 1
        if done:
            break
    assert versions == {1, 2}
    assert at > 15


@pytest.mark.parametrize("lose", ["none", "all", "oldest"])
def test_a_crash_between_signatures_loses_no_root(tmp_path: Path, clock: FakeClock, lose: str) -> None:
    """A waiting root is there with its old signatures or its new ones, or in use; signing again completes it."""
    private = make_root_set(tmp_path / "set", keys=2, threshold=2)
    for at in range(1, 100):
        offline = Offline(Settings(data=tmp_path / f"{at}"), clock, tmp_path)
        offline.create("set")
        offline.begin(private[:1], bundle=True)
        done = crash(at, lose, lambda: offline.go_on(private[1]))  # noqa: B023
        if offline.check_consistent().root.version == 1:
            assert offline.go_on(private[1]).missing == []
        assert offline.check_consistent().root.version == 2
        if done:
            break
    assert at > 6


@pytest.mark.parametrize("lose", ["none", "all", "oldest"])
def test_a_crash_of_init_leaves_all_keys_or_none(tmp_path: Path, clock: FakeClock, lose: str) -> None:
    """After it the server loads, or `init` runs again as if nothing had been."""
    for at in range(1, 100):
        offline = Offline(Settings(data=tmp_path / f"{at}"), clock, tmp_path)
        done = crash(at, lose, offline.create)
        if not offline.settings.keys.exists():
            offline.create()
        offline.check_consistent()
        assert offline.names() == {"root.jwk", "bundle.jwk", "receipt.jwk", "root-1.json"}
        if done:
            break
    assert at > 12


def test_a_root_without_its_private_keys_is_never_served(offline: Offline) -> None:
    """A newest root whose bundle or receipt key is not there is an error in words, not a server with the old key."""
    old = offline.make("old", 1, 1)
    offline.create("old")
    running = offline.load()
    for role in ("bundle", "receipt"):
        offline.begin(old, **{role: True})
        (path,) = offline.settings.keys.glob(f"{role}-*.jwk")
        away = path.rename(offline.work / path.name)
        check_refused("NO_KEYS", offline.load, f"names a {role} key")
        before = running.root_version
        running.refresh()
        assert running.root_version == before, "a running server goes on with what it has"
        away.rename(path)
        running.refresh()
        assert running.root_version == before + 1


def test_what_is_no_root_is_not_taken_for_one(offline: Offline) -> None:
    """Waiting roots, leftovers and other files beside the roots do not matter; a damaged root or key is named."""
    offline.create()
    for name in ("root-2.partial.json", "root-2.json.new", "root-.json", "root-02.json", "root-x.json", "notes.txt"):
        (offline.settings.keys / name).write_text("x")
    assert offline.load().root_version == 1
    (offline.settings.keys / "bundle.jwk").write_text("{}")
    check_refused("NO_KEYS", offline.load, "bundle.jwk")
    (offline.settings.keys / "root-2.json").write_text("{}")
    check_refused("NO_KEYS", offline.load, "cannot be read")


# ---- expiry, and what is shown


def test_the_end_of_a_root_is_announced(offline: Offline) -> None:
    """90 days and more: nothing. Less: the day is named. After it devices believe nothing, and no token is made."""
    offline.make("set")
    offline.create("set")
    keys = offline.load()
    at_90 = keys.root.expires_at - timedelta(days=90)
    assert keys.notes(at_90) == []
    (note,) = keys.notes(at_90 + timedelta(seconds=1))
    assert "in 89 days" in note
    assert keys.root.expires_at.date().isoformat() in note
    keys.must_not_be_over(keys.root.expires_at - timedelta(microseconds=1))
    (note,) = keys.notes(keys.root.expires_at)
    assert keys_of.days_left(keys.root, keys.root.expires_at + timedelta(seconds=1)) == -1
    assert "devices believe nothing" in note
    check_refused("ROOT_EXPIRED", lambda: keys.must_not_be_over(keys.root.expires_at), "keys rotate")


def test_an_expired_root_is_renewed(offline: Offline) -> None:
    """The next root follows it all the same: tills refuse an expired root for what it signs, not for what follows."""
    old = offline.make("old", 1, 1)
    offline.create("old")
    offline.clock.advance(seconds=offline.settings.root_ttl_s + 1)
    with pytest.raises(Untrusted, match="expired"):
        offline.till().demand_current_root(offline.clock())
    offline.begin(old)
    offline.check_consistent().demand_current_root(offline.clock())
    assert offline.load().notes(offline.clock()) == []


def test_the_report_says_what_is_where(offline: Offline) -> None:
    """Kids, thresholds, private keys on this machine, a root key that should not be, a waiting root, loose modes."""
    offline.create()
    (root_key,) = offline.settings.keys.glob("root.jwk")
    shown = key_report.report(offline.settings, now=offline.clock())
    assert shown.roles["root"].private == {shown.roles["root"].kids[0]: "root.jwk"}
    assert shown.roles["bundle"].private == {shown.roles["bundle"].kids[0]: "bundle.jwk"}
    assert [note for note in shown.notes if "offline" in note] == [
        f"a root key is still on this machine: move {root_key} offline"
    ]
    assert (shown.root_version, shown.days_left, shown.waiting) == (1, 3 * 366, None)

    offline.make("new", 3, 2)
    (offline.work / "new" / "public.json").rename(offline.work / "public.json")
    offline.work.joinpath("only").mkdir()
    (offline.work / "public.json").rename(offline.work / "only" / "public.json")
    offline.begin([root_key], root=offline.work / "only")
    (offline.settings.keys / "bundle.jwk").chmod(0o644)
    shown = key_report.report(offline.settings, now=offline.clock())
    assert shown.waiting is not None
    assert shown.waiting.missing == ["0 of the 2 signatures that root 2 asks for"]
    assert any("0644" in note for note in shown.notes)
    assert any("0 of the 2" in note for note in shown.notes)
    offline.go_on(*(offline.work / "new").glob("*.jwk"))
    shown = key_report.report(offline.settings, now=offline.clock())
    assert shown.roles["root"].private == {}
    assert any("delete it" in note for note in shown.notes)


# ---- a running server


def test_a_running_server_takes_new_keys_without_a_restart(shop: Shop, tmp_path: Path) -> None:
    """The next request gets manifest and answer by the new keys, not the stored manifest of the old one."""
    shop.publish(voucher("A"))
    device = shop.device()
    roots = keys_of.load(shop.settings).roots
    till = Trusted.pin(roots[1], version=1, sha256=sha256_hex(roots[1]))
    old = device.get_manifest().content
    assert till.manifest(old, "main", now=shop.clock()).version
    # a plain `init` leaves the root key there; it signs from a stick
    stick = shop.settings.keys.joinpath("root.jwk").rename(tmp_path / "root.jwk")
    rotating.begin(shop.settings, Change(bundle=True, receipt=True), [stick], now=shop.clock())

    new = device.get_manifest().content
    with pytest.raises(Untrusted) as caught:
        till.manifest(new, "main", now=shop.clock())
    assert caught.value.code == "UNKNOWN_KEY"
    following = till.next_root(httpx2.get(f"{shop.url}/v1/roots/2").content)
    assert following.manifest(new, "main", now=shop.clock()).version
    with pytest.raises(Untrusted, match="may not sign"):
        following.manifest(old, "main", now=shop.clock())

    device.receipt = following.role_keys(following.root.roles.receipt)
    device.sync()
    assert device.answer.root_version == 2
    assert shop.token().endswith(f".2.{sha256_hex(keys_of.load(shop.settings).roots[2])}")
    shop.device("store-2")


def test_an_expired_root_lets_no_device_in(shop: Shop) -> None:
    """No token is made, status says why, and what devices send is kept all the same."""
    device = shop.device()
    shop.clock.advance(seconds=shop.settings.root_ttl_s)
    check_refused("ROOT_EXPIRED", shop.token, "keys rotate")
    assert any("expired" in note for note in shop.get("/v1/status")["notes"])
    device.sync()
    assert device.answer.root_version == 1
