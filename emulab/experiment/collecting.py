"""What the nodes and the load have recorded, brought into the run folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from emulab.engine.settings import NODES
from emulab.errors import EmulabError
from emulab.experiment import guests, records
from emulab.experiment.folder import RunFolder
from emulab.experiment.load import LoadRun
from emulab.scenario import Scenario
from emulab.testbed import Testbed


def collect(
    testbed: Testbed,
    scenario: Scenario,
    folder: RunFolder,
    load: LoadRun,
    migrations: list[dict[str, Any]],
    *,
    lost: list[str] | None = None,
) -> None:
    """All records of a run. ``lost``: of one that did not reach its end; what cannot be had of it is noted there instead of raised."""

    def trying(what: str) -> AbstractContextManager[None]:
        return nullcontext() if lost is None else _noting(lost, what)

    with trying("migrations"):
        folder.write_json("migrations.json", migrations)
        records.write_rounds(migrations, folder.path / "rounds.parquet")
    raw = folder.path / ".raw"
    try:
        samples: list[Path] = []
        for node in NODES:
            with trying(f"samples of {node}"):
                samples.append(testbed.collect_samples(node, raw / "samples"))
        if samples:
            with trying("samples"):
                records.write_samples(samples, folder.path / "samples.parquet")
        with trying("load"):
            load.collect(raw / "load")
            _write_load(raw, folder)
    finally:
        shutil.rmtree(raw, ignore_errors=True)
    for name in guests.guest_specs(scenario):
        with trying(f"log of {name}"):
            found = testbed.find(name)
            folder.write_log(f"guest-{name}.log", testbed.call(str(found["node"]), "vm.logs", name=name, lines=2000))


@contextmanager
def _noting(lost: list[str], what: str) -> Iterator[None]:
    try:
        yield
    except (EmulabError, OSError, ValueError) as error:
        lost.append(f"{what}: {error.message if isinstance(error, EmulabError) else error}")


def _write_load(raw: Path, folder: RunFolder) -> None:
    source = next((path.parent for path in raw.glob("load/**/logs")), raw)
    for log in source.glob("logs/*"):
        shutil.copy(log, folder.logs / f"load-{log.name}")
    records.write_load(source, folder.path)
    shutil.copy(source / "load.json", folder.path / "load.json")
