"""Calibration: what is expected of a link, how a measurement is judged, and what is recorded."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from emulab.errors import CalibrationError
from emulab.node.calibrate import (
    Measurement,
    best_of,
    calibration_pairs,
    calibration_record,
    check,
    client_argv,
    expected_goodput,
    judge,
    parse_result,
    server_argv,
)

GIGABIT = 10**9


def measured(up: float = 941e6, down: float = 941e6) -> Measurement:
    return Measurement((up,), (down,), up, down, 0.0001, 0.002)


def test_a_gigabit_line_gives_941_megabit_of_payload() -> None:
    assert expected_goodput(GIGABIT) == pytest.approx(941.5e6, abs=0.05e6)


@pytest.mark.parametrize(("rate", "good"), [(941.5e6, True), (895e6, True), (988e6, True), (894e6, False), (989e6, False), (0.0, False)])
def test_five_percent_either_way(rate: float, good: bool) -> None:
    assert (judge({"host1": measured(up=rate)}, GIGABIT) == []) is good


def test_every_bad_link_is_named_with_direction_and_rates() -> None:
    problems = judge({"host1": measured(), "host3": measured(up=480e6, down=13e9)}, GIGABIT)
    assert problems == [
        "host3 up: 480.0 Mbit/s measured (best of 1), 941.5 ± 5% asked for",
        "host3 down: 13000.0 Mbit/s measured (best of 1), 941.5 ± 5% asked for",
    ]
    with pytest.raises(CalibrationError, match="host3 up: 480") as caught:
        check({"host1": measured(), "host3": measured(up=480e6)}, GIGABIT)
    assert caught.value.exit_code == 4
    assert caught.value.hint
    check({"host1": measured()}, GIGABIT)


def test_the_best_try_is_the_nearest_not_the_fastest() -> None:
    assert best_of([700.0, 1300.0, 960.0], 941.0) == 960.0


def test_pairs_have_the_head_measured_against_the_first_host() -> None:
    assert calibration_pairs(["host1", "host2"]) == [("head", "host1"), ("host1", "head"), ("host2", "head")]


def test_the_record_is_the_contract_s() -> None:
    record = json.loads(json.dumps(calibration_record({"host1": measured()}, GIGABIT)))
    assert set(record) == {"asked", "tolerance", "expected_bit_s", "nodes"}
    assert record["asked"] == {"rate_bit_s": GIGABIT}
    assert set(record["nodes"]["host1"]) == {"up_bit_s", "down_bit_s", "up_best", "down_best", "rtt_idle_s", "rtt_loaded_s"}
    assert record["nodes"]["host1"]["up_bit_s"] == [941e6]


@pytest.mark.parametrize("answer", ["", "Killed", "[]", "{}", '{"up_bit_s": 1}'])
def test_an_answer_that_is_none_is_an_error(answer: str) -> None:
    with pytest.raises(CalibrationError, match="no result"):
        parse_result(answer)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_measurement_over_loopback_stops_after_its_tries() -> None:
    # Loopback is far from the asked rate: all tries are made, and the outcome is told, not hidden.
    port = free_port()
    server = subprocess.Popen(server_argv(sys.executable, "127.0.0.1", port, idle_s=20), stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        argv = client_argv(sys.executable, "127.0.0.1", port, rate_bit_s=10**6, tries=2, seconds=0.15)
        found = parse_result(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout)
    finally:
        server.kill()
        server.communicate()
    assert len(found.up_bit_s) == len(found.down_bit_s) == 2
    assert found.rtt_idle_s is not None
    assert found.rtt_idle_s > 0
    assert len(judge({"host1": found}, 10**6)) == 2


def test_a_server_without_clients_ends_by_itself() -> None:
    done = subprocess.run(server_argv(sys.executable, "127.0.0.1", free_port(), idle_s=0.1), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, b"ready\n")
