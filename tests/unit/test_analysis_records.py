"""Accounting, phases, recovery, probes, connections, resources and Faban's checks on small tables."""

import math

import numpy as np
import pandas as pd
import pytest

from emulab.analysis import checks, connections, downtime, recovery, resources, sla
from emulab.analysis.accounting import steady_state
from emulab.analysis.interval import Interval
from emulab.analysis.quantities import seconds
from emulab.analysis.records import RunError
from emulab.analysis.split import phases

STEADY = Interval(100.0, 200.0)


def operations(*rows):
    """Rows of (start, end, outcome, operation); intended = start."""
    table = pd.DataFrame(rows, columns=["start_s", "end_s", "outcome", "operation"])
    return table.assign(intended_s=table["start_s"], user=0, seq=range(len(table)), cycle_s=1.0)


def test_an_operation_counts_if_it_starts_after_ramp_up_and_ends_before_the_end():
    steady = steady_state(
        operations(
            (99.9, 101.0, "ok", "HomePage"),  # started in ramp-up
            (100.0, 101.0, "ok", "HomePage"),  # counts
            (199.0, 199.9, "ok", "HomePage"),  # counts
            (199.0, 200.0, "ok", "HomePage"),  # not ended before the end
            (150.0, math.nan, "unfinished", "HomePage"),
            (150.0, 150.5, "error", "HomePage"),
            (200.0, 200.1, "ok", "HomePage"),  # started in ramp-down
        ),
        STEADY,
    )
    assert steady.counted["start_s"].tolist() == [100.0, 199.0]
    assert len(steady.unfinished) == 2
    assert len(steady.errors) == 1
    assert steady.done_per_s == 0.02
    assert steady.offered == 5


def test_corrected_latency_counts_from_the_intended_start():
    table = operations((110.0, 110.5, "ok", "HomePage")).assign(intended_s=107.0)
    steady = steady_state(table, STEADY)
    assert steady.counted["response_s"].tolist() == [0.5]
    assert steady.counted["corrected_s"].tolist() == [3.5]


def test_an_operation_without_samples_does_not_pass():
    nothing = pd.DataFrame({"start_s": [], "response_s": []})
    assert not sla.judge(nothing, 1.0, 90, 300.0, STEADY).passed


def test_a_limit_is_kept_when_the_percentile_equals_it():
    rows = pd.DataFrame({"start_s": np.linspace(100, 199, 100), "response_s": [0.1] * 89 + [1.0] * 11})
    assert sla.judge(rows, 1.0, 90, 300.0, STEADY).passed
    assert not sla.judge(rows, 0.999, 90, 300.0, STEADY).passed


def test_limits_come_from_the_scenario_with_units():
    rule = sla.Rule.from_scenario({"window": "5min", "limits": {"HomePage": "500ms"}})
    assert rule == sla.Rule(300.0, {"HomePage": 0.5})
    assert sla.Rule.from_scenario({}).limits_s["AddEvent"] == 4.0


def test_before_during_after_with_two_migrations():
    counted = pd.DataFrame({"start_s": [1.0, 5.0, 9.9, 10.0, 12.0, 20.0, 25.0, 26.0]})
    split = phases(counted, [Interval(5.0, 10.0), Interval(20.0, 26.0)])
    assert split["before"]["start_s"].tolist() == [1.0]
    assert split["during"]["start_s"].tolist() == [5.0, 9.9, 20.0, 25.0]
    assert split["after"]["start_s"].tolist() == [10.0, 12.0, 26.0]


def test_no_phases_without_a_migration():
    assert phases(pd.DataFrame({"start_s": [1.0]}), []) == {}


# -- recovery


def test_recovery_ends_with_the_first_second_of_ordinary_responses():
    """Resume at 10; slow completions (2 s) every 0.1 s until 12.95, ordinary (0.1 s) from 13 on."""
    rows = [(end - 2.0, end, "ok", "HomePage") for end in np.arange(10.05, 13.0, 0.1)]
    rows += [(end - 0.1, end, "ok", "HomePage") for end in np.arange(13.05, 20.0, 0.1)]
    # One slow of ten completions is tolerated: the window may begin 0.1 s before the last slow one has left it.
    assert recovery.recovery_s(operations(*rows), {"HomePage": 0.2}, 10.0, 20.0) == pytest.approx(2.9)


def test_failed_operations_are_not_ordinary():
    rows = [(10.0 + n / 10, 10.05 + n / 10, "error", "HomePage") for n in range(20)]
    rows += [(12.0 + n / 10, 12.05 + n / 10, "ok", "HomePage") for n in range(20)]
    assert recovery.recovery_s(operations(*rows), {"HomePage": 0.2}, 10.0, 14.0) == pytest.approx(1.9)


def test_silence_is_not_recovery():
    rows = operations((1.0, 1.1, "ok", "HomePage"))
    assert math.isnan(recovery.recovery_s(rows, {"HomePage": 0.2}, 10.0, 20.0))


def test_ordinary_needs_twenty_measurements():
    few = pd.DataFrame({"operation": ["Login"] * 19, "response_s": [1.0] * 19})
    enough = pd.DataFrame({"operation": ["HomePage"] * 20, "response_s": np.arange(1.0, 21.0)})
    assert recovery.ordinary_limits(pd.concat([few, enough])) == {"HomePage": 19.0}


def test_slowdown_is_relative_to_the_same_operation():
    table = pd.DataFrame({"operation": ["Login", "Login", "AddEvent"], "start_s": [1.0, 2.0, 3.0], "response_s": [0.2, 0.4, 3.0]})
    ratio, n = recovery.slowdown(table, {"Login": 0.1, "AddEvent": 1.0}, Interval(1.0, 10.0))
    assert (ratio, n) == (3.0, 3)


# -- probes


def probes(done, interval=0.1):
    sent = np.arange(len(done)) * interval
    return pd.DataFrame({"n": range(len(done)), "intended_s": sent, "sent_s": sent, "done_s": done, "error": None})


def test_probes_held_and_answered_together_show_the_stall():
    """Ten probes a second, answered at once, but those sent from 1.0 to 1.9 all answered at 2.0: the longest gap is 0.9 -> 2.0."""
    done = [n / 10 if not 10 <= n < 20 else 2.0 for n in range(40)]
    gap = downtime.longest_gap(probes(done))
    assert (gap.start_s, gap.length_s) == (pytest.approx(0.9), pytest.approx(1.1))
    assert downtime.client_stall_s(probes(done), Interval(0.5, 3.0), 0.1) == pytest.approx(1.0)


def test_a_gap_elsewhere_is_not_this_migrations():
    done = [n / 10 if not 10 <= n < 20 else 2.0 for n in range(40)]
    assert downtime.client_stall_s(probes(done), Interval(2.5, 3.5), 0.1) == pytest.approx(0.0, abs=1e-9)


def test_lost_probes_leave_a_gap():
    done = [math.nan if 10 <= n < 20 else n / 10 for n in range(40)]
    assert downtime.lost(probes(done)) == 10
    assert downtime.lost(probes(done), Interval(1.5, 3.0)) == 5
    assert downtime.longest_gap(probes(done)).length_s == pytest.approx(1.1)


def test_probes_that_never_come_back_count_until_the_last_one_sent():
    done = [n / 10 if n < 10 else math.nan for n in range(40)]
    assert downtime.longest_gap(probes(done)).length_s == pytest.approx(3.9 - 0.9)


def test_no_probes_no_stall():
    assert math.isnan(downtime.client_stall_s(probes([]), Interval(0, 1), 0.1))
    assert math.isnan(downtime.longest_gap(probes([])).length_s)


# -- connections


def requests(*rows):
    """Rows of (user, start, end, connection, operation, n, status, error)."""
    table = pd.DataFrame(rows, columns=["user", "start_s", "end_s", "connection", "operation", "n", "status", "error"])
    return table.assign(reused=False, bytes=0)


def causes(*rows):
    return connections.reopenings(requests(*rows), keepalive_s=5.0)["cause"].tolist()


def test_a_connection_kept_is_not_reopened():
    assert causes((1, 0.0, 0.1, 0, "HomePage", 0, 200, None), (1, 3.0, 3.1, 0, "Login", 0, 200, None)) == []


def test_a_reset_is_a_lost_connection():
    rows = [
        (1, 0.0, 0.1, 0, "HomePage", 0, 200, None),
        (1, 1.0, 1.1, 0, "HomePage", 1, 0, "ECONNRESET"),
        (1, 1.2, 1.3, 1, "HomePage", 0, 200, None),
    ]
    assert causes(*rows) == ["lost"]
    counts = connections.connections(requests(*rows), connections.reopenings(requests(*rows), 5.0))
    assert (counts.lost, counts.resets, counts.timeouts, counts.opened) == (1, 1, 0, 2)


def test_a_time_out_is_the_users_decision():
    rows = [(1, 0.0, 30.0, 0, "HomePage", 0, 0, "timeout"), (1, 30.1, 30.2, 1, "HomePage", 0, 200, None)]
    assert causes(*rows) == ["timeout"]
    counts = connections.connections(requests(*rows), connections.reopenings(requests(*rows), 5.0))
    assert (counts.lost, counts.timeouts) == (0, 1)


def test_an_idle_connection_is_given_up_before_the_server_does():
    old = (1, 0.0, 0.1, 0, "HomePage", 0, 200, None)
    assert causes(old, (1, 4.2, 4.3, 1, "TagSearch", 0, 200, None)) == ["keep-alive"]
    assert causes(old, (1, 2.0, 2.1, 1, "TagSearch", 0, 200, None)) == ["unexplained"]


def test_logging_out_drops_the_connection_in_the_middle_of_an_operation():
    old = (1, 0.0, 0.1, 0, "Login", 0, 302, None)
    assert causes(old, (1, 0.2, 0.3, 1, "Login", 1, 200, None)) == ["session"]
    assert causes(old, (1, 0.2, 0.3, 1, "Login", 0, 200, None)) == ["unexplained"]


def test_an_upload_on_its_own_connection_is_planned():
    rows = [
        (1, 0.0, 0.1, 0, "AddEvent", 0, 200, None),
        (1, 0.2, 0.9, 1, "AddEvent", 1, 302, None),
        (1, 1.0, 1.1, 0, "AddEvent", 2, 200, None),
    ]
    assert causes(*rows) == ["session"]


def test_requests_of_users_that_were_stopped_did_not_fail():
    table = requests(
        (1, 0.0, 0.1, 0, "HomePage", 0, 0, "unfinished"), (2, 0.0, 0.1, 0, "HomePage", 0, 503, None), (3, 0, 1, 0, "Login", 0, 304, None)
    )
    assert connections.failed(table).tolist() == [False, True, False]
    assert connections.connections(table, connections.reopenings(table, 5.0)).lost == 0


# -- resources


def samples(*rows):
    return pd.DataFrame(rows, columns=["t_s", "node", "kind", "name", "cpu_s", "memory_bytes", "rx_bytes", "tx_bytes"])


def test_rates_from_counters():
    rated = resources.rates(
        samples(
            (0.0, "host1", "guest", "web", 10.0, 100, 0, 0),
            (0.5, "host1", "guest", "web", 10.4, 120, 1000, 500),
        )
    )
    (row,) = rated.to_dict("records")
    assert row["cores"] == pytest.approx(0.8)
    assert (row["rx_bit_s"], row["tx_bit_s"], row["memory_bytes"]) == (16000.0, 8000.0, 120)


def test_a_counter_that_went_back_gives_no_rate():
    rated = resources.rates(samples((0.0, "host1", "guest", "web", 50.0, 1, 0, 0), (1.0, "host1", "guest", "web", 0.1, 1, 0, 0)))
    assert rated["cores"].isna().all()


def test_nodes_are_added_guests_are_not():
    peak, when = resources.peak_memory(
        samples(
            (0.0, "host1", "node", "host1", 0, 100, 0, 0),
            (0.1, "host2", "node", "host2", 0, 10, 0, 0),
            (0.1, "host1", "guest", "web", 0, 90, 0, 0),
            (1.0, "host1", "node", "host1", 0, 130, 0, 0),
            (1.1, "host2", "node", "host2", 0, 5, 0, 0),
            (1.1, "machine", "machine", "machine", 0, 9999, 0, 0),
        )
    )
    assert (peak, when) == (140.0, 1.0)


def test_the_busiest_process_is_judged_over_seconds():
    rows = [(n / 10, "head", "process", "worker", n / 10 * 0.5 + (0.09 if n == 5 else 0), 1, 0, 0) for n in range(31)]
    assert resources.busiest_process(resources.rates(samples(*rows)), Interval(0.0, 3.0)) == pytest.approx(0.5, abs=0.06)
    assert math.isnan(resources.busiest_process(resources.rates(samples(*rows[:0])), Interval(0.0, 3.0)))


# -- Faban's checks


def test_the_long_run_shares_are_olios():
    shares = {name: round(expected * 100, 2) for name, (_, expected) in checks.mix(pd.DataFrame({"operation": ["HomePage"]})).items()}
    assert shares == {
        "HomePage": 26.15,
        "Login": 10.22,
        "TagSearch": 33.45,
        "EventDetail": 24.68,
        "PersonDetail": 2.61,
        "AddPerson": 0.84,
        "AddEvent": 2.04,
    }


def test_delays_run_from_start_to_start():
    table = operations((100.0, 101.0, "ok", "HomePage"), (103.0, 103.5, "ok", "Login"), (105.0, 105.1, "ok", "HomePage"))
    kept = checks.delays(table.assign(cycle_s=[3.0, 2.0, 9.0]), STEADY, "cycle")
    assert (kept.drawn_s, kept.achieved_s, kept.samples) == (2.5, 2.5, 2)
    assert kept.holds
    think = checks.delays(table.assign(cycle_s=[2.0, 1.5, 9.0]), STEADY, "think")
    assert (think.drawn_s, think.achieved_s) == (1.75, 1.75)


def test_late_operations_break_the_delay_check():
    table = operations((100.0, 104.0, "ok", "HomePage"), (104.0, 104.5, "ok", "Login")).assign(cycle_s=[3.0, 1.0])
    late = checks.delays(table, STEADY, "cycle")
    assert late.deviation == pytest.approx(1 / 3)
    assert not late.holds
    assert not checks.delays(table[:1], STEADY, "cycle").holds  # nothing known


def test_durations_carry_units():
    assert [seconds(value, 1.0) for value in ("10ms", "2min", 3, None)] == [0.01, 120.0, 3.0, 1.0]
    with pytest.raises(RunError, match="needs a unit"):
        seconds("30", 1.0)
