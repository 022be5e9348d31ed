"""Figures as plotly.js specifications (plain dictionaries). Colours stay CSS variables: the page fills them in for its theme."""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING, Any

import numpy as np

from emulab.report.figures import axes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulab.report.figures.model import Band, Figure, Panel, Series

Spec = dict[str, Any]

WEBGL_FROM = 12_000  # points; below that SVG is sharper and needs no graphics driver
_GAP = 42  # pixels between panels
_SYMBOLS = {"circle": "circle", "diamond": "diamond", "cross": "x-thin"}
_FONT = 12.5


def render(figure: Figure) -> Spec:
    """``{"data": [...], "layout": {...}}`` for Plotly.react."""
    beside = figure.columns > 1
    legend = not beside and any(series.legend for panel in figure.panels for series in panel.series)
    titled = not beside and bool(figure.panels[0].title)
    labelled = not beside and bool(figure.bands)
    named = any(panel.labels for panel in figure.panels)
    above = 18 * labelled + 18 * titled
    margin = {"l": 78, "r": 104 if named else 20, "t": 46 if beside else 10 + above + 28 * legend, "b": 48, "pad": 0}
    layout: Spec = {
        "height": figure.height,
        "margin": margin,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "var(--font)", "size": _FONT, "color": "var(--muted)"},
        "hoverlabel": {"bgcolor": "var(--panel)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)", "family": "var(--font)"}},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "var(--muted)", "activecolor": "var(--accent)"},
        "hovermode": "closest",
        "dragmode": "zoom",
        "bargap": 0.28,
        "bargroupgap": 0.06,
        "showlegend": legend,
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1 + (above + 4) / _inner(figure, margin),
            "yanchor": "bottom",
            "font": {"color": "var(--ink)", "size": _FONT},
            "itemsizing": "constant",
            "bgcolor": "rgba(0,0,0,0)",
        },
        "annotations": [],
        "shapes": [],
    }
    data: list[Spec] = []
    points = sum(len(series.x) for panel in figure.panels for series in panel.series if series.kind == "points")
    for i, panel in enumerate(figure.panels):
        _axes(figure, panel, i, layout, margin)
        for series in panel.series:
            trace = _trace(series, panel, figure, i, webgl=points > WEBGL_FROM)
            if series.kind == "points" and trace["showlegend"]:
                data.append(_key(trace))
                trace["showlegend"] = False
            data += [_casing(trace), trace] if series.casing else [trace]
        _panel_notes(panel, i, layout, beside=beside)
    _bands(figure, layout, shift=20 if titled else 3)
    return {"data": data, "layout": layout}


def _inner(figure: Figure, margin: Spec) -> float:
    return float(figure.height - margin["t"] - margin["b"])


def _axis(name: str, i: int) -> str:
    return f"{name}axis{i + 1 if i else ''}"


def _ref(name: str, i: int) -> str:
    return f"{name}{i + 1 if i else ''}"


def _axes(figure: Figure, panel: Panel, i: int, layout: Spec, margin: Spec) -> None:
    beside = figure.columns > 1
    values, texts = axes.ticks(*panel.y_range, panel.unit, log=panel.log)
    categories = bool(panel.series) and panel.series[0].kind == "spans"
    common = {"gridcolor": "var(--grid)", "zeroline": False, "linecolor": "var(--line)", "fixedrange": True, "automargin": False}
    y: Spec = {
        **common,
        "domain": [0, 1] if beside else _domain(figure, i, margin),
        "anchor": _ref("x", i) if beside else "x",
        "tickfont": {"color": "var(--muted)"},
    }
    if categories:
        y |= {"type": "category", "autorange": "reversed", "showgrid": False, "automargin": True, "tickfont": {"color": "var(--ink)"}}
    else:
        low, high = (np.log10(panel.y_range[0]), np.log10(panel.y_range[1])) if panel.log else panel.y_range
        y |= {"type": "log" if panel.log else "linear", "range": [float(low), float(high)], "tickvals": values, "ticktext": texts}
    layout[_axis("y", i)] = y
    if beside:
        width = 1 / figure.columns
        gap = 0.07
        bars = panel.series and panel.series[0].kind in ("bars", "line")
        layout[_axis("x", i)] = {
            **common,
            "domain": [i * width + (gap if i else 0), (i + 1) * width],
            "anchor": _ref("y", i),
            "type": "category" if bars else "linear",
            "showgrid": False,
            "title": {"text": panel.x_title, "standoff": 6, "font": {"size": _FONT}},
        }
    elif i == 0:
        x: Spec = {
            **common,
            "fixedrange": categories or panel.log_x,
            "anchor": _ref("y", len(figure.panels) - 1),
            "title": {"text": html.escape(figure.x_title), "standoff": 8, "font": {"size": _FONT}},
        }
        if panel.log_x and figure.x_range:
            values, texts = axes.ticks(*figure.x_range, "s", log=True)
            x |= {"type": "log", "range": np.log10(figure.x_range).tolist(), "tickvals": values, "ticktext": texts}
        elif categories and figure.x_range:
            values, texts = axes.ticks(*figure.x_range, "s", log=False)
            x |= {"range": list(figure.x_range), "tickvals": values, "ticktext": texts}
        elif figure.x_range:
            x |= {"range": list(figure.x_range), "nticks": 14}
        elif panel.series and panel.series[0].kind == "bars":  # slanted, what follows a comma would be cut off
            names = [str(name) for name in panel.series[0].x]
            x |= {"tickangle": 0, "tickvals": names, "ticktext": [html.escape(name).replace(", ", ",<br>") for name in names]}
        layout["xaxis"] = x


def _domain(figure: Figure, i: int, margin: Spec) -> list[float]:
    """Vertical share of a stacked panel, the first on top."""
    inner = _inner(figure, margin)
    free = 1 - _GAP / inner * (len(figure.panels) - 1)
    total = sum(panel.weight for panel in figure.panels)
    above = sum(panel.weight for panel in figure.panels[:i]) / total * free + i * _GAP / inner
    return [max(0.0, 1 - above - figure.panels[i].weight / total * free), 1 - above]


def _array(values: Any) -> Any:
    """Numbers as base64 float32 (a third of the text, 0.1 ms after 20 minutes), texts escaped."""
    if len(values) and isinstance(values[0], str):
        return [html.escape(value) for value in values]
    numbers = np.asarray(values, np.float64)
    if len(numbers) < 64 or not np.isfinite(numbers).all():
        return [None if not np.isfinite(value) else float(f"{value:.7g}") for value in numbers.tolist()]
    return {"dtype": "f4", "bdata": base64.b64encode(numbers.astype("<f4").tobytes()).decode()}


def _trace(series: Series, panel: Panel, figure: Figure, i: int, *, webgl: bool) -> Spec:
    color = f"var(--{series.color})"
    name = html.escape(series.name)
    trace: Spec = {
        "name": name,
        "x": _array(series.x),
        "y": _array(series.y),
        "xaxis": _ref("x", i) if figure.columns > 1 else "x",
        "yaxis": _ref("y", i),
        "showlegend": series.legend and figure.columns == 1,
        "legendgroup": name,
    }
    hover = {"s": "%{y:.3f} s", "bytes": "%{y:.3s}B", "bytes/s": "%{y:.3s}B/s", "bit/s": "%{y:.3s}bit/s", "share": "%{y:.2%}"}
    value = hover.get(panel.unit, "%{y:.3g}")
    where = "%{x:.2f} s" if figure.columns == 1 else "round %{x}"
    trace["hovertemplate"] = f"<b>{value}</b> at {where}<extra>{name}</extra>"
    if series.kind == "points":
        marker: Spec = {"color": color, "size": series.size, "opacity": series.opacity, "symbol": _SYMBOLS[series.symbol]}
        marker["line"] = {"width": 2.2, "color": color} if series.symbol == "cross" else {"width": 0}
        return trace | {"type": "scattergl" if webgl else "scatter", "mode": "markers", "marker": marker}
    if series.kind in ("line", "step"):
        line: Spec = {"color": color, "width": series.width, "dash": "dash" if series.dash else "solid"}
        if series.kind == "step":
            line["shape"] = "hv"
        filled = {"fill": "tozeroy", "fillcolor": f"var(--fill-{series.color})"} if series.fill else {}
        # Plotly paints WebGL above SVG: lines among such points must be WebGL too.
        kind = "scattergl" if webgl and panel.series[0].kind == "points" else "scatter"
        return trace | {"type": kind, "mode": "lines", "line": line, "connectgaps": False} | filled
    if series.kind == "bars":
        return trace | {"type": "bar", "marker": {"color": color, "line": {"width": 0}}}
    assert series.base is not None
    return trace | {
        "type": "bar",
        "orientation": "h",
        "base": series.base.tolist(),
        "x": np.asarray(series.x, float).tolist(),
        "marker": {"color": [f"var(--{key})" for key in series.colors], "line": {"width": 0}},
        "text": [html.escape(one) for one in series.text],
        "textposition": "outside",
        "textfont": {"color": "var(--ink)"},
        "cliponaxis": False,
        "hovertemplate": "<b>%{text}</b>, begins at %{base:.3f} s<extra>%{y}</extra>",
        "width": 0.62,
    }


def _key(trace: Spec) -> Spec:
    """A legend entry in full colour for faint points; a click on it hides them, as both are of one legend group."""
    return {
        **trace,
        "type": "scatter",
        "x": [None],
        "y": [None],
        "marker": {**trace["marker"], "opacity": 1, "size": 8},
        "hoverinfo": "skip",
    }


def _casing(trace: Spec) -> Spec:
    line = {**trace["line"], "color": "var(--panel)", "width": trace["line"]["width"] + 3}
    return {**trace, "line": line, "hoverinfo": "skip", "hovertemplate": None, "showlegend": False}


def _panel_notes(panel: Panel, i: int, layout: Spec, *, beside: bool) -> None:
    """Title, names of lines and of limits."""
    x, y = f"{_ref('x', i)} domain" if beside else "x domain", f"{_ref('y', i)} domain"
    notes = layout["annotations"]
    if panel.title:
        title = f"<b>{html.escape(panel.title)}</b>"
        if beside:
            keys = [
                f'<span style="color:var(--{series.color})">\u25a0</span> {html.escape(series.name)}'
                for series in panel.series
                if series.legend
            ]
            title += "<br>" + ("  ".join(keys) if keys else "&nbsp;")
        notes.append(
            {
                "text": title,
                "xref": x,
                "yref": y,
                "x": 0,
                "y": 1,
                "xanchor": "left",
                "yanchor": "bottom",
                "yshift": 4,
                "showarrow": False,
                "align": "left",
                "font": {"color": "var(--ink)", "size": _FONT},
            }
        )
    for label in panel.labels:
        notes.append(
            {
                "text": html.escape(label.text),
                "xref": x,
                "yref": _ref("y", i),
                "x": 1,
                "y": float(np.log10(label.y)) if panel.log else label.y,
                "xanchor": "left",
                "xshift": 5,
                "showarrow": False,
                "font": {"color": f"var(--{label.color})", "size": _FONT},
            }
        )
    for limit in panel.limits:
        color = f"var(--{limit.color})"
        at = limit.y
        layout["shapes"].append(
            {
                "type": "line",
                "xref": x,
                "yref": _ref("y", i),
                "x0": 0,
                "x1": 1,
                "y0": at,
                "y1": at,
                "line": {"color": color, "width": 1.2, "dash": "dot"},
            }
        )
        notes.append(
            {
                "text": html.escape(limit.text),
                "xref": x,
                "yref": _ref("y", i),
                "x": 1 if limit.side == "right" else 0,
                "y": float(np.log10(at)) if panel.log else at,
                "xanchor": limit.side,
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"color": color, "size": _FONT - 1},
            }
        )


def _bands(figure: Figure, layout: Spec, *, shift: int) -> None:
    for band in figure.bands:
        layout["shapes"].append(
            {
                "type": "rect",
                "xref": "x",
                "yref": "paper",
                "x0": band.start,
                "x1": band.end,
                "y0": 0,
                "y1": 1,
                "fillcolor": f"var(--band-{band.band})",
                "line": {"width": 0},
                "layer": "below",
            }
        )
    for mark in figure.marks:
        layout["shapes"].append(
            {
                "type": "line",
                "xref": "x",
                "yref": "paper",
                "x0": mark.x,
                "x1": mark.x,
                "y0": 0,
                "y1": 1,
                "line": {"color": f"var(--{mark.color})", "width": 1.4},
            }
        )
    for x, text, color, anchor in band_labels(figure.bands, figure):
        layout["annotations"].append(
            {
                "text": html.escape(text),
                "xref": "x",
                "yref": "paper",
                "x": x,
                "y": 1,
                "xanchor": anchor,
                "yanchor": "bottom",
                "yshift": shift,
                "showarrow": False,
                "font": {"color": f"var(--{color})", "size": _FONT - 1},
            }
        )


def band_labels(bands: Sequence[Band], figure: Figure) -> list[tuple[float, str, str, str]]:
    """Texts above the bands and marks that have room: x, text, colour key, anchor."""
    if figure.x_range is None:
        return []
    length = figure.x_range[1] - figure.x_range[0]
    found = []
    for band in bands:
        visible = min(band.end, figure.x_range[1]) - max(band.start, figure.x_range[0])
        if band.label and visible / length > 0.0075 * len(band.label) + 0.004:
            middle = (min(band.end, figure.x_range[1]) + max(band.start, figure.x_range[0])) / 2
            found.append((middle, band.label, "muted", "center"))
    return found + [(mark.x, mark.label, mark.color, "left") for mark in figure.marks]
