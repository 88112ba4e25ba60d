"""Hidden codes: what a device is told is a digest, and only the code itself redeems."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import zstandard

from tallystick_server.hiding import code_bits
from tallystick_server.importing import BadFile
from tallystick_server.operations import import_vouchers
from tallystick_shared.bundle import hidden_code
from tallystick_shared.codes import fold
from tallystick_shared.errors import InvalidInput
from tallystick_shared.model import load_voucher, parse_voucher
from tests.server.conftest import ORDER, voucher
from tests.server.tiny_device import new_id

if TYPE_CHECKING:
    from tests.server.conftest import Shop

SECRET = "K7QX-2M9T-WD4R-8HZC-5VNB"
OTHER = "Q4ZT-9C2M-HB7X-3WKD-8RVN"


def post(shop: Shop, document: dict[str, Any], **params: Any) -> httpx2.Response:
    headers = shop.headers | {"Content-Type": "application/json"}
    return httpx2.post(f"{shop.url}/v1/vouchers", content=json.dumps(document), params=params, headers=headers)


def publish_hidden(shop: Shop, *documents: dict[str, Any]) -> int:
    path = shop.settings.data / "hidden.ndjson"
    path.write_text("".join(json.dumps(one) + "\n" for one in documents))
    return asyncio.run(import_vouchers(shop.settings, path, hidden=True, now=shop.clock()))


@pytest.mark.parametrize(
    ("code", "bits"),
    [
        ("", 0),
        ("tea", 4),
        ("0123456789" * 3, 99),
        ("0123456789abcdef0123", 80),
        ("ghijklmnopqrstuvw", 79),
        ("K7QX-2M9T-WD4R-8HZC-5VNB", 103),
        ("a" * 128, 0),
        ("ab" * 30, 60),
        ("ÄÖÜßéèçñåøæ" * 4, 0),
    ],
)
def test_how_hard_a_code_is_to_guess_is_estimated_low(code: str, bits: int) -> None:
    """Its length times the bits of the smallest usual alphabet it can be of; separators count nothing."""
    assert code_bits(fold(code) if code else code) == bits


@pytest.mark.parametrize("code", ["SPRING-10", "1234567890123456", "a" * 40])
def test_a_code_that_could_be_guessed_is_not_hidden(shop: Shop, code: str) -> None:
    """One sentence says why, for a single voucher and for a file; nothing is published."""
    refused = post(shop, voucher(code), hidden=True)
    assert (refused.status_code, refused.json()["code"]) == (422, "WEAK_CODE")
    assert "80 bits" in refused.json()["detail"]
    assert code not in refused.text
    with pytest.raises(BadFile) as bad:
        publish_hidden(shop, voucher(SECRET), voucher(code))
    assert [line for line in bad.value.lines if ":2: code: must be random" in line] == bad.value.lines
    assert shop.rows("SELECT 1 FROM vouchers") == []


def test_a_hidden_code_is_nowhere_in_a_bundle(either_shop: Shop) -> None:
    """Manifest, snapshot, delta and revision have its salted digest, and the same bytes on both sides."""
    assert publish_hidden(either_shop, voucher(SECRET, total=5)) == 1
    device = either_shop.device()
    assert post(either_shop, voucher(OTHER), hidden=True).status_code == 201
    manifest = device.fetch()
    assert len(manifest.deltas) == 1
    digests = {hidden_code(manifest.code_salt, fold(code)): code for code in (SECRET, OTHER)}
    assert set(device.vouchers) == set(digests)
    for digest, one in device.vouchers.items():
        assert load_voucher(bytes(one.voucher)).code == digest
    stored = [bytes(row["json"]) for row in either_shop.rows("SELECT json FROM voucher_revisions")]
    seen = [zstandard.decompress(row["data"]) for row in either_shop.rows("SELECT data FROM blobs")]
    for raw in (*stored, *seen, device.get_manifest().content):
        assert not any(fold(code).encode() in raw.lower() for code in (SECRET, OTHER))
    assert {bytes(one.voucher) for one in device.vouchers.values()} == set(stored)


def test_two_scopes_have_two_digests_of_one_code(shop: Shop) -> None:
    """Each scope has its own salt, so a hidden voucher is in one scope only; more are refused."""
    shop.post("/v1/scopes", {"name": "web"})
    assert len({row["code_salt"] for row in shop.rows("SELECT code_salt FROM scopes")}) == 2
    refused = post(shop, voucher(SECRET), hidden=True, scope=["main", "web"])
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "scope")
    assert post(shop, voucher(SECRET), hidden=True, scope=["web"]).json()["scopes"] == ["web"]


def test_only_the_code_itself_redeems(shop: Shop) -> None:
    """In any spelling, online by operator and device; its digest is an unknown code, and can be published by nobody."""
    publish_hidden(shop, voucher(SECRET, total=5))
    device = shop.device(synced=False)
    manifest = device.fetch()
    digest = hidden_code(manifest.code_salt, fold(SECRET))
    assert shop.online(new_id(), SECRET.lower()).json()["result"]["applied"][0]["code"] == SECRET
    assert device.answer_online(ORDER, [SECRET], new_id()).redeemed is True
    for typed in (digest, digest.upper()):
        refused = shop.online(new_id(), typed).json()["result"]["refused"]
        assert [one["reason"] for one in refused] == ["UNKNOWN_CODE"]
        assert device.answer_online(ORDER, [typed], new_id()).redeemed is False
        answer = post(shop, voucher(typed))
        assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "code")
    assert shop.pool(SECRET)["online"] == 2


@pytest.mark.parametrize("code", ["sha256:" + "0" * 64, "SHA256:x", " ſha256:tea"])
def test_no_published_code_begins_as_a_digest_does(code: str) -> None:
    """In no spelling that folds to it."""
    with pytest.raises(InvalidInput) as refused:
        parse_voucher(voucher(code), default_currency="USD")
    assert refused.value.path == "code"
    assert "sha256:" in refused.value.expected


def test_what_a_till_redeemed_offline_agrees(shop: Shop) -> None:
    """The till says the code that was typed and the server knows it: no mismatch, from the lease, once."""
    publish_hidden(shop, voucher(SECRET, total=5, per_customer=1))
    device = shop.device()
    attempt = device.redeem(ORDER, fold(SECRET))
    assert device.sync().exceptions == []
    assert device.answer_online(ORDER, [fold(SECRET)], attempt).redeemed is True
    assert shop.rows("SELECT cover, minor, settled_minor FROM redemption_uses") == [
        {"cover": "lease", "minor": 100, "settled_minor": 100}
    ]


def test_an_operator_sees_the_code(shop: Shop) -> None:
    """In lists, by code, and in the document, which put back as it is changes nothing."""
    publish_hidden(shop, voucher(SECRET, total=5))
    (row,) = shop.get("/v1/vouchers", code=SECRET.lower())["vouchers"]
    assert (row["code"], row["hidden"], row["voucher"]["code"]) == (SECRET, True, SECRET)
    assert shop.get(f"/v1/vouchers/{row['id']}") == row
    headers = shop.headers | {"Content-Type": "application/json"}

    def put(**fields: Any) -> httpx2.Response:
        content = json.dumps(row["voucher"] | fields)
        return httpx2.put(f"{shop.url}/v1/vouchers/{row['id']}", content=content, headers=headers)

    assert put().json() == row
    revised = put(status="paused").json()
    assert (revised["revision"], revised["voucher"]["code"], revised["hidden"]) == (2, SECRET, True)
    assert put(code=OTHER).json()["code"] == "FIXED_FIELD"
    for kept in shop.rows("SELECT json FROM voucher_revisions"):
        assert load_voucher(bytes(kept["json"])).code.startswith("sha256:")
    assert SECRET not in shop.rows("SELECT detail FROM audit")[0]["detail"]
    assert [one["reason"] for one in shop.online(new_id(), SECRET).json()["result"]["refused"]] == ["INACTIVE"]


def test_codes_stay_unique_whether_hidden_or_not(shop: Shop) -> None:
    """A hidden code is taken for everybody, and one in clear cannot be hidden again."""
    publish_hidden(shop, voucher(SECRET))
    assert post(shop, voucher(SECRET.lower())).json()["code"] == "EXISTS"
    post(shop, voucher(OTHER))
    assert post(shop, voucher(OTHER), hidden=True).json()["code"] == "EXISTS"
    with pytest.raises(BadFile):
        shop.publish(voucher(SECRET))


def test_the_command_hides_the_codes_of_a_file(shop: Shop, tmp_path: Path) -> None:
    """`import --hidden-codes`, and what it says of a weak one."""
    path = tmp_path / "codes.ndjson"
    command = [str(Path(sys.executable).parent / "tallystick-server"), "--data", str(shop.settings.data), "import"]
    path.write_text(json.dumps(voucher(SECRET, currency="USD")) + "\n")
    done = subprocess.run([*command, "--hidden-codes", str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert shop.rows("SELECT hidden FROM vouchers") == [{"hidden": 1}]
    path.write_text(json.dumps(voucher("SPRING-10", currency="USD")) + "\n")
    done = subprocess.run([*command, "--hidden-codes", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "80 bits" in done.stderr
    assert "Traceback" not in done.stderr
