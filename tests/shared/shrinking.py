"""Greedy delta debugging of a JSON document: the smallest that still fails, found by dropping and lowering."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

Path = tuple[Any, ...]
DROP = object()


def shrunk(document: Any, fails: Callable[[Any], bool], *, tries: int = 20_000) -> Any:
    """The smallest document found for which `fails` is true; `document` itself is left as it is.

    Items and keys are dropped, lists halved, texts shortened and numbers lowered, until nothing of that
    can be done any more without `fails` turning false, or `tries` calls were made. Raises `ValueError` where
    `document` does not fail at first. What `fails` raises is passed on: it says itself what counts as a failure.
    """
    current = _copy(document)
    if not fails(_copy(current)):
        raise ValueError("the document does not fail")
    progress = True
    while progress:
        progress, edits, at = False, list(_edits(current)), 0
        while at < len(edits):
            tries -= 1
            if tries < 0:
                return current
            smaller = _edited(current, *edits[at])
            if fails(_copy(smaller)):
                current, progress, edits = smaller, True, list(_edits(smaller))  # and on from the same place
            else:
                at += 1
    return current


def _copy(document: Any) -> Any:
    return json.loads(json.dumps(document))


def _edits(document: Any) -> Iterator[tuple[Path, Any]]:
    """One change each, a path and what to put there, those of the largest parts first."""
    places = sorted(_places(document, ()), key=lambda place: -len(json.dumps(place[1])))
    for path, value in places:
        if path:
            yield path, DROP
        for inner in value.values() if path and isinstance(value, dict) else ():
            for part in inner if isinstance(inner, list) else [inner]:
                if isinstance(part, dict):
                    yield path, part  # {"not": x} and {"all": [x]} become x
        for other in _lower(value):
            yield path, other


def _places(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    yield path, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from _places(one, (*path, key))


def _lower(value: Any) -> Iterator[Any]:
    if isinstance(value, list) and len(value) > 1:
        yield value[: len(value) // 2]
        yield value[len(value) // 2 :]
    elif isinstance(value, str) and len(value) > 1:
        yield value[: len(value) // 2]
        yield value[:-1]
    elif isinstance(value, int) and not isinstance(value, bool) and value:
        size = abs(value)
        nearer = [size - (size >> power) for power in range(1, size.bit_length())]  # its half first, size - 1 last
        yield from dict.fromkeys(one for one in (0, 1, *nearer) if one < size or one > value)


def _edited(document: Any, path: Path, value: Any) -> Any:
    made = _copy(document)
    if not path:
        return value
    spot = made
    for key in path[:-1]:
        spot = spot[key]
    if value is DROP:
        del spot[path[-1]]
    else:
        spot[path[-1]] = value
    return made
