"""What a blackout and a whole migration are expected to take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from emulab.migration.inventory import Inventory, parse_rollup, take_inventory
from emulab.migration.model import Options
from emulab.migration.plan import foresee
from emulab.migration.predict import Machine, Rest, Wire, predict
from emulab.migration.strategies import STRATEGIES

GIGABIT_BYTES_S = 117_000_000
WIRE = Wire(GIGABIT_BYTES_S, ratio=0.3)
REST = Rest(tasks=50, mappings=50 * 170, pages=10_000, all_pages=80_000, distinct_pages=20_000)
FOUND = Inventory(tasks=50, mappings=50 * 170, own_pages=80_000, distinct_pages=20_000, shared_pages=100)


def total(rest=REST, wire=WIRE, machine=None):
    return predict(rest, wire, machine or Machine()).total_s


@pytest.mark.parametrize(
    "more",
    [
        {"tasks": 60},
        {"mappings": 50 * 240},
        {"pages": 90_000},
        {"all_pages": 200_000},
        {"distinct_pages": 40_000},
        {"other_bytes": 50_000_000},
    ],
    ids=str,
)
def test_more_of_anything_predicts_a_longer_blackout(more):
    assert total(replace(REST, **more)) > total()


def test_a_slower_link_or_pages_that_shrink_less_predict_a_longer_blackout():
    assert total(wire=replace(WIRE, link_bytes_s=GIGABIT_BYTES_S / 10)) > total()
    assert total(wire=replace(WIRE, ratio=0.9)) > total(wire=WIRE)


def test_the_transfer_counts_bytes_on_the_wire_not_bytes_of_pages():
    expected = predict(replace(REST, pages=100_000), Wire(102_400_000, ratio=0.25, page_s=0.0), Machine())
    assert expected.transfer_s == pytest.approx(1.0)


def test_pages_cannot_travel_faster_than_they_are_hashed():
    assert predict(REST, Wire(GIGABIT_BYTES_S, ratio=0.01, page_s=1e-4), Machine()).transfer_s == pytest.approx(1.0)


def test_the_parts_are_the_whole():
    expected = predict(REST, WIRE, Machine())
    assert sum(expected.parts().values()) == pytest.approx(expected.total_s, abs=0.001)
    assert set(expected.parts()) == {"freeze", "dump", "transfer", "restore", "resume"}


def test_lean_apache_workers_cost_what_was_measured():
    """54 workers with about 168 mappings: pre-dump 3.1 ms, dump 4.5 ms, restore 4.5 ms each."""
    expected = predict(Rest(tasks=54, mappings=54 * 168, pages=0, all_pages=0, distinct_pages=0), WIRE, Machine())
    assert expected.dump_s / 54 == pytest.approx(4.5e-3, rel=0.1)
    assert expected.restore_s / 54 == pytest.approx(4.5e-3, rel=0.1)


def test_the_memory_of_one_large_task_costs_what_was_measured():
    """1 GiB, nothing else: 1.0 s."""
    pages = 2**30 // 4096
    assert predict(Rest(1, 30, 0, pages, pages), WIRE, Machine()).restore_s == pytest.approx(1.0, rel=0.1)


def test_a_machine_learns_from_the_freezes_of_rounds():
    machine = Machine()
    before = total(machine=machine)
    for _ in range(10):
        machine.saw_round(frozen_s=2 * 54 * 3.1e-3, tasks=54, mappings=54 * 168, pages=0)
    assert machine.pre_dump == pytest.approx(2.0, rel=0.1)
    assert total(machine=machine) > before


def test_a_machine_learns_from_what_a_blackout_really_took():
    machine = Machine()
    for _ in range(20):
        expected = predict(REST, WIRE, machine)
        machine.saw_blackout(expected, dump_s=0.9, restore_s=0.1)
    assert expected.dump_s == pytest.approx(0.9, rel=0.05)
    assert expected.restore_s == pytest.approx(0.1, rel=0.05)


def test_one_absurd_measurement_does_not_make_predictions_absurd():
    machine = Machine()
    machine.saw_round(frozen_s=1000.0, tasks=1, mappings=1, pages=0)
    machine.saw_blackout(predict(REST, WIRE, machine), dump_s=1e6, restore_s=0.0)
    assert 0.125 <= machine.restore <= machine.dump <= 8.0
    assert machine.pre_dump <= 8.0


# -- the whole migration -------------------------------------------------------------------------------------------------------------------


def plan(dirty_pages_per_s=1000.0, files_bytes=0, found=FOUND, wire=WIRE, waits=False, kept=0.0, **options):
    rate = dirty_pages_per_s
    return foresee(found, Options(**options), wire, Machine(), dirty_pages_per_s=rate, files_bytes=files_bytes, waits=waits, kept=kept)


def test_an_idle_guest_needs_one_round_and_hardly_any_transfer_in_the_freeze():
    expected = plan(dirty_pages_per_s=0.0)
    assert expected.rounds == 1
    assert expected.blackout.transfer_s < 0.01
    assert expected.bytes_on_wire == pytest.approx(WIRE.bytes(FOUND.distinct_pages + FOUND.shared_pages), rel=0.01)


def test_a_guest_that_writes_more_has_a_longer_blackout_and_more_bytes():
    calm, busy = plan(100.0), plan(50_000.0)
    assert busy.blackout.total_s > calm.blackout.total_s
    assert busy.bytes_on_wire > calm.bytes_on_wire
    assert busy.rounds > calm.rounds


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_pages_that_are_kept_at_the_destination_need_not_be_sent(strategy):
    first, again = plan(0.0, strategy=strategy), plan(0.0, strategy=strategy, kept=0.9)
    spared = WIRE.bytes(round(0.9 * FOUND.distinct_pages))
    assert first.bytes_on_wire - again.bytes_on_wire == pytest.approx(spared, rel=0.01)
    assert again.total_s <= first.total_s  # reading and hashing takes longer than sending
    assert again.blackout.restore_s == first.blackout.restore_s


def test_a_guest_that_is_waited_for_takes_longer_and_stands_still_no_longer():
    soon, late = plan(1000.0), plan(1000.0, waits=True)
    rounds_s = soon.total_s - soon.blackout.total_s
    assert soon.total_s + rounds_s < late.total_s < soon.total_s + 3.1 * rounds_s
    assert late.blackout == soon.blackout


def test_a_guest_that_writes_faster_than_the_link_does_not_converge():
    assert "not converging" in plan(200_000.0, found=replace(FOUND, distinct_pages=80_000), wire=replace(WIRE, ratio=1.0)).stop_reason


def test_stop_and_copy_carries_memory_and_layer_inside_the_freeze():
    still, live = (plan(files_bytes=100_000_000, strategy=strategy) for strategy in ("stop-and-copy", "pre-copy"))
    assert (still.rounds, live.rounds) == (0, 1)
    assert still.blackout.transfer_s > live.blackout.transfer_s + 0.4
    assert still.total_s > still.blackout.total_s


def test_memory_is_read_from_the_kernel_s_own_sums(tmp_path):
    for pid, shared in ((10, 8), (11, 0)):
        folder = tmp_path / str(pid)
        folder.mkdir()
        rollup = f"5555-7fff ---p 00000000 00:00 0    [rollup]\nRss: 900 kB\nPss_Anon: 40 kB\nPss_Shmem: {shared} kB\nAnonymous: 80 kB\n"
        (folder / "smaps_rollup").write_text(rollup)
        (folder / "maps").write_text("a\nb\nc\n")
    assert parse_rollup("Rss: 900 kB\nwhatever\n") == {"Rss": 900 * 1024}
    found = take_inventory([10, 11, 12], tmp_path)  # 12 has ended
    assert found == Inventory(tasks=2, mappings=6, own_pages=40, distinct_pages=20, shared_pages=2)
    assert (found.resident_bytes, found.proportional_bytes) == (42 * 4096, 22 * 4096)
