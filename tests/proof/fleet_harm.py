"""What is done to machines, files and the server of a simulated fleet. What the network does is in `fleet_line`."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.audit import read_journal
from tests.proof.fleet_acts import Acts
from tests.proof.fleet_till import FleetTill
from tests.proof.fleet_world import DAY_S, Restore, World

HOUR_S = 3600
TILLS_MAX = 8
TILL_FAULTS = {
    "clock set": 4.0, "clock drifts": 3.0, "reboot": 4.0, "crash": 7.0, "outage": 0.3, "old message": 1.0,
    "cloned": 0.03, "older copy": 0.04, "disk destroyed": 0.02, "suspended": 0.03, "revoked": 0.015, "lost": 0.02,
    "moved": 0.05,
}  # fmt: skip
"""By kind, how often a till meets it in a day."""
SERVER_FAULTS = {
    "server restarted": 0.5, "restore": 0.12, "restore not declared": 0.07, "bundle key rotated": 0.1,
    "receipt key rotated": 0.1, "voucher revised": 0.3, "limit changed": 0.3, "voucher dropped": 0.08,
    "lease released": 0.15,
}  # fmt: skip
"""By kind, how often the server meets it in a day."""


class Harm:
    def __init__(self, world: World, acts: Acts) -> None:
        self.world, self.acts, self.chance = world, acts, world.chance

    def day(self) -> None:
        """The faults of the coming day, at any time of it."""
        for till in list(self.world.tills):
            for kind, often in TILL_FAULTS.items():
                act = getattr(self, "till_" + kind.replace(" ", "_"))
                self._plan(kind, often, partial(self._to, till, act))
        for kind, often in SERVER_FAULTS.items():
            self._plan(kind, often, getattr(self, kind.replace(" ", "_").replace("'", "")))

    def _to(self, till: FleetTill, act: Callable[[FleetTill], Any]) -> Any:
        """Not where it is gone by then."""
        return till in self.world.tills and act(till)

    def _plan(self, kind: str, often: float, act: Callable[[], Any]) -> None:
        def come() -> None:
            if act() is not False:
                self.world.tally.fault(kind)
                self.world.trace(kind)

        self.acts.at_some_time(often * self.world.profile.rates.get(kind, 0.0), come)

    # -- a till's clock, process and line

    def till_clock_set(self, till: FleetTill) -> None:
        far = self.chance.choice((60, 120, 900, 900, 7200, DAY_S, 3 * DAY_S, 40 * DAY_S, 1000 * DAY_S))
        till.clock.set_ahead(self.chance.choice((-1, 1, 0, 0)) * self.chance.uniform(0.1, 1) * far)
        till.device.faults.add("clock")

    def till_clock_drifts(self, till: FleetTill) -> None:
        till.clock.drift(self.chance.choice((-0.02, -0.001, 0.001, 0.02)))
        till.device.faults.add("clock")

    def till_reboot(self, till: FleetTill) -> None:
        till.crash()
        till.clock.reboot()
        till.device.faults.add("reboot")

    def till_crash(self, till: FleetTill) -> None:
        till.crash()

    def till_outage(self, till: FleetTill) -> None:
        hours = self.chance.choice((2, 8, 30, 100))
        till.offline_for(self.chance.uniform(0.2, 1) * hours * HOUR_S)
        till.device.faults.add("outage")

    def till_old_message(self, till: FleetTill) -> bool:
        return self.world.line.repeat()

    # -- a till's files

    def till_cloned(self, till: FleetTill) -> bool:
        """Its disk is copied, and both go on, each on a machine of its own."""
        device = till.device
        if len(self.world.tills) > TILLS_MAX:
            return False
        device.disks += 1
        copy = self.world.work / f"{device.name}-copy-{device.disks}"
        shutil.copytree(till.path, copy)
        device.faults.add("cloned")
        self.world.tills.append(self.world.new_till(device, copy))
        return True

    def till_older_copy(self, till: FleetTill) -> None:
        """Its disk is copied now, and put back some time later, over all that was recorded since."""
        copy = self.world.work / f"image-{next(self.world.orders)}"
        shutil.copytree(till.path, copy)

        def put_back() -> None:
            if till not in self.world.tills or self.world.healing:
                return
            till.close()
            self._destroy(till.path, until=_head(copy))
            shutil.copytree(copy, till.path)
            till.device.faults.add("cloned")
            till.device.older_copies += 1
            self.world.seen.pop(till.path.name, None)
            self.world.noted.pop(till.path.name, None)

        self.world.later(self.chance.uniform(0.1, 4) * DAY_S, put_back)

    def till_disk_destroyed(self, till: FleetTill) -> bool:
        if not 3 <= len(self.world.tills) <= TILLS_MAX:
            return False
        till.close()
        self._destroy(till.path, until=0)
        self.world.tills.remove(till)
        till.device.faults.add("destroyed")
        if self.chance.random() < 0.7:
            self._change(till, "lost")
        self.world.enrol()
        return True

    def _destroy(self, path: Path, *, until: int) -> None:
        """What was recorded after `until` is gone with the disk, as far as the server does not have it."""
        for seq, (raw, _) in read_journal(path).events.items():
            if seq > until:
                self.world.destroyed.add(raw)
        shutil.rmtree(path)

    # -- a device, at the server

    def till_suspended(self, till: FleetTill) -> None:
        self._change(till, "suspend")
        self.world.later(self.chance.uniform(0.1, 3) * DAY_S, lambda: self._change(till, "resume"))

    def till_revoked(self, till: FleetTill) -> None:
        self._change(till, "revoke")

    def till_lost(self, till: FleetTill) -> None:
        self._change(till, "lost")

    def _change(self, till: FleetTill, verb: str) -> None:
        if self.world.healing:
            return
        till.device.faults.add(verb)
        self.world.server.start_again()
        self.world.server.operate("POST", f"devices/{till.device.id}/{verb}")

    def till_moved(self, till: FleetTill) -> None:
        till.device.faults.add("moved")
        self.world.server.start_again()
        scope = self.chance.choice(("main", "branch"))
        self.world.server.operate("POST", f"devices/{till.device.id}/move", {"scope": scope})

    # -- the server

    def server_restarted(self) -> None:
        self.world.server.stop()
        self.world.later(self.chance.choice((5, 600, 3 * HOUR_S)), self.world.server.start_again)

    def restore(self) -> bool:
        return self._restore(declared=True)

    def restore_not_declared(self) -> bool:
        return self._restore(declared=False)

    def _restore(self, *, declared: bool) -> bool:
        """From the last backup: nothing else may be restored, for tills purge what it holds."""
        world = self.world
        if world.backup is None:
            return False
        world.restore(world.backup)
        restore = Restore(world.at)
        world.restores.append(restore)
        if declared:
            world.declare()
        else:
            world.later(self.chance.uniform(0.1, 30) * HOUR_S, world.declare)
        return True

    def bundle_key_rotated(self) -> None:
        self.world.server.rotate(bundle=True, receipt=False)
        self.world.rotated += 1

    def receipt_key_rotated(self) -> None:
        self.world.server.rotate(bundle=False, receipt=True)
        self.world.rotated += 1

    # -- vouchers

    def _voucher(self) -> tuple[str, dict[str, Any]]:
        self.world.server.start_again()
        listed = self.world.server.operate("GET", "vouchers")[1]["vouchers"]
        live = [one for one in listed if one["deactivated_at"] is None]
        one = self.chance.choice(live)
        return one["id"], one["voucher"]

    def voucher_revised(self) -> bool:
        where, voucher = self._voucher()
        discount = voucher["discount"]
        for name, amounts in (("amount_minor", (50, 120, 310)), ("percent", (5, 12.5, 40)), ("cap_minor", (200, 500))):
            if name in discount:
                discount[name] = self.chance.choice(amounts)
        return self._put(where, voucher)

    def limit_changed(self) -> bool:
        where, voucher = self._voucher()
        names = [name for name in ("total", "budget_minor") if name in voucher.get("limits", {})]
        if not names or voucher.get("offline", {}).get("policy") == "exclusive":
            return False
        name = self.chance.choice(names)
        voucher["limits"][name] = max(1, int(voucher["limits"][name] * self.chance.choice((0.3, 0.7, 1.2, 1.6))))
        return self._put(where, voucher)

    def _put(self, where: str, voucher: dict[str, Any]) -> bool:
        status, answer = self.world.server.operate("PUT", f"vouchers/{where}", voucher)
        if status != 200:
            self.world.tally.see(f"revision refused: {answer.get('code')}")
            return False
        self.world.note_limits(voucher)
        self.world.changed_vouchers = True
        return True

    def voucher_dropped(self) -> bool:
        where, voucher = self._voucher()
        if voucher["code"] in ("OPEN", "UNITS"):
            return False
        self.world.server.operate("POST", f"vouchers/{where}/deactivate")
        self.world.changed_vouchers = True
        return True

    def lease_released(self) -> bool:
        self.world.server.start_again()
        query = "SELECT id, device_id, known_units, known_minor FROM leases WHERE state IN ('open', 'burned')"
        rows = self.world.server.read(query + " ORDER BY id")
        if not rows:
            return False
        lease, device, units, minor = self.chance.choice(rows)
        status, _ = self.world.server.operate("POST", f"leases/{lease}/release")
        if status == 200:
            self.world.released.setdefault(lease, (units, minor))
            for one in self.world.devices:
                if one.id == device:
                    one.faults.add("released")
        return status == 200


def _head(directory: Path) -> int:
    with closing(sqlite3.connect(f"file:{directory / 'journal.sqlite3'}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT head_seq FROM state").fetchone()[0])
