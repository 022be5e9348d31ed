"""Migrations in a row: no request fails, a stream stays whole, nothing grows on any node. The long ones: ``make soak MIGRATIONS=200``."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest
from matrix import settled

from emulab.migration.strategies import STRATEGIES
from emulab.testbed.testbed import HOSTS, PYTHON

pytestmark = pytest.mark.testbed

MIGRATIONS = int(os.environ.get("MIGRATIONS", "200"))
MIB = 1 << 20
_ALIKE = 20  # migrations after which five hosts and four strategies are where they were: an agent's memory depends on what it did last
# What may differ between two moments at rest: memory, and descriptors and threads of conversations that are just ending.
_SLACK = {"agent memory": 24 * MIB, "node memory": 48 * MIB, "agent descriptors": 4, "agent threads": 4, "processes": 3}
_PER_MIGRATION = {"agent memory": 64 * 1024, "node memory": 128 * 1024, "agent descriptors": 0.05, "agent threads": 0.05}


def state(testbed):
    """What could grow, by node and kind."""
    script = (Path(__file__).parent / "node_state.py").read_text()
    return {node: json.loads(testbed.project.exec_run(node, (PYTHON, "-c", script)).stdout) for node in HOSTS}


def grown(samples, *, but=()):
    """What grew from the first of (migrations so far, state) to the last, beyond its slack and its share per migration."""
    (before, first), (after, last) = samples[0], samples[-1]
    return [
        f"{kind} of {node}: {[sample[node][kind] for _, sample in samples]}"
        for node, kind in itertools.product(HOSTS, first[HOSTS[0]])
        if kind not in but
        and last[node][kind] - first[node][kind] > max(_SLACK.get(kind, 0), _PER_MIGRATION.get(kind, 0) * (after - before))
    ]


def round_trips(guest, migrations, every):
    """Around the five hosts, each strategy in its turn; returns samples taken every ``every`` migrations, which end where they began."""
    hosts = itertools.cycle([*HOSTS[1:], HOSTS[0]])
    strategies = itertools.cycle(STRATEGIES)
    samples = []
    for number in range(1, migrations + 1):
        record = guest.move(next(hosts), strategy=next(strategies))
        assert record["outcome"] == "committed", record
        if number % every == 0:
            settled(guest)  # pages are put into the store by the way, a moment after the move
            samples.append((number, state(guest.testbed)))
    return samples


@pytest.mark.timeout(300)
def test_ten_migrations_in_a_row_leave_nothing(start):
    guest = start()
    with guest.under_requests() as requests:
        samples = round_trips(guest, 10, every=5)
    assert requests["requests"] > 500
    assert grown(samples, but=("agent memory", "node memory")) == []  # ten are too few to tell a leak from warming up
    assert guest.runs_only_here() == "host1"


@pytest.mark.soak
@pytest.mark.timeout(120 + 60 * MIGRATIONS)
def test_many_migrations_in_a_row_leave_nothing(start):
    guest = start()
    with guest.under_requests() as requests:
        samples = round_trips(guest, MIGRATIONS, every=_ALIKE)
    assert requests["requests"] > 50 * MIGRATIONS
    warmed_up = samples[min(1, len(samples) - 1) :]
    assert grown(warmed_up) == []
    assert guest.runs_only_here() == "host1"


@pytest.mark.parametrize("moves", [5, pytest.param(20, marks=pytest.mark.soak)])
@pytest.mark.timeout(1200)
def test_no_byte_of_a_long_stream_is_lost_doubled_or_out_of_order(start, moves):
    """Blocks leave every millisecond whether or not the guest stands still, so that many are on their way at every freeze."""
    guest = start()
    with guest.a_client("stream.py") as stream:
        round_trips(guest, moves, every=5)
    assert stream["error"] == ""
    assert stream["answered"] == stream["sent"] > 200 * moves
    assert stream["most_in_flight"] > 20
