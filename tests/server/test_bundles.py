"""Enrolment, manifests and blobs (protocol.md, sections 3 and 4)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import httpx2
import pytest

from tallystick_shared.bundle import Manifest, state_digest, voucher_digest
from tallystick_shared.journal import encode
from tallystick_shared.signing import SigningKey, Typ, sha256_hex
from tallystick_shared.wire import DeviceRequest, DeviceState, EnrolmentToken, EnrolRequest
from tests.server.conftest import voucher
from tests.server.tiny_device import Refused, TinyDevice

if TYPE_CHECKING:
    from tests.server.conftest import Shop


def test_a_token_enrols_one_device_into_its_store(either_shop: Shop) -> None:
    """The device gets the token's store and scope; the same token with the same key gives the same device again."""
    token = either_shop.token("store-9")
    device = TinyDevice(either_shop.url, either_shop.clock)
    first = device.enrol(token)
    assert (first.store_id, first.scope) == ("store-9", "main")
    assert device.enrol(token).device == first.device
    assert len(either_shop.rows("SELECT 1 FROM devices")) == 1


def test_a_token_is_for_one_key(either_shop: Shop) -> None:
    """Another key with a used token is refused with 409, and nothing is enrolled."""
    token = either_shop.token()
    TinyDevice(either_shop.url, either_shop.clock).enrol(token)
    with pytest.raises(Refused) as refused:
        TinyDevice(either_shop.url, either_shop.clock).enrol(token)
    assert (refused.value.status, refused.value.code) == (409, "TOKEN_USED")
    assert len(either_shop.rows("SELECT 1 FROM devices")) == 1


@pytest.mark.parametrize("how", ["expired", "made up"])
def test_a_bad_token_is_refused(shop: Shop, how: str) -> None:
    """A token that has expired or never was is refused with 401."""
    token = EnrolmentToken.parse(shop.token())
    if how == "expired":
        shop.clock.advance(hours=25)
    else:
        token = EnrolmentToken("x" * 43, token.root_version, token.root_sha256)
    with pytest.raises(Refused) as refused:
        TinyDevice(shop.url, shop.clock).ask_to_enrol(token)
    assert (refused.value.status, refused.value.code) == (401, "BAD_TOKEN")


def test_an_enrolment_is_signed_by_the_key_it_brings(shop: Shop) -> None:
    """A request that carries one key and is signed by another is refused."""
    token, signer = EnrolmentToken.parse(shop.token()), SigningKey.generate()
    body = signer.sign(Typ.ENROL, encode(EnrolRequest(token.secret, SigningKey.generate().jwk(), "till")))
    response = httpx2.post(f"{shop.url}/v1/devices", content=body)
    assert (response.status_code, response.json()["code"]) == (401, "UNKNOWN_KEY")


def test_a_bundle_carries_the_published_vouchers(either_shop: Shop) -> None:
    """The snapshot holds every active voucher of the scope byte for byte, and the state digest is theirs."""
    either_shop.publish(voucher("Tea", total=3), voucher("jam"))
    device = either_shop.device(synced=False)
    manifest = device.fetch()
    assert set(device.vouchers) == {"tea", "jam"}
    stored = either_shop.rows("SELECT id, json FROM vouchers v JOIN voucher_revisions r ON r.voucher_id = v.id")
    assert {row["id"]: bytes(row["json"]) for row in stored} == {
        one.id: bytes(one.voucher) for one in device.vouchers.values()
    }
    total = sum(voucher_digest(one.id, sha256_hex(bytes(one.voucher))) for one in device.vouchers.values())
    assert (manifest.state_digest, manifest.snapshot.vouchers) == (state_digest(total), 2)


def test_each_publication_is_a_version(shop: Shop) -> None:
    """Publishing and withdrawing raise the version by one each; a withdrawn voucher leaves the bundle."""
    device = shop.device(synced=False)
    versions = [device.fetch().version]
    shop.publish(voucher("tea"), voucher("jam"))
    versions.append(device.fetch().version)
    shop.post(f"/v1/vouchers/{device.vouchers['tea'].id}/deactivate")
    shop.post(f"/v1/vouchers/{device.vouchers['tea'].id}/deactivate")
    last = device.fetch()
    assert [*versions, last.version] == [1, 2, 3]
    assert set(device.vouchers) == {"jam"}
    assert last.state_digest == state_digest(
        voucher_digest(device.vouchers["jam"].id, sha256_hex(bytes(device.vouchers["jam"].voucher)))
    )
    assert device.sync().manifest_version == 3


def test_an_unchanged_manifest_is_not_sent_again(shop: Shop) -> None:
    """The same bytes until half-life, 304 for who has them; signed again at half-life, over the same snapshot."""
    shop.publish(voucher("tea"))
    device = shop.device(synced=False)
    first: Manifest = device.fetch()
    etag = device.get_manifest().headers["etag"]
    shop.clock.advance(days=3)
    assert (device.get_manifest(etag=etag).status_code, device.get_manifest(etag=etag).content) == (304, b"")
    shop.clock.advance(days=1)
    again = device.fetch()
    assert (again.version, again.snapshot) == (first.version, first.snapshot)
    assert again.expires_at - first.expires_at == timedelta(days=4)
    assert len(shop.rows("SELECT 1 FROM blobs")) == 1


def test_a_manifest_is_for_devices_of_its_scope(shop: Shop) -> None:
    """Another scope's manifest is not found, and a signature for another path is refused."""
    shop.post("/v1/scopes", {"name": "web"})
    device = shop.device()
    assert device.get_manifest("web").status_code == 404
    path = "/v1/scopes/main/manifest"
    assert httpx2.get(shop.url + path, headers=device.authorization("/v1/other")).status_code == 401
    device.key = SigningKey.generate()
    assert httpx2.get(shop.url + path, headers=device.authorization(path)).status_code == 401
    stranger = DeviceRequest("00000000-0000-7000-8000-000000000000", "GET", path, shop.clock())
    header = f"Tallystick {device.key.sign(Typ.REQUEST, encode(stranger)).decode()}"
    assert httpx2.get(shop.url + path, headers={"Authorization": header}).status_code == 401


def test_a_blob_can_be_cached_for_ever(shop: Shop) -> None:
    """Its digest is its name and the capability: no key is asked for, and nothing about it changes."""
    shop.publish(voucher("tea"))
    manifest = shop.device(synced=False).fetch()
    response = httpx2.get(f"{shop.url}/v1/blobs/{manifest.snapshot.sha256}")
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert len(response.content) == manifest.snapshot.bytes


def test_states_go_one_way(shop: Shop) -> None:
    """active -> suspended -> revoked -> lost; never back."""
    device = shop.device()
    for verb, state in (
        ("suspend", DeviceState.SUSPENDED),
        ("revoke", DeviceState.REVOKED),
        ("lost", DeviceState.LOST),
    ):
        assert shop.post(f"/v1/devices/{device.id}/{verb}").json() == {"id": device.id, "state": state}
    response = shop.post(f"/v1/devices/{device.id}/suspend")
    assert (response.status_code, response.json()["code"]) == (409, "WRONG_STATE")
