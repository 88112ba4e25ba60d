"""Each invariant of protocol.md, section 1, with the line that upholds it and the test that fails without it.

`python -m tests.simulation.breaking` takes each line away in a copy of the tree and runs its test, which must fail; on
the tree as it is the same tests must pass. `test_breaking` sees to it that the table does not go stale.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CLIENT, SERVER, SHARED = "client/tallystick_client", "server/tallystick_server", "shared/tallystick_shared"


class Break(NamedTuple):
    """`line` occurs once in `file`; `instead` is what it becomes."""

    invariant: str
    file: str
    line: str
    instead: str
    test: str


BREAKS = [
    Break("I1", f"{SERVER}/leases.py", "PoolMove(one.voucher_id, measure, free=-amount, held=amount)",
          "PoolMove(one.voucher_id, measure)", "tests/server/test_leases.py::test_no_sequence_exceeds_a_limit"),
    Break("I1", f"{SERVER}/tables.py",
          "'free + online + uncovered + held + closed_used + released_known - voided = \"limit\"', name=\"adds_up\"",
          "'free = free', name=\"adds_up\"", "tests/server/test_operations.py::test_migrations_make_the_constraints"),
    Break("I1", f"{SERVER}/redemptions.py", 'moves.add(row.id, "units", free=-1, online=1)', "pass",
          "tests/server/test_redemptions.py::test_fifty_at_once_get_exactly_what_there_is"),
    Break("I2", f"{CLIENT}/schema.py", "    CHECK (units IS NULL OR used_units <= units),\n", "",
          "tests/client/test_journal.py::test_the_database_forbids"),
    Break("I2", f"{CLIENT}/schema.py", "WHEN NEW.used_units < OLD.used_units OR NEW.used_minor < OLD.used_minor",
          "WHEN FALSE", "tests/client/test_journal.py::test_the_database_forbids"),
    Break("I2", f"{CLIENT}/terminal.py", '"SELECT units - used_units, minor - used_minor FROM leases"',
          '"SELECT units, minor FROM leases"',
          "tests/client/test_terminal.py::test_a_lease_gives_what_it_has_and_no_more"),
    Break("I2", f"{SERVER}/settling.py",
          "if (lease.units is None or units <= lease.units) and (lease.minor is None or minor <= lease.minor):",
          "if True:", "tests/server/test_settling.py::test_3_a_use_beyond_the_lease_is_without_cover"),
    Break("I3", f"{SERVER}/settling.py", "if not returnable or lease.close_seq is not None:", "if False:",
          "tests/server/test_settling.py::test_a_close_returns_the_rest_once"),
    Break("I3", f"{SERVER}/settling.py",
          'returnable = lease.state == "open" or (lease.state == "burned" and lease.burned_by == "lost")',
          'returnable = lease.state in ("open", "burned")',
          "tests/server/test_settling.py::test_a_forked_devices_close_returns_nothing"),
    Break("I3", f"{SERVER}/settling.py", "        mine.voided_units += units\n", "",
          "tests/server/test_settling.py::test_a_void_returns_unit_and_amount_once"),
    Break("I3", f"{CLIENT}/exchange.py",
          "\"UPDATE leases SET state = 'closing', reason = ?, close_seq = ? WHERE id = ?\", (reason, seq, lease_id)",
          "\"UPDATE leases SET reason = ? WHERE ? = ? AND FALSE\", (reason, seq, lease_id)",
          "tests/client/test_leases.py::test_an_expired_lease_and_one_too_small_are_closed"),
    Break("I4", f"{SHARED}/journal.py", "hashlib.sha256(bytes.fromhex(previous) + envelope).hexdigest()",
          "hashlib.sha256(envelope).hexdigest()",
          "tests/client/test_judging.py::test_the_command_passes_its_own_vectors"),
    Break("I4", f"{SERVER}/sync.py", "    if previous != head.through.hash:\n", "    if False:\n",
          "tests/server/test_sync.py::test_a_request_that_does_not_hold_together_stores_nothing"),
    Break("I4", f"{CLIENT}/exchange.py", "    if ours is None or ours.hash != position.hash:\n", "    if False:\n",
          "tests/client/test_answers.py::test_an_answer_that_does_not_fit_changes_nothing"),
    Break("I4", f"{CLIENT}/schema.py", '"synchronous": 2', '"synchronous": 1',
          "tests/client/test_journal.py::test_the_pragmas_are_read_back"),
    Break("I5", f"{SERVER}/placing.py", "device), new, Sign.TWO_HASHES)", "device), new)",
          "tests/contract/test_ten_years.py::test_a_copied_disk_is_found_at_the_first_sync_of_the_second_copy"),
    Break("I5", f"{SERVER}/placing.py", "    sign = Sign.OLDER_COPY if older else None", "    sign = None",
          "tests/contract/test_ten_years.py::test_an_older_copy_put_back_is_found_before_it_sells"),
    Break("I5", f"{SERVER}/placing.py", "        sign = Sign.USE_FORGOTTEN", "        sign = None",
          "tests/server/test_sync.py::test_a_u_below_k_is_a_fork"),
    Break("I5", f"{SERVER}/sync.py", 'await leases_of.burn(transaction, device.id, by="forked")', "pass",
          "tests/contract/test_ten_years.py::test_exposure_of_a_fork_is_told_in_units_and_money"),
    Break("I6", f"{CLIENT}/trust.py", "            if theirs < ours:\n", "            if False:\n",
          "tests/client/test_answers.py::test_a_bundle_may_not_go_back"),
    Break("I6", f"{CLIENT}/trust.py", "if theirs == ours and manifest.state_digest != floor.digest:", "if False:",
          "tests/client/test_trust.py"),
    Break("I6", f"{CLIENT}/trust.py", "        if root.version != self.root.version + 1:\n", "        if False:\n",
          "tests/client/test_trust.py"),
    Break("I6", f"{CLIENT}/granting.py", "        if lease.number <= highest:\n", "        if False:\n",
          "tests/client/test_leases.py::test_a_lease_number_is_never_taken_twice"),
    Break("I6", f"{CLIENT}/schema.py", "WHEN (NEW.server_epoch, NEW.version) < (OLD.server_epoch, OLD.version)",
          "WHEN FALSE", "tests/client/test_journal.py::test_the_database_forbids"),
    Break("I7", f"{SERVER}/settling.py", "    settled = _settled_minor(envelope, sale, facts, flags)\n",
          "    settled: dict[str, int] = {}\n",
          "tests/server/test_settling.py::test_4_another_amount_is_flagged_and_both_are_kept"),
    Break("I7", f"{SERVER}/settling.py", "        if shares != other.lines:\n", "        if False:\n",
          "tests/server/test_settling.py::test_4_other_shares_are_flagged"),
    Break("I8", f"{SERVER}/settling.py", "    if before is not None and not before.online:\n", "    if False:\n",
          "tests/server/test_settling.py::test_1_the_same_redemption_again_is_a_duplicate"),
    Break("I8", f"{SERVER}/settling.py", "else _take_back_online(before, envelope, facts)", "else {}",
          "tests/server/test_settling.py::test_1_an_online_attempt_that_fell_back_counts_once"),
    Break("I8", f"{CLIENT}/terminal.py", "                if earlier is not None:\n", "                if False:\n",
          "tests/client/test_terminal.py::test_the_same_id_again_is_the_same_receipt"),
]  # fmt: skip


def run(tree: Path, test: str) -> bool:
    """Whether the test passes on this tree."""
    packages = [tree, *(tree / name for name in ("shared", "client", "server"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, packages))}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{test} does not run: {done.stdout[-800:]}{done.stderr[-800:]}")
    return done.returncode == 0


def main() -> int:
    survived = 0
    with tempfile.TemporaryDirectory() as work:
        tree = Path(work) / "main"
        files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in files.split():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
        for test in sorted({one.test for one in BREAKS}):
            if not run(tree, test):
                raise SystemExit(f"{test} fails on the tree as it is")
        for one in BREAKS:
            path = tree / one.file
            text = path.read_text()
            path.write_text(text.replace(one.line, one.instead))
            caught = not run(tree, one.test)
            path.write_text(text)
            survived += not caught
            line = text[: text.index(one.line)].count("\n") + 1
            said = "fails without it" if caught else "DOES NOT FAIL"
            print(f"{one.invariant}  {one.file}:{line}  {one.test}  {said}", flush=True)
    print(f"{len(BREAKS)} lines taken away, {survived} of them not missed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
