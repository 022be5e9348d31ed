"""Units, ticks, labels, thinning, the terminal's tables and the comparison of runs."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))
import itertools

import runfolder
from runfolder import Move, Spec

from emulab.analysis import RunError, analyse, load_run, summarise, summarise_analysis, units
from emulab.report import compare_runs, comparison_html, comparison_json, plotly_renderer, print_comparison, print_summary
from emulab.report.figures import all_figures, axes, response
from emulab.report.figures.model import MAX_POINTS, Label, spread, thin

# -- units


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 s"),
        (0.00009, "90 µs"),
        (0.0123, "12.3 ms"),
        (0.86, "860 ms"),
        (0.9999, "1.00 s"),
        (44, "44.0 s"),
        (300, "300 s"),
        (1200, "20.0 min"),
    ],
)
def test_durations(value, shown):
    assert units.duration(value) == shown


def test_sizes_rates_and_counts():
    assert units.size(314e6) == "314 MB"
    assert units.size(999.6e6) == "1.00 GB"
    assert units.rate(941e6) == "941 Mbit/s"
    assert units.count(1234567) == "1\u202f234\u202f567"
    assert units.percent(0.0205, 2) == "2.05 %"
    assert units.short("1.00 Gbit/s") == "1 Gbit/s"
    assert units.listing(["a", "b", "c"]) == "a, b and c"
    assert units.plural(1, "user") == "1 user"


@pytest.mark.parametrize("shown", [units.duration, units.size, units.rate, units.count, units.percent, units.ratio, units.number])
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_not_known_is_a_dash(shown, value):
    assert shown(value) == "\u2013"


# -- figures


@given(st.floats(0, 10), st.floats(0.001, 1000))
def test_linear_ticks_are_few_and_inside(low, length):
    values = axes.linear(low, low + length)
    assert 2 <= len(values) <= 9
    assert all(low - 1e-6 * length <= value <= low + length * 1.000001 for value in values)


def test_logarithmic_ticks_are_in_readable_units():
    assert axes.ticks(0.01, 3.0, "s", log=True)[1] == ["10 ms", "30 ms", "100 ms", "300 ms", "1 s", "3 s"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_labels_never_cover_each_other(wanted):
    placed = [label.y for label in spread([Label(y, str(y), "ink") for y in wanted], (0.0, 1.0), gap=0.1)]
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(placed))
    assert placed[0] >= -1e-9
    assert placed[-1] <= 1 + 1e-9


def test_labels_with_room_stay_where_they_are():
    assert [label.y for label in spread([Label(0.2, "a", "ink"), Label(0.8, "b", "ink")], (0.0, 1.0))] == pytest.approx([0.2, 0.8])


def test_only_drawing_is_thinned():
    assert thin(10).tolist() == list(range(10))
    picked = thin(200_000)
    assert len(picked) <= MAX_POINTS
    assert (picked[0], picked[-1]) == (0, 199_999)


def test_a_thinned_figure_says_so(tmp_path, monkeypatch):
    analysis = analyse(load_run(runfolder.write(tmp_path, Spec(users=20, steady_s=60, moves=()))))
    n = len(analysis.run.operations)
    monkeypatch.setattr(response, "thin", lambda count: thin(count, 100))
    figure = response.over_time(analysis)
    assert sum(len(series.x) for series in figure.panels[0].series if series.kind == "points") <= 100
    assert any("points are drawn; all of them count" in note for note in figure.notes)
    assert summarise_analysis(analysis)["load"]["operations"] <= n


def test_figures_are_plain_json_with_colours_of_the_theme(tmp_path):
    analysis = analyse(load_run(runfolder.write(tmp_path, Spec(users=20, steady_s=60))))
    for figure in all_figures(analysis, summarise_analysis(analysis)).values():
        text = json.dumps(plotly_renderer.render(figure), allow_nan=False)
        assert "#" not in text.replace("\\u0023", ""), figure.key  # every colour is a CSS variable


def test_operations_under_way_grow_during_the_freeze(tmp_path):
    analysis = analyse(load_run(runfolder.write(tmp_path, Spec(users=60, steady_s=60, moves=(Move(at_s=25, rounds=2, blackout_s=2.0),)))))
    figure = response.around_freeze(analysis, analysis.run.migrations[0])
    (steps,) = figure.panels[1].series
    x, y = np.asarray(steps.x, float), np.asarray(steps.y, float)
    assert y[(x > 1.8) & (x < 2.0)].max() > 3 * np.median(y[x < -1])
    assert (y >= 0).all()


# -- terminal


def shown(summary, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_summary(summary, console)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminal_tells_the_same_numbers(tmp_path, width):
    summary = summarise(load_run(runfolder.write(tmp_path, Spec(users=20, steady_s=60, moves=(Move(at_s=25, rounds=2),)))))
    text = shown(summary, width)
    (migration,) = summary["migrations"]
    for number in (
        migration["total_s"],
        migration["blackout_s"],
        migration["client_stall_s"],
        summary["operations"]["HomePage"]["sla99"]["worst_s"],
    ):
        assert units.duration(number) in text
    assert "HomePage" in text
    assert "during" in text
    assert "second hand" in text
    assert "…" not in text  # nothing is cut off


def test_a_failed_run_on_the_terminal(tmp_path):
    spec = Spec(
        users=5, steady_s=20, status="failed", error="[bold]host3[/] vanished", moves=(Move(at_s=5, rounds=1, aborted=True, reason="[x]"),)
    )
    text = shown(summarise(load_run(runfolder.write(tmp_path, spec))), 120)
    assert "The run failed: [bold]host3[/] vanished" in text
    assert "[x]" in text


# -- comparison


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    def make(name, **more):
        return runfolder.write(tmp_path_factory.mktemp(name), Spec(users=10, steady_s=40, **more))

    return [
        make("a", seed=1, moves=(Move(at_s=15, rounds=2, blackout_s=0.5),)),
        make("b", seed=2, moves=(Move(at_s=15, rounds=2, blackout_s=0.9, destination="host4"),)),
        make("c", seed=3, moves=(Move(at_s=15, rounds=2, blackout_s=0.6),)),
        make("d", seed=1, moves=()),
    ]


def values(comparison, key):
    return next(row["values"] for row in comparison["figures"] if row["key"] == key)


def test_repetitions_become_a_median_and_a_range(runs):
    comparison = compare_runs(runs)
    assert [len(group["runs"]) for group in comparison["groups"]] == [3, 1]
    assert values(comparison, "blackout_s") == [
        {"median": pytest.approx(0.6), "min": pytest.approx(0.5), "max": pytest.approx(0.9), "n": 3},
        None,
    ]
    assert values(comparison, "ops_per_s")[1]["n"] == 1
    json.loads(comparison_json(comparison), parse_constant=pytest.fail)


def test_each_run_apart(runs):
    comparison = compare_runs(runs[:2], each=True)
    assert [value["median"] for value in values(comparison, "blackout_s")] == pytest.approx([0.5, 0.9])


def test_other_settings_and_other_commits_are_no_repetitions(tmp_path):
    spec = Spec(users=5, steady_s=20, moves=())
    folders = [runfolder.write(tmp_path / name, spec) for name in ("a", "b")]
    folders.append(
        runfolder.write(tmp_path / "c", Spec(users=5, steady_s=20, moves=(), scenario={"probe": {"interval": "20ms", "path": "/"}}))
    )
    manifest = json.loads((folders[1] / "manifest.json").read_text())
    manifest["git"] = {"commit": "fedcba9876543210", "dirty": True}
    (folders[1] / "manifest.json").write_text(json.dumps(manifest))
    labels = [group["label"] for group in compare_runs(folders)["groups"]]
    assert len(labels) == 3
    assert "commit fedcba98+" in labels[1]
    assert "interval 20ms" in labels[2]


def test_the_comparison_as_a_page_and_on_a_terminal(runs):
    soup = BeautifulSoup(comparison_html(compare_runs(runs)), "html.parser")
    rows = {
        row.th.get_text(): [cell.get_text(" ").strip() for cell in row.find_all("td")]
        for row in soup.find(id="compare-table").tbody.find_all("tr")
    }
    assert rows["Blackout"] == ["600 ms (500 ms .. 900 ms)", "\u2013"]
    assert len(soup.find(id="runs-table").tbody.find_all("tr")) == 4
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_comparison(runs, console)
    assert "600 ms (500 ms .. 900 ms)" in console.export_text()


def test_nothing_to_compare():
    with pytest.raises(RunError, match="no runs"):
        compare_runs([])
