"""The client, broken on purpose in the process that calls one of these: each must be found by the proof."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tallystick_client import directory, exporting, journal, terminal, voids
from tests.proof import till_day


def early_receipt() -> None:
    """The cashier is told before it is on the disk: every commit waits for the next."""
    original = till_day.attempt
    waiting: list[till_day.Step] = []

    def attempt(day: till_day.Day, step: till_day.Step) -> till_day.Said:
        for one in waiting:
            original(day, one)
        waiting.clear()
        if step.kind != "redeem":
            return original(day, step)
        waiting.append(step)
        shares = {one.code: one.discount_minor for one in day.till.preview(step.order(), step.codes).applied}
        return till_day.Said(step.number, step.kind, True, step.id, bool(shares), sum(shares.values()), shares)

    till_day.attempt = attempt


def lease_apart() -> None:
    """The use of a lease, the event and the head are three transactions."""
    original = terminal._use_allowance

    def use(writing: journal.Writing, *given: object) -> str | None:
        lease = original(writing, *given)  # type: ignore[arg-type]
        writing.run("COMMIT")
        writing.run("BEGIN IMMEDIATE")
        return lease

    terminal._use_allowance = use  # type: ignore[assignment]


def written_in_place() -> None:
    """No rename: what is cut off is half a file."""

    def write(path: Path, parts: Iterable[bytes]) -> None:
        path.unlink(missing_ok=True)
        with path.open("wb", buffering=0) as file:
            for part in parts:
                for begin in range(0, len(part), 40):
                    file.write(part[begin : begin + 40])
        path.chmod(0o600)

    directory.write_whole = write
    exporting.write_whole = write  # type: ignore[attr-defined]


def forgets_ids() -> None:
    """A sale that is asked for again is made again, under an id of its own."""
    terminal.earlier_receipt = lambda *_: None  # type: ignore[attr-defined]
    original = terminal.Terminal._redeem

    def redeem(self: terminal.Terminal, writing: object, bundle: object, *given: object) -> object:
        *rest, redemption_id = given
        known = writing.run("SELECT 1 FROM events WHERE id = ?", (redemption_id,)).fetchone()  # type: ignore[attr-defined]
        return original(self, writing, bundle, *rest, None if known else redemption_id)  # type: ignore[arg-type, call-arg]

    terminal.Terminal._redeem = redeem  # type: ignore[assignment, method-assign]


def gives_back_again() -> None:
    """A void that is asked for again gives back again, under an id of its own."""

    def knows_nothing(writing: journal.Writing, void_id: str, redemption_id: str, _: object) -> None:
        if writing.run("SELECT 1 FROM events WHERE id = ?", (void_id,)).fetchone() is None:
            return
        own = journal.new_id(writing.state.mark_at)
        append, execute = writing.append, writing.execute
        execute("DELETE FROM voids WHERE redemption_id = ?", (redemption_id,))  # else it is refused as ALREADY_VOIDED
        writing.append = lambda kind, _, *rest, **named: append(kind, own, *rest, **named)  # type: ignore[method-assign]
        writing.execute = lambda statement, values=(): execute(  # type: ignore[method-assign]
            statement, [own if one == void_id else one for one in values]
        )

    voids.earlier_void = knows_nothing  # type: ignore[assignment, attr-defined]
