"""``emulab bench``, as a list of steps: a testbed of its own, one group of measurements after another, rows as they come, a page."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emulab.bench.bed import Bed
from emulab.bench.figures import Bench, Case, Extent
from emulab.bench.model import FORMAT_VERSION, MOVERS, PRE_DUMP, STOP_AND_COPY, Row, Sample, sample, usable
from emulab.bench.page import write_page
from emulab.bench.rows import RATE_BIT_S, all_rows
from emulab.engine.lock import exclusive
from emulab.engine.settings import Settings
from emulab.errors import EmulabError, UsageError
from emulab.experiment.folder import RunFolder
from emulab.experiment.manifest import start_manifest
from emulab.experiment.workflow import Progress, check_machine

GROUPS = ("settings", "web", "dirty", "idle", "visit", "stall", "response", "tasks", "memory")
# Above what the largest guest needs on one node: its memory and its images. Nothing is taken before it is used.
_ROOM = {"EMULAB_NODE_MEMORY": "14g", "EMULAB_IMAGES_SIZE": "10g"}
RAW = "raw.ndjson"
_BUSY = 0.7


def own_settings() -> Settings:
    """A testbed beside any other: project and LAN of the bench. EMULAB_BENCH_PROJECT and EMULAB_BENCH_SUBNET change them."""
    return Settings(
        project=os.environ.get("EMULAB_BENCH_PROJECT") or "emulab-bench",
        subnet=os.environ.get("EMULAB_BENCH_SUBNET") or "198.18.64.0/24",
        ui_port=0,
    )


def chosen(only: Collection[str]) -> list[str]:
    """The groups to run, in their order. Raises UsageError for an unknown one."""
    if unknown := [name for name in only if name not in GROUPS]:
        raise UsageError(f"the bench measures no {unknown[0]!r}", hint=f"one of {', '.join(GROUPS)}")
    return [name for name in GROUPS if not only or name in only]


def read_raw(folder: Path) -> list[Sample]:
    """Samples of a bench. Raises UsageError if there are none."""
    try:
        lines = (folder / RAW).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read the samples of {folder}: {error.strerror}", hint="a folder below runs/bench") from error
    found = []
    for line in lines:
        with suppress(ValueError):  # the last one of a killed bench may be cut off
            found.append(dict(json.loads(line)))
    return found


class Record:
    """The folder of one bench: every sample is on disk, and in the rows, as soon as it is known."""

    def __init__(self, folder: RunFolder, head: dict[str, Any], kept: Iterable[Sample] = ()) -> None:
        self.folder = folder
        self.head = head
        self.samples: list[Sample] = []
        for one in kept:
            self.add(one)

    @property
    def rows(self) -> list[Row]:
        return all_rows(self.samples)

    def add(self, one: Sample) -> None:
        self.samples.append(one)
        with (self.folder.path / RAW).open("a", encoding="utf-8") as file:
            file.write(json.dumps(one) + "\n")
        self.write()

    def write(self) -> None:
        self.folder.write_json("bench.json", {**self.head, "rows": [row.as_dict() for row in self.rows]})


def run_bench(
    *,
    only: Collection[str] = (),
    extent: Extent,
    progress: Progress,
    resume: Path | None = None,
    runs: Path = Path("runs"),
    mend: bool = False,
) -> Record:
    """Measure; returns the record. Raises UsageError for a bad request or if another run is under way."""
    groups = chosen(only)
    kept = [one for one in read_raw(resume) if one["group"] not in groups] if resume else []
    with exclusive("a bench"):
        check_machine(progress, mend=mend)
        record = begin(extent, groups, kept, runs)
        bed = Bed(own_settings(), progress.say)
        try:
            bring_up(bed, record, progress)
            measure(bed, record, groups, extent, progress)
            record.head["status"] = "complete"
        except BaseException as error:
            record.head["status"] = "aborted" if isinstance(error, KeyboardInterrupt) else "failed"
            record.head["error"] = str(error) or type(error).__name__
            raise
        finally:
            record.write()
            take_down(bed, progress)
            with suppress(EmulabError, OSError):
                write_page(record.folder.path)
            record.folder.close()
        return record


def begin(extent: Extent, groups: list[str], kept: list[Sample], runs: Path) -> Record:
    folder = RunFolder("", runs / "bench")
    manifest = start_manifest(folder.id, "make bench")
    head = {
        "format_version": FORMAT_VERSION,
        "status": "running",
        **{key: manifest[key] for key in ("id", "started_at", "git", "versions", "host")},
        "load_average_at_start": list(os.getloadavg()),
        "link_bit_s": RATE_BIT_S,
        "groups": groups,
        "kept_groups": sorted({one["group"] for one in kept}),
        **asdict(extent),
        "movers": MOVERS,
        "baseline_settings": {},
    }
    return Record(folder, head, kept)


def bring_up(bed: Bed, record: Record, progress: Progress) -> None:
    progress.step("bringing up six nodes", 8)
    if (busy := os.getloadavg()[0]) > _BUSY:
        progress.say(f"load average {busy:.1f}: whatever else this machine does will be in the numbers")
    for name, value in _ROOM.items():
        os.environ.setdefault(name, value)
    bed.testbed.project.gc(image_tags=False)
    bed.testbed.up(progress.say, rate_bit_s=RATE_BIT_S)
    facts = bed.testbed.facts()
    record.head["versions"] = {**record.head["versions"], **{key: facts[key] for key in ("criu", "runc")}}
    record.head["soft_dirty"] = facts["soft_dirty"]
    record.write()


def measure(bed: Bed, record: Record, groups: list[str], extent: Extent, progress: Progress) -> None:
    bench = Bench(bed, extent, best_settings(record.samples))
    for group in groups:
        cases = list(bench.groups[group]())
        for n, case in enumerate(cases, start=1):
            progress.step(f"{group} {n}/{len(cases)}: {case.setting}, {case.mover}", None)
            for one in samples_of(case):
                record.add(one)
                progress.say(describe(one))
        if group == "settings":
            bench.best |= best_settings(record.samples)
        record.head["baseline_settings"] = bench.best
        record.write()
        write_page(record.folder.path)


def samples_of(case: Case) -> Iterable[Sample]:
    """Run a case. What goes wrong in it is its result; the bench goes on."""
    if case.left_out:
        yield sample(case.group, case.setting, case.mover, case.repetition, left_out=case.left_out)
        return
    try:
        for one in case.run():
            yield {**one, "load_average": os.getloadavg()[0]}
    except (EmulabError, OSError, ValueError, KeyError) as error:
        message = error.message if isinstance(error, EmulabError) else f"{type(error).__name__}: {error}"
        yield sample(case.group, case.setting, case.mover, case.repetition) | {"error": message}
        threading.Event().wait(1.0)


def best_settings(samples: Iterable[Sample]) -> dict[str, str]:
    """Of each baseline the setting with the shortest median blackout; total time decides between equals."""
    best = {}
    known = usable(samples, group="settings")
    for method in (PRE_DUMP, STOP_AND_COPY):
        tried: dict[str, list[Sample]] = {}
        for one in known:
            if one["mover"] == method:
                tried.setdefault(one["mover_setting"], []).append(one)
        if tried:
            best[method] = min(tried, key=lambda setting: _cost(tried[setting]))
    return best


def _cost(samples: list[Sample]) -> tuple[float, float]:
    ordered = sorted((one["blackout_s"], one["total_s"]) for one in samples)
    return ordered[(len(ordered) - 1) // 2]


def describe(one: Sample) -> str:
    if one["left_out"]:
        return f"left out: {one['left_out']}"
    if one["error"]:
        return f"failed: {one['error']}"
    sent = (one["wire_bytes"] - one["guest_bytes"]) / 1e6
    blackout = f"blackout {one['blackout_s'] * 1000:.0f} ms"
    return f"{one['mover']}: total {one['total_s']:.2f} s, {blackout}, {sent:.1f} MB sent, {one['tasks']} tasks"


def take_down(bed: Bed, progress: Progress) -> None:
    progress.step("taking the nodes down", 3)
    try:
        bed.testbed.project.gc(image_tags=False)
    except EmulabError as error:
        progress.say(f"{error.message} ({error.hint})")
