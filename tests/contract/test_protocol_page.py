"""The protocol's reference: its tables are the code's, and every example in it is computed again.

In the page a comment names what follows it. `<!-- struct: NAME -->`: the table of a message's fields, where the columns
of type and presence are the code's and the last one is written by hand. `<!-- limits -->` and `<!-- codes -->`: tables
of constants and of error codes. `<!-- rules -->`: the numbered rules of `trust`, as they stand there.
`<!-- example: NAME -->`: a block that this file computes, from the test keys of the vectors.

After a change, `python -m tests.contract.test_protocol_page --write` writes all of it anew, to be read before it is
committed.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from tallystick_client import (
    enrolment,
    exchange,
    granting,
    judging,
    judging_inputs,
    machine,
    online,
    pausing,
    timekeeping,
    trust,
)
from tallystick_server import devices, enrolling_again, problems
from tallystick_server.routes import HANDLERS
from tallystick_shared import bundle, engine, journal, journal_file, signing, wire
from tallystick_shared.journal import Count, Digest, Id, Instant, Seq
from tallystick_shared.model import order_json, parse_order, parse_voucher
from tallystick_shared.signing import sha256_hex
from tests.vectors import protocol_answers, protocol_sends
from tests.vectors import protocol_parts as parts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "protocol.md"
NAMED = {
    "Id": Id, "Digest": Digest, "Instant": Instant, "Count": Count, "Seq": Seq, "Version": bundle.Version,
    "Salt": bundle.Salt, "Name": wire.Name, "Nonce": wire.Nonce,
}  # fmt: skip
"""Types that the page explains once."""
MODULES = (wire, bundle, journal, journal_file, judging_inputs, granting, timekeeping, trust)
LIMITS = {
    name: getattr(module, name)
    for module, names in (
        (signing, "ROOT_BYTES_MAX COMPACT_BYTES_MAX"),
        (bundle, "MANIFEST_BYTES_MAX DELTAS_MAX BLOB_BYTES_MAX BLOB_UNPACKED_BYTES_MAX"),
        (journal, "EVENT_BYTES_MAX BATCH_EVENTS_MAX BATCH_BYTES_MAX"),
        (judging, "SYNC_UNPACKED_BYTES_MAX SYNC_WINDOW_BYTES_MAX"),
        (devices, "REQUEST_BYTES_MAX"),
        (machine, "ROUNDS_MAX"),
        (pausing, "BACKOFF_BASE_S BACKOFF_MAX_S SPREAD_S HALVE_AFTER"),
        (timekeeping, "BEHIND_S STEP_S_MIN"),
    )
    for name in names.split()
} | {
    "AGAIN_BYTES_MAX": enrolling_again.BODY_BYTES_MAX,
    "ENROLLED_BYTES_MAX": enrolment._ANSWER_BYTES_MAX,
    "REDEEMED_BYTES_MAX": online.ANSWER_BYTES_MAX,
    "RETENTION_S": int(exchange.RETENTION.total_seconds()),
}
WIDTH = 110


# ---- types, as the page spells them ---------------------------------------------------------------------------------


def spelled(hint: Any) -> str:
    """A type in the words of the page."""
    for name, known in NAMED.items():
        if hint == known:
            return name
    if hint is type(None):
        return "null"
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{spelled(inner[0])}{_bounds(inner[0], inner[1])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(spelled(one) for one in inner)
    if origin is list:
        return f"list of {spelled(inner[0])}"
    if origin is dict:
        return f"object of {spelled(inner[1])}"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(f"`{one.value}`" for one in hint)
    words: dict[Any, str] = {str: "text", int: "integer", bool: "boolean", bytes: "base64", msgspec.Raw: "JSON"}
    return words.get(hint) or str(hint.__name__)


def _bounds(base: Any, meta: msgspec.Meta) -> str:
    if base is int:
        low, high = meta.ge, meta.le
        said = f", {low} to {high:,}" if high is not None else f" from {low}"
        return said.replace(f"{2**53:,}", "2^53").replace(f"{10**15:,}", "10^15")
    low, high = meta.min_length, meta.max_length
    what = "characters" if base is str else "entries"
    said = "" if high is None and low is None else f", {low} to {high:,} {what}" if low and high else (
        f", at most {high:,} {what}" if high else f", at least {low} {what}"
    )  # fmt: skip
    return said + (", no control characters" if meta.pattern else "")


def struct_named(name: str) -> Any:
    return next(getattr(module, name) for module in MODULES if hasattr(module, name))


def fields_of(struct: Any) -> dict[str, tuple[str, str]]:
    """Type and presence of each field, by its name in JSON."""
    hints = typing.get_type_hints(struct, include_extras=True)
    found = {}
    for field in msgspec.structs.fields(struct):
        if field.required:
            presence = "required"
        elif field.default is msgspec.NODEFAULT:
            presence = "optional"
        else:
            presence = f"optional, `{json.dumps(field.default)}`"
        found[field.encode_name] = spelled(hints[field.name]), presence
    return found


# ---- examples -------------------------------------------------------------------------------------------------------


def _wrapped(text: str) -> str:
    """Cut every `WIDTH` characters: without the cuts they are the bytes."""
    return "\n".join(text[at : at + WIDTH] for at in range(0, len(text), WIDTH))


def _bytes(raw: bytes) -> str:
    """As they are, each line wrapped."""
    return "\n".join(_wrapped(row) for row in raw.decode().split("\n"))


def _jws(token: bytes) -> str:
    header, payload, signature = token.decode().split(".")
    plain = [signing.b64u_decode(part).decode() for part in (header, payload)]
    return f"header     {plain[0]}\n\npayload\n{_wrapped(plain[1])}\n\nsigned and sent\n" + _wrapped(
        f"{header}.{payload}.{signature}"
    )


def example_thumbprint() -> str:
    x = parts.DEVICE_KEY.jwk["x"]
    plain = f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'
    digest = hashlib.sha256(plain.encode()).digest()
    assert signing.b64u(digest) == parts.DEVICE_KEY.kid
    return f"{plain}\nSHA-256    {digest.hex()}\nkid        {signing.b64u(digest)}"


def example_keys() -> str:
    rows = [f"{name:<13}{signing.b64u(key.seed)}  {key.kid}" for name, key in parts.KEYS.items()]
    return "\n".join([f"{'name':<13}{'d':<45}kid", *rows])


def example_jws() -> str:
    payload = {"device": parts.DEVICE, "method": "GET", "path": "/v1/scopes/main/manifest", "at": parts.time()}
    return _jws(parts.jws(parts.DEVICE_KEY, signing.Typ.REQUEST, payload))


def example_root() -> str:
    raw = parts.compact(parts.root())
    sent = parts.general(raw, [parts.ROOT_A, parts.ROOT_B])
    return f"payload\n{_wrapped(raw.decode())}\n\nsent\n{_wrapped(sent.decode())}\n\nits pin    {sha256_hex(sent)}"


def example_manifest() -> str:
    return _wrapped(parts.compact(parts.manifest()).decode())


def example_blob() -> str:
    return "\n".join(_wrapped(row) for row in (parts.put(1) + parts.put(2) + parts.drop(3)).decode().splitlines())


def example_state_digest() -> str:
    rows, total = [], 0
    for number in (1, 2):
        line = f"{parts.voucher_id(number)} {sha256_hex(parts.VOUCHERS[number])}"
        part = hashlib.sha256(line.encode()).hexdigest()
        total += int(part, 16)
        rows.append(f"SHA-256({line})\n  = {part}")
    digest = f"{total % 2**256:064x}"
    assert digest == bundle.state_digest(total) == parts.state(1, 2)
    return "\n".join([*rows, f"sum modulo 2^256\n  = {digest}"])


def example_hidden_code() -> str:
    folded = "k7pw2mxq9r4tz8vb"
    hashed = bytes.fromhex(parts.SALT) + folded.encode()
    code = bundle.hidden_code(parts.SALT, folded)
    assert code == "sha256:" + sha256_hex(hashed)
    return f"code_salt  {parts.SALT}\nfolded     {folded}\nhashed     {hashed.hex()}\ntravels as {code}"


def example_leases_digest() -> str:
    leases = [protocol_answers.lease(1), protocol_answers.lease(2, units=None, minor=5000)]
    digest = wire.digest_of(msgspec.convert(leases, list[wire.Lease]))
    assert digest == protocol_sends.digest_of(leases)
    rows = [f"{one['id']} {one['number']} {one['units']} {one['minor']}" for one in leases]
    return "\n".join([*rows, f"\nSHA-256    {digest}"])


def example_redemption() -> str:
    """As `terminal` writes one."""
    order = {
        "id": "7", "currency": "EUR",
        "lines": [{"id": "1", "product_id": "kettle", "quantity": 2, "unit_price_minor": 1250}],
    }  # fmt: skip
    raw = parts.VOUCHERS[1]
    voucher = engine.compile_voucher(parse_voucher(raw, default_currency="EUR"))
    parsed = parse_order(order)
    result = engine.evaluate(parsed, [voucher], ["Ten"], at=parts.NOW)
    written = journal.encode(
        journal.RedeemBody(
            msgspec.Raw(order_json(parsed)), ["Ten"], msgspec.Raw(engine.result_json(engine.brief(result))), f"{1:032x}"
        )
    )
    use = journal.Use(parts.voucher_id(1), sha256_hex(raw), None, 1, result.applied[0].discount_minor)
    uses = msgspec.json.encode([use]).decode()
    rows = ["body", _wrapped(written.decode()), f"body_sha256 {sha256_hex(written)}", "", "uses", _wrapped(uses)]
    return "\n".join(rows)


def example_chain() -> str:
    key = parts.DEVICE_KEY
    raw = signing.b64u_decode(key.jwk["x"])
    first = b"tallystick-journal-v1" + parts.SERVER.encode() + parts.DEVICE.encode() + raw
    assert sha256_hex(first) == parts.HASHES[0]
    rows = [f"server     {parts.SERVER}", f"device     {parts.DEVICE}", f"key        {raw.hex()}",
            f"hash_0     {parts.HASHES[0]}"]  # fmt: skip
    for seq in (1, 2):
        rows += ["", f"envelope_{seq}", _bytes(parts.envelope(seq)), f"hash_{seq}     {parts.HASHES[seq]}"]
    return "\n".join(rows)


def example_sync() -> str:
    frame = parts.packed(protocol_sends.lines(2, 3))
    body = protocol_sends.sync_body(protocol_sends.head(frame), frame)
    line = body.split(b"\n", 1)[0]
    return "\n".join(
        [
            "the events, unpacked", _bytes(protocol_sends.lines(2, 3)).rstrip("\n"), "",
            f"the frame, {len(frame)} bytes, SHA-256 {sha256_hex(frame)}", _wrapped(frame.hex()), "",
            "line 1", _jws(line), "", f"the body   line 1, 0x0a, the frame: {len(body)} bytes",
            f"SHA-256    {sha256_hex(body)}",
        ]
    )  # fmt: skip


def example_answer() -> str:
    frame = parts.packed(protocol_sends.lines(2, 3))
    body = protocol_sends.sync_body(protocol_sends.head(frame), frame)
    lease = protocol_answers.lease(2, units=5)
    held = [protocol_answers.lease(1), lease]
    document = protocol_answers.answer(
        request_sha256=sha256_hex(body), ledger_mark=41, leases=[lease], leases_digest=protocol_sends.digest_of(held)
    )
    return _jws(protocol_answers.sign(document))


def example_enrolment() -> str:
    token = wire.EnrolmentToken(
        "c2VjcmV0LW9mLWEtdG9rZW4", 1, sha256_hex(parts.general(parts.root(), [parts.ROOT_A, parts.ROOT_B]))
    )
    assert wire.EnrolmentToken.parse(str(token)) == token
    payload = {"token": token.secret, "jwk": parts.DEVICE_KEY.jwk, "name": "Till 1"}
    request = parts.jws(parts.DEVICE_KEY, signing.Typ.ENROL, payload)
    answer = protocol_answers.enrolled(request_sha256=sha256_hex(request))
    signed = parts.jws(parts.RECEIPT, signing.Typ.ENROLLED, answer)
    return f"the token\n{_wrapped(str(token))}\n\nPOST /v1/devices\n{_jws(request)}\n\nthe answer\n{_jws(signed)}"


EXAMPLES = {
    name.removeprefix("example_"): call for name, call in list(globals().items()) if name.startswith("example_")
}


# ---- the page -------------------------------------------------------------------------------------------------------

_BLOCK = re.compile(r"<!-- (struct|example|limits|rules): ?([A-Za-z_]*) -->\n(.*?)(?=\n\n|\n*\Z)", re.DOTALL)
_FENCED = re.compile(r"<!-- (example|rules): ?([A-Za-z_]*) -->\n```text\n(.*?)\n```", re.DOTALL)


def struct_table(name: str, table: str) -> str:
    """The table with the code's fields; what is written by hand in the last column stays."""
    said = {}
    for row in table.splitlines()[2:]:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        said[cells[0].strip("`")] = cells[-1]
    rows = [f"| **{name}** | type | | |", "|---|---|---|---|"]
    for field, (kind, presence) in fields_of(struct_named(name)).items():
        rows.append(f"| `{field}` | {kind} | {presence} | {said.get(field, '')} |")
    return "\n".join(rows)


def limits_table(table: str) -> str:
    said = {}
    for row in table.splitlines()[2:]:
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        said[cells[0].strip("`")] = cells[-1]
    rows = ["| limit | value | |", "|---|---|---|"]
    return "\n".join(rows + [f"| `{name}` | {value:,} | {said.get(name, '')} |" for name, value in LIMITS.items()])


def rules() -> str:
    """The numbered rules of `trust`, without the first paragraph."""
    return str(trust.__doc__).split("\n\n", 2)[2].rstrip()


def rewritten(page: str) -> str:
    """The page with everything in it that the code says."""

    def fenced(match: re.Match[str]) -> str:
        kind, name, _ = match.groups()
        text = rules() if kind == "rules" else EXAMPLES[name]()
        return f"<!-- {kind}: {name} -->\n```text\n{text}\n```"

    def table(match: re.Match[str]) -> str:
        kind, name, old = match.groups()
        if kind in ("example", "rules"):
            return match[0]
        return f"<!-- {kind}: {name} -->\n" + (limits_table(old) if kind == "limits" else struct_table(name, old))

    return _FENCED.sub(fenced, _BLOCK.sub(table, page))


def test_the_page_is_as_the_code_says() -> None:
    """Every field, type, limit, rule and example; `--write` shows what would be otherwise."""
    page = PAGE.read_text("utf-8")
    assert rewritten(page) == page


def test_every_field_is_explained() -> None:
    """No row of a table is without its words, and every message is on the page."""
    page = PAGE.read_text("utf-8")
    empty = [row for row in page.splitlines() if re.match(r"\| `.*\|\s*\|$", row)]
    assert empty == []
    told = set(re.findall(r"<!-- struct: (\w+) -->", page))
    messages = {
        name for module in (wire, bundle, journal) for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == module.__name__
    }  # fmt: skip
    assert messages - told - {"EnrolmentToken", "StoredEvent", "_Line"} == set()
    inputs = {
        name for name, value in vars(judging_inputs).items()
        if isinstance(value, type) and issubclass(value, msgspec.Struct)
        and value.__module__ == judging_inputs.__name__ and name != "Check"
    }  # fmt: skip
    assert inputs - told == set()


def test_every_example_is_on_the_page() -> None:
    """And none is there that is not computed."""
    assert set(re.findall(r"<!-- example: (\w+) -->", PAGE.read_text("utf-8"))) == set(EXAMPLES)


def test_every_code_of_the_server_has_its_status() -> None:
    """Each code with a status of its own, and each code of a rule, has a row."""
    page = PAGE.read_text("utf-8")
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (\d{3}) \|", page, re.MULTILINE))
    of_operators = {"EXISTS", "WRONG_STATE"}
    for code, status in problems._STATUS_BY_CODE.items():
        if code not in of_operators:
            assert rows.get(code) == str(status), code
    for code in set(re.findall(r"\[([A-Z_]+)\]", rules())) | {*wire.Flag, "BROKEN_CHAIN", "UNREADABLE", "BAD_KEY"}:
        assert f"`{code}`" in page or f"[{code}]" in page, code


def test_every_address_of_a_device_is_on_the_page() -> None:
    """As `routes` has it."""
    page = PAGE.read_text("utf-8")
    paths = {path for handler in HANDLERS if not handler.guards for path in handler.paths}
    for path in paths - {"/health/live"}:
        shown = re.sub(r"\{(\w+?)(_name)?:\w+\}", r"{\1}", path)
        assert shown in page, shown


def test_a_page_that_is_wrong_is_noticed() -> None:
    """A field that is not there, a digit of an example, a limit: each is written anew."""
    page = PAGE.read_text("utf-8")
    for was, wrong in (
        ("| `lease_number` | Count |", "| `lease_number` | text |"),
        (parts.HASHES[0], "0" * 64),
        ("| `BATCH_EVENTS_MAX` | 500 |", "| `BATCH_EVENTS_MAX` | 501 |"),
    ):
        assert was in page
        assert rewritten(page.replace(was, wrong)) == page
    with pytest.raises(KeyError):
        rewritten(page + "\n<!-- example: nothing -->\n```text\nx\n```\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("say: python -m tests.contract.test_protocol_page --write")
    PAGE.write_text(rewritten(PAGE.read_text("utf-8")), "utf-8")
