"""The door for JSON: bytes or a plain dict in, structs of `terms` out, or `InvalidInput` with the exact path.

msgspec does the reading; here its messages become a path, what should have been there, and what was. Numbers with a
fraction are read as `Decimal` from their text and never pass through a float. A repeated key in an object is refused:
two readers could otherwise take one signed text for two different vouchers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from math import isfinite
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect

from .errors import InvalidInput
from .terms import Moment, Percent

T = TypeVar("T")

_DEEPEST: Final = 64
_SHOWN: Final = 60
_PERCENT_TEXT: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,40})?", re.ASCII)
_MOMENT_TEXT: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.[0-9]+)?)?"
    r"(?:([Zz])|([+-])([0-9]{2}):([0-9]{2}))",
    re.ASCII,
)
_PERCENT_WANTED: Final = "must be a percentage above 0 and at most 100, with at most 4 decimal places"
_MOMENT_WANTED: Final = "must be a time with an offset, such as 2026-06-01T00:00:00+02:00"
_MOMENT_EXISTS: Final = "must be a day and a time that exist, such as 2026-06-30T23:59:59+02:00"
_YEARS: Final = range(1900, 9999)

_TYPES: Final = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_PLAIN_TYPES: Final = "percentage, fixed, fixed_price, bundle_price, bogo, shipping or gift_card"
_CHOICES: Final = {
    "status": "active or paused",
    "per": "order, line or unit",
    "basis": "amount or quantity",
    "mode": "exclusive or stackable",
    "policy": "quota, exclusive, soft, open or online_only",
    "op": "eq, ne, gt, gte, lt, lte, in, not_in, contains, contains_any, contains_all or exists",
    "days": "mon, tue, wed, thu, fri, sat or sun",
}


def shown(value: object) -> str:
    """A value as a user would recognise it, shortened to a few words."""
    if isinstance(value, str):
        # cut before it is escaped, so that 10,000 characters cost nothing and no escape is torn apart
        text = json.dumps(value[:_SHOWN], ensure_ascii=False)
        return text if len(value) <= _SHOWN else f'{text[:-1]}..." ({len(value)} characters)'
    if isinstance(value, Decimal):
        return str(value)[:_SHOWN]
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**30 else "a far larger number"
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object" if value else "an empty object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    return type(value).__name__


def read_percent(value: object) -> Percent:
    """An exact percentage from a JSON number or string; `ValueError` says what it should have been."""
    if isinstance(value, str) and _PERCENT_TEXT.fullmatch(value):
        value = Decimal(value)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError(_PERCENT_WANTED)
    return _percent(value)


@lru_cache(1024)  # a campaign's vouchers share their few percentages and bounds, and a till reads 100,000 vouchers
def _percent(value: int | Decimal) -> Percent:
    if not 0 < value <= 100:  # also keeps exponents small enough for the next lines
        raise ValueError(_PERCENT_WANTED)
    number = Decimal(value)
    if number.adjusted() < -4 or len(number.as_tuple().digits) > 60:
        raise ValueError(_PERCENT_WANTED)
    # as a ratio of whole numbers: Decimal's own arithmetic rounds to the precision the host process happens to have set
    numerator, denominator = number.as_integer_ratio()
    scaled, rest = divmod(numerator * 10_000, denominator)
    if rest:
        raise ValueError(_PERCENT_WANTED)
    whole, part = divmod(scaled, 10_000)
    return Percent(f"{whole}.{part:04d}".rstrip("0").rstrip(".") if part else str(whole))


def read_moment(value: object) -> Moment:
    """A time with offset from its RFC 3339 text, fractions of a second dropped; `ValueError` says what it should be."""
    if not isinstance(value, str):
        raise ValueError(_MOMENT_WANTED)
    return _moment(value)


@lru_cache(1024)
def _moment(text: str) -> Moment:
    match = _MOMENT_TEXT.fullmatch(text)
    if match is None:
        raise ValueError(_MOMENT_WANTED)
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    zulu, sign, offset_hours, offset_minutes = match.groups()[6:]
    zone: timezone = UTC
    if not zulu:
        if int(offset_hours) > 23 or int(offset_minutes) > 59:
            raise ValueError(_MOMENT_WANTED)
        offset = timedelta(hours=int(offset_hours), minutes=int(offset_minutes))
        zone = timezone(-offset if sign == "-" else offset)
    if year not in _YEARS:
        raise ValueError("must be a time between the years 1900 and 9998")
    try:
        return Moment(year, month, day, hour, minute, second, tzinfo=zone)
    except ValueError:
        raise ValueError(_MOMENT_EXISTS) from None


def _decode_hook(kind: type, value: object) -> object:
    if kind is Percent:
        return read_percent(value)
    if kind is Moment:
        return read_moment(value)
    raise NotImplementedError(f"no reader for {kind}")


def _encode_hook(value: object) -> object:
    if isinstance(value, Percent):
        return Decimal(value)
    if isinstance(value, datetime):
        text = value.isoformat(timespec="seconds")
        return text[:-6] + "Z" if text.endswith("+00:00") else text
    raise NotImplementedError(f"no writer for {type(value)}")


def schema_hook(kind: type) -> dict[str, Any]:
    """JSON schema of the two types that msgspec does not know, for `msgspec.json.schema` and OpenAPI."""
    if kind is Percent:
        return {"type": ["number", "string"], "description": _PERCENT_WANTED.removeprefix("must be ")}
    if kind is Moment:
        return {"type": "string", "format": "date-time"}
    raise NotImplementedError(f"no schema for {kind}")


_UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError, InvalidOperation)
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number", enc_hook=_encode_hook)
_ANYTHING: Final = msgspec.json.Decoder(float_hook=Decimal)


def encode(value: object) -> bytes:
    """Compact UTF-8 JSON, keys in the order of the struct's fields, defaults left out."""
    return _ENCODER.encode(value)


class Door:
    """Reads one kind of struct; made once, used for every document of that kind."""

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind, float_hook=Decimal, dec_hook=_decode_hook)

    def read(self, raw: bytes | bytearray | memoryview | str | Mapping[str, Any]) -> Any:
        """The struct in `raw`, repeated keys refused; raises `InvalidInput` and nothing else."""
        data = raw if isinstance(raw, bytes | bytearray | memoryview | str) else _dumped(raw)
        value = self.read_trusted(data)
        _refuse_repeated_keys(data)
        return value

    def read_trusted(self, data: bytes | bytearray | memoryview | str) -> Any:
        """As `read`, for bytes that `encode` wrote and a signature vouches for: repeated keys are not looked for."""
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as error:
            # read again without a shape: for what stood there, and because the rest may not even be JSON
            document = _decoded(_ANYTHING, data)
            _refuse_repeated_keys(data)  # of a key given twice msgspec may mean the other one
            raise _explained(str(error), document, self._kind) from None
        except _UNREADABLE as error:
            raise _not_json(error, data) from None


def _decoded(decoder: msgspec.json.Decoder[Any], data: bytes | bytearray | memoryview | str) -> Any:
    try:
        return decoder.decode(data)
    except _UNREADABLE as error:
        raise _not_json(error, data) from None


_AT_BYTE: Final = re.compile(r"(?P<what>.*) \(byte (?P<at>\d+)\)", re.DOTALL)
_WHAT: Final = {
    "object keys must be strings": "a name in double quotes is wanted",
    "trailing comma in array": "a comma after the last item of a list",
    "trailing comma in object": "a comma after the last field",
    "trailing characters": "more after the end of the document",
    "invalid character": "something that is no JSON",
}


def _where(message: str, data: bytes | bytearray | memoryview | str) -> str:
    """msgspec's "trailing comma in array (byte 135)" by line and column, for whoever has a text editor."""
    found = _AT_BYTE.fullmatch(message)
    raw = data.encode(errors="replace") if isinstance(data, str) else bytes(data)
    if found is None:
        return "it is empty" if not raw.strip() else "it ends too early" if "truncated" in message else message
    before = raw[: int(found["at"])]
    line, column = before.count(b"\n") + 1, len(before) - (before.rfind(b"\n") + 1) + 1
    place = f"line {line}, column {column}" if b"\n" in raw.strip() else f"column {column}"
    return f"{_WHAT.get(found['what'], found['what'])}, at {place}"


def _not_json(error: Exception, data: bytes | bytearray | memoryview | str) -> InvalidInput:
    if isinstance(error, msgspec.ValidationError | InvalidOperation):
        # read without a shape, only a number can be wrong: one with thousands of digits, or an endless exponent
        return InvalidInput("", "must hold only numbers of an ordinary size")
    if isinstance(error, RecursionError):
        return InvalidInput("", "must be JSON that is not nested so deeply")
    if isinstance(error, UnicodeError):
        return InvalidInput("", "must be JSON in UTF-8", "other bytes")
    return InvalidInput("", f"must be JSON: {_where(str(error).removeprefix('JSON is malformed: '), data)}")


def _refuse_repeated_keys(data: bytes | bytearray | memoryview | str) -> None:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise InvalidInput("", f"must not give the key {shown(twice)} twice in one object")
        return found

    try:
        json.loads(
            bytes(data) if isinstance(data, memoryview) else data,
            object_pairs_hook=unique,
            parse_float=str,
            parse_int=str,
        )
    except RecursionError as error:
        raise _not_json(error, data) from None


def _dumped(value: object) -> bytes:
    """A plain Python document as JSON, so that there is one way in and not two."""
    try:
        return _ENCODER.encode(_plain(value, "", 0))
    except (UnicodeError, OverflowError, TypeError, ValueError, RecursionError):
        raise InvalidInput("", "must be a document that JSON can hold") from None


def _plain(value: object, path: str, depth: int) -> object:
    """The value in the types that JSON knows, whatever subclass of them it came in."""
    if depth > _DEEPEST:
        raise InvalidInput("", f"must not be nested deeper than {_DEEPEST}")
    if isinstance(value, Mapping):
        plain = {}
        for name, inner in value.items():
            if not isinstance(name, str):
                raise InvalidInput(path, "must have text for keys", shown(name))
            plain[str(name)] = _plain(inner, f"{path}.{name}" if path else name, depth + 1)
        return plain
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{path}[{index}]", depth + 1) for index, inner in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int):
        if isinstance(value, kind):
            return kind(value)
    if not isinstance(value, float | Decimal):
        raise InvalidInput(path, "must be text, a number, true, false, null, a list or an object", shown(value))
    if not isfinite(value):
        raise InvalidInput(path, "must be a finite number", str(value))
    return float(value) if isinstance(value, float) else Decimal(value)


# the last of what looks like a path, for the text before it may quote anything that was sent
_MESSAGE: Final = re.compile(r"(?P<text>.*) - at `\$(?P<path>(?:\.[a-z_]+|\[(?:\d+|\.\.\.)\])*)`", re.DOTALL)
_GOT: Final = re.compile(r"Expected `(?P<wanted>[^`]+)`, got `(?P<got>[^`]+)`")
_BOUND: Final = re.compile(r"Expected `(?P<kind>\w+)`(?P<length> of length)? (?P<sign>>=|<=) (?P<bound>-?\d+)")
_STEPS: Final = re.compile(r"\[(\d+|\.\.\.)\]|([^.\[\]]+)")
_LISTS: Final = (inspect.VarTupleType, inspect.ListType)
_FIELD: Final = re.compile(r"Object (?:contains unknown field|missing required field) `(?P<name>.*)`", re.DOTALL)


def _explained(message: str, document: Any, kind: type) -> InvalidInput:
    """msgspec's sentence as path, expectation and what was there."""
    parts = _MESSAGE.fullmatch(message)
    text, path = (parts["text"], parts["path"].removeprefix(".")) if parts is not None else (message, "")
    if text.startswith("Object contains unknown field") and not text.endswith("`"):
        text, path = message, ""  # it is all the name of a field
    if field := _FIELD.fullmatch(text):
        name = field["name"]
        whole = f"{path}.{name}" if path else name
        if "unknown" in text[: text.index("`")]:
            fields = _fields_at(path, document, kind)
            there = f"; there are {', '.join(fields)}" if fields else ""
            return InvalidInput(whole if len(name) <= _SHOWN else path, f"is not a field here{there}")
        return InvalidInput(whole, "is required")
    was = _value_at(path, document)
    if text == "Expected `str`":
        return InvalidInput(path, f"must be {_choices(path)}", was)
    if got := _GOT.fullmatch(text):
        wanted = " or ".join(_TYPES.get(kind, kind) for kind in got["wanted"].split(" | ") if kind != "null")
        if wanted == "a whole number" and path.endswith("_minor"):
            wanted = "a whole number of minor units (cents), as 500 is for 5.00"
        return InvalidInput(path, f"must be {wanted}", was)
    if bound := _BOUND.fullmatch(text):
        limit = f"{'at least' if bound['sign'] == '>=' else 'at most'} {bound['bound']}"
        if not bound["length"]:
            return InvalidInput(path, f"must be a whole number of {limit}", was)
        what = "a list" if bound["kind"] == "array" else "text"
        return InvalidInput(path, f"must be {what} of a length of {limit}", was)
    if "matching regex" in text:
        return InvalidInput(path, "must be text without the character U+0000", was)
    if text.startswith("Invalid"):
        return InvalidInput(path, f"must be {_choices(path)}", was)
    return InvalidInput(path, text, was)


def _fields_at(path: str, document: Any, kind: type) -> list[str]:
    """The names that the object at a path may have, as users write them; none where no object stands there."""
    found: Any = inspect.type_info(kind)
    for index, name in _STEPS.findall(path):
        if index:
            found = getattr(found, "item_type", None)
            document = document[int(index)] if index.isdigit() and isinstance(document, list) else None
        else:
            fields = {field.encode_name: field.type for field in getattr(_struct(found, document), "fields", ())}
            found = fields.get(name)
            document = document.get(name) if isinstance(document, dict) else None
        if isinstance(found, inspect.UnionType):
            found = next((one for one in found.types if isinstance(one, _LISTS)), found)
    found = _struct(found, document)
    if not isinstance(found, inspect.StructType):
        return []
    return [*(["type"] if found.tag is not None else []), *(field.encode_name for field in found.fields)]


def _struct(found: Any, document: Any) -> Any:
    """Of several kinds of object the one that the document says it is."""
    if not isinstance(found, inspect.UnionType):
        return found
    structs = [one for one in found.types if isinstance(one, inspect.StructType)]
    tag = document.get("type") if isinstance(document, dict) else None
    return next((one for one in structs if one.tag == tag), structs[0] if structs else found)


def _choices(path: str) -> str:
    name = re.sub(r"\[\d+\]$", "", path).rpartition(".")[2]
    if name != "type":
        return _CHOICES.get(name, "one of the values that are listed for it")
    inner = ".tiers[" in path or ".cases[" in path or ".otherwise." in path or path.startswith(("tiers[", "cases["))
    return _PLAIN_TYPES if inner else f"{_PLAIN_TYPES.replace(' or ', ', ')}, tiered or conditional"


def _value_at(path: str, value: Any) -> str | None:
    """What stands at a path of msgspec's, shown; None where the path goes through a key that msgspec did not name."""
    for index, name in _STEPS.findall(path):
        key: int | str = int(index) if index.isdigit() else name
        held = len(value) > key if isinstance(value, list) and isinstance(key, int) else False
        if not held and not (isinstance(value, dict) and key in value):
            return None
        value = value[key]
    return shown(value)
