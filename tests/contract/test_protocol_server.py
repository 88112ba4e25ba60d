"""The protocol's vectors and the server: what a device may send is judged alike on both sides."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tallystick_server import devices, sync
from tallystick_shared.errors import TallystickError
from tallystick_shared.journal import chain_start, read_envelope
from tallystick_shared.signing import PublicKey, Typ, sha256_hex, verify

Doc = dict[str, Any]
PUBLISHED = Path(__file__).resolve().parents[2] / "tests" / "vectors" / "protocol"


def vectors(check: str) -> list[Any]:
    file = json.loads((PUBLISHED / f"{check}.json").read_text("utf-8"))
    return [pytest.param(one, id=one["id"]) for one in file["vectors"]]


def bytes_of(message: Any) -> bytes:
    if isinstance(message, str):
        return base64.b64decode(message)
    return b"".join(base64.b64decode(part["base64"]) * part["times"] for part in message)


def opened(body: bytes, key: PublicKey) -> Doc:
    """As `sync.sync` opens a body, up to the database."""
    line, newline, packed = body.partition(b"\n")
    assert newline
    payload = verify(line, {key.kid: key}, Typ.SYNC)
    batch = sync._open(devices.read(sync._HEAD, payload), packed, sha256_hex(body))
    through = {"seq": batch.head.through.seq, "hash": batch.head.through.hash}
    return {"device": batch.head.device, "events": len(batch.events), "through": through}


@pytest.mark.parametrize("vector", [one for one in vectors("sync") if one.values[0]["rule"] != "S1"])
def test_the_server_opens_a_sync_as_the_vector_says(vector: Doc) -> None:
    """With the same code where it refuses, and the same events where it does not."""
    key = PublicKey.from_jwk(vector["input"]["key"])
    try:
        told: Doc = {"accept": opened(bytes_of(vector["input"]["message"]), key)}
    except TallystickError as error:
        told = {"refuse": error.code}
    assert told == vector["output"]


@pytest.mark.parametrize("vector", vectors("envelope"))
def test_the_server_reads_an_envelope_as_the_vector_says(vector: Doc) -> None:
    """What it cannot read it quarantines, and a client must not write."""
    try:
        read_envelope(bytes_of(vector["input"]["message"]))
        refused = None
    except TallystickError as error:
        refused = error.code
    assert refused == vector["output"].get("refuse")


@pytest.mark.parametrize("vector", vectors("chain"))
def test_the_servers_chain_begins_as_the_vector_says(vector: Doc) -> None:
    """A device is enrolled at `hash_0`."""
    given = vector["input"]
    start = chain_start(given["server"], given["device"], PublicKey.from_jwk(given["key"]))
    assert start == vector["output"]["accept"]["hashes"][0]
