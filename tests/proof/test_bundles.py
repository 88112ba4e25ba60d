"""The short version of the row `bundles`, its negative controls, and what of its harness could prove nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tallystick_shared.errors import Untrusted
from tallystick_shared.signing import SigningKey, Typ, verify
from tests.proof import bundles, bundles_world
from tests.proof.bundles_changes import at_place, by_chance, dressed, exchanged, places
from tests.proof.bundles_fields import wrong_fields
from tests.proof.bundles_signed import Try
from tests.proof.bundles_targets import of_server, of_tills
from tests.proof.fleet_chance import seeded
from tests.proof.runner import controls, short
from tests.proof.tally import Tally, told


def test_the_short_version_holds() -> None:
    """No mutation is taken, and everything that should be met is."""
    tally = short("bundles")
    assert tally.holds, tally.failures[:5]
    assert bundles.lacks(tally) == []
    assert tally.units >= 50_000, told(tally.faults)


def test_every_negative_control_takes_something() -> None:
    """With one check taken out mutations are taken, and the failure says so."""
    found = controls("bundles")
    assert len(found) == 4
    for name, tally in found.items():
        assert not tally.holds, name
        assert any("was taken" in one.what for one in tally.failures), (name, tally.failures[:3])


def test_every_bit_byte_and_length_has_its_number() -> None:
    """Each bit is flipped once, each byte taken out once, and each shorter length comes once."""
    raw = b"tally"
    made = [at_place(raw, number) for number in range(places(raw))]
    flipped = {one.raw for one in made if one.kind == "bit flipped"}
    assert len(flipped) == 8 * len(raw)
    assert all(sum((a ^ b).bit_count() for a, b in zip(raw, one, strict=True)) == 1 for one in flipped)
    assert {one.raw for one in made if one.kind == "cut short"} == {raw[:at] for at in range(len(raw))}
    assert {one.raw for one in made if one.kind == "byte taken out"} == {b"ally", b"tlly", b"taly", b"tall"}


def test_the_stripes_cover_every_place() -> None:
    """After `STRIPES` cases no place of a message was left out."""
    tried = {number for case in range(bundles.STRIPES) for number in range(case, places(b"x" * 99), bundles.STRIPES)}
    assert tried == set(range(places(b"x" * 99)))


def test_what_is_dressed_otherwise_is_never_the_same_message() -> None:
    """None of the forms is the good message, but for a last part that has no loose bits, and none verifies."""
    key, other = SigningKey.generate(), SigningKey.generate()
    token = key.sign(Typ.MANIFEST, b'{"a":1}')
    made = [*dressed(token, key.jwk()["x"], other), *exchanged(token, other.sign(Typ.SYNC, b'{"b":22}'))]
    assert len({one.raw for one in made}) > 100
    for one in made:
        if one.raw != token:
            with pytest.raises(Untrusted):
                verify(one.raw, {key.kid: key}, Typ.MANIFEST)
    assert by_chance(token, token[::-1], random.Random(1)).raw != token


def test_every_field_of_a_message_is_made_wrong() -> None:
    """Values, lists, objects and what lies within them; also by leaving it out."""
    document = {"seq": 1, "at": "2026-11-23T09:00:00Z", "to": {"id": "x"}, "all": [2], "on": True, "none": None}
    told = [how for how, _ in wrong_fields(document)]
    for path in (".seq", ".at", ".to", ".to.id", ".all", ".all.0", ".on", ".none"):
        assert any(one.startswith(f"{path} ") for one in told), path
    assert ".seq left out" in told


def test_every_object_is_good_before_it_is_changed(tmp_path: Path) -> None:
    """What the mutations are made from is taken by the very functions that must refuse them."""
    with seeded("good"):
        made, world = bundles_world.scene(tmp_path / "work", 1)
        targets = [*of_tills(made, world), *of_server(made, world)]
        for target in targets:
            assert target.accept(target.raw) is not None, target.name
        world.close()
    assert len(targets) == 16


def test_the_bench_notices_what_is_taken_and_what_breaks() -> None:
    """A mutation that is taken, another error, another code and a commit are failures; a refusal is counted."""
    commits = iter([0, 0, 0, 0, 0, 7])
    tally = Tally()
    bench = bundles.Bench(tally, 3, lambda: next(commits))

    def refuse(raw: bytes) -> None:
        raise Untrusted("no", code="ROLLBACK")

    def crash(raw: bytes) -> None:
        raise ZeroDivisionError

    for accept, code in ((refuse, "ROLLBACK"), (refuse, "EXPIRED"), (crash, ""), (bytes, ""), (refuse, "")):
        bench.attempt(Try("manifest", "kind", "how", b"raw", accept, code, "14"))
    assert (tally.units, tally.seen["by rule 14"], len(tally.failures)) == (3, 2, 4)
    assert [one.what.rpartition(": ")[2] for one in tally.failures] == [
        "ROLLBACK where it should be EXPIRED", "", "was taken", "the database was changed",
    ]  # fmt: skip


def test_a_run_that_tried_little_lacks_something() -> None:
    """An empty tally lacks every rule, kind and object."""
    assert len(bundles.lacks(Tally())) > 60
