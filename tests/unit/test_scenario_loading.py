"""Reading scenarios: names, files, overrides, and every kind of mistake told in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jsonschema
import pytest
import yaml

from emulab.errors import UsageError
from emulab.scenario import NodeSize, Scenario, load_scenario, parse_scenario, scenario_schema, shipped_scenarios, to_yaml
from emulab.scenario.model import Guest, Load, Migration, Probe, Sla, Topology, Workload

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel


def refused(text: str, overrides: dict[str, str | None] | None = None, node: NodeSize | None = None) -> UsageError:
    with pytest.raises(UsageError) as caught:
        parse_scenario(text, overrides, node=node)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


def test_the_default_scenario_is_the_contract() -> None:
    s = load_scenario("one-migration")
    assert (s.topology.hosts, s.topology.subnet, s.topology.rate) == (5, "198.18.0.0/24", 10**9)
    assert (s.load.users, s.load.ramp_up, s.load.steady, s.load.ramp_down) == (100, 30.0, 120.0, 10.0)
    assert (s.load.pacing, s.load.mean, s.load.cap, s.load.request_timeout) == ("cycle", 5.0, 25.0, 30.0)
    assert (s.guests["web"].vcpus, s.guests["web"].memory) == (1, 2 << 30)
    assert (s.guests["db"].vcpus, s.guests["db"].memory) == (2, 1 << 30)
    assert [(m.vm, m.at, m.to, m.freeze_budget, m.max_rounds) for m in s.migrations] == [("web", 60.0, "auto", 0.3, 8)]
    assert (s.sla.window, s.sla.limits["AddEvent"], s.probe.interval) == (300.0, 4.0, 0.01)


def test_an_empty_file_means_all_defaults_and_no_migration() -> None:
    s = parse_scenario("")
    full = load_scenario("one-migration")
    assert s == full.model_copy(update={"name": "unnamed", "description": "", "migrations": ()})


@pytest.mark.parametrize("name", ["one-migration", "two-migrations", "both-at-once", "no-migration", "quick"])
def test_shipped_scenarios_are_valid_and_named_like_their_files(name: str) -> None:
    assert name in shipped_scenarios()
    assert load_scenario(name, node=NodeSize(cores=2, memory_bytes=4 << 30)).name == name


def test_the_annotated_scenario_shows_every_key() -> None:
    shown = yaml.safe_load(shipped_scenarios()["one-migration"].read_text())
    assert set(shown) == set(Scenario.model_fields)
    parts: list[tuple[str, type[BaseModel]]] = [
        ("topology", Topology),
        ("workload", Workload),
        ("load", Load),
        ("probe", Probe),
        ("sla", Sla),
    ]
    for key, model in parts:
        assert set(shown[key]) == set(model.model_fields)
    assert set(shown["migrations"][0]) == set(Migration.model_fields)
    assert set(shown["guests"]["web"]) == set(Guest.model_fields)


@pytest.mark.parametrize("name", ["one-migration", "two-migrations", "both-at-once", "no-migration", "quick"])
def test_shipped_scenarios_fit_the_published_schema(name: str) -> None:
    schema = scenario_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(shipped_scenarios()[name].read_text()), schema)
    jsonschema.validate(yaml.safe_load(to_yaml(load_scenario(name))), schema)


@pytest.mark.parametrize(
    "text", ["load: {usres: 1}", "topology: {rate: 1000}", "load: {users: 0}", "migrations: [{vm: web, strategy: teleport}]"]
)
def test_the_published_schema_refuses_what_we_refuse(text: str) -> None:
    refused(text)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), scenario_schema())


def test_a_path_is_read_and_names_the_scenario(tmp_path: Path) -> None:
    path = tmp_path / "My test.yaml"
    path.write_text("load: {users: 7}\n")
    s = load_scenario(str(path))
    assert (s.name, s.load.users) == ("my-test", 7)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        load_scenario("one-migraton")
    assert "'one-migration'" in caught.value.hint
    with pytest.raises(UsageError, match="no scenario file"):
        load_scenario("./nowhere.yaml")


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    assert "line 2" in refused("load:\n  users: [1\n").message or "line 3" in refused("load:\n  users: [1\n").message
    assert "must be a mapping" in refused("- 1\n- 2").message
    assert "given twice" in refused("load: {users: 1}\nload: {users: 2}").message


# -- overrides -----------------------------------------------------------------------------------------------------------------------------


def test_overrides_are_strings_as_typed() -> None:
    s = load_scenario("one-migration", {"users": "600", "steady": "300", "seed": "7", "rate": "100mbit", "migrations.1.to": "host3"})
    assert (s.load.users, s.load.steady, s.seed, s.topology.rate, s.migrations[0].to) == (600, 300.0, 7, 10**8, "host3")


@pytest.mark.parametrize(("typed", "seconds"), [("120", 120.0), ("120s", 120.0), (" 2min ", 120.0), ("90.5", 90.5)])
def test_plain_seconds_are_allowed_on_the_command_line(typed: str, seconds: float) -> None:
    assert load_scenario("one-migration", {"steady": typed}).load.steady == seconds


def test_an_override_not_given_changes_nothing() -> None:
    assert load_scenario("quick", {"users": None, "steady": None}) == load_scenario("quick")


@pytest.mark.parametrize("typed", ["0", "-5", "abc", "", "1.5", "1e9", "100 000"])
def test_a_bad_number_of_users_is_refused(typed: str) -> None:
    assert refused("", {"users": typed}).message.startswith("scenario: load.users: must be")


@pytest.mark.parametrize("typed", ["0", "-5", "soon", "1gbit"])
def test_a_bad_steady_time_is_refused(typed: str) -> None:
    assert "load.steady:" in refused("", {"steady": typed}).message


def test_a_rate_needs_its_unit_on_the_command_line_too() -> None:
    assert "topology.rate: needs a unit, as in 1gbit" in refused("", {"rate": "1000"}).message


@pytest.mark.parametrize("key", ["usres", "load.usres", "migrations.1.to", "name.x", "guests.web.vcpu"])
def test_an_override_of_something_unknown_is_refused(key: str) -> None:
    assert key.split(".", maxsplit=1)[0] in refused("", {key: "1"}).message


# -- mistakes ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("load: {usres: 5}", "load.usres: unknown key", "'users'"),
        ("lod: {}", "lod: unknown key", "'load'"),
        ("guests: {web: {vcpu: 1}}", "guests.web.vcpu: unknown key", "'vcpus'"),
        ("migrations: [{vm: web, too: host3}]", "migrations.1.too: unknown key", "'to'"),
        ("migrations: [{at: 5s}]", "migrations.1.vm: is missing", ""),
        ("topology: {rate: 1000}", "topology.rate: needs a unit", ""),
        ("topology: {rate: 0mbit}", "topology.rate: must be above 0", ""),
        ("topology: {hosts: 6}", "topology.hosts: must be at most 5, got 6", ""),
        ("topology: {subnet: 198.18.0.0/26}", "topology.subnet: must have room", ""),
        ("topology: {subnet: 198.18.0.1/24}", "topology.subnet: must be an IPv4 network", ""),
        ("load: {users: yes}", "load.users: must be a number", ""),
        ("load: {users: 2.5}", "load.users: must be a whole number, got 2.5", ""),
        ("load: {steady: 120}", "load.steady: needs a unit, as in 30s", ""),
        ("load: {pacing: cycles}", "load.pacing: must be one of 'cycle' or 'think', got 'cycles'", "'cycle'"),
        ("load: 5", "load: must be a mapping", ""),
        ("migrations: web", "migrations: must be a list, got 'web'", ""),
        ("workload: {workers: many}", "workload.workers: must be 'auto' or a whole number", ""),
        ("workload: {workers: 0}", "workload.workers: must be 'auto' or a whole number", ""),
        ("workload: {cache_warm: 1.5}", "workload.cache_warm: must be at most 1", ""),
        ("sla: {limits: {HomePge: 1s}}", "sla.limits.HomePge: must be one of", "'HomePage'"),
        ("guests: {web: {host: hots3}}", "guests.web.host: no such host: 'hots3'", "'host3'"),
        ("guests: {game: {image: olio-web}}", "guests.game.host: is missing", ""),
        ("guests: {web: {address: here}}", "guests.web.address: must be 'auto' or an IPv4 address", ""),
        ("guests: {web: {address: 198.18.0.12}}", "guests.web.address: 198.18.0.12 is the address of host2 already", ""),
        ("guests: {web: {address: 198.18.0.150}, db: {address: 198.18.0.150}}", "198.18.0.150 is the address of web already", ""),
        ("guests: {web: {address: 10.0.0.1}}", "10.0.0.1 is not a free address of the LAN", ""),
        ("guests: {web: {address: 198.18.0.255}}", "198.18.0.255 is not a free address of the LAN", ""),
        ("migrations: [{vm: web, strategy: teleport}]", "migrations.1.strategy: must be one of pre-copy, stop-and-copy", ""),
        ("migrations: [{vm: web, max_blackout: 500}]", "migrations.1.max_blackout: needs a unit", ""),
        ("migrations: [{vm: web, auto_converge: perhaps}]", "migrations.1.auto_converge: ", ""),
        ("migrations: [{vm: wep}]", "migrations.1.vm: no such guest: 'wep'", "'web'"),
        ("migrations: [{vm: web, to: host1}]", "migrations.1.to: the destination is the source: web is on host1", ""),
        ("migrations: [{vm: web, to: host9}]", "migrations.1.to: no such host: 'host9'", ""),
        ("migrations: [{vm: web, to: head}]", "migrations.1.to: no such host: 'head'", ""),
        ("migrations: [{vm: web, at: 120s}]", "migrations.1.at: 2min is outside of the steady state of 2min", "--steady 4min"),
        ("migrations: [{vm: web, at: -1s}]", "migrations.1.at: must not be below 0", ""),
        ("topology: {hosts: 2}\nmigrations: [{vm: web, to: host3}]", "migrations.1.to: no such host: 'host3'", ""),
        (
            "migrations: [{vm: web, at: 50s, to: host3}, {vm: web, at: 20s, to: host3}]",
            "migrations.1.to: the destination is the source: web is on host3",
            "",
        ),
    ],
)
def test_a_mistake_is_told_with_place_and_remedy(text: str, message: str, hint: str) -> None:
    error = refused(text)
    assert message in error.message
    assert hint in error.hint
    assert ";" not in error.message  # this mistake and nothing else


def test_a_guest_larger_than_its_node_is_refused() -> None:
    small = NodeSize(cores=1, memory_bytes=3 << 29)
    message = refused("", node=small).message
    assert "guests.web.memory: the guest is larger than its node: 2GiB of 1.5 GiB" in message
    assert "guests.db.vcpus: the guest is larger than its node: 2 of 1 cores" in message
    assert parse_scenario("").guests["web"].memory == 2 << 30


def test_every_mistake_is_told_at_once() -> None:
    text = """
    lod: {}
    topology: {rate: 1000}
    load: {users: -5}
    guests: {db: {host: host8}}
    migrations: [{vm: web, to: host1}]
    """
    message = refused(text, {"seed": "x", "stedy": "3"}).message
    for part in (
        "lod: unknown key",
        "topology.rate:",
        "load.users:",
        "guests.db.host:",
        "the destination is the source",
        "seed:",
        "stedy:",
    ):
        assert message.count(part) == 1


def test_nothing_is_concluded_from_a_value_in_doubt() -> None:
    # Whether 200 s is inside depends on the steady time, which is wrong itself.
    assert "migrations" not in refused("load: {steady: 300}\nmigrations: [{vm: web, at: 200s}]").message


def test_a_scenario_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_scenario("").load.users = 5
