"""Cases of the server's answers: to a sync, to an enrolment, to an online redemption."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tallystick_shared.signing import Typ
from tests.vectors.protocol_parts import (
    BUNDLE,
    DEEP,
    DEVICE,
    DEVICE_KEY,
    HASHES,
    NOT_UTF8,
    OTHER,
    RECEIPT,
    ROOT_A,
    SERVER,
    STRANGER,
    Case,
    Doc,
    Key,
    b64,
    filled_to,
    jws,
    noted,
    position,
    root,
    time,
    voucher_id,
    with_part,
)

REQUEST = "a1" * 32
COMPACT_BYTES_MAX = 8 * 1024 * 1024
ZEROS = "0" * 64


def lease(number: int, **changed: Any) -> Doc:
    return {
        "id": f"01978000-0000-7000-8000-00000000d{number:03d}",
        "number": number,
        "voucher_id": voucher_id(2),
        "units": 10,
        "minor": None,
        "expires_at": time(86_400),
    } | changed


def answer(**changed: Any) -> Doc:
    return {
        "device": DEVICE,
        "request_sha256": REQUEST,
        "state": "active",
        "acknowledged": position(3),
        "durable": position(2),
        "exceptions": [],
        "leases": [],
        "leases_full": False,
        "leases_digest": ZEROS,
        "recall": [],
        "server_epoch": 2,
        "ledger_mark": 40,
        "server_time": time(),
        "root_version": 1,
        "scope": "main",
        "manifest_version": 7,
        "retry_after_s": 0,
        "recovering": False,
    } | changed


def of_answer(message: bytes, *, journal: Doc | None = None, **changed: Any) -> Doc:
    """The device holds events 1 to 3, of which the server has acknowledged the first."""
    return {
        "check": "answer",
        "message": b64(message),
        "root": root(),
        "device": DEVICE,
        "request_sha256": REQUEST,
        "server_epoch": 2,
        "ledger_mark": 40,
        "journal": journal or {"base": 0, "acknowledged": 1, "hashes": HASHES},
        "now": time(),
    } | changed


def sign(document: Any, *, key: Key = RECEIPT, typ: str = Typ.ANSWER, header: Any = None) -> bytes:
    return jws(key, typ, document, header=header)


def answers() -> Iterator[Case]:
    def case(
        id_: str, shows: str, rule: str, message: bytes, *, base: str = "answer-good", ok: bool = False, **how: Any
    ) -> Case:
        return Case(f"answer-{id_}", shows, rule, of_answer(message, **how), "" if ok else base)

    good = sign(answer())
    yield case("good", "An answer by the receipt key, to this device's request in flight.", "26", good, ok=True)
    purged = {"base": 2, "acknowledged": 2, "hashes": HASHES[2:]}
    whole = {"base": 0, "acknowledged": 3, "hashes": HASHES}
    for id_, shows, rule, document, how in (
        ("unknown-field", "A field that is not known is ignored.", "27", answer(mood="good"), {}),
        ("unknown-field-in-exception", "So it is in an event's outcome.", "27",
         answer(exceptions=[{"seq": 3, "id": DEVICE, "outcome": "flagged", "reasons": ["LATE"], "by": 2}]), {}),
        ("unknown-field-in-lease", "And in a lease.", "27", answer(leases=[lease(1, colour="red")]), {}),
        ("without-recovering", "recovering may be left out: it is false.", "27",
         with_part(answer(), "recovering", ...), {}),
        ("recovering", "A server that recovers says so, in an epoch of its own.", "27",
         answer(recovering=True, server_epoch=3, ledger_mark=1), {}),
        ("unknown-outcome", "An outcome that is not known is kept as it is.", "27",
         answer(exceptions=[{"seq": 3, "id": "", "outcome": "escalated", "reasons": []}]), {}),
        ("unknown-flag", "So is a reason.", "27",
         answer(exceptions=[{"seq": 3, "id": DEVICE, "outcome": "flagged", "reasons": ["TOO_SUNNY", "LATE"]}]), {}),
        ("leases", "Leases have units, minor or both.", "27",
         answer(leases=[lease(1), lease(2, units=None, minor=5000), lease(3, minor=1)]), {}),
        ("suspended", "A suspended device gets an answer too.", "27", answer(state="suspended"), {}),
        ("unknown-state", "A state that is not known is not active.", "27", answer(state="resting"), {}),
        ("unknown-field-in-position", "And in a place in the journal.", "27",
         with_part(answer(), "acknowledged.branch", 0), {}),
        ("higher-mark", "A higher mark.", "30", answer(ledger_mark=41), {}),
        ("equal-mark", "An equal mark: the same answer once more.", "30", answer(), {"ledger_mark": 40}),
        ("lower-mark-in-a-new-epoch", "A lower mark in a higher epoch: a declared restore.", "30",
         answer(server_epoch=3, ledger_mark=1), {}),
        ("nothing-durable", "Without a backup nothing is durable.", "31", answer(durable=position(0)), {}),
        ("durable-is-acknowledged", "All that is acknowledged may be durable.", "31", answer(durable=position(3)), {}),
        ("less-than-the-head", "The server has a part of the journal.", "31", answer(acknowledged=position(2)), {}),
        ("at-the-base", "The oldest place kept, after a purge.", "31", answer(), {"journal": purged}),
        ("durable-below-the-base", "A restored server may know of an older backup only.", "31",
         answer(server_epoch=3, durable=position(1)), {"journal": purged}),
        ("forgets-in-a-new-epoch", "A server restored from a backup may acknowledge less, in a new epoch.", "31",
         answer(server_epoch=3, acknowledged=position(1), durable=position(1)), {"journal": whole}),
        ("last-second", "One second before the root expires.", "9", answer(), {"root": root(expires_at=time(1))}),
        ("retry-after-a-week", "A client waits a day at most, and refuses no answer that asks for more.", "27",
         answer(retry_after_s=7 * 86_400), {}),
        ("first-year", "Signed in 1970, and so is the end of a lease.", "27",
         answer(server_time="1970-01-01T00:00:00Z", leases=[lease(1, expires_at="1970-01-01T00:00:00Z")]), {}),
        ("last-year", "Signed at the end of 9000, and so is the end of a lease.", "27",
         answer(server_time="9000-12-31T23:59:59Z", leases=[lease(1, expires_at="9000-12-31T23:59:59Z")]), {}),
    ):  # fmt: skip
        yield case(id_, shows, rule, sign(document), ok=True, **how)
    yield case(
        "largest",
        "8,388,608 bytes are not too many.",
        "J1",
        filled_to(COMPACT_BYTES_MAX, RECEIPT, Typ.ANSWER, answer()),
        ok=True,
    )
    yield case(
        "too-large",
        "8,388,609 bytes are.",
        "J1",
        filled_to(COMPACT_BYTES_MAX + 1, RECEIPT, Typ.ANSWER, answer()),
        base="answer-largest",
    )
    yield case("root-expired", "At the second the root expires.", "9", good, root=root(expires_at=time(0)),
               base="answer-last-second")  # fmt: skip
    for other in Typ:
        if other is not Typ.ANSWER:
            name = other.value.removeprefix("tallystick-")
            message = sign(answer(), typ=other)
            yield case(f"typ-{name}", f"Signed by the receipt key for another purpose: {other.value}.", "J4", message)
    for id_, shows, key in (
        ("bundle-key", "Signed by the key of the role bundle.", BUNDLE),
        ("root-key", "Signed by a key of the role root.", ROOT_A),
        ("own-key", "Signed by the device itself.", DEVICE_KEY),
        ("stranger", "Signed by a key that is not in the root.", STRANGER),
    ):
        yield case(id_, shows, "J5", sign(answer(), key=key))
    yield case("line-end", "A line end follows.", "J2", good + b"\n")
    claimed = sign(answer(), key=STRANGER, header=RECEIPT.header(Typ.ANSWER))
    yield case("claimed-kid", "The header names the receipt key, and another key signed.", "J6", claimed)
    for id_, shows, path, value in (
        ("without-durable", "durable is missing.", "durable", ...),
        ("lease-0", "A lease has the number 0.", "leases", [lease(0)]),
        ("short-hash", "A hash has 63 digits.", "acknowledged.hash", HASHES[3][1:]),
        ("mark-as-text", "The ledger mark is text.", "ledger_mark", "40"),
        ("negative-mark", "The ledger mark is -1.", "ledger_mark", -1),
    ):
        yield case(id_, shows, "27", sign(with_part(answer(), path, value)))
    yield from _of_bounds(case)
    refused: list[tuple[str, str, str, Doc, Doc]] = [
        ("other-device", "It is to another device.", "28", answer(device=OTHER), {}),
        ("other-request", "It answers another request.", "28", answer(request_sha256="a2" * 32), {}),
        ("old-epoch", "Its epoch is over, however high its mark.", "29", answer(server_epoch=1, ledger_mark=99), {}),
        ("epoch-0", "Of no epoch at all.", "29", answer(server_epoch=0), {}),
        ("lower-mark", "A lower mark in the same epoch: a restore that was not declared.", "30",
         answer(ledger_mark=39), {}),
        ("above-the-head", "It acknowledges event 4 of 3.", "31", answer(acknowledged={"seq": 4, "hash": ZEROS}), {}),
        ("durable-above-acknowledged", "It calls durable what it does not acknowledge.", "31",
         answer(acknowledged=position(1), durable=position(2)), {}),
        ("other-hash", "The hash at event 3 is not ours.", "31", answer(acknowledged={"seq": 3, "hash": HASHES[2]}),
         {}),
        ("other-durable-hash", "The hash of what is durable is not ours.", "31",
         answer(durable={"seq": 2, "hash": HASHES[1]}), {}),
        ("other-start", "Nor is the hash before the first event.", "31", answer(durable={"seq": 0, "hash": ZEROS}), {}),
        ("below-the-base", "It forgets what it called durable, and what was purged for that.", "31",
         answer(server_epoch=3, acknowledged=position(1), durable=position(1)), {"journal": purged}),
        ("forgets", "It forgets what it acknowledged, in the same epoch.", "31",
         answer(acknowledged=position(2)), {"journal": whole}),
    ]  # fmt: skip
    for id_, shows, rule, document, how in refused:
        yield case(id_, shows, rule, sign(document), **how)


def _of_bounds(case: Any) -> Iterator[Case]:
    """Numbers and times that a till could not reckon with, and what no reader has to follow: rule 27."""
    for id_, shows, changed, base in (
        ("retry-after-too-large", "retry_after_s is 1,000,000,000,000,001.", {"retry_after_s": 10**15 + 1},
         "retry-after-a-week"),
        ("retry-after-too-small", "retry_after_s is -1.", {"retry_after_s": -1}, "good"),
        ("signed-in-1969", "It is signed in 1969.", {"server_time": "1969-12-31T23:59:59Z"}, "first-year"),
        ("signed-in-9001", "It is signed in 9001.", {"server_time": "9001-01-01T00:00:00Z"}, "last-year"),
        ("lease-until-1969", "A lease ends in 1969.", {"leases": [lease(1, expires_at="1969-12-31T23:59:59Z")]},
         "first-year"),
        ("lease-until-9001", "A lease ends in 9001.",
         {"leases": [lease(1), lease(2, expires_at="9001-01-01T00:00:00Z")]}, "last-year"),
    ):  # fmt: skip
        yield case(id_, shows, "27", sign(answer(**changed)), base=f"answer-{base}")
    for id_, shows, note in (
        ("not-utf8", "A field that is not known is not UTF-8.", NOT_UTF8),
        ("deep", "A field that is not known has lists in lists, 20,000 deep.", DEEP),
    ):
        yield case(id_, shows, "27", sign(noted(answer(), note)), base="answer-unknown-field")


# ---- enrolment and online redemption


def enrolled(**changed: Any) -> Doc:
    return {
        "device": DEVICE,
        "server": SERVER,
        "store_id": "store-1",
        "scope": "main",
        "request_sha256": REQUEST,
        "root_version": 1,
        "server_epoch": 2,
        "ledger_mark": 40,
        "server_time": time(),
    } | changed


def enrolments() -> Iterator[Case]:
    def case(id_: str, shows: str, rule: str, message: bytes, *, ok: bool = False, held: Doc | None = None) -> Case:
        given = {
            "check": "enrolled",
            "message": b64(message),
            "root": held or root(),
            "request_sha256": REQUEST,
            "now": time(),
        }
        return Case(f"enrolled-{id_}", shows, rule, given, "" if ok else "enrolled-good")

    def signed(document: Any, key: Key = RECEIPT, typ: str = Typ.ENROLLED) -> bytes:
        return jws(key, typ, document)

    yield case("good", "The answer to an enrolment.", "26", signed(enrolled()), ok=True)
    yield case("unknown-field", "A field that is not known is ignored.", "27", signed(enrolled(hello=1)), ok=True)
    yield case("typ-answer", "Signed as an answer to a sync.", "J4", signed(enrolled(), typ=Typ.ANSWER))
    yield case("bundle-key", "Signed by the key of the role bundle.", "J5", signed(enrolled(), BUNDLE))
    yield case("without-scope", "scope is missing.", "27", signed(with_part(enrolled(), "scope", ...)))
    yield case("scope-of-two-lines", "The scope's name has a line end.", "27", signed(enrolled(scope="main\n")))
    yield case("not-utf8", "A field that is not known is not UTF-8.", "27", signed(noted(enrolled(), NOT_UTF8)))
    for year, at in (("1969", "1969-12-31T23:59:59Z"), ("9001", "9001-01-01T00:00:00Z")):
        yield case(f"signed-in-{year}", f"It is signed in {year}.", "27", signed(enrolled(server_time=at)))
    yield case("other-request", "It answers another request.", "28", signed(enrolled(request_sha256="a2" * 32)))
    yield case("other-server", "It is of another server than the root.", "28",
               signed(enrolled(server="01978000-0000-7000-8000-00000000a002")))  # fmt: skip
    over = root(expires_at=time(0))
    yield case("root-expired", "The root has expired.", "9", signed(enrolled()), held=over)


def redemptions() -> Iterator[Case]:
    document = {
        "id": "01978000-0000-7000-8000-00000000e009",
        "at": time(),
        "redeemed": True,
        "result": {"applied": []},
        "device": DEVICE,
        "request_sha256": REQUEST,
    }

    def case(id_: str, shows: str, rule: str, message: bytes, *, ok: bool = False, held: Doc | None = None) -> Case:
        given = {
            "check": "redeemed",
            "message": b64(message),
            "root": held or root(),
            "device": DEVICE,
            "request_sha256": REQUEST,
            "now": time(),
        }
        return Case(f"redeemed-{id_}", shows, rule, given, "" if ok else "redeemed-good")

    def signed(changed: Doc, key: Key = RECEIPT, typ: str = Typ.REDEEMED) -> bytes:
        return jws(key, typ, document | changed)

    yield case("good", "The answer to an online redemption.", "26", signed({}), ok=True)
    yield case("nothing", "Nothing applied: the result says why.", "27", signed({"redeemed": False}), ok=True)
    yield case("unknown-field", "A field that is not known is ignored.", "27", signed({"hello": 1}), ok=True)
    yield case("typ-answer", "Signed as an answer to a sync.", "J4", signed({}, typ=Typ.ANSWER))
    yield case("typ-redeem", "Signed as a request.", "J4", signed({}, typ=Typ.REDEEM))
    yield case("bundle-key", "Signed by the key of the role bundle.", "J5", signed({}, BUNDLE))
    yield case("redeemed-1", "redeemed is 1, not true.", "27", signed({"redeemed": 1}))
    not_utf8 = jws(RECEIPT, Typ.REDEEMED, noted(document, NOT_UTF8))
    yield case("not-utf8", "A field that is not known is not UTF-8.", "27", not_utf8)
    for year, at in (("1969", "1969-12-31T23:59:59Z"), ("9001", "9001-01-01T00:00:00Z")):
        yield case(f"redeemed-in-{year}", f"It was redeemed in {year}.", "27", signed({"at": at}))
    yield case("other-device", "It is to another device.", "28", signed({"device": OTHER}))
    yield case("to-an-operator", "It is to no device.", "28", signed({"device": None, "request_sha256": None}))
    yield case("other-request", "It answers another request.", "28", signed({"request_sha256": "a2" * 32}))
    yield case("root-expired", "The root has expired.", "9", signed({}), held=root(expires_at=time(0)))


# ---- the leases of an answer


def grants() -> Iterator[Case]:
    def known(number: int, voucher: int = 2, *, closed: bool = False) -> Doc:
        return {"id": lease(number)["id"], "number": number, "voucher_id": voucher_id(voucher), "closed": closed}

    def of(number: int, voucher: int = 2, **changed: Any) -> Doc:
        return lease(number, voucher_id=voucher_id(voucher), **changed)

    def case(id_: str, shows: str, leases: list[Doc], held: list[Doc], highest: int) -> Case:
        given = {"check": "grants", "leases": leases, "known": held, "lease_number": highest}
        return Case(f"grants-{id_}", shows, "L1", given)

    yield case("first", "The first lease is taken.", [of(1)], [], 0)
    yield case("known", "One that is known is left alone.", [of(1)], [known(1)], 1)
    yield case("known-and-new", "Of all that the server holds, only the new one is taken.", [of(1), of(2, 3)],
               [known(1)], 1)  # fmt: skip
    yield case("after-a-close", "Once its close is acknowledged the voucher's next lease is taken.", [of(2)],
               [known(1, closed=True)], 1)  # fmt: skip
    yield case("while-closing", "Until then it waits for a later answer.", [of(2)], [known(1)], 1)
    yield case("came-too-late", "A number at or below the highest ever taken is given back.", [of(3, 3)],
               [known(5, closed=True)], 5)  # fmt: skip
    yield case("highest", "So is the highest itself, under a new id.", [of(5, 3, id=OTHER)], [], 5)
    yield case("too-late-while-open", "Also for a voucher that has an open lease.", [of(3)], [known(5)], 5)
    yield case("after-a-purge", "The highest number survives the leases themselves.", [of(4), of(6, 3)], [], 5)
    yield case("order", "They are taken in the order of their numbers.", [of(3, 3), of(1, 1), of(2, 2)], [], 0)
    yield case("two-of-a-voucher", "Of two for one voucher the lower number is taken, the other waits.",
               [of(2), of(1)], [], 0)  # fmt: skip
    yield case("same-id-twice", "One that is listed twice is taken once.", [of(1), of(1)], [], 0)
    yield case("reused-number", "Another lease under the number of a known one is left alone.",
               [of(1, 3, id=OTHER)], [known(1)], 1)  # fmt: skip
