"""The migrations of a run on their schedule, while the load goes on."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from emulab import clock
from emulab.agent.rpc import RemoteError
from emulab.engine.streaming import Say
from emulab.errors import EmulabError, MigrationError
from emulab.experiment.folder import RunFolder
from emulab.experiment.load import LoadRun
from emulab.scenario import PlannedMigration
from emulab.testbed import Testbed


class Moves:
    """The migrations of a run, each in a thread of its own."""

    def __init__(self, testbed: Testbed, folder: RunFolder, say: Say) -> None:
        self._testbed = testbed
        self._folder = folder
        self._say = say
        self._lock = threading.Lock()
        self._rows: dict[int, dict[str, Any]] = {}
        self._ended: list[threading.Event] = []
        self._last_of: dict[str, threading.Event] = {}
        self._errors: list[BaseException] = []
        self._over = False
        self.failure: MigrationError | None = None

    def run(self, load: LoadRun, planned: list[PlannedMigration]) -> None:
        """Each planned migration at its time, side by side where their times overlap; of one guest, one after the other.

        A failed one is recorded, its CRIU logs are kept, and the load goes on.
        """
        start = load.wait_for_steady()
        for migration in planned:
            load.wait_until(start + migration.at_s)
            self.begin(migration)
        self.wait()

    def begin(self, migration: PlannedMigration) -> None:
        """Returns at once. A guest that is still on its way from an earlier migration sets off again when it has arrived."""
        ended, before = threading.Event(), self._last_of.get(migration.vm)
        self._last_of[migration.vm] = ended
        self._ended.append(ended)
        threading.Thread(target=self._run, args=(migration, before, ended), name=f"move {migration.vm}", daemon=True).start()

    def wait(self) -> None:
        """Until all have ended; raises what none of them expected."""
        for ended in self._ended:
            while not ended.wait(0.2):  # in steps, so that an interrupt is heard
                pass
        for error in self._errors:
            raise error

    def give_up(self, patience_s: float = 8.0) -> list[str]:
        """Abort what is under way, and wait until that is recorded; none begins any more. Returns the guests that did not come to rest."""
        self._over = True
        for vm in list(self._last_of):
            with contextlib.suppress(EmulabError):  # it has arrived, or is past its commit
                self._testbed.abort_migration(vm, "the run ends before its time")
        end = clock.now() + patience_s
        return [vm for vm, ended in self._last_of.items() if not ended.wait(max(0.0, end - clock.now()))]

    def rows(self) -> list[dict[str, Any]]:
        """Rows of ``migrations.json`` in order of their ids."""
        with self._lock:
            return [self._rows[number] for number in sorted(self._rows)]

    def _run(self, migration: PlannedMigration, before: threading.Event | None, ended: threading.Event) -> None:
        try:
            if before:
                before.wait()
            if not self._over:
                self._move(migration)
        except BaseException as error:
            self._errors.append(error)
        finally:
            ended.set()

    def _move(self, migration: PlannedMigration) -> None:
        vm, to = migration.vm, migration.destination
        self._say(f"moving {vm} from {self._testbed.find(vm)['node']} to {to}")
        try:
            row = self._testbed.migrate(vm, to, migration.options, number=migration.id, on_event=self._folder.row)
        except RemoteError as error:
            found = record_failure(error, self._folder, migration.id)
            with self._lock:
                if found:
                    self._rows[migration.id] = found[0]
                self.failure = self.failure or MigrationError(error.message, hint=f"logs: {self._folder.logs}" if found else error.hint)
            self._say(error.message)
        else:
            with self._lock:
                self._rows[migration.id] = row
            self._say(f"{vm} moved to {to} in {row['total_s']:.2f} s, blackout {row['blackout_s'] * 1000:.0f} ms")
        with self._lock:
            self._folder.write_json("migrations.json", [self._rows[number] for number in sorted(self._rows)])


def record_failure(error: RemoteError, folder: RunFolder, number: int) -> list[dict[str, Any]]:
    """Keep what a failed migration left: its logs, and its row if it got far enough to have one."""
    details = error.details if isinstance(error.details, dict) else {}
    for name, text in details.get("logs", {}).items():
        folder.write_log(f"migration-{number}-{name}", text)
    return [details["report"]] if "report" in details else []
