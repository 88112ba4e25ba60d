"""The published vectors, and whether an answer is the one a vector gives. Pure but for reading the files."""

from __future__ import annotations

from collections.abc import Collection
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import msgspec

from tallystick_client.errors import CallerError, InvalidInput

_TEXTS: Final = frozenset({"why", "detail", "error"})
"""Keys whose values are for people, and may differ from one implementation to the next."""
_SHOWN_MAX: Final = 300


class Vector(msgspec.Struct, frozen=True):
    """`input` and `output` as they stand in the file, so that every number reaches the command as it was written."""

    id: str
    shows: str
    input: msgspec.Raw
    output: msgspec.Raw
    source: str | None = None


class VectorFile(msgspec.Struct, frozen=True):
    call: str
    vectors: list[Vector]


class Difference(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first one: where, as a JSON path, and the two values as JSON; `error` where nothing could be compared."""

    path: str = "$"
    expected: str | None = None
    actual: str | None = None
    error: str | None = None


def shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}... ({len(text)} characters)"


# ---- vectors ------------------------------------------------------------------------------------------------------


def read_vectors(source: Path, calls: Collection[str], only: list[str]) -> list[Vector]:
    """The vectors of these calls, files by name; `only` those, if any. Raises `CallerError` where there are none."""
    if not source.exists():
        raise CallerError(f"{source} is neither a folder nor a file", code="NO_DIRECTORY")
    chosen: dict[str, Vector] = {}
    for path in sorted(source.glob("*.json")) if source.is_dir() else [source]:
        for vector in _read_file(path, calls):
            if vector.id in chosen:
                raise InvalidInput(f"{path.name}: id", "must not be given twice among the vectors", vector.id[:80])
            chosen[vector.id] = vector
    missing = [id_ for id_ in only if id_ not in chosen]
    if missing or not chosen:
        kinds = " or ".join(sorted(calls))
        which = f"{kinds} called {missing[0]}" if missing else kinds
        raise CallerError(f"{source} has no vectors of {which}", code="NO_VECTORS")
    return [vector for id_, vector in chosen.items() if not only or id_ in only]


def _read_file(path: Path, calls: Collection[str]) -> list[Vector]:
    try:
        file = msgspec.json.decode(path.read_bytes(), type=VectorFile)
    except OSError as error:
        raise CallerError(f"{path} cannot be read: {error.strerror}", code="NO_FILE") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(str(path), f"must hold vectors as JSON: {error}") from None
    return file.vectors if file.call in calls else []


def on_one_line(raw: msgspec.Raw) -> bytes:
    """JSON without line ends: they stand between its values only, never in a text."""
    return bytes(raw).replace(b"\r", b" ").replace(b"\n", b" ")


# ---- comparing ----------------------------------------------------------------------------------------------------

_JSON: Final = msgspec.json.Decoder(float_hook=Decimal)
_COMPACT: Final = msgspec.json.Encoder(decimal_format="number")


def compare(vector: Vector, answer: bytes, texts: bool) -> Difference | None:
    """The first difference between a vector's output and an answer; `texts` compares every byte."""
    expected = _JSON.decode(vector.output)
    try:
        actual = _JSON.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError):
        return Difference(error=f"the answer is no JSON: {shortened(answer.decode(errors='backslashreplace'))}")
    if isinstance(actual, dict) and "error" in actual and "error" not in expected:
        return Difference(error=f"it answered with an error: {shortened(_json(actual))}")
    found = first_difference(expected, actual, "$", frozenset() if texts else _TEXTS)
    if found is None and texts and _COMPACT.encode(expected) != answer:
        told, seen = _around(_COMPACT.encode(expected), answer)
        return Difference("$ (the values are equal, the bytes are not)", told, seen)
    return found


def first_difference(expected: Any, actual: Any, path: str, ignored: frozenset[str]) -> Difference | None:
    """As JSON values, each of its own type: 1 is neither 1.0 nor true. Keys come in any order."""
    if type(expected) is not type(actual):
        return Difference(path, _json(expected), _json(actual))
    if isinstance(expected, dict):
        for key in dict.fromkeys([*expected, *actual]):
            if key in ignored:
                continue
            where = f"{path}.{key}" if key.isidentifier() else f"{path}[{_json(key)}]"
            if key not in expected or key not in actual:
                one, other = (_json(side[key]) if key in side else None for side in (expected, actual))
                return Difference(where, one, other)
            if found := first_difference(expected[key], actual[key], where, ignored):
                return found
        return None
    if isinstance(expected, list):
        for index, (one, other) in enumerate(zip(expected, actual, strict=False)):
            if found := first_difference(one, other, f"{path}[{index}]", ignored):
                return found
        index = min(len(expected), len(actual))
        if len(expected) == len(actual):
            return None
        one, other = (_json(side[index]) if index < len(side) else None for side in (expected, actual))
        return Difference(f"{path}[{index}]", one, other)
    return None if expected == actual else Difference(path, _json(expected), _json(actual))


def _json(value: Any) -> str:
    return _COMPACT.encode(value).decode()


def _around(expected: bytes, actual: bytes) -> tuple[str, str]:
    """The two from a little before their first different byte."""
    pairs = enumerate(zip(expected, actual, strict=False))
    start = max(0, next((at for at, (one, other) in pairs if one != other), min(len(expected), len(actual))) - 20)
    told, seen = (text[start : start + 80].decode(errors="backslashreplace") for text in (expected, actual))
    return told, seen
