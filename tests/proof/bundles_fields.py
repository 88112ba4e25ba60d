"""Wrong values for every field of a message: signed by whoever may sign it, and still not what the page allows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

MARK = "@@here@@"
NULLABLE = re.compile(
    r"(caps\.(redemptions|amount_minor)|leases\.\d+\.(units|minor)|held|device|request_sha256|again)$"
)
"""Fields that may be null."""
OPTIONAL = re.compile(
    r"(caps(\..*)?\.(offline_s|redemptions|amount_minor)|recovering|retired|held|device|request_sha256)$"
)
"""Fields that may be left out. `device` and `request_sha256` of an online answer are then an operator's."""
FREE = re.compile(r"(result|order)(\.|$)")
"""JSON of others, which these messages only carry."""
INTEGERS = ("-1", '"1"', "1.5", "true", "null", "[]", "{}", "1e400", "-1e5", "NaN", "Infinity", "01", "+1", "0x1",
            "1_0", "9223372036854775808", "18446744073709551616", "-9223372036854775809", "1" + "0" * 400)  # fmt: skip
TEXTS = ("1", "null", "[]", "{}", "true", '"\\ud800"', '"\\udc00a"', '"\\x41"', "'a'", '"a\nb"', '"unended')
BOOLEANS = ("1", "0", '"true"', "null", "[]", "True")
LISTS = ("null", "1", '"x"', "{}", "true", "[,]", "[" * 20_000)
OBJECTS = ("null", "1", '"x"', "[]", "true", "{,}", '{"a":' * 20_000)
HEX = re.compile(r"[0-9a-f]{64}|[0-9a-f]{32}")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


def wrong_fields(document: dict[str, Any], forgiven: tuple[str, ...] = ()) -> Iterator[tuple[str, bytes]]:
    """Each with one thing that is wrong, as JSON; `forgiven`: fields where any value may stand, or none."""
    for path, value, put in _walk(document, ""):
        if FREE.search(path) or path.lstrip(".") in forgiven:
            continue
        for text in _wrong(path, value):
            yield f"{path} {text[:40]}", put(text)
        if not re.search(r"\.\d+$", path) and not OPTIONAL.search(path):
            yield f"{path} left out", put("")


def _wrong(path: str, value: object) -> Iterator[str]:
    if value is None:
        wrong: tuple[str, ...] = ("true", '"x"', "1.5", "-1")
    elif isinstance(value, bool):
        wrong = BOOLEANS
    elif isinstance(value, int):
        wrong = INTEGERS
    elif isinstance(value, str):
        wrong = (*TEXTS, *(json.dumps(one) for one in _misspelled(value)))
    else:
        wrong = LISTS if isinstance(value, list) else OBJECTS
    yield from (one for one in wrong if one != "null" or not NULLABLE.search(path))


def _misspelled(value: str) -> Iterator[str]:
    """Of what has a form of its own."""
    if HEX.fullmatch(value):
        yield from (value[:-1], value + "0", value + "\n", " " + value, value[:-1] + "g", "0x" + value[2:])
        if value.upper() != value:
            yield value.upper()
    if UUID.fullmatch(value):
        yield from (
            value.replace("-", ""),
            value + "\n",
            f"{{{value}}}",
            value[:-1],
            "urn:uuid:" + value,
            value[:-1] + "G",
        )
        if value.upper() != value:
            yield value.upper()
    if INSTANT.fullmatch(value):
        bare = re.sub(r"(Z|[+-]\d\d:\d\d)$", "", value)
        yield from (
            bare,
            value[:10],
            value + "\n",
            "2026-13-01T00:00:00Z",
            "2026-02-30T00:00:00Z",
            bare + "+25:00",
            bare + "z+",
        )


def _walk(document: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Every part of it below the whole: path, value, and what puts another text in its place; "" takes it out."""
    whole = document

    def inner(value: Any, path: str, way: tuple[Any, ...]) -> Iterator[tuple[str, Any, Any]]:
        steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for step, part in steps:
            here = (*way, step)
            yield f"{path}.{step}", part, lambda text, here=here: replaced(whole, here, text)
            yield from inner(part, f"{path}.{step}", here)

    yield from inner(document, path, ())


def replaced(document: Any, way: tuple[Any, ...], text: str) -> bytes:
    """The document as compact JSON with this text at this place."""
    made = json.loads(json.dumps(document))
    at = made
    for step in way[:-1]:
        at = at[step]
    if text:
        at[way[-1]] = MARK
    else:
        del at[way[-1]]
    raw = json.dumps(made, separators=(",", ":"), ensure_ascii=False)
    return raw.replace(f'"{MARK}"', text).encode()
