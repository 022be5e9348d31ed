"""report.html: one self-contained file, and the figures as SVG beside it, from a run folder alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from emulab import __version__
from emulab.analysis import Analysis, analyse, load_run, paper, summarise_analysis, units
from emulab.analysis.run import Run
from emulab.analysis.split import PHASES
from emulab.report import matplotlib_renderer, page, palette, plotly_renderer
from emulab.report.figures import Figure, all_figures
from emulab.report.figures.bands import LEGEND

_TEMPLATES = Path(__file__).with_name("templates")
_FILTERS = {
    "duration": units.duration,
    "size": units.size,
    "rate": units.rate,
    "count": units.count,
    "percent": units.percent,
    "ratio": units.ratio,
    "number": units.number,
    "short": units.short,
    "instant": page.instant,
    "operation_colour": palette.operation,
}
_FILLS = ("done", "error")


def build_report(run_dir: str | Path) -> Path:
    """Write report.html and figures/*.svg into a run folder and return the path of the page.

    Raises RunError: the folder cannot be read.
    """
    run = load_run(run_dir)
    analysis = analyse(run)
    summary = summarise_analysis(analysis)
    figures = all_figures(analysis, summary)
    folder = run.path / "figures"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    for figure in figures.values():
        matplotlib_renderer.save(figure, folder / f"{figure.key}.svg")
    path = run.path / "report.html"
    path.write_text(render(analysis, summary, figures), encoding="utf-8")
    return path


def render(analysis: Analysis, summary: dict[str, Any], figures: dict[str, Figure]) -> str:
    """The page as text."""
    specs = {key: {**plotly_renderer.render(figure), "linked": figure.linked} for key, figure in figures.items()}
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            s=summary,
            figures=figures,
            figure_data=script_json(specs),
            plotly=Markup(get_plotlyjs()),  # noqa: S704 - plotly's own file
            title=page.title(summary),
            cards=page.cards(summary),
            contents=page.contents(summary),
            facts={migration["id"]: page.facts(migration) for migration in summary["migrations"]},
            phase_names=PHASES if analysis.phases else (),
            paper_rows=page.paper_rows(summary),
            criu_lines=page.criu_lines(analysis.run),
            citation=paper.CITATION,
            band_legend=LEGEND,
            worst_window=page.worst_window,
            **_surroundings(analysis.run),
        )
    )


def _surroundings(run: Run) -> dict[str, Any]:
    return {
        "command": page.command(run),
        "versions": page.versions(run),
        "host": page.host(run),
        "scenario": (run.path / "scenario.resolved.yaml").read_text(encoding="utf-8"),
        "files": page.files(run),
        "link_asked": run.calibration.get("asked", {}).get("rate_bit_s"),
        "link_expected": run.calibration.get("expected_bit_s"),
        "link_tolerance": run.calibration.get("tolerance"),
    }


def environment() -> jinja2.Environment:
    """Jinja with autoescape everywhere; a name that a template misspells is an error."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(_FILTERS)
    env.globals.update(
        version=__version__,
        light=Markup(_colours(dark=False)),  # noqa: S704 - constants of this package, as the following
        dark=Markup(_colours(dark=True)),  # noqa: S704
        css=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),  # noqa: S704
        js=Markup((_TEMPLATES / "report.js").read_text(encoding="utf-8")),  # noqa: S704
    )
    return env


def _colours(*, dark: bool) -> str:
    colours = palette.DARK if dark else palette.LIGHT
    fills = " ".join(f"--fill-{key}: {colours[key]}2e;" for key in _FILLS)
    return f"{palette.css_variables(colours, dark=dark)} {fills}"


def script_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # noqa: S704 - escaped here
