"""What the page says in words and tables: title, headline cards, facts of a migration, environment."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emulab.analysis import units
from emulab.criu.log import deciding_line

if TYPE_CHECKING:
    from pathlib import Path

    from emulab.analysis import Run

Summary = dict[str, Any]
_LOG_LIMIT = 4_000_000


@dataclass(frozen=True)
class Card:
    """One headline: label, value, a line below, and a tone (good, bad, warn or none)."""

    label: str
    value: str
    sub: str
    tone: str = ""


def title(summary: Summary) -> str:
    """The run in a few words."""
    users = units.plural(summary["load"]["users"], "user")
    moves = summary["migrations"]
    if not moves:
        ended = {"complete": "no migration", "aborted": "stopped before its end", "failed": "failed before its end"}
        return f"{users}, {ended[summary['status']]}"
    if len(moves) == 1:
        return f"Live migration of {moves[0]['vm']} from {moves[0]['source']} to {moves[0]['destination']} under {users}"
    guests = units.listing(list(dict.fromkeys(move["vm"] for move in moves)))
    return f"{len(moves)} live migrations of {guests} under {users}"


def instant(text: str) -> str:
    """An ISO instant without its T and fractions, for people."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?Z$", r"\1 \2 UTC", text)


def cards(summary: Summary) -> list[Card]:
    """The headline numbers. With several migrations: the worst of them, and it says so."""
    load, moves = summary["load"], summary["migrations"]
    tone = {"complete": "good", "aborted": "warn", "failed": "bad"}[summary["status"]]
    if tone == "good" and any(move["outcome"] != "committed" for move in moves):
        tone = "warn"
    found = [
        Card("Status", summary["status"], f"{units.short(units.duration(load['steady_s']))} of steady state", tone),
        Card(
            "Concurrent users",
            units.count(load["users"]),
            f"{units.number(load['offered_ops_per_s'])} operations/s offered, {units.number(load['ops_per_s'])} done",
        ),
    ]
    committed = [move for move in moves if move["outcome"] == "committed"]
    if moves:
        worst = f", worst of {len(committed)}" if len(committed) > 1 else ""
        failed = sum(move["requests_failed"] for move in moves)
        lost = sum(move["connections"]["lost"] for move in moves)
        given_up = [move for move in moves if move["outcome"] != "committed"]
        if given_up:
            found.append(Card("Migrations aborted", f"{len(given_up)}", f"of {len(moves)}", "bad"))
        if committed:
            found += [
                Card("Whole migration", units.duration(_worst(committed, "total_s")), f"{_bytes(committed)} over the link{worst}"),
                Card("Blackout", units.duration(_worst(committed, "blackout_s")), f"no task of the guest ran{worst}"),
                Card(
                    "Client stall",
                    units.duration(_worst(committed, "client_stall_s")),
                    f"without an answer, probe every {_interval(summary)}{worst}",
                ),
                Card("Backlog gone", units.duration(_worst(committed, "recovery_s")), f"after resume{worst}"),
            ]
        found.append(
            Card(
                "Failed requests",
                units.count(failed),
                f"{units.plural(lost, 'connection')} lost, while migrating",
                "bad" if failed or lost else "good",
            )
        )
    elif load["operations"] == 0:
        found.append(Card("Failed requests", "no data", "nothing was measured", "warn"))
    else:
        found.append(Card("Failed requests", units.count(load["http_failed"]), "in steady state", "bad" if load["http_failed"] else "good"))
    found += [_verdict(summary, 90), _verdict(summary, 99)]
    peak = summary["resources"]["peak_memory_bytes"]
    return [*found, Card("Memory of all nodes", units.size(peak), "largest sum, guests included")] if peak is not None else found


def _verdict(summary: Summary, percent: int) -> Card:
    sla = summary["sla"]
    broken = sla[f"broken{percent}"]
    if summary["load"]["operations"] == 0:
        return Card(f"Agreement at {percent} %", "no data", "nothing was measured", "warn")
    measured = [name for name in broken if summary["operations"][name][f"sla{percent}"]["samples"]]
    if not broken:
        return Card(f"Agreement at {percent} %", "holds", f"all {len(summary['operations'])} operations", "good")
    if not measured:
        return Card(f"Agreement at {percent} %", "not shown", f"no samples of {units.listing(broken)}", "warn")
    return Card(f"Agreement at {percent} %", "broken", f"by {units.listing(broken)}", "bad")


def _worst(moves: list[dict[str, Any]], key: str) -> float | None:
    values = [move[key] for move in moves if move[key] is not None]
    return max(values, default=None)


def _bytes(moves: list[dict[str, Any]]) -> str:
    return units.size(_worst(moves, "bytes_on_wire"))


def _interval(summary: Summary) -> str:
    return units.short(units.duration(summary["probe"]["interval_s"]))


def facts(migration: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and value of everything known about one migration."""
    counts = migration["connections"]
    pages, wire = migration["bytes_of_pages"], migration["bytes_on_wire"]
    saved = f" ({units.percent(1 - wire / pages, 0)} less than its pages)" if pages and wire is not None and wire < pages else ""
    return [
        ("Whole migration", units.duration(migration["total_s"])),
        ("Blackout", units.duration(migration["blackout_s"])),
        ("Predicted before the freeze", units.duration(migration["predicted_blackout_s"])),
        ("Client stall", units.duration(migration["client_stall_s"])),
        ("Frames held for", units.duration(migration["network_hold_s"])),
        ("Backlog gone after resume", units.duration(migration["recovery_s"])),
        ("Slowdown while rounds ran", units.ratio(migration["slowdown"])),
        ("On the wire", units.size(wire) + saved),
        ("Memory pages sent", units.size(pages)),
        ("Tasks, established connections", f"{units.count(migration['tasks'])}, {units.count(migration['tcp_established'])}"),
        ("Strategy, dirty tracking", f"{migration['strategy'] or units.NOTHING}, {migration['dirty_tracker'] or units.NOTHING}"),
        ("Requests failed, probes lost", f"{units.count(migration['requests_failed'])}, {units.count(migration['probes_lost'])}"),
        ("Connections lost, unexplained", f"{units.count(counts['lost'])}, {units.count(counts['unexplained'])}"),
    ]


def worst_window(window: dict[str, Any]) -> str:
    """Where the worst window of an operation is, and how many operations it holds."""
    if window["worst_window_start_s"] is None:
        return ""
    return f"window from {window['worst_window_start_s']:.1f} s, {units.plural(window['samples'], 'operation')}"


def paper_rows(summary: Summary) -> list[dict[str, Any]]:
    return [
        {
            "label": row["label"],
            "paper": _valued(row["paper"], row["unit"]),
            "here": _valued(row["here"], row["unit"]),
            "ratio": row["ratio"],
        }
        for row in summary["paper"].values()
    ]


def _valued(value: float | str | None, unit: str) -> str:
    if value is None or isinstance(value, str):
        return value or units.NOTHING
    return units.duration(value) if unit == "s" else units.count(value)


def contents(summary: Summary) -> list[tuple[str, str]]:
    """Anchors and names of the sections."""
    moves = summary["migrations"]
    several = len(moves) > 1
    found = [("top", "Summary"), ("response", "What users saw"), ("agreement", "Service level")]
    found += [(f"migration-{move['id']}", f"{move['vm']} → {move['destination']}" if several else "The migration") for move in moves]
    found += [("machine", "What the machine did"), ("links", "Links")]
    found += [("paper", "Beside the paper")] if summary["paper"] else []
    return [*found, ("checks", "Is the run valid?"), ("repeat", "Repeat it"), ("glossary", "Definitions")]


def command(run: Run) -> str:
    """The command that repeats the run."""
    stated = run.manifest.get("command")
    return str(stated) if stated else shlex.join(str(word) for word in run.manifest.get("argv") or ["emulab", "experiment"])


def versions(run: Run) -> list[tuple[str, str]]:
    """Programs and images, and the commit of emulab."""
    git = run.manifest.get("git") or {}
    rows = _flat(run.manifest.get("versions") or {})
    if git.get("commit"):
        rows.append(("git commit", f"{git['commit']}{' with uncommitted changes' if git.get('dirty') else ''}"))
    return rows


def host(run: Run) -> list[tuple[str, str]]:
    """Facts about the machine."""
    return [(name, units.size(float(value)) if name == "memory_bytes" else value) for name, value in _flat(run.manifest.get("host") or {})]


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            rows += _flat(item, f"{name} ")
        elif isinstance(item, bool):
            rows.append((name, "yes" if item else "no"))
        else:
            rows.append((name, units.NOTHING if item is None else ", ".join(map(str, item)) if isinstance(item, list) else str(item)))
    return rows


def files(run: Run) -> list[str]:
    """Files of the run folder, relative to it, in the order of their names; the report itself left out."""
    found = []
    for folder, _, names in os.walk(run.path):
        found += [os.path.relpath(os.path.join(folder, name), run.path) for name in names]  # noqa: PTH118 - plain text for links
    return sorted(name for name in found if not name.startswith((".", "figures/")) and name != "report.html")


def criu_lines(run: Run) -> list[tuple[str, str]]:
    """The deciding line of every CRIU log that holds an error: (path relative to the run folder, line)."""
    found = []
    for name in files(run):
        if name.startswith("logs/") and name.endswith(".log"):
            text = _tail(run.path / name)
            if "Error (" in text:
                found.append((name, deciding_line(text)))
    return found


def _tail(path: Path) -> str:
    """The end of a log, however long it is."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_LIMIT))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
