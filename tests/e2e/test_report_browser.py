"""A report in a real browser: figures drawn, tables filled, nothing on the console, in both themes."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import runfolder
from browser import browser, console, drawn, open_report, screenshot
from runfolder import Move, Spec

from emulab.report import build_report, compare_runs, comparison_html

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = runfolder.write(tmp_path_factory.mktemp("run"), Spec(users=40, steady_s=60, moves=(Move(at_s=25, rounds=3),)))
    build_report(folder)
    return folder


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_report_opens_with_all_figures_and_a_quiet_console(folder, tmp_path, dark):
    with browser(dark=dark) as chrome:
        open_report(chrome, folder / "report.html")
        marks = drawn(chrome)
        assert len(marks) == 7
        assert all(marks.values()), marks
        cells = chrome.execute_script("return [...document.querySelectorAll('#sla-table tbody tr')].map(row => row.cells.length)")
        assert cells == [15] * 7
        background = chrome.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(14, 19, 26)" if dark else "rgb(246, 247, 249)")
        ink = chrome.execute_script("return document.querySelector('#figure-response-time .xtick text').style.fill")
        assert ink == ("rgb(155, 168, 185)" if dark else "rgb(90, 102, 117)")
        screenshot(chrome, tmp_path / "report.png")
        assert console(chrome) == []
    assert (tmp_path / "report.png").stat().st_size > 100_000


def test_figures_on_one_time_axis_zoom_together_and_follow_the_theme(folder):
    with browser() as chrome:
        open_report(chrome, folder / "report.html")
        zoom = "return Plotly.relayout('figure-response-time', {'xaxis.range': [20, 40]})"
        chrome.execute_script(zoom + ".then(() => new Promise(done => setTimeout(done, 300)))")
        ranges = chrome.execute_script(
            "return ['throughput', 'resources'].map(key => document.getElementById('figure-' + key).layout.xaxis.range)"
        )
        assert ranges == [[20, 40], [20, 40]]
        chrome.execute_script("document.getElementById('theme').click()")
        assert chrome.execute_script("return document.documentElement.dataset.theme") == "dark"
        color = chrome.execute_script("return document.getElementById('figure-throughput').data[1].line.color")
        assert color == "#4aa8e8"
        assert chrome.execute_script("return document.getElementById('figure-resources').layout.xaxis.range") == [20, 40]
        assert console(chrome) == []


def test_nothing_is_wider_than_a_small_laptop(folder):
    with browser(width=1280, height=720) as chrome:
        open_report(chrome, folder / "report.html")
        assert chrome.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_an_aborted_migration_opens_too(tmp_path):
    folder = runfolder.write(tmp_path, Spec(users=10, steady_s=40, moves=(Move(at_s=15, rounds=2, aborted=True, reason="<b>no</b> & no"),)))
    build_report(folder)
    with browser() as chrome:
        open_report(chrome, folder / "report.html")
        assert "<b>no</b> & no" in chrome.find_element("css selector", ".alarm").text
        assert all(drawn(chrome).values())
        assert console(chrome) == []


def test_a_comparison_opens(folder, tmp_path):
    page = tmp_path / "compare.html"
    page.write_text(comparison_html(compare_runs([folder, folder])))
    with browser() as chrome:
        chrome.get(page.as_uri())
        assert "860 ms" in chrome.find_element("id", "compare-table").text
        assert console(chrome) == []
