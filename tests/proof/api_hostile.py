"""Requests that no schema describes: bytes that are no JSON, addresses and queries of odd characters, other methods."""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any
from urllib.parse import unquote

from litestar import Litestar
from litestar.routes import HTTPRoute

from tests.proof.api_shop import Filled
from tests.proof.api_witness import Witness
from tests.proof.tally import Tally

KINDS = ("body", "address", "query", "method", "header")
PER_CASE = 60
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "another encoding": '{"id":"a"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "no UTF-8": b'{"id":"\xff\xfe"}',
    "a lone surrogate": b'{"id":"\\ud800","name":"\\udfff","note":"\\ud800","store_id":"\\ud800"}',
    "NUL": b'{"id":"\\u0000","name":"\\u0000","note":"\\u0000","store_id":"\\u0000","scope":"\\u0000"}',
    "nested lists": b"[" * 30_000 + b"]" * 30_000,
    "nested objects": b'{"order":' * 5_000 + b"1" + b"}" * 5_000,
    "a key twice": b'{"id":"a","id":"b","name":"x","name":"y","store_id":"s","store_id":"t"}',
    "a huge integer": b'{"ttl_s":' + b"9" * 5_000 + b',"store_id":"s"}',
    "a huge exponent": b'{"ttl_s":1e400,"store_id":"s"}',
    "a huge string": b'{"id":"' + b"x" * 100_000 + b'","name":"' + b"x" * 100_000 + b'"}',
    "no number": b'{"ttl_s":NaN,"store_id":"s"}',
    "a list": b"[]",
    "null": b"null",
    "text": b'"tea"',
    "two documents": b"{}{}",
    "three dots": b"...",
    "half a JWS": b"eyJhbGciOiJFZDI1NTE5In0.e30.",
    "a line end": b"\n",
}
PARTS = [
    "%00", "%", "%zz", "%2e%2e", "..", ".", "%2F", "%5C", "\u00e9", "%ff", "a" * 5_000, "-1", "0", str(2**53),
    str(2**63), "9" * 400, "%20", "'", '"', "';--", "{x}", "*", "%F0%9F%8D%B5", "%ED%A0%80", "null", "0" * 64, "\u0661",
]  # fmt: skip
VALUES = [*PARTS, "", "1", "true", "1e3", "%2B1", "+1", " 1", "1 ", "1.0", "open", "\u00b2", "01"]
METHODS = ["HEAD", "OPTIONS", "TRACE", "DELETE", "PATCH", "PUT", "CONNECT", "QUERY", "get", "", "G\u00e9T"]
HEADERS: list[tuple[bytes, bytes]] = [
    (b"authorization", b""), (b"authorization", b"Bearer"), (b"authorization", b"Bearer \xff\xfe"),
    (b"authorization", b"Tallystick x.y.z"), (b"authorization", b"Tallystick " + b"a" * 20_000),
    (b"authorization", b"Tallystick e30.e30.e30"), (b"authorization", b"bearer tallyop_" + b"x" * 10_000),
    (b"content-type", b"application/jose"), (b"content-type", b"\xff"), (b"content-type", b"a/b; charset=utf-7"),
    (b"content-type", b"multipart/form-data"), (b"content-type", b""), (b"content-length", b"-1"),
    (b"content-length", b"99999999999999999999"), (b"content-length", b"x"), (b"content-length", b"\xb2"),
    (b"if-none-match", b"*"), (b"if-none-match", b'W/"x"'), (b"cookie", b"\xff=\xff; ;;=="), (b"accept", b"text/html"),
    (b"x-request-id", b"mine"), (b"host", b"\xff"), (b"expect", b"100-continue"), (b"accept-encoding", b"\x00"),
]  # fmt: skip


def send(app: Litestar, witness: Witness, shop: Filled, chance: random.Random, tally: Tally, case: int) -> None:
    """`PER_CASE` of them, in an event loop of their own; the witness around `app` looks at what they are answered."""

    async def all_of_them() -> None:
        async with app.lifespan():
            for _ in range(PER_CASE):
                kind, scope, body = _drawn(app, shop, chance)
                tally.fault(kind)
                try:
                    await _one(witness, scope, body)
                except Exception as error:  # noqa: BLE001 - whatever it is, it left the application
                    what = f"{scope['method']} {scope['path'][:200]!r}: {type(error).__name__} left the server: {error}"
                    tally.fail(case, what)

    asyncio.run(all_of_them())


async def _one(witness: Witness, scope: dict[str, Any], body: bytes) -> None:
    parts = [body[:10], body[10:]] if len(body) > 10 else [body]
    messages = [
        {"type": "http.request", "body": part, "more_body": index + 1 < len(parts)} for index, part in enumerate(parts)
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        """The witness has it."""

    await witness(scope, receive, send)


def _drawn(app: Litestar, shop: Filled, chance: random.Random) -> tuple[str, dict[str, Any], bytes]:
    """A request to an address of the server, with one thing in it that is odd, and mostly with the operator's key."""
    route = chance.choice([one for one in app.routes if isinstance(one, HTTPRoute)])
    method: str = chance.choice(sorted(str(one) for one in route.methods - {"OPTIONS"}))
    parts = {name: str(chance.choice(values)) for name, values in shop.known.items()}
    kind, query, body, headers = chance.choice(KINDS), "", b"", list[tuple[bytes, bytes]]()
    if kind == "body":
        body = chance.choice(list(BODIES.values()))
        headers.append((b"content-type", chance.choice([b"application/json", b"application/jose"])))
    elif kind == "address":
        parts = dict.fromkeys(parts, chance.choice(PARTS))
    elif kind == "query":
        names = ["limit", "cursor", "code", "state", "scope", "hidden", chance.choice(PARTS)]
        query = "&".join(f"{chance.choice(names)}={chance.choice(VALUES)}" for _ in range(chance.choice([1, 2, 300])))
    elif kind == "method":
        method = chance.choice(METHODS)
    else:
        headers.append(chance.choice(HEADERS))
    if chance.random() < 0.85 and not any(name == b"authorization" for name, _ in headers):
        headers.append((b"authorization", b"Bearer " + shop.operator_key.encode()))
    path = re.sub(r"{(\w+)}", lambda match: parts.get(match[1], "1"), route.path_format)
    path += chance.choice(["", "/", "//", "/x"]) if kind == "address" else ""
    return kind, _scope(method, path, query, headers), body


def _scope(method: str, path: str, query: str, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    """As a server makes it of the bytes it has read: the path unquoted, the query as it came."""
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": unquote(path), "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(b"host", b"testserver"), *headers], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
