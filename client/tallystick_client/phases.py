"""The phases of a sync, and which event may lead from which to which. Pure; `machine` is what moves through them."""

from __future__ import annotations

from enum import Enum
from typing import Any

from tallystick_client.actions import Answer, LineDown, Persisted, Start, Unbelieved, Woken


class Phase(Enum):
    IDLE = "idle"
    WAITING = "waiting"
    PREPARING = "preparing"
    SYNCING = "syncing"
    ACCEPTING = "accepting"
    AGAIN = "enrolling again"
    ROOT = "root"
    MANIFEST = "manifest"
    BLOB = "blob"
    KEEPING_BUNDLE = "keeping bundle"
    KEEPING_ROOTS = "keeping roots"
    FAILING = "failing"
    DONE = "done"


TRANSITIONS: dict[Phase, dict[type[Any], frozenset[Phase]]] = {
    Phase.IDLE: {Start: frozenset({Phase.WAITING, Phase.PREPARING, Phase.DONE})},
    Phase.WAITING: {Woken: frozenset({Phase.PREPARING})},
    Phase.PREPARING: {Persisted: frozenset({Phase.SYNCING})},
    Phase.SYNCING: {
        Answer: frozenset(
            {
                Phase.ACCEPTING,
                Phase.PREPARING,
                Phase.AGAIN,
                Phase.ROOT,
                Phase.SYNCING,
                Phase.FAILING,
                Phase.DONE,
            }
        ),
        LineDown: frozenset({Phase.FAILING}),
    },
    Phase.ACCEPTING: {
        Persisted: frozenset({Phase.PREPARING, Phase.ROOT, Phase.MANIFEST, Phase.KEEPING_ROOTS, Phase.DONE}),
        Unbelieved: frozenset({Phase.FAILING}),
    },
    Phase.AGAIN: {
        Answer: frozenset({Phase.SYNCING, Phase.ROOT, Phase.FAILING, Phase.DONE}),
        LineDown: frozenset({Phase.FAILING}),
    },
    Phase.ROOT: {
        Answer: frozenset(
            {
                Phase.ROOT,
                Phase.ACCEPTING,
                Phase.SYNCING,
                Phase.MANIFEST,
                Phase.BLOB,
                Phase.KEEPING_BUNDLE,
                Phase.KEEPING_ROOTS,
                Phase.FAILING,
                Phase.DONE,
            }
        ),
        LineDown: frozenset({Phase.FAILING}),
    },
    Phase.MANIFEST: {
        Answer: frozenset(
            {
                Phase.BLOB,
                Phase.KEEPING_BUNDLE,
                Phase.KEEPING_ROOTS,
                Phase.ROOT,
                Phase.MANIFEST,
                Phase.FAILING,
                Phase.DONE,
            }
        ),
        LineDown: frozenset({Phase.FAILING}),
    },
    Phase.BLOB: {
        Answer: frozenset({Phase.BLOB, Phase.KEEPING_BUNDLE, Phase.FAILING, Phase.DONE}),
        LineDown: frozenset({Phase.FAILING}),
    },
    Phase.KEEPING_BUNDLE: {Persisted: frozenset({Phase.DONE})},
    Phase.KEEPING_ROOTS: {Persisted: frozenset({Phase.DONE})},
    Phase.FAILING: {Persisted: frozenset({Phase.DONE})},
}
"""The protocol: in which phase which event may lead where. `step` allows nothing else."""
