"""Resolving: every "auto" made definite, the same way each time, and a plan with both ends of every migration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulab.errors import UsageError
from emulab.scenario import AUTO, load_scenario, parse_scenario, plan, resolve, shipped_scenarios, to_yaml, workers_needed


def web_moves(text: str, **arguments: str) -> list[tuple[str, str]]:
    return [(m.source, m.destination) for m in plan(resolve(parse_scenario(text), **arguments)) if m.vm == "web"]


@pytest.mark.parametrize(("users", "workers"), [(1, 16), (10, 18), (100, 90), (600, 485)])
def test_workers_for_users_with_the_paper_s_delays(users: int, workers: int) -> None:
    assert workers_needed(users, keepalive_s=5, mean_s=5) == workers


def test_no_keepalive_needs_few_workers_and_endless_keepalive_one_per_user() -> None:
    assert workers_needed(100, keepalive_s=0, mean_s=5) == 16
    assert workers_needed(100, keepalive_s=1e6, mean_s=5) == 135


def test_resolving_fills_in_every_auto() -> None:
    s = resolve(load_scenario("one-migration"))
    assert (s.workload.workers, s.workload.registered_users) == (52, 10_000)
    assert (s.guests["web"].address, s.guests["db"].address) == ("198.18.0.100", "198.18.0.101")
    assert s.migrations[0].to in {"host3", "host4", "host5"}
    assert AUTO not in {s.workload.workers, s.workload.registered_users, s.migrations[0].to, *(g.address for g in s.guests.values())}


def test_what_is_given_is_kept() -> None:
    text = "workload: {workers: 7, registered_users: 50, data_ratio: 3}\nguests: {web: {address: 198.18.0.101}}"
    s = resolve(parse_scenario(text))
    assert (s.workload.workers, s.workload.registered_users, s.workload.data_ratio) == (7, 50, 3)
    assert (s.guests["web"].address, s.guests["db"].address) == ("198.18.0.101", "198.18.0.100")


def test_the_data_ratio_is_a_parameter() -> None:
    assert resolve(parse_scenario("workload: {data_ratio: 3}\nload: {users: 40}")).workload.registered_users == 120


def test_addresses_follow_the_subnet() -> None:
    s = resolve(parse_scenario("topology: {subnet: 10.20.0.0/16}"))
    assert [s.topology.address(node) for node in ("head", "host1", "host5")] == ["10.20.0.10", "10.20.0.11", "10.20.0.15"]
    assert s.guests["web"].address == "10.20.0.100"


@pytest.mark.parametrize("name", sorted(shipped_scenarios()))
def test_a_resolved_scenario_survives_its_file(name: str) -> None:
    resolved = resolve(load_scenario(name))
    again = parse_scenario(to_yaml(resolved))
    assert again == resolved
    assert resolve(again) == resolved


@given(st.integers(0, 10**6), st.sampled_from([None, "host1", "host3", "host4", "host5"]))
def test_an_automatic_destination_keeps_the_rules(seed: int, previous: str | None) -> None:
    scenario = parse_scenario(f"seed: {seed}\nmigrations: [{{vm: web}}]")
    resolved = resolve(scenario, previous_source=previous)
    assert resolved == resolve(scenario, previous_source=previous)
    assert resolved.migrations[0].to not in {"host1", "host2", previous}


def test_seeds_spread_over_the_free_hosts() -> None:
    found = {web_moves(f"seed: {seed}\nmigrations: [{{vm: web}}]")[0][1] for seed in range(50)}
    assert found == {"host3", "host4", "host5"}


def test_a_second_migration_starts_where_the_first_ended_and_does_not_go_back() -> None:
    for seed in range(20):
        (first_source, first_to), (second_source, second_to) = web_moves(
            f"seed: {seed}\nmigrations: [{{vm: web, at: 20s}}, {{vm: web, at: 60s}}]"
        )
        assert (first_source, second_source) == ("host1", first_to)
        assert second_to not in {first_to, "host1", "host2"}


def test_an_automatic_destination_leaves_the_next_explicit_one_free() -> None:
    for seed in range(20):
        moves = web_moves(f"seed: {seed}\nmigrations: [{{vm: web, at: 20s}}, {{vm: web, at: 60s, to: host4}}]")
        assert moves[0][1] in {"host3", "host5"}
        assert moves[1] == (moves[0][1], "host4")


def test_the_plan_is_in_order_of_time() -> None:
    text = "migrations: [{vm: web, at: 60s, to: host1}, {vm: db, at: 30s, to: host5}, {vm: web, at: 10s, to: host4}]"
    assert [(m.id, m.vm, m.source, m.destination, m.at_s) for m in plan(resolve(parse_scenario(text)))] == [
        (1, "web", "host1", "host4", 10.0),
        (2, "db", "host2", "host5", 30.0),
        (3, "web", "host4", "host1", 60.0),
    ]


def test_with_two_hosts_the_softer_rules_give_way() -> None:
    assert web_moves("topology: {hosts: 2}\nmigrations: [{vm: web}]", previous_source="host2") == [("host1", "host2")]


def test_nowhere_to_go_is_an_error() -> None:
    text = "topology: {hosts: 2}\nmigrations: [{vm: web, at: 10s}, {vm: web, at: 20s, to: host2}]"
    with pytest.raises(UsageError, match=r"migrations\.1\.to: there is no other host to go to"):
        resolve(parse_scenario(text))
    with pytest.raises(UsageError, match="there is no second host"):
        parse_scenario("topology: {hosts: 1}\nguests: {db: {host: host1}}\nmigrations: [{vm: web}]")


def test_an_unresolved_scenario_has_no_plan() -> None:
    with pytest.raises(ValueError, match="once it is resolved"):
        plan(load_scenario("one-migration"))
