"""Figures as SVG for papers and slides: light, vector, text kept as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FixedLocator, NullLocator

from emulab.report.figures import axes
from emulab.report.palette import BANDS, LIGHT
from emulab.report.plotly_renderer import band_labels

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from emulab.report.figures.model import Figure, Panel, Series

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "emulab",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9,
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["line"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.7,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
_MARKERS = {"circle": "o", "diamond": "D", "cross": "x"}
_WIDTH_IN, _PIXELS_PER_IN = 9.6, 100
_RASTER_FROM = 8_000  # points: above that a vector file is too heavy to open


def save(figure: Figure, path: Path) -> None:
    """Write the figure as SVG."""
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # stubs list every key
        canvas = Canvas(figsize=(_WIDTH_IN, figure.height / _PIXELS_PER_IN + 0.5), layout="constrained", facecolor="white")
        FigureCanvasSVG(canvas)
        beside = figure.columns > 1
        grid: Any = {"width_ratios": [1] * figure.columns} if beside else {"height_ratios": [panel.weight for panel in figure.panels]}
        shape = (1, figure.columns) if beside else (len(figure.panels), 1)
        boxes = canvas.subplots(*shape, squeeze=False, sharex=not beside, gridspec_kw=grid).ravel()
        for i, (panel, box) in enumerate(zip(figure.panels, boxes, strict=False)):
            _draw(panel, box, figure, last=beside or i == len(figure.panels) - 1)
            for band in figure.bands:
                key, opacity, _ = BANDS[band.band]
                box.axvspan(band.start, band.end, color=LIGHT[key], alpha=opacity, lw=0, zorder=0)
            for mark in figure.marks:
                box.axvline(mark.x, color=LIGHT[mark.color], lw=1.1, zorder=3)
        if not beside:
            _above(figure, boxes[0])
        _title(figure, canvas, legend=not beside)
        canvas.savefig(path, format="svg", metadata={"Date": None, "Title": figure.title})


def _draw(panel: Panel, box: Axes, figure: Figure, *, last: bool) -> None:
    bars = [series for series in panel.series if series.kind == "bars"]
    for series in panel.series:
        _mark(series, box, position=bars.index(series) if series in bars else 0, of=max(1, len(bars)))
    if panel.log:
        box.set_yscale("log")
    if panel.log_x:
        box.set_xscale("log")
    spans = bool(panel.series) and panel.series[0].kind == "spans"
    if spans:
        box.invert_yaxis()
        box.grid(visible=False, axis="y")
    else:
        box.set_ylim(*panel.y_range)
        values, texts = axes.ticks(*panel.y_range, panel.unit, log=panel.log)
        box.yaxis.set_minor_locator(NullLocator())
        box.yaxis.set_major_locator(FixedLocator(values))
        box.set_yticklabels(texts)
    if figure.x_range is not None:
        box.set_xlim(*figure.x_range)
    if (panel.log_x or spans) and figure.x_range is not None:
        values, texts = axes.ticks(*figure.x_range, "s", log=panel.log_x)
        box.xaxis.set_minor_locator(NullLocator())
        box.xaxis.set_major_locator(FixedLocator(values))
        box.set_xticklabels(texts)
    if last:
        box.set_xlabel(panel.x_title or figure.x_title)
    if figure.columns > 1:
        box.grid(visible=False, axis="x")
    if panel.title:
        box.set_title(panel.title, loc="left", fontsize=9, fontweight="bold", pad=20 if figure.columns > 1 else 6)
    if figure.columns > 1 and any(series.legend for series in panel.series):
        box.legend(
            loc="lower left", bbox_to_anchor=(-0.03, 0.98), ncols=2, handlelength=0.8, columnspacing=0.8, handletextpad=0.4, fontsize=7.5
        )
    for label in panel.labels:
        box.annotate(
            label.text,
            xy=(1, label.y),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=LIGHT[label.color],
            annotation_clip=False,
        )
    for limit in panel.limits:
        box.axhline(limit.y, color=LIGHT[limit.color], lw=1, ls=":")
        box.annotate(
            limit.text,
            xy=(1 if limit.side == "right" else 0, limit.y),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha=limit.side,
            color=LIGHT[limit.color],
            fontsize=8,
        )


def _mark(series: Series, box: Axes, *, position: int, of: int) -> None:
    color = LIGHT[series.color]
    name = series.name if series.legend else f"_{series.name}"
    if series.kind == "points":
        cross = series.symbol == "cross"
        box.scatter(
            np.asarray(series.x) if len(series.x) and isinstance(series.x[0], str) else np.asarray(series.x, float),
            np.asarray(series.y, float),
            s=series.size**2 * 0.45,
            c=color,
            marker=_MARKERS[series.symbol],
            alpha=series.opacity,
            linewidths=1.4 if cross else 0,
            label=name,
            rasterized=len(series.x) > _RASTER_FROM,
            zorder=2,
        )
    elif series.kind in ("line", "step"):
        style: Any = {"drawstyle": "steps-post"} if series.kind == "step" else {}
        if series.casing:
            style["path_effects"] = [Stroke(linewidth=series.width * 0.8 + 2, foreground="white"), Normal()]
        x, y = np.asarray(series.x), np.asarray(series.y, float)
        box.plot(x, y, color=color, lw=series.width * 0.8, ls="--" if series.dash else "-", label=name, zorder=2.5, **style)
        if series.fill:
            box.fill_between(np.asarray(series.x, float), y, step="post" if series.kind == "step" else None, color=color, alpha=0.18, lw=0)
    elif series.kind == "bars":
        width = 0.72 / of
        at = np.arange(len(series.x)) + (position - (of - 1) / 2) * width
        box.bar(at, np.asarray(series.y, float), width=width * 0.94, color=color, label=name)
        box.set_xticks(np.arange(len(series.x)), [str(value) for value in series.x])
    else:
        assert series.base is not None
        lengths = np.asarray(series.x, float)
        names = [str(value) for value in series.y]
        box.barh(names, lengths, left=series.base, height=0.62, color=[LIGHT[key] for key in series.colors])
        for row, (start, length, text) in enumerate(zip(series.base, lengths, series.text, strict=True)):
            box.annotate(text, xy=(start + length, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)


def _above(figure: Figure, top: Axes) -> None:
    """Names of bands and marks."""
    titled = bool(figure.panels[0].title)
    for x, text, color, anchor in band_labels(figure.bands, figure):
        top.annotate(
            text,
            xy=(x, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 16 if titled else 3),
            textcoords="offset points",
            ha=anchor,
            color=LIGHT[color],
            fontsize=8,
        )


def _title(figure: Figure, canvas: Canvas, *, legend: bool) -> None:
    """The figure's title, with the legend below it if there is one."""
    pairs = [(handle, text) for box in canvas.axes for handle, text in zip(*box.get_legend_handles_labels(), strict=True)]
    if not pairs or not legend:
        canvas.suptitle(figure.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        return
    canvas.legend(
        [handle for handle, _ in pairs],
        [text for _, text in pairs],
        loc="outside upper left",
        title=figure.title,
        title_fontproperties={"weight": "bold", "size": 11},
        alignment="left",
        ncols=9,
        handlelength=1.2,
        columnspacing=1.1,
        handletextpad=0.4,
    )
