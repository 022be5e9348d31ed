"""What report.html says: its text and tables, and that nothing in a run folder can break out of them."""

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from bs4 import BeautifulSoup

sys.path.insert(0, str(Path(__file__).parent))
import runfolder
from runfolder import Move, Spec

from emulab.analysis import RunError
from emulab.report import build_report, page
from emulab.report.build import environment, script_json

TWO = Spec(
    users=20,
    steady_s=90,
    moves=(Move(at_s=15, rounds=2, blackout_s=1.5), Move(at_s=50, source="host3", destination="host4", rounds=2, blackout_s=0.4)),
)
CRIU_LOG = """(00.010000) Dumping processes
(00.020000)     12: Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option <b>
(00.030000) Error (criu/cr-dump.c:2111): Dumping FAILED.
"""


def read(folder):
    return BeautifulSoup((folder / "report.html").read_text(), "html.parser")


def text(element):
    return re.sub(r"\s+", " ", element.get_text(" ")).strip()


def table(soup, name):
    """Rows of a table: first cell -> the other cells."""
    rows = [[text(cell) for cell in row.find_all(["th", "td"])] for row in soup.find(id=name).tbody.find_all("tr")]
    return {row[0]: row[1:] for row in rows}


def figures(soup):
    return json.loads(soup.find(id="figure-data").string)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = runfolder.write(tmp_path_factory.mktemp("one"), Spec(users=40, steady_s=60, moves=(Move(at_s=25, rounds=3),)))
    assert build_report(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def soup(one):
    return read(one)


def test_headline_cards(soup):
    cards = {text(card.dt): [text(part) for part in card.find_all("dd")] for card in soup.select(".card")}
    assert cards["Status"] == ["complete", "60 s of steady state"]
    assert cards["Concurrent users"][0] == "40"
    assert cards["Blackout"][0] == "860 ms"
    assert re.fullmatch(r"8[3-9]\d ms", cards["Client stall"][0])
    assert cards["Failed requests"] == ["0", "0 connections lost, while migrating"]
    assert {"Whole migration", "Backlog gone", "Agreement at 90 %", "Agreement at 99 %", "Memory of all nodes"} <= set(cards)


def test_the_story_is_told_first(soup):
    assert text(soup.h1) == "Live migration of web from host1 to host3 under 40 users"
    assert text(soup.select_one(".story")).startswith("With 40 users, moving web from host1 to host3 took ")


def test_the_agreement_table_has_all_operations_and_phases(soup):
    rows = table(soup, "sla-table")
    assert list(rows) == ["HomePage", "Login", "TagSearch", "EventDetail", "PersonDetail", "AddPerson", "AddEvent"]
    assert rows["TagSearch"][0] == "2 s"
    assert len(rows["TagSearch"]) == 2 + 2 + 3 * 3 + 1
    assert "Steady state is not longer than the window" in text(soup.find(id="agreement"))


def test_a_phase_without_an_operation_says_so_instead_of_passing(tmp_path):
    folder = runfolder.write(tmp_path, Spec(users=10, steady_s=40, moves=(Move(at_s=15, rounds=1),), without=("AddPerson",)))
    build_report(folder)
    row = table(read(folder), "sla-table")["AddPerson"]
    assert row.count("no samples") == 8


def test_every_figure_is_on_the_page_and_in_a_file(one, soup):
    specs = figures(soup)
    assert list(specs) == ["response-time", "freeze-0", "distribution", "throughput", "rounds-0", "blackout-0", "resources"]
    for key, spec in specs.items():
        assert soup.find(id=f"figure-{key}"), key
        assert any(len(trace["x"]) for trace in spec["data"]), key
        svg = ET.parse(one / "figures" / f"{key}.svg")
        assert svg.getroot().tag.endswith("svg")


def test_bands_of_rounds_freeze_and_restore_are_shaded(soup):
    shapes = figures(soup)["response-time"]["layout"]["shapes"]
    kinds = [shape["fillcolor"] for shape in shapes if shape["type"] == "rect"]
    assert kinds.count("var(--band-round-odd)") == 2
    assert kinds.count("var(--band-round-even)") == 1
    assert kinds.count("var(--band-freeze)") == kinds.count("var(--band-restore)") == 1
    freeze = next(shape for shape in shapes if shape.get("fillcolor") == "var(--band-freeze)")
    resume = next(shape for shape in shapes if shape["type"] == "line" and shape["line"]["color"] == "var(--resume)")
    assert resume["x0"] - freeze["x0"] == pytest.approx(0.86)


def test_one_self_contained_file(one, soup):
    assert not soup.find_all("script", src=True)
    assert not soup.find_all("link", rel="stylesheet")
    outside = [tag for tag in soup.find_all(src=True) if not tag["src"].startswith("figures/")]
    assert outside == []
    assert not re.findall(r"url\(|@import", soup.style.string)
    links = {link["href"] for link in soup.find_all("a", href=True) if not link["href"].startswith("#")}
    assert {"operations.parquet", "timeline.ndjson", "scenario.resolved.yaml", "logs/load.log"} <= links
    assert all((one / link).exists() for link in links)


def test_how_to_repeat_it(soup):
    section = text(soup.find(id="repeat"))
    assert "make experiment SCENARIO=one-migration USERS=40 SEED=7" in section
    for fact in ("6.12.41", "criu", "0123456789abcdef", "Example CPU @ 2.40GHz", "17.2 GB"):
        assert fact in section
    assert "keepalive: 5s" in soup.select_one("details pre").get_text()


def test_the_paper_is_marked_second_hand(soup):
    assert "second hand" in text(soup.find(id="paper"))
    assert table(soup, "paper-table")["Downtime"] == ["3.00 s", "860 ms", "\u00d70.287"]


def test_links_and_checks(soup):
    assert list(table(soup, "link-table")) == ["head", "host1", "host2", "host3", "host4", "host5"]
    assert table(soup, "checks-table")["Users / operations per second at most 5.25 s"][1].startswith("✓")
    assert table(soup, "connections-table")["Lost (of them reset)"] == ["0 (0)"]
    assert table(soup, "requests-table")["static"][1] == "0"


def test_no_migration(tmp_path):
    folder = runfolder.write(tmp_path, Spec(users=10, steady_s=30, moves=()))
    build_report(folder)
    soup = read(folder)
    assert text(soup.h1) == "10 users, no migration"
    assert list(figures(soup)) == ["response-time", "distribution", "throughput", "resources"]
    assert soup.find(id="paper") is None
    assert "Blackout" not in [text(card.dt) for card in soup.select(".card")]


def test_several_migrations_show_the_worst_and_each(tmp_path):
    folder = runfolder.write(tmp_path, TWO)
    build_report(folder)
    soup = read(folder)
    cards = {text(card.dt): [text(part) for part in card.find_all("dd")] for card in soup.select(".card")}
    assert cards["Blackout"] == ["1.50 s", "no task of the guest ran, worst of 2"]
    assert [text(section.h2) for section in soup.select("section[id^=migration-]")] == ["web: host1 → host3", "web: host3 → host4"]
    assert {"freeze-0", "freeze-1", "rounds-1", "blackout-1"} <= set(figures(soup))


def test_a_sliding_window_has_its_own_figure(tmp_path):
    folder = runfolder.write(tmp_path, Spec(users=10, steady_s=60, moves=(), scenario={"sla": {"window": "20s"}}))
    build_report(folder)
    soup = read(folder)
    assert "sla-windows" in figures(soup)
    assert "The worst of all windows of 20 s" in text(soup.find(id="agreement"))


def test_an_aborted_migration_tells_why(tmp_path):
    move = Move(at_s=15, rounds=2, aborted=True, reason="criu dump exited with 1", log=CRIU_LOG)
    folder = runfolder.write(tmp_path, Spec(users=10, steady_s=40, moves=(move,)))
    build_report(folder)
    alarm = text(read(folder).select_one(".alarm"))
    assert "Migration of web to host3 aborted. criu dump exited with 1" in alarm
    assert "logs/migration-0-criu-dump.log" in alarm
    assert "Error (criu/sk-inet.c:191): inet: Connected TCP socket" in alarm
    assert "Dumping FAILED" not in alarm


@pytest.mark.parametrize(("status", "words"), [("aborted", "The run was stopped. interrupted"), ("failed", "The run failed. interrupted")])
def test_a_run_that_did_not_end_well_still_has_a_report(tmp_path, status, words):
    folder = runfolder.write(tmp_path, Spec(users=5, steady_s=20, moves=(), status=status, error="interrupted"))
    for name in ("operations", "requests", "probes", "samples"):
        (folder / f"{name}.parquet").unlink()
    build_report(folder)
    soup = read(folder)
    assert words in text(soup.select_one(".alarm"))
    assert figures(soup) == {}
    assert "operations.parquet" in text(soup.header)
    assert text(soup.h1) == f"5 users, {'stopped' if status == 'aborted' else 'failed'} before its end"
    cards = {text(card.dt): [text(part) for part in card.find_all("dd")] for card in soup.select(".card")}
    assert cards["Failed requests"] == ["no data", "nothing was measured"]


def test_no_probes_and_no_samples_of_nodes(tmp_path):
    folder = runfolder.write(tmp_path, Spec(users=10, steady_s=30, probes=False, moves=(Move(at_s=10, rounds=1),)))
    build_report(folder)
    cards = {text(card.dt): text(card.dd) for card in read(folder).select(".card")}
    assert cards["Client stall"] == "\u2013"


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_everything_is_escaped(tmp_path):
    move = Move(at_s=10, rounds=1, destination=HOSTILE, aborted=True, reason=HOSTILE)
    folder = runfolder.write(tmp_path, Spec(users=5, steady_s=20, moves=(move,), vm=HOSTILE, name=HOSTILE, error=HOSTILE))
    (folder / "logs" / "a&b <i>.log").write_text("x")
    build_report(folder)
    soup = read(folder)
    assert len(soup.find_all("script")) == 3  # figures, plotly, the page's own
    assert not soup.find_all("img", src="x")
    assert not soup.find_all(onerror=True)
    assert HOSTILE in text(soup.h1)
    assert any(link["href"] == "logs/a%26b%20%3Ci%3E.log" for link in soup.find_all("a"))
    for annotation in figures(soup)["resources"]["layout"]["annotations"]:
        assert "<img" not in annotation["text"]


def test_json_cannot_end_its_script_element():
    assert json.loads(str(script_json({"a": "</script>&<!--"}))) == {"a": "</script>&<!--"}
    assert "<" not in str(script_json(["</script>"]))


def test_templates_escape_and_refuse_unknown_names():
    env = environment()
    assert env.from_string("{{ x }}").render(x="<b>") == "&lt;b&gt;"
    with pytest.raises(Exception, match="undefined"):
        env.from_string("{{ nothing }}").render()


def test_a_second_report_replaces_the_figures_of_the_first(one):
    (one / "figures" / "old.svg").write_text("<svg/>")
    build_report(one)
    assert not (one / "figures" / "old.svg").exists()


def test_no_report_of_something_else(tmp_path):
    with pytest.raises(RunError):
        build_report(tmp_path)


def test_instants_for_people():
    assert page.instant("2026-01-01T12:00:00.123Z") == "2026-01-01 12:00:00 UTC"
    assert page.instant("yesterday") == "yesterday"
