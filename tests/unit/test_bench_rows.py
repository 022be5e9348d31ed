"""Rows, fits and stop rules of the bench: from samples alone."""

import json

import pytest

from emulab.bench.figures import longest_gap, response_times, saw
from emulab.bench.model import OURS, PRE_DUMP, fit, percentile, sample
from emulab.bench.movers import resumed_at, stopped_at
from emulab.bench.page import write_page
from emulab.bench.rows import all_rows
from emulab.bench.run import best_settings, chosen, read_raw
from emulab.bench.source import stop_reason
from emulab.bench.text import cell
from emulab.errors import UsageError


def moved(group, setting, mover, repetition=0, **fields):
    numbers = {
        "wire_bytes": 1_000_000,
        "guest_bytes": 0,
        "total_s": 2.0,
        "blackout_s": 0.4,
        "tasks": 65,
        "rounds": [{"kind": "pre-dump", "duration_s": 1.0}, {"kind": "final", "duration_s": 0.2}],
        "phases": {"dump": 0.2, "restore": 0.15},
        "mover_setting": "",
    }
    return sample(group, setting, mover, repetition, **{**numbers, **fields})


def row(rows, figure, part=""):
    (found,) = [one for one in rows if one.figure == figure and part in one.setting]
    return found


def test_a_goal_is_judged_by_the_ratio_of_medians():
    setting = "64 workers, saturated"
    samples = [moved("web", setting, OURS, n, blackout_s=value) for n, value in enumerate((0.2, 0.5, 0.3))]
    samples += [moved("web", setting, PRE_DUMP, n, blackout_s=value) for n, value in enumerate((2.0, 1.0, 1.5))]
    blackout = row(all_rows(samples), "blackout")
    assert (blackout.ours["median"], blackout.ours["min"], blackout.ours["max"], blackout.ours["n"]) == (0.3, 0.2, 0.5, 3)
    assert blackout.ratio == pytest.approx(0.2)
    assert blackout.met is True
    assert row(all_rows(samples), "blackout, absolute").met is True


def test_a_missed_goal_says_by_how_much_and_where_the_time_went():
    samples = [moved("web", "64 workers, idle", OURS, wire_bytes=300), moved("web", "64 workers, idle", PRE_DUMP, wire_bytes=1000)]
    sent = row(all_rows(samples), "bytes on the wire")
    assert sent.met is False
    assert sent.note == "missed by a factor of 2.00"
    assert sent.phases == {"rounds": 1.0, "dump": 0.2, "restore": 0.15}


def test_the_guests_own_answers_are_no_bytes_of_the_migration():
    samples = [moved("web", "64 workers, saturated", OURS, wire_bytes=900, guest_bytes=800)]
    assert row(all_rows(samples), "bytes on the wire").ours["median"] == 100


def test_restores_by_criu_alone_are_counted_in_a_row_of_their_own():
    samples = [moved("web", "64 workers, idle", OURS, n, in_place=n > 0, workers=64) for n in range(3)]
    samples += [moved("web", "64 workers, idle", PRE_DUMP, workers=64), moved("web", "32 workers, idle", OURS, in_place=True, workers=32)]
    found = [one for one in all_rows(samples) if "in place" in one.figure]
    assert [(one.figure, one.setting) for one in found] == [("web: not restored in place", "64 workers, idle, ours")]
    assert found[0].note.startswith("1 of 3 samples")


def test_failed_and_left_out_settings_have_rows_that_say_why_and_count_nowhere_else():
    samples = [
        moved("memory", "64 MiB", OURS, memory_mb=64),
        moved("memory", "4096 MiB", OURS, memory_mb=4096) | {"error": "it broke"},
        sample("memory", "4096 MiB", PRE_DUMP, 0, left_out="needs 17 GiB"),
    ]
    rows = all_rows(samples)
    assert row(rows, "memory: failed").note == "1 times: it broke"
    assert row(rows, "memory: left out").note == "1 times: needs 17 GiB"
    assert len(rows) == 2  # one point is no line


def test_response_times_are_compared_move_by_move_and_those_without_requests_or_with_a_queue_before_do_no_harm():
    def calls(before, rounds):
        times = {"latencies_before": before, "latencies_rounds": rounds, "stall_s": 0.42}
        return times | {"p99_before_s": percentile(before, 0.99), "p99_rounds_s": percentile(rounds, 0.99)}

    setting = "64 workers, 70% of capacity"
    nothing = moved("response", setting, OURS, 0, **calls([], [0.3]))
    assert [one.figure for one in all_rows([nothing])] == ["client stall - blackout"]
    samples = [nothing, *(moved("response", setting, OURS, n, **calls([0.1] * 50, [0.4] * 50)) for n in (1, 2))]
    samples.append(moved("response", setting, OURS, 3, **calls([8.0] * 50, [0.4] * 50)))
    slowdown = row(all_rows(samples), "slowdown of p99 during the rounds")
    assert (slowdown.ours["median"], slowdown.ours["n"], slowdown.baseline["median"]) == (0.4, 3, 0.1)
    assert slowdown.ratio == pytest.approx(4.0)
    assert slowdown.met is False


def test_growth_is_a_line_for_each_method_and_the_ratio_of_their_slopes():
    samples = [moved("tasks", f"{n} tasks", OURS, tasks=n, blackout_s=0.1 + 0.002 * n, total_s=1.0 + n) for n in (1, 8, 32)]
    samples += [moved("tasks", f"{n} tasks", PRE_DUMP, tasks=n, blackout_s=0.3 + 0.008 * n, total_s=1.0 + 2 * n) for n in (1, 8, 32)]
    growth = row(all_rows(samples), "growth with tasks", "blackout")
    assert growth.ours["slope"] == pytest.approx(0.002)
    assert growth.ours["residual"] == pytest.approx(0, abs=1e-9)
    assert growth.ratio == pytest.approx(0.25)
    assert "2.00 ms per task" in cell(growth.ours)


def test_the_line_is_the_least_squares_one():
    line = fit([(0, 0.0), (1, 1.0), (2, 1.0), (3, 2.0)])
    assert (line.slope, line.intercept) == (pytest.approx(0.6), pytest.approx(0.1))
    assert line.residual == pytest.approx((0.2 / 4) ** 0.5)
    assert fit([(1, 2.0), (1, 3.0)]) is None


@pytest.mark.parametrize(
    ("values", "share", "expected"), [([3, 1, 2], 0.5, 2), (list(range(1, 101)), 0.99, 99), ([5], 0.99, 5), ([], 0.5, None)]
)
def test_percentiles_are_values_that_occurred(values, share, expected):
    assert percentile(values, share) == expected


def test_an_idle_guest_is_judged_against_its_memory_at_the_rate_of_the_link():
    fast, slow = (
        row(
            all_rows([moved("idle", "idle, 1024 MiB", OURS, memory_mb=1024, total_s=s)]), "idle guest: total time against bytes / link rate"
        )
        for s in (11.0, 12.0)
    )
    assert fast.baseline["median"] == pytest.approx(9.12, abs=0.01)
    assert (fast.met, slow.met) == (True, False)


def test_the_second_visit_is_compared_with_the_first():
    samples = [
        moved("visit", "64 workers, idle", OURS, visit=visit, wire_bytes=sent)
        for visit, sent in (("first", 1000), ("back", 500), ("second", 250))
    ]
    assert row(all_rows(samples), "second visit to a host: bytes against the first").ratio == 0.25


# -- what is seen of a migration ------------------------------------------------------------------------------------------------------


def test_the_blackout_begins_at_the_stop_nearest_to_what_the_method_knows():
    changes = [(1.0, "runs"), (2.0, "stopped"), (2.1, "runs"), (5.0, "stopped"), (5.4, "runs"), (5.401, "stopped")]
    assert stopped_at(changes, ordered_s=None, known_s=5.0001) == 5.0
    assert stopped_at(changes, ordered_s=None, known_s=4.98) == 5.0  # a sample that came late
    assert stopped_at(changes, ordered_s=None, known_s=8.0) is None
    assert stopped_at(changes, ordered_s=4.0, known_s=None) == 5.0
    assert stopped_at([(1.0, "runs")], ordered_s=0.0, known_s=None) is None


def test_it_ends_when_the_restored_tasks_are_let_go():
    assert resumed_at([(0.0, "absent"), (6.0, "runs"), (6.2, "stopped"), (6.3, "runs")]) == 6.3
    assert resumed_at([(0.0, "absent"), (6.0, "runs")]) is None


def test_a_stall_is_the_longest_time_without_an_answer_around_the_migration():
    done = [n * 0.005 for n in range(200)] + [1.5 + n * 0.005 for n in range(200)]
    assert longest_gap(done, 0.9, 2.0) == pytest.approx(1.5 - 0.995)
    assert longest_gap([], 0.0, 1.0) is None
    seen = {"rows": [[at, at] for at in done]}
    assert saw(seen, {"start_s": 0.9, "end_s": 2.0}, probed=True)["stall_s"] == pytest.approx(0.5)


def test_a_request_caught_by_the_freeze_counts_without_the_blackout():
    one = {"start_s": 10.0, "freeze_s": 11.0, "resume_s": 11.5}
    rows = [[0.9, 0.7], [4.4, 0.4], [5.0, 0.02], [9.2, 0.4], [10.5, 0.03], [10.99, 0.56], [11.2, 0.4], [12.0, 0.02]]
    parted = response_times(rows, one)
    assert parted["latencies_before"] == [0.02]
    assert parted["latencies_rounds"] == pytest.approx([0.03, 0.06])


# -- rules ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pages", "stops"),
    [([5000], False), ([5000, 64], True), ([5000, 5400], False), ([5000, 5501], True), ([900] * 7, False), ([900] * 8, True)],
)
def test_the_rounds_of_the_baseline_end_by_phauls_rule(pages, stops):
    assert bool(stop_reason(pages)) is stops


def test_of_each_baseline_the_setting_with_the_shorter_blackout_is_used():
    samples = [moved("settings", "64 workers", PRE_DUMP, n, mover_setting=setting, blackout_s=blackout)
               for n, (setting, blackout) in enumerate((("quota", 3.0), ("no-quota", 1.0), ("quota", 2.9), ("no-quota", 1.2)))]  # fmt: skip
    assert best_settings(samples) == {PRE_DUMP: "no-quota"}


def test_groups_are_run_in_their_order_and_unknown_ones_refused():
    assert chosen(["idle", "web"]) == ["web", "idle"]
    with pytest.raises(UsageError, match="no 'weather'"):
        chosen(["weather"])


def test_a_killed_benchs_samples_are_read_up_to_the_line_that_was_cut_off(tmp_path):
    (tmp_path / "raw.ndjson").write_text(json.dumps(moved("web", "s", OURS)) + '\n{"group": "we')
    assert len(read_raw(tmp_path)) == 1


def test_the_page_is_one_file_and_its_figures_are_svg_beside_it(tmp_path):
    samples = [
        moved("web", f"{workers} workers, {load}", mover, workers=workers)
        for workers in (32, 64)
        for load in ("idle", "saturated")
        for mover in (OURS, PRE_DUMP)
    ]
    samples += [moved("tasks", f"{n} tasks", mover, tasks=n, total_s=1.0 + n) for n in (1, 8) for mover in (OURS, PRE_DUMP)]
    (tmp_path / "raw.ndjson").write_text("".join(json.dumps(one) + "\n" for one in samples))
    head = {
        "status": "complete", "id": "x", "started_at": "2026-01-01T00:00:00.000Z", "quick": False, "soft_dirty": False, "repetitions": 1,
        "host": {"cores": 2, "cpu_model": "a <model>", "memory_bytes": 1, "kernel": "6.1", "cgroup": "v1"}, "movers": {OURS: "ours"},
        "versions": {"criu": "4.2", "runc": "1.1"}, "link_bit_s": 10**9, "load_average_at_start": [0.1], "baseline_settings": {},
    }  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps({**head, "rows": [one.as_dict() for one in all_rows(samples)]}))
    page = write_page(tmp_path).read_text()
    assert "a &lt;model&gt;" in page
    assert "http" not in page.split("<script", 1)[0].replace("http://www.w3.org", "")
    assert {path.stem for path in (tmp_path / "figures").glob("*.svg")} >= {"bench-web", "bench-tasks"}
