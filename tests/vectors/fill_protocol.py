"""Writes the protocol's vectors: `python -m tests.vectors.fill_protocol [--check]`.

The inputs are made by `protocol_*.py` from published test keys, always the same bytes; the outputs are what the client
says (`tallystick_client.judging`), but only where it accepts what is meant to be accepted and refuses what is not.
`--check` writes nothing and tells which files would change.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tallystick_client.judging import judge
from tests.vectors import protocol_sends as sends
from tests.vectors.fill import Disagreement, compact, pretty
from tests.vectors.protocol_answers import answers, enrolments, grants, redemptions
from tests.vectors.protocol_bundles import bundles
from tests.vectors.protocol_manifests import manifests
from tests.vectors.protocol_parts import Case, Doc
from tests.vectors.protocol_roots import first_roots, next_roots

PROTOCOL = Path(__file__).parent / "protocol"
MAKERS: dict[str, Callable[[], Iterator[Case]]] = {
    "first_root": first_roots,
    "next_root": next_roots,
    "manifest": manifests,
    "bundle": bundles,
    "answer": answers,
    "enrolled": enrolments,
    "redeemed": redemptions,
    "grants": grants,
    "sync": sends.syncs,
    "envelope": sends.envelopes,
    "token": sends.tokens,
    "thumbprint": sends.thumbprints,
    "sign": sends.signatures,
    "chain": sends.chains,
    "leases_digest": sends.lease_digests,
    "state_digest": sends.state_digests,
    "hidden_code": sends.hidden_codes,
    "time": sends.times,
    "signed_time": sends.signed_times,
}

__all__ = ["MAKERS", "PROTOCOL", "Disagreement", "main", "vector"]


def vector(case: Case) -> Doc:
    """Raises `Disagreement`."""
    output = json.loads(judge(compact(case.input)))
    if ("refuse" in output) != bool(case.base):
        raise Disagreement(f"{case.id} is {'not ' if case.base else ''}meant to be accepted: {output}")
    return {"id": case.id, "shows": case.shows, "rule": case.rule, "input": case.input, "output": output}


def text(check: str) -> str:
    """The file of one check."""
    return pretty({"call": check, "vectors": [vector(case) for case in MAKERS[check]()]}) + "\n"


def main(arguments: list[str]) -> int:
    """0 where every file is as it should be (now), 1 where one is not."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python -m tests.vectors.fill_protocol [--check]\n")
        return 2
    changed = []
    for check in MAKERS:
        path, made = PROTOCOL / f"{check}.json", text(check)
        if not path.exists() or path.read_text("utf-8") != made:
            changed.append(path.name)
            if not arguments:
                PROTOCOL.mkdir(exist_ok=True)
                path.write_text(made, "utf-8")
    sys.stdout.write(f"{len(MAKERS)} files, changed: {', '.join(changed) or 'none'}\n")
    return 1 if arguments and changed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
