"""bench.html: one file that works offline, and its figures as SVG beside it, from ``bench.json`` and the samples alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from emulab.analysis import units
from emulab.bench.drawing import all_figures
from emulab.bench.model import Row, Sample
from emulab.bench.text import cell, verdict
from emulab.report import matplotlib_renderer, plotly_renderer
from emulab.report.build import environment, script_json
from emulab.report.figures import Figure
from emulab.report.page import instant

_TEMPLATES = Path(__file__).with_name("templates")


def write_page(folder: Path) -> Path:
    """Write bench.html and figures/*.svg into a bench's folder. Raises OSError, ValueError if it cannot be read."""
    document = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    samples: list[Sample] = [json.loads(line) for line in (folder / "raw.ndjson").read_text(encoding="utf-8").splitlines() if line]
    figures = all_figures(samples)
    drawn = folder / "figures"
    drawn.mkdir(exist_ok=True)
    for figure in figures:
        matplotlib_renderer.save(figure, drawn / f"{figure.key}.svg")
    path = folder / "bench.html"
    path.write_text(render(document, figures), encoding="utf-8")
    return path


def render(document: dict[str, Any], figures: list[Figure]) -> str:
    env = environment()
    env.loader = jinja2.ChoiceLoader(
        [jinja2.FileSystemLoader(_TEMPLATES), env.loader] if env.loader else [jinja2.FileSystemLoader(_TEMPLATES)]
    )
    rows = [Row(**row) for row in document["rows"]]
    judged = [row for row in rows if row.met is not None]
    return env.get_template("bench.html.j2").render(
        b=document,
        rows=rows,
        judged=judged,
        missed=[row for row in judged if not row.met],
        figures={figure.key: figure for figure in figures},
        figure_data=script_json({figure.key: _spec(figure) for figure in figures}),
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - plotly's own file
        cell=cell,
        unbroken=lambda text: text.replace(" ", "\u00a0").replace("\u00a0(", " (").replace("\u00a0per", " per"),
        verdict=verdict,
        started=instant(document["started_at"]),
        phases=_phases_text,
    )


def _spec(figure: Figure) -> dict[str, Any]:
    spec = {**plotly_renderer.render(figure), "linked": False}
    for trace in spec["data"]:
        if trace.get("orientation") != "h" and trace.get("hoverinfo") != "skip":
            trace["hovertemplate"] = "<b>%{y:.4s}</b> at %{x}"
    return spec


def _phases_text(row: Row) -> str:
    """``dump 310 ms, restore 250 ms …``, the longest first."""
    ordered = sorted(row.phases.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {units.duration(seconds)}" for name, seconds in ordered if seconds >= 0.0005)
