"""The picture of the sync machine in the docs is drawn from its table."""

from __future__ import annotations

from pathlib import Path

from tallystick_client.phases import TRANSITIONS, Phase

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "sync-machine.md"


def drawn() -> str:
    """The transitions as a mermaid state diagram, in the order of the table."""
    lines = ["```mermaid", "stateDiagram-v2"]
    for phase, events in TRANSITIONS.items():
        for event, following in events.items():
            lines += [
                f"    {phase.name} --> {one.name}: {event.__name__}" for one in sorted(following, key=list(Phase).index)
            ]
    return "\n".join([*lines, "```"])


def test_the_diagram_in_the_docs_is_the_table() -> None:
    """docs/reference/sync-machine.md shows exactly the transitions of `phases.TRANSITIONS`."""
    assert drawn() in PAGE.read_text()
