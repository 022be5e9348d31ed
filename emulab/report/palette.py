"""Colours by meaning, for light and dark pages. Operations use Okabe and Ito's palette, which colour-blind people can tell apart.

A colour is named by a key. In HTML it becomes a CSS variable (so a figure follows the page's theme), in SVG the light value.
"""

from __future__ import annotations

LIGHT: dict[str, str] = {
    "page": "#f6f7f9",
    "panel": "#ffffff",
    "ink": "#17202c",
    "muted": "#5a6675",
    "line": "#e2e6ec",
    "grid": "#e9ecf1",
    "accent": "#0b5c9e",
    "good": "#0a7a53",
    "good-soft": "#e3f4ec",
    "bad": "#b42318",
    "bad-soft": "#fdecea",
    "warn": "#8a5a00",
    "warn-soft": "#fdf3dc",
    "op-HomePage": "#0072b2",
    "op-Login": "#e69f00",
    "op-TagSearch": "#009e73",
    "op-EventDetail": "#56b4e9",
    "op-PersonDetail": "#cc79a7",
    "op-AddPerson": "#d55e00",
    "op-AddEvent": "#6a51a3",
    "op-other": "#7a8594",
    "p50": "#728093",
    "p90": "#47566a",
    "p99": "#0f1722",
    "probe": "#3d4a5c",
    "error": "#b42318",
    "offered": "#98a3b1",
    "done": "#0072b2",
    "web": "#0072b2",
    "db": "#009e73",
    "source": "#d55e00",
    "destination": "#e69f00",
    "head": "#6a51a3",
    "other": "#8793a3",
    "memory": "#0072b2",
    "wire": "#e69f00",
    "frozen": "#d55e00",
    "predicted": "#6a51a3",
    "before": "#5a6675",
    "during": "#d55e00",
    "after": "#009e73",
    "step-freeze": "#b2502a",
    "step-dump": "#d55e00",
    "step-transfer": "#cc79a7",
    "step-restore": "#e69f00",
    "step-resume": "#009e73",
    "step-other": "#a9b3c0",
    "resume": "#0a7a53",
}

DARK: dict[str, str] = {
    **LIGHT,
    "page": "#0e131a",
    "panel": "#161d27",
    "ink": "#e8edf4",
    "muted": "#9ba8b9",
    "line": "#2a3441",
    "grid": "#25303d",
    "accent": "#6cb6f2",
    "good": "#4fd1a0",
    "good-soft": "#12352a",
    "bad": "#ff8a7d",
    "bad-soft": "#3f1b19",
    "warn": "#f0b84a",
    "warn-soft": "#3a2c10",
    "op-HomePage": "#4aa8e8",
    "op-TagSearch": "#2cc497",
    "op-EventDetail": "#9ad4f7",
    "op-AddPerson": "#f07a2a",
    "op-AddEvent": "#a994e8",
    "p50": "#7d8a9b",
    "p90": "#b5c0ce",
    "p99": "#f4f7fb",
    "probe": "#c3cedb",
    "error": "#ff8a7d",
    "offered": "#7d8a9b",
    "done": "#4aa8e8",
    "web": "#4aa8e8",
    "db": "#2cc497",
    "source": "#f07a2a",
    "head": "#a994e8",
    "memory": "#4aa8e8",
    "frozen": "#f07a2a",
    "predicted": "#a994e8",
    "before": "#9ba8b9",
    "during": "#f07a2a",
    "after": "#2cc497",
    "step-dump": "#f07a2a",
    "step-resume": "#2cc497",
    "step-other": "#5a6675",
    "resume": "#4fd1a0",
}

# Shaded bands: colour key and opacity on light and on dark.
BANDS: dict[str, tuple[str, float, float]] = {
    "round-odd": ("done", 0.10, 0.16),
    "round-even": ("done", 0.18, 0.26),
    "freeze": ("step-dump", 0.30, 0.38),
    "restore": ("step-restore", 0.32, 0.36),
    "ramp": ("other", 0.10, 0.12),
}

OPERATIONS = ("HomePage", "Login", "TagSearch", "EventDetail", "PersonDetail", "AddPerson", "AddEvent")


def operation(name: str) -> str:
    """Colour key of an operation."""
    return f"op-{name}" if name in OPERATIONS else "op-other"


def css_variables(colours: dict[str, str], *, dark: bool) -> str:
    """All colours and bands as CSS custom properties."""
    lines = [f"--{key}: {value};" for key, value in colours.items()]
    for name, (key, light, strong) in BANDS.items():
        red, green, blue = (int(colours[key][at : at + 2], 16) for at in (1, 3, 5))
        lines.append(f"--band-{name}: rgba({red}, {green}, {blue}, {strong if dark else light});")
    return " ".join(lines)
