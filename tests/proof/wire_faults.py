"""What a wire does to a connection: it is cut, slow, or says things twice. `wire_answers` has what strangers answer.

Each is one exchange: the request's head was read, the rest is up to the fault. `FAULTS` has all of both files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.proof.wire_relay import END, Exchange, Fault, Reply, answer, problem

CALLS = ("sync", "online", "enrol", "again", "manifest", "blob", "root")
"""The kinds of request that a till makes: what a fault is aimed at."""
FIRST = ("sync", "online", "root")
"""Those that open a connection: what comes before the first byte of a request can only be aimed at these."""
FAULTS: dict[str, Fault] = {}

Act = Callable[[Exchange], Awaitable[None]]


def fault(
    name: str,
    *,
    calls: tuple[str, ...] = CALLS,
    slow: bool = False,
    fine: bool = False,
    held: bool = False,
    connects: bool = False,
    left: bool = False,
) -> Callable[[Act], Act]:
    def keep(act: Act) -> Act:
        FAULTS[name] = Fault(name, act, frozenset(calls), slow, fine, held, connects, left)
        return act

    return keep


def cut(x: Exchange, whole: bytes) -> bytes:
    """A part of it that is neither empty nor all."""
    return whole[: x.chance.randint(1, max(1, len(whole) - 1))]


# ---- before the server has the request


@fault("refused", calls=FIRST, connects=True)
async def refused(x: Exchange) -> None:
    await x.wire.deafen(full=False)


@fault("never accepted", calls=FIRST, connects=True, slow=True)
async def never_accepted(x: Exchange) -> None:
    await x.wire.deafen(full=True)


@fault("idle connection closed", calls=FIRST, connects=True, fine=True)
async def idle_closed(x: Exchange) -> None:
    await x.wire.hang_up()


@fault("idle connection reset", calls=FIRST, connects=True, fine=True)
async def idle_reset(x: Exchange) -> None:
    await x.wire.hang_up(rudely=True)


@fault("reset before the request")
async def reset_before(x: Exchange) -> None:
    x.reset()


@fault("closed before the request")
async def closed_before(x: Exchange) -> None:
    x.close()


@fault("reset within the request", calls=("sync", "online", "enrol", "again"))
async def reset_within(x: Exchange) -> None:
    await x.read_some()
    x.reset()


@fault("half-closed before the answer")
async def half_closed_before(x: Exchange) -> None:
    await x.request()
    await x.half_close()


@fault("accepted and silent", slow=True)
async def silent(x: Exchange) -> None:
    await x.hold()
    x.reset()


@fault("request lost and delivered later", calls=("sync", "online", "enrol", "again"))
async def delivered_later(x: Exchange) -> None:
    x.wire.later.append(await x.request())
    x.reset()


# ---- after the server has committed


@fault("reset after the commit")
async def reset_after(x: Exchange) -> None:
    await x.forward()
    x.reset()


@fault("closed after the commit")
async def closed_after(x: Exchange) -> None:
    await x.forward()
    x.close()


@fault("reset in the answer's head")
async def reset_in_head(x: Exchange) -> None:
    await x.write(cut(x, (await x.forward()).head))
    x.reset()


@fault("closed in the answer's head")
async def closed_in_head(x: Exchange) -> None:
    await x.write(cut(x, (await x.forward()).head))
    x.close()


@fault("reset in the answer's body")
async def reset_in_body(x: Exchange) -> None:
    reply = await x.forward()
    await x.write(reply.head + cut(x, reply.body))
    x.reset()


@fault("closed in the answer's body")
async def closed_in_body(x: Exchange) -> None:
    reply = await x.forward()
    await x.write(reply.head + cut(x, reply.body))
    x.close()


@fault("half-closed in the answer")
async def half_closed(x: Exchange) -> None:
    await x.write(cut(x, (await x.forward()).raw))
    await x.half_close()


@fault("closed after the answer", fine=True)
async def closed_afterwards(x: Exchange) -> None:
    await x.write((await x.forward()).raw)
    x.close()


@fault("reset after the answer")
async def reset_afterwards(x: Exchange) -> None:
    """What the till has not read by then is lost with the connection."""
    await x.write((await x.forward()).raw)
    await asyncio.sleep(x.chance.choice([0, 0.02]))
    x.reset()


# ---- twice


@fault("answered twice", fine=True)
async def answered_twice(x: Exchange) -> None:
    raw = (await x.forward()).raw
    await x.write(raw + raw)


@fault("answered twice, later", fine=True)
async def answered_twice_later(x: Exchange) -> None:
    raw = (await x.forward()).raw
    await x.write(raw)
    await asyncio.sleep(0.02)
    await x.write(raw)


@fault("a stray refusal after the answer", fine=True)
async def stray_refusal(x: Exchange) -> None:
    """What is left over in the connection must not be taken for the next request's answer."""
    code, status = x.chance.choice([("INVALID_FIELD", 422), ("IDENTIFIER_REUSED", 409), ("NOT_FOUND", 404)])
    await x.write((await x.forward()).raw + problem(status, code, "a refusal of something else"))


@fault("a stray answer after the answer", fine=True)
async def stray_answer(x: Exchange) -> None:
    stray = _of_others(x) or answer("200 OK", b"{}")
    await x.write((await x.forward()).raw + stray)


@fault("an old answer instead")
async def old_answer(x: Exchange) -> None:
    mine = [reply.raw for wire, reply in x.wire.relay.replies[x.armed.call] if wire is x.wire]
    await x.request()
    await x.write(x.chance.choice(mine) if mine else answer("200 OK", b"e30.e30.e30"))


@fault("another till's answer instead")
async def others_answer(x: Exchange) -> None:
    theirs = _of_others(x)
    await x.forward()
    await x.write(theirs or answer("200 OK", b"e30.e30.e30"))


def _of_others(x: Exchange) -> bytes:
    theirs = [reply.raw for wire, reply in x.wire.relay.replies[x.armed.call] if wire is not x.wire]
    return x.chance.choice(theirs) if theirs else b""


@fault("request forwarded twice", fine=True)
async def forwarded_twice(x: Exchange) -> None:
    replies = [await x.forward(), await x.forward()]
    await x.write(x.chance.choice(replies).raw)


@fault("request forwarded twice at once", fine=True)
async def forwarded_at_once(x: Exchange) -> None:
    await x.request()
    replies = await asyncio.gather(*(x.forward() for _ in range(3)))
    await x.write(x.chance.choice(replies).raw)


@fault("request forwarded again later", calls=("sync", "online", "enrol", "again"), fine=True)
async def forwarded_again_later(x: Exchange) -> None:
    reply = await x.forward()
    x.wire.later.append(await x.request())
    await x.write(reply.raw)


# ---- slow


@fault("held until a sale is made", held=True, fine=True)
async def held(x: Exchange) -> None:
    reply = await x.forward()
    await x.hold()
    await x.write(reply.raw)


@fault("left in the midst", calls=("sync", "online", "manifest", "blob"), held=True, left=True)
async def left(x: Exchange) -> None:
    await x.write(cut(x, (await x.forward()).raw))
    await x.hold()
    x.reset()


@fault("too late", slow=True)
async def too_late(x: Exchange) -> None:
    reply = await x.forward()
    await x.hold()
    await x.write(reply.raw)


@fault("cut and silent", slow=True)
async def cut_and_silent(x: Exchange) -> None:
    await x.write(cut(x, (await x.forward()).raw))
    await x.hold()


@fault("a byte at a time", fine=True)
async def dripped(x: Exchange) -> None:
    for byte in (await x.forward()).raw[:4_096]:
        await x.write(bytes([byte]))
        await asyncio.sleep(0)
    await x.write((await x.forward()).raw[4_096:])


@fault("a byte at a time, too slowly", slow=True)
async def dripped_slowly(x: Exchange) -> None:
    for byte in (await x.forward()).raw:
        await x.write(bytes([byte]))
        if await x.hold_for(0.05):
            break
    x.reset()


def with_head(reply: Reply, *, without: bytes = b"", more: bytes = b"") -> bytes:
    """The answer's head, without the header of that name and with `more` lines, each ended."""
    lines = reply.head.removesuffix(END).split(b"\r\n")
    kept = [line for line in lines if not without or not line.lower().startswith(without + b":")]
    return b"\r\n".join(kept) + b"\r\n" + more + b"\r\n"
