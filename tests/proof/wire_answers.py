"""What a wire makes of an answer, and what others than the server answer: portals, proxies, whatever has the port."""

from __future__ import annotations

import gzip
import zlib

from tests.proof.wire_faults import FAULTS, cut, fault, with_head
from tests.proof.wire_relay import TRAP, Exchange, answer, problem

__all__ = ["FAULTS"]
LENGTH = b"content-length"
HTML = b"<html><head><title>Welcome to Free WiFi</title></head><body>Accept our <b>terms</b></body></html>"


# ---- the server's answer, in another form


@fault("100 Continue first", fine=True)
async def continued(x: Exchange) -> None:
    await x.write(b"HTTP/1.1 100 Continue\r\n\r\n" + (await x.forward()).raw)


@fault("a flood of 1xx first", fine=True)
async def flooded(x: Exchange) -> None:
    await x.write(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" * 400)
    await x.write((await x.forward()).raw)


@fault("1xx without end", slow=True)
async def endless_1xx(x: Exchange) -> None:
    await x.request()
    while not await x.hold_for(0.002):
        await x.write(b"HTTP/1.1 102 Processing\r\n\r\n" * 20)
    x.reset()


@fault("101 Switching Protocols")
async def switched(x: Exchange) -> None:
    await x.request()
    await x.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n\x00\x00\x12\x04")
    await x.half_close()


@fault("Content-Length too long", slow=True)
async def too_long(x: Exchange) -> None:
    reply = await x.forward()
    length = b"content-length: %d\r\n" % (len(reply.body) + x.chance.choice([1, 1000, 10**15]))
    await x.write(with_head(reply, without=LENGTH, more=length) + reply.body)
    await x.hold()


@fault("Content-Length too short")
async def too_short(x: Exchange) -> None:
    reply = await x.forward()
    length = b"content-length: %d\r\n" % (len(reply.body) // 2)
    await x.write(with_head(reply, without=LENGTH, more=length) + reply.body)


@fault("Content-Length that is none")
async def no_length(x: Exchange) -> None:
    reply = await x.forward()
    length = x.chance.choice([b"-1", b"1e3", b"0x10", b"9" * 5_000, b"", b"7, 8", b"7\r\ncontent-length: 8"])
    await x.write(with_head(reply, without=LENGTH, more=b"content-length: " + length + b"\r\n") + reply.body)
    await x.half_close()


@fault("in chunks", fine=True)
async def chunked(x: Exchange) -> None:
    reply = await x.forward()
    head = with_head(reply, without=LENGTH, more=b"transfer-encoding: chunked\r\n")
    if reply.head.startswith(b"HTTP/1.1 304"):
        return await x.write(reply.raw)
    parts = [reply.body[at : at + 7] for at in range(0, min(len(reply.body), 700), 7)] + [reply.body[700:]]
    body = b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in parts if part)
    return await x.write(head + body + b"0\r\nx-trailer: 1\r\n\r\n")


@fault("a broken chunk")
async def broken_chunk(x: Exchange) -> None:
    reply = await x.forward()
    head = with_head(reply, without=LENGTH, more=b"transfer-encoding: chunked\r\n")
    wrong = x.chance.choice(
        [b"zz\r\n", b"-5\r\n", b"ffffffffffffffffffffffff\r\n", b"5\r\nab\r\n0\r\n\r\n", b"3;" + b"a" * 200_000]
    )
    await x.write(head + b"4\r\n" + reply.body[:4] + b"\r\n" + wrong)
    await x.half_close()


@fault("chunks and a Content-Length")
async def both_lengths(x: Exchange) -> None:
    reply = await x.forward()
    await x.write(
        with_head(reply, more=b"transfer-encoding: chunked\r\n") + b"1\r\n" + reply.body[:1] + b"\r\n0\r\n\r\n"
    )


@fault("HTTP/1.0", fine=True)
async def http_10(x: Exchange) -> None:
    reply = await x.forward()
    await x.write(with_head(reply, without=LENGTH).replace(b"HTTP/1.1", b"HTTP/1.0", 1) + reply.body)
    x.close()


@fault("HTTP/1.0, cut")
async def http_10_cut(x: Exchange) -> None:
    reply = await x.forward()
    await x.write(with_head(reply, without=LENGTH).replace(b"HTTP/1.1", b"HTTP/1.0", 1) + cut(x, reply.body))
    x.close()


@fault("compressed on the way")
async def compressed(x: Exchange) -> None:
    reply = await x.forward()
    packed, name = x.chance.choice(
        [
            (gzip.compress(reply.body), b"gzip"),
            (zlib.compress(reply.body), b"deflate"),
            (reply.body, b"gzip"),
            (b"\x1f\x8b", b"br"),
        ]
    )
    more = b"content-encoding: %s\r\ncontent-length: %d\r\n" % (name, len(packed))
    await x.write(with_head(reply, without=LENGTH, more=more) + packed)


@fault("a gzip bomb")
async def bomb(x: Exchange) -> None:
    await x.request()
    await x.write(answer("200 OK", BOMB, "content-encoding: gzip"))


BOMB = gzip.compress(bytes(20_000_000))


@fault("a bit flipped")
async def flipped(x: Exchange) -> None:
    reply = await x.forward()
    body = bytearray(reply.body or b"\0")
    body[x.chance.randrange(len(body))] ^= 1 << x.chance.randrange(8)
    await x.write(reply.head + bytes(body[: len(reply.body)]))


@fault("headers of megabytes")
async def huge_header(x: Exchange) -> None:
    await x.request()
    filling = x.chance.choice([b"x: " + b"a" * 2_000_000, b"".join(b"x-%d: 1\r\n" % one for one in range(100_000))])
    await x.write(b"HTTP/1.1 200 OK\r\n" + filling + b"\r\n\r\n")


@fault("a body without end")
async def endless_body(x: Exchange) -> None:
    await x.request()
    chunked = x.chance.random() < 0.5
    await x.write(b"HTTP/1.1 200 OK\r\n" + (b"transfer-encoding: chunked\r\n" if chunked else b"") + b"\r\n")
    part = b"10000\r\n" + bytes(65_536) + b"\r\n" if chunked else bytes(65_536)
    while not x.armed.go_on.is_set():
        await x.write(part)


# ---- somebody else


@fault("a redirect")
async def redirected(x: Exchange) -> None:
    await x.request()
    status = x.chance.choice(["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent", "300 Many"])
    where = x.chance.choice(LOCATIONS).replace("WIRE", x.wire.url)
    await x.write(answer(status, HTML, f"location: {where}"))


LOCATIONS = [
    f"WIRE{TRAP.decode()}", TRAP.decode(), "http://portal.invalid/login", "http://xn--a../", "https://[::1",
    "http://:99999999/", "", "//", "javascript:alert(1)", "https://user:secret@[fe80::1%25eth0]/", "mailto:a@b",
    "\xff\xfe", "http:///", "?",
]  # fmt: skip


@fault("a portal")
async def portal(x: Exchange) -> None:
    await x.request()
    status = x.chance.choice(
        ["200 OK", "201 Created", "202 Accepted", "204 No Content", "205 X", "206 Partial", "226 IM"]
    )
    body = b"" if status[:3] in ("204", "205") else x.chance.choice([HTML, b"", b"{}", b"[]", b"null", b"\xff\xfe"])
    await x.write(answer(status, body, "content-type: text/html"))


@fault("511 of a portal")
async def needs_login(x: Exchange) -> None:
    await x.request()
    await x.write(answer("511 Network Authentication Required", HTML, "content-type: text/html", "retry-after: 99999"))


@fault("a portal with cookies")
async def cookies(x: Exchange) -> None:
    """Whatever it sets must not be sent to the server, which refuses a head of such a size."""
    await x.request()
    several = [f"set-cookie: c{one}={'x' * 3_900}; path=/; max-age=99999" for one in range(20)]
    await x.write(answer("200 OK", HTML, "content-type: text/html", *several))


@fault("a proxy's error")
async def proxys(x: Exchange) -> None:
    """Also one after the server has committed."""
    await (x.forward() if x.chance.random() < 0.5 else x.request())
    status = x.chance.choice(
        [400, 401, 403, 404, 405, 407, 408, 409, 410, 421, 422, 425, 431, 451, 500, 502, 503, 504, 520, 599, 600, 999]
    )
    await x.write(
        answer(f"{status} X", HTML, "content-type: text/html", "connection: close", "proxy-authenticate: Basic")
    )
    x.close()


@fault("too large")
async def too_large(x: Exchange) -> None:
    await x.request()
    said = [answer("413 X", HTML), problem(413, "TOO_LARGE", "a batch has at most 1 byte")]
    await x.write(x.chance.choice(said))


@fault("an odd Retry-After")
async def retry_after(x: Exchange) -> None:
    await x.request()
    wish = x.chance.choice(RETRY_AFTER)
    said = [problem(status, "BUSY", "come again", f"retry-after: {wish}") for status in (429, 503)]
    await x.write(x.chance.choice([*said, answer("429 X", HTML, f"retry-after: {wish}")]))


RETRY_AFTER = [
    "-1", "0", "1e9", "1000000000000", "9" * 5_000, "", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "1.5", "\xb2\xb3",
    "Wed, 21 Oct 2099 07:28:00 GMT", "Wed, 21 Oct 99999 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00 +99999999999999999",
    "Wed, 21 Oct 9999 23:59:59 -2359", "Mon, 01 Jan 0001 00:00:00 +2359", "10, 20",
]  # fmt: skip


@fault("an odd problem")
async def odd_problem(x: Exchange) -> None:
    """Of the server, by its form: deep, long, or with what a terminal would act on."""
    await x.request()
    deep = b'{"type":"a","title":"b","status":500,"detail":"c","code":"DEEP","x":' + b"[" * 50_000
    said = [
        problem(500, "\x1b[2J\nTraceback (most recent call last):", "\x1b[31mred\r\n\u202e"),
        problem(403, "A" * 100_000, "b" * 100_000),
        problem(400, "", ""),
        problem(404, "NOT_FOUND", "there is nothing here"),
        problem(401, "UNAUTHORIZED", "who are you"),
        problem(401, "STALE_REQUEST", "old"),
        answer("500 X", deep, "content-type: application/problem+json"),
        answer("422 X", deep, "content-type: application/problem+json"),
        answer("500 X", b'{"code": 5}', "content-type: application/problem+json; charset=utf-7"),
        answer("422 X", b"\xff\xfe", "content-type: application/problem+json"),
    ]
    await x.write(x.chance.choice(said))


@fault("deep JSON")
async def deep(x: Exchange) -> None:
    await x.request()
    await x.write(answer("200 OK", x.chance.choice([b"[", b'{"a":', b'{"payload":[']) * 10_000))


@fault("an odd ETag", calls=("manifest", "blob"), fine=True)
async def odd_etag(x: Exchange) -> None:
    """It is sent back with a later request, or not at all."""
    reply = await x.forward()
    etag = x.chance.choice([b'"\xff"', b"\xc3\xa9", b'"' + b"e" * 9_000 + b'"', b"", b'W/"a", "b"'])
    await x.write(with_head(reply, without=b"etag", more=b"etag: " + etag + b"\r\n") + reply.body)


@fault("304 to everything")
async def not_modified(x: Exchange) -> None:
    await x.request()
    await x.write(b'HTTP/1.1 304 Not Modified\r\netag: "x"\r\n\r\n')


@fault("TLS on a plain port")
async def tls(x: Exchange) -> None:
    await x.request()
    await x.write(bytes.fromhex("15030100020246160303007a0200007603") + x.chance.randbytes(100))
    x.close()


@fault("no HTTP at all")
async def no_http(x: Exchange) -> None:
    await x.request()
    await x.write(x.chance.choice(NO_HTTP))
    await x.half_close()


NO_HTTP = [
    b"SSH-2.0-OpenSSH_9.9\r\n", b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 000 X\r\n\r\n",
    b"HTTP/1.1 99 X\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"ICY 200 OK\r\n\r\n", b"\r\n" * 1_000,
    b"HTTP/1.1 200 \xff\x00\r\n\r\n", b"HTTP/1.1 200 OK\r\n folded: 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nbad name: 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx: \x00\r\n\r\n",
]  # fmt: skip
