"""Every door: without a key nothing is created, read or redeemed, and every refusal is problem details."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from litestar import Litestar

from tallystick_server.app import create_app
from tallystick_server.importing import BadFile
from tallystick_server.operations import import_vouchers
from tests.server.conftest import ORDER, voucher
from tests.server.tiny_device import NONE, digest, new_id

if TYPE_CHECKING:
    from tests.server.conftest import Shop

OPEN = {"/v1/roots/{version}", "/v1/blobs/{sha256}", "/health/live"}
SIGNED = {"/v1/devices", "/v1/devices/again", "/v1/sync"}
VALUES = {"version": "1", "lease_id": NONE, "sha256": digest("x"), "scope_name": "main", "flag_id": "1"}


def routes(app: Litestar) -> list[tuple[str, str]]:
    found = []
    for route in app.routes:
        path = route.path_format
        for method in getattr(route, "methods", set()) - {"OPTIONS", "HEAD"}:
            if not path.startswith("/schema"):
                found.append((method, path))
    return sorted(found)


def is_problem(response: httpx2.Response) -> dict[str, Any]:
    """The problem details of a refusal, complete (RFC 9457)."""
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == response.status_code
    assert problem["type"] == "urn:tallystick:problem:" + problem["code"].lower().replace("_", "-")
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer tallyop_guess"}, {"Authorization": "Basic eDp5"}])
def test_without_a_key_nothing_is_created_read_or_redeemed(shop: Shop, header: dict[str, str]) -> None:
    """Every route but roots, blobs and health refuses who has no key, whatever the body, and changes nothing."""
    shop.publish(voucher("tea", total=3))
    device = shop.device()
    tables = ("vouchers", "campaigns", "scopes", "devices", "enrolment_tokens", "redemptions", "events", "syncs")
    before = {table: shop.rows(f"SELECT count(*) AS n FROM {table}") for table in tables}
    walked = routes(create_app(shop.settings, clock=shop.clock))
    assert len(walked) > 20
    for method, path in walked:
        if path in OPEN:
            continue
        url = shop.url + path.format_map(VALUES | {"voucher_id": NONE, "device_id": device.id})
        bodies = [b"", b"{}", json.dumps({"id": new_id(), "order": ORDER, "codes": ["tea"]}).encode(), b"x.y.z\n"]
        for body in bodies if method == "POST" else [b""]:
            response = httpx2.request(method, url, content=body, headers=header)
            assert response.status_code in (401, 422), (method, path, response.text)
            is_problem(response)
            if path not in ("/v1/devices", "/v1/devices/again", "/v1/sync"):
                assert response.status_code == 401, (method, path)
                assert "Bearer" in response.headers["www-authenticate"]
    assert {table: shop.rows(f"SELECT count(*) AS n FROM {table}") for table in tables} == before


def test_every_post_documents_its_body(shop: Shop) -> None:
    """The OpenAPI document has a request body for every POST, made from the struct that reads it."""
    document = httpx2.get(f"{shop.url}/schema/openapi.json").json()
    posts = {path: item["post"] for path, item in document["paths"].items() if "post" in item}
    assert len(posts) >= 11
    schemas = document["components"]["schemas"]
    for path, operation in posts.items():
        for media in operation["requestBody"]["content"].values():
            name = media["schema"]["$ref"].rpartition("/")[2]
            assert schemas[name]["type"] == "object", path
    assert set(schemas["Voucher"]["required"]) == {"code", "discount"}
    assert "percent" in schemas["Shipping"]["properties"]


def test_every_answer_and_refusal_is_documented(shop: Shop) -> None:
    """Each operation has one answer with a body, its refusals as problem details, and says which key it asks for."""
    document = httpx2.get(f"{shop.url}/schema/openapi.json").json()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            answers = operation["responses"]
            good = [one for status, one in answers.items() if status.startswith("2")]
            assert [bool(one["content"]) for one in good] == [True], path
            assert "503" in answers, path
            signed = method == "post" and path in SIGNED
            assert bool(operation.get("security")) == (path not in OPEN and not signed), path
            assert ("401" in answers) == (path not in OPEN), (method, path)
            for status, one in answers.items():
                assert "X-Request-Id" in one["headers"], path
                if status >= "400":
                    assert [*one["content"]] == ["application/problem+json"], path
    assert {*document["components"]["securitySchemes"]} == {"operator", "device"}
    assert document["components"]["schemas"]["VoucherPage"]["required"] == ["vouchers", "next"]


@pytest.mark.parametrize("method", ["OPTIONS", "DELETE"])
def test_an_address_says_all_it_takes(shop: Shop, method: str) -> None:
    """`Allow` names the methods of every route at an address (the API row, seed 1)."""
    response = httpx2.request(method, f"{shop.url}/v1/campaigns", headers=shop.headers)
    assert {*response.headers["allow"].split(", ")} == {"GET", "OPTIONS", "POST"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/nowhere", None, 404, "NOT_FOUND"),
        ("GET", "/schema/nowhere", None, 404, "NOT_FOUND"),  # the API row, seed 1, case 3
        ("GET", "/v1/flagged?state=nonsense", None, 400, "BAD_REQUEST"),
        ("GET", "/v1/flagged?cursor=-1", None, 400, "BAD_REQUEST"),
        ("GET", "/v1/vouchers?cursor=a%0A", None, 400, "BAD_REQUEST"),
        ("DELETE", "/v1/vouchers", None, 405, "METHOD_NOT_ALLOWED"),
        ("GET", f"/v1/vouchers/{NONE}", None, 404, "NOT_FOUND"),
        ("GET", "/v1/vouchers?limit=0", None, 400, "BAD_REQUEST"),
        ("GET", "/v1/roots/9", None, 404, "NOT_FOUND"),
        ("GET", f"/v1/blobs/{digest('x')}", None, 404, "NOT_FOUND"),
        ("POST", f"/v1/vouchers/{NONE}/deactivate", "", 404, "NOT_FOUND"),
        ("POST", f"/v1/devices/{NONE}/suspend", "", 404, "NOT_FOUND"),
        ("POST", "/v1/flagged/7/resolve", "", 404, "NOT_FOUND"),
        # the API row, seed 1, case 14
        ("POST", "/v1/flagged/113142579263449802508378887136739328/resolve", "", 404, "NOT_FOUND"),
        ("POST", "/v1/vouchers?scope=none", '{"code":"x","discount":{"type":"shipping"}}', 404, "NOT_FOUND"),
        ("POST", "/v1/campaigns", "{", 422, "INVALID_FIELD"),
        ("POST", "/v1/campaigns", '{"id":"a","colour":1}', 422, "INVALID_FIELD"),
        ("POST", "/v1/scopes", '{"name":"a b"}', 422, "INVALID_FIELD"),
        ("POST", "/v1/scopes", '{"name":"main"}', 409, "EXISTS"),
        ("POST", "/v1/tokens", '{"store_id":"s","scope":"none"}', 404, "NOT_FOUND"),
        ("POST", "/v1/tokens", '{"store_id":"s","ttl_s":1}', 422, "INVALID_FIELD"),
        ("POST", "/v1/tokens", '{"store_id":"s\\u0080"}', 422, "INVALID_FIELD"),  # the API row, seed 1, case 0
        ("POST", "/v1/campaigns", '{"id":"a\\u0000"}', 422, "INVALID_FIELD"),
        ("POST", "/v1/campaigns", '{"id":"a","name":"\\u0000"}', 422, "INVALID_FIELD"),
    ],
)
def test_every_refusal_is_problem_details(
    shop: Shop, method: str, path: str, body: str | None, status: int, code: str
) -> None:
    """Unknown addresses, methods, bodies and things: one sentence, a stable code and the request's id."""
    response = httpx2.request(method, shop.url + path, content=body or b"", headers=shop.headers)
    assert (response.status_code, is_problem(response)["code"]) == (status, code), response.text


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"code": "x", "discount": {"type": "percentage", "percent": 101}}, "discount.percent"),
        ({"code": "x", "discount": {"type": "fixed", "amount_minor": 1.5}}, "discount.amount_minor"),
        ({"code": "x", "discount": {"type": "shipping"}, "colour": 1}, "colour"),
        ({"discount": {"type": "shipping"}}, "code"),
        ({"code": "TEA", "discount": {"type": "shipping"}}, "code"),
    ],
)
def test_a_bad_voucher_names_its_field(shop: Shop, body: dict[str, Any], path: str) -> None:
    """The path of the field is in the sentence and in `errors`; a code that exists already is such a field too."""
    shop.publish(voucher("tea"))
    response = shop.post("/v1/vouchers", body)
    problem = is_problem(response)
    assert problem["errors"][0]["path"] == path
    assert problem["detail"].startswith(path)
    assert len(shop.rows("SELECT 1 FROM vouchers")) == 1


def test_a_bad_order_names_its_field(shop: Shop) -> None:
    """Paths of an order lie under `order`, those of codes under `codes`."""
    bad = ORDER | {"lines": [ORDER["lines"][0] | {"quantity": 0}]}
    assert is_problem(shop.online(new_id(), "tea", order=bad))["errors"][0]["path"] == "order.lines[0].quantity"
    assert is_problem(shop.online(new_id(), " "))["errors"][0]["path"] == "codes[0]"


def test_a_body_too_large_is_refused_unread(shop: Shop) -> None:
    """100 MB are refused with 413 as problem details, whether the size is announced or not."""
    announced = httpx2.post(f"{shop.url}/v1/sync", content=b"x" * 100_000_000, timeout=60)
    assert (announced.status_code, is_problem(announced)["code"]) == (413, "TOO_LARGE")

    def chunks() -> Iterator[bytes]:
        for _ in range(1_000):
            yield b"x" * 100_000

    # the server may answer and hang up while we are still sending
    with contextlib.suppress(httpx2.WriteError, httpx2.RemoteProtocolError, httpx2.ReadError):
        assert httpx2.post(f"{shop.url}/v1/sync", content=chunks(), timeout=60).status_code == 413
    assert httpx2.get(f"{shop.url}/health/live").status_code == 200


def test_a_file_of_hidden_codes_is_refused_without_naming_one(shop: Shop) -> None:
    """Taken, repeated or unfit: the line is named, the code stands in no sentence; one in clear is named."""
    secret = "K7QX-2M9T-WD4R-8HZC-5VNB"
    path = shop.settings.data / "codes.ndjson"
    shop.publish(voucher(secret))
    path.write_text("".join(json.dumps(voucher(one)) + "\n" for one in (secret, secret, "x" * 300)))

    def lines(*, hidden: bool) -> list[str]:
        with pytest.raises(BadFile) as bad:
            asyncio.run(import_vouchers(shop.settings, path, hidden=hidden, now=shop.clock()))
        return [line.removeprefix(f"{path}:") for line in bad.value.lines]

    told = lines(hidden=True)
    assert told[:2] == ["1: code: this is the code of a voucher already", "2: code: this is the code of line 1 already"]
    assert len(told) == 3
    assert not any("K7QX" in line or "xxx" in line for line in told)
    assert all("K7QX" in line for line in lines(hidden=False)[:2])


def test_the_log_has_no_bodies_and_no_keys(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """One line a request, with its id; never a key, a token, a customer or an address with a digest in it."""
    caplog.set_level(logging.INFO, logger="tallystick_server")
    shop.publish(voucher("tea", total=3))
    token = shop.token()
    device = shop.device()
    device.redeem(ORDER, "tea")
    device.sync()
    shop.online(new_id(), "tea")
    logged = caplog.text
    assert "/v1/sync" in logged
    for secret in (shop.operator_key, token, "anna", "tea", device.id):
        assert secret not in logged


def test_what_an_operator_creates_can_be_read(shop: Shop) -> None:
    """Vouchers, campaigns, scopes, tokens and devices: created, listed page by page, found by code."""
    assert shop.post("/v1/campaigns", {"id": "spring", "name": "Spring"}).status_code == 201
    assert shop.post("/v1/scopes", {"name": "web"}).status_code == 201
    body = voucher("Tea", total=3, campaign_id="spring")
    created = httpx2.post(f"{shop.url}/v1/vouchers?scope=web&scope=main", json=body, headers=shop.headers)
    assert created.status_code == 201
    view = created.json()
    assert view["scopes"] == ["main", "web"]
    assert view["voucher"]["currency"] == "USD"
    assert view["pools"][0]["free"] == 3
    shop.publish(voucher("a"), voucher("b"))
    page = shop.get("/v1/vouchers", limit=2)
    rest = shop.get("/v1/vouchers", limit=2, cursor=page["next"])
    codes = {one["code"] for one in [*page["vouchers"], *rest["vouchers"]]}
    assert (codes, rest["next"]) == ({"Tea", "a", "b"}, None)
    assert shop.get("/v1/vouchers", code=" TEA ")["vouchers"] == [shop.get(f"/v1/vouchers/{view['id']}")]
    assert [one["id"] for one in shop.get("/v1/campaigns")["campaigns"]] == ["spring"]
    assert [one["name"] for one in shop.get("/v1/scopes")["scopes"]] == ["main", "web"]
    assert shop.post("/v1/tokens", {"store_id": "9"}).json()["token"].startswith("tally1.")
    device = shop.device("store-7")
    assert (
        shop.get("/v1/devices")["devices"][0] | {"id": device.id, "store_id": "store-7"}
        == (shop.get("/v1/devices")["devices"][0])
    )
