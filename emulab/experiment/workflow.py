"""``emulab experiment``, as a list of steps. Each step is in the module that its import names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from emulab import clock
from emulab.analysis.summary import write_summary
from emulab.doctor import all_items, check_all, repair, require
from emulab.engine.lock import exclusive
from emulab.engine.settings import Settings
from emulab.errors import EmulabError, MigrationError
from emulab.experiment import guests
from emulab.experiment.collecting import collect
from emulab.experiment.folder import RUNS, RunFolder, previous_source
from emulab.experiment.load import LoadRun
from emulab.experiment.manifest import repeat_command, start_manifest, testbed_facts
from emulab.experiment.moves import Moves
from emulab.experiment.warm import warm_up
from emulab.scenario import NodeSize, PlannedMigration, Scenario, load_scenario, plan, resolve, to_yaml
from emulab.testbed import Testbed


class Progress(Protocol):
    """How a run tells its user where it is. ``expected_s``: how long the step should take, None if unknown."""

    def step(self, title: str, expected_s: float | None = None) -> None: ...

    def say(self, text: str) -> None: ...

    def load(self, row: dict[str, Any]) -> None: ...


@dataclass
class Experiment:
    """One run in progress."""

    scenario: Scenario
    planned: list[PlannedMigration]
    folder: RunFolder
    testbed: Testbed
    progress: Progress
    manifest: dict[str, Any]
    keep: bool = False
    load: LoadRun | None = None
    moves: Moves | None = None
    links: dict[str, Any] = field(default_factory=dict)


def run_experiment(
    name: str,
    overrides: dict[str, str | None],
    *,
    size: NodeSize,
    progress: Progress,
    runs: Path = RUNS,
    keep: bool = False,
    mend: bool = False,
) -> tuple[RunFolder, dict[str, Any], MigrationError | None]:
    """Run a scenario from beginning to end; returns the run folder, its summary, and the failure of a migration if there was one.

    Raises UsageError before anything is touched if the scenario is bad or another run is under way.
    """
    scenario = resolve_scenario(name, overrides, size=size, runs=runs)
    with exclusive("an experiment"):
        check_machine(progress, mend=mend)
        experiment = begin(scenario, repeat_command(name, overrides), progress, runs=runs, keep=keep)
        try:
            bring_up(experiment)
            calibrate_links(experiment)
            place_guests(experiment)
            load_data(experiment)
            warm_site(experiment)
            apply_load(experiment)
            collect_records(experiment)
            finish(experiment, "complete")
        except BaseException as error:
            give_up(experiment, error)
            raise
        finally:
            take_down(experiment)
        return experiment.folder, report(experiment), experiment.moves.failure if experiment.moves else None


def resolve_scenario(name: str, overrides: dict[str, str | None], *, size: NodeSize, runs: Path) -> Scenario:
    return resolve(load_scenario(name, overrides, node=size), previous_source=previous_source(runs))


def check_machine(progress: Progress, *, mend: bool) -> None:
    """What the testbed needs is there, or is brought (``mend``). Raises DoctorError."""
    progress.step("checking the machine")
    require(repair(all_items(), progress.say) if mend else check_all(all_items()))


def begin(scenario: Scenario, repeat: str, progress: Progress, *, runs: Path, keep: bool) -> Experiment:
    """The run folder with what is known beforehand."""
    testbed = Testbed(Settings.from_env().on(scenario.topology.subnet))
    folder = RunFolder(scenario.name, runs)
    folder.write_text("scenario.resolved.yaml", to_yaml(scenario))
    manifest = start_manifest(folder.id, repeat)
    folder.write_json("manifest.json", manifest)
    progress.say(f"run folder {folder.path}")
    return Experiment(scenario, plan(scenario), folder, testbed, progress, manifest, keep)


@contextmanager
def _step(experiment: Experiment, step: str, title: str, expected_s: float | None = None) -> Iterator[Callable[[str], None]]:
    experiment.progress.step(title, expected_s)
    experiment.folder.event("experiment.step", "begin", step=step)
    try:
        yield experiment.progress.say
    finally:
        experiment.folder.event("experiment.step", "end", step=step)


def bring_up(experiment: Experiment) -> None:
    with _step(experiment, "up", "bringing up six nodes", 6) as say:
        experiment.testbed.down()  # a run starts from nothing: what an interrupted one left must not be measured
        experiment.links = experiment.testbed.up(say, rate_bit_s=experiment.scenario.topology.rate)


def calibrate_links(experiment: Experiment) -> None:
    with _step(experiment, "calibrate", "measuring the links", 20) as say:
        record = experiment.testbed.calibrate(experiment.scenario.topology.rate, say)
        experiment.folder.write_json("calibration.json", record)


def place_guests(experiment: Experiment) -> None:
    with _step(experiment, "guests", "placing the guests", 5) as say:
        guests.place_guests(experiment.testbed, experiment.scenario, say)
        images = {
            spec.image: experiment.testbed.project.ensure_guest_image(spec.image).digest
            for spec in guests.guest_specs(experiment.scenario).values()
        }
        facts = testbed_facts(experiment.testbed, experiment.links, images)
        versions = {**experiment.manifest["versions"], **facts.pop("versions")}
        experiment.manifest.update(facts, versions=versions)
        experiment.folder.write_json("manifest.json", experiment.manifest)


def load_data(experiment: Experiment) -> None:
    with _step(experiment, "data", "loading the database", 15) as say:
        guests.load_data(experiment.testbed, experiment.scenario, say)


def warm_site(experiment: Experiment) -> None:
    with _step(experiment, "warm", "warming up the site", 3):
        warm_up(experiment.testbed, experiment.scenario)


def apply_load(experiment: Experiment) -> None:
    """Ramp-up, steady state with the migrations on their schedule, ramp-down; everything is sampled meanwhile."""
    load = experiment.scenario.load
    total = load.ramp_up + load.steady + load.ramp_down
    with _step(experiment, "load", f"{load.users} users for {total:g} s", total + 5) as say:
        experiment.testbed.start_samples()
        experiment.load = LoadRun(experiment.testbed, experiment.scenario, experiment.folder.row, experiment.progress.load)
        experiment.moves = Moves(experiment.testbed, experiment.folder, say)
        experiment.load.start()
        experiment.moves.run(experiment.load, experiment.planned)
        experiment.load.wait()


def collect_records(experiment: Experiment) -> None:
    with _step(experiment, "collect", "collecting the records", 5):
        assert experiment.load is not None
        assert experiment.moves is not None
        collect(experiment.testbed, experiment.scenario, experiment.folder, experiment.load, experiment.moves.rows())


def finish(experiment: Experiment, status: str) -> None:
    load = experiment.load
    if load and load.steady_start_s is not None:
        experiment.manifest["steady"] = {"start_s": load.steady_start_s, "end_s": load.steady_end_s}
    experiment.manifest.update(status=status, ended_at=clock.wall())
    experiment.folder.write_json("manifest.json", experiment.manifest)


def give_up(experiment: Experiment, error: BaseException) -> None:
    """Note why the run did not reach its end, and keep what was recorded until then."""
    interrupted = isinstance(error, KeyboardInterrupt)
    how, reason = ("interrupted", "interrupted") if interrupted else ("failed", str(error))
    experiment.manifest["error"] = reason
    experiment.folder.event("experiment.error", reason=reason)
    if interrupted or experiment.load:
        experiment.progress.say(f"{how}: what was recorded so far is kept in {experiment.folder.path}")
    try:
        salvage(experiment)
    except KeyboardInterrupt:
        experiment.progress.say("interrupted again: the rest of it is not kept")
    finally:
        finish(experiment, "aborted" if interrupted else "failed")


def salvage(experiment: Experiment) -> None:
    """End what is under way, and collect what has been recorded of the load and its migrations."""
    load, moves = experiment.load, experiment.moves
    if load is None or moves is None:
        return
    lost = [f"the migration of {vm}, which is still under way" for vm in moves.give_up()]
    try:
        load.end()
    except EmulabError as error:
        lost.append(error.message)
    collect(experiment.testbed, experiment.scenario, experiment.folder, load, moves.rows(), lost=lost)
    if load.stderr:
        experiment.folder.write_log("load-stderr.log", load.stderr)
    for what in lost:
        experiment.progress.say(f"not kept: {what}")
    experiment.progress.say("a page of it: make report")


def take_down(experiment: Experiment) -> None:
    if experiment.keep:
        subnet = experiment.scenario.topology.subnet
        elsewhere = f"; for other commands: export EMULAB_SUBNET={subnet}" if subnet != Settings.from_env().subnet else ""
        experiment.progress.say(f"the nodes stay up (--keep); end them with: make down{elsewhere}")
    else:
        experiment.progress.step("taking the nodes down", 3)
        try:
            experiment.testbed.down()
        except EmulabError as error:
            experiment.progress.say(f"{error.message} ({error.hint})")
    experiment.folder.close()


def report(experiment: Experiment) -> dict[str, Any]:
    from emulab.report import build_report

    experiment.progress.step("analysing", 5)
    summary = write_summary(experiment.folder.path)
    experiment.progress.step("drawing the report", 10)
    build_report(experiment.folder.path)
    return summary
