"""Fills in the outputs of the engine's vectors: `python -m tests.vectors.fill [--check]`.

An output is what the engine says, but only where the oracle, a second engine written from engine.md alone, says the
same; where they differ nothing is written. `--check` writes nothing and tells which files would change.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tallystick_shared.engine import best, best_json, compile_voucher, evaluate, qualified_json, qualify, result_json
from tallystick_shared.errors import InvalidInput
from tallystick_shared.model import parse_request
from tests.shared import oracle

Doc = dict[str, Any]

ENGINE = Path(__file__).parent / "engine"
CALLS = ("evaluate", "best", "qualify")
ERRORS = "errors"
"""The only file whose inputs are refused: an input that is bad by mistake is not a vector."""
WIDTH = 118
_FOR_PEOPLE = ("why", "detail")


class Disagreement(Exception):
    """The engine and the oracle say different things, or a vector is not what its file is for."""


def answer(call: str, document: Doc) -> bytes:
    """What the engine says of a document: the result of the call, or the error in its place."""
    try:
        request = parse_request(compact(document))
    except InvalidInput as error:
        path = {"path": error.path} if error.path else {}
        return compact({"error": str(error), "code": error.code, **path})
    asked = (request.order, [compile_voucher(voucher) for voucher in request.vouchers], request.codes)
    if call == "evaluate":
        return result_json(evaluate(*asked, at=request.at, usage=request.usage))
    if call == "best":
        return best_json(best(*asked, at=request.at, usage=request.usage))
    return qualified_json(qualify(*asked, at=request.at, usage=request.usage))


def compact(value: Any) -> bytes:
    """JSON as the engine writes it: UTF-8, no spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def oracle_answer(call: str, document: Doc) -> Any:
    """What the oracle says of a document, in the shape of `bare`."""
    document = _without_nulls(document)
    if call == "evaluate":
        return oracle.evaluate(document)
    if call == "best":
        return oracle.best(document)
    return {"vouchers": [_given(one) for one in oracle.qualify(document)]}


def _without_nulls(value: Any) -> Any:
    """null for an optional field is the same as leaving it out; an attribute's null is the oracle's to judge."""
    if isinstance(value, dict):
        return {
            name: inner if name == "attributes" else _without_nulls(inner)
            for name, inner in value.items()
            if inner is not None
        }
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _given(entry: Doc) -> Doc:
    return {name: value for name, value in entry.items() if value is not None}


def bare(output: Any) -> Any:
    """An output without what is for people, which the oracle does not know."""
    if isinstance(output, dict):
        return {name: bare(value) for name, value in output.items() if name not in _FOR_PEOPLE}
    return [bare(one) for one in output] if isinstance(output, list) else output


def output_of(name: str, call: str, vector: Doc) -> Doc:
    """The output of a vector of the file `name`. Raises `Disagreement`."""
    raw = answer(call, vector["input"])
    output: Doc = json.loads(raw)
    if compact(output) != raw:
        raise Disagreement(f"{vector['id']}: the engine's bytes do not survive being read and written")
    if ("error" in output) != (name == ERRORS):
        raise Disagreement(f"{vector['id']}: {output.get('error', f'a good input in {ERRORS}.json')}")
    if "error" in output:
        return output
    told = oracle_answer(call, vector["input"])
    if call == "best":
        told["exact"] = output["exact"]  # the oracle tries every set, the engine says whether it did
    if bare(output) != told:
        raise Disagreement(f"{vector['id']}: the engine says {compact(bare(output))!r}, the oracle {compact(told)!r}")
    return output


def filled(path: Path) -> str:
    """The text of a file of vectors with every output filled in. Raises `Disagreement`."""
    file: Doc = json.loads(path.read_text("utf-8"))
    if file["call"] not in CALLS:
        raise Disagreement(f"{path.name}: no such call: {file['call']}")
    for vector in file["vectors"]:
        vector.pop("output", None)
        vector["output"] = output_of(path.stem, file["call"], vector)
    return pretty(file) + "\n"


def pretty(value: Any, depth: int = 0, name: str = "") -> str:
    """JSON of one line where it fits into `WIDTH`, else of one entry a line: small changes are small differences."""
    start = "" if not name else f"{json.dumps(name, ensure_ascii=False)}: "
    text = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or (depth > 2 and depth + len(start) + len(text) <= WIDTH):
        return f"{' ' * depth}{start}{text}"
    inner = list(_entries(value, depth + 1))
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    if not inner:
        return f"{' ' * depth}{start}{opening}{closing}"
    return "\n".join((f"{' ' * depth}{start}{opening}", ",\n".join(inner), f"{' ' * depth}{closing}"))


def _entries(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield pretty(inner, depth, name)
    else:
        for inner in value:
            yield pretty(inner, depth)


def files() -> list[Path]:
    return sorted(ENGINE.glob("*.json"))


def main(arguments: list[str]) -> int:
    """0 where every file is as it should be (now), 1 where one is not, or engine and oracle differ."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python -m tests.vectors.fill [--check]\n")
        return 2
    changed, wrong = [], 0
    for path in files():
        try:
            text = filled(path)
        except Disagreement as error:
            sys.stderr.write(f"{error}\n")
            wrong += 1
            continue
        if text != path.read_text("utf-8"):
            changed.append(path.name)
            if not arguments:
                path.write_text(text, "utf-8")
    sys.stdout.write(f"{len(files())} files, changed: {', '.join(changed) or 'none'}\n")
    return 1 if wrong or (arguments and changed) else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
