"""The command line: what cannot be is refused in one line, with a hint, before anything is touched."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import jsonschema
import pytest
import yaml

import emulab
from emulab.cli import main
from emulab.scenario import shipped_scenarios


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def errors(self):
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def hint(self):
        return "".join(line for line in self.err.splitlines() if line.startswith("hint: "))


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Runs the command line in an empty folder and without a container engine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}-no-engine.sock")
    handler = signal.getsignal(signal.SIGTERM)

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["emulab", *argv])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        done = capsys.readouterr()
        return Result(code, done.out, done.err)

    yield run
    signal.signal(signal.SIGTERM, handler)


COMMANDS = (
    (), ("experiment",), ("validate",), ("schema",), ("doctor",), ("up",), ("down",), ("gc",), ("status",), ("migrate",), ("ui",),
    ("bench",), ("report",), ("compare",),
    ("vm",), ("vm", "list"), ("vm", "start"), ("vm", "stop"), ("vm", "exec"), ("vm", "logs"),
    ("link",), ("link", "show"), ("link", "set"), ("link", "measure"),
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "emulab")
def test_every_command_explains_itself(cli, command):
    done = cli(*command, "--help")
    assert done.code == 0
    assert "Usage:" in done.out


def test_the_list_above_is_all_there_is():
    from typer.main import get_command

    from emulab.cli import app

    root = get_command(app)
    found = {()}
    for name, command in root.commands.items():
        found.add((name,))
        found |= {(name, sub) for sub in getattr(command, "commands", ())}
    assert found == set(COMMANDS)


BAD = {
    "unknown key": (("--set", "load.usres=3"), "load.usres: unknown key", "users"),
    "unknown section": (("--set", "laod.users=3"), "laod", "load"),
    "no users": (("--users", "0"), "load.users: must be at least 1, got '0'", ""),
    "negative users": (("--users", "-5"), "load.users: must be at least 1, got '-5'", ""),
    "users that are no number": (("--users", "abc"), "load.users: must be a whole number, got 'abc'", ""),
    "rate without unit": (("--set", "topology.rate=100"), "topology.rate: needs a unit", ""),
    "destination is the source": (("--set", "migrations.1.to=host1"), "migrations.1.to: the destination is the source", ""),
    "unknown destination": (("--set", "migrations.1.to=host9"), "migrations.1.to: no such host: 'host9'", "host"),
    "head as destination": (("--set", "migrations.1.to=head"), "migrations.1.to: no such host: 'head'", ""),
    "guest larger than its node": (("--set", "guests.web.memory=4096GiB"), "guests.web.memory: the guest is larger than its node", ""),
    "more cores than there are": (("--set", "guests.web.vcpus=4096"), "guests.web.vcpus", ""),
    "migration outside of the steady state": (("--steady", "30"), "migrations.1.at", "--set migrations.1.at=15s"),
    "not an assignment": (("--set", "users"), "is not KEY=VALUE", "load.drivers=2"),
    "unknown scenario": (("--scenario", "one-migratoin"), "one-migratoin", "one-migration"),
    "missing file": (("--scenario", "none.yaml"), "none.yaml", ""),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_to_an_experiment_is_one_line_and_changes_nothing(cli, tmp_path, case):
    options, says, hint = BAD[case]
    done = cli("experiment", *options)
    assert done.code == 2, done.err
    assert len(done.errors) == 1
    assert says in done.errors[0]
    assert hint in done.hint
    assert len(done.err.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", [case for case in BAD if BAD[case][0][0] == "--set"])
def test_validate_refuses_the_same(cli, case):
    options, says, _ = BAD[case]
    done = cli("validate", "one-migration", *options)
    assert (done.code, len(done.errors)) == (2, 1)
    assert says in done.errors[0]


def test_all_problems_are_told_at_once(cli):
    done = cli("experiment", "--users", "0", "--set", "topology.rate=5", "--set", "migrations.1.to=host1")
    assert done.code == 2
    for place in ("load.users", "topology.rate", "migrations.1.to"):
        assert place in done.errors[0]


@pytest.mark.parametrize(
    "argv",
    [
        ("up", "--rate", "100"),
        ("link", "set", "host1", "fast"),
        ("link", "measure", "--rate", "0gbit"),
        ("migrate", "web", "--to", "host2", "--freeze-budget", "300"),
        ("migrate", "web", "--to", "host2", "--max-blackout", "0ms"),
        ("migrate", "web", "--to", "host2", "--link-budget", "300"),
        ("migrate", "web", "--to", "host2", "--deadline", "soon"),
        ("migrate", "web", "db", "--to", "host2", "--to", "host3", "--to", "host4"),
        ("migrate", "web", "web", "--to", "host2"),
    ],
)
def test_quantities_without_sense_are_refused_before_the_engine_is_asked(cli, argv):
    done = cli(*argv)
    assert (done.code, len(done.errors)) == (2, 1)


@pytest.mark.parametrize(
    "argv", [("frobnicate",), ("vm", "frobnicate"), ("migrate",), ("migrate", "web"), ("migrate", "--abort"), ("up", "--frobnicate")]
)
def test_words_that_do_not_exist_or_are_missing_exit_with_two(cli, argv):
    assert cli(*argv).code == 2


@pytest.mark.parametrize(
    "argv", [("status",), ("vm", "list"), ("migrate", "web", "--to", "host2"), ("migrate", "web", "--abort"), ("migrate", "web", "--plan")]
)
def test_without_an_engine_it_says_so_in_one_line(cli, argv):
    done = cli(*argv)
    assert (done.code, len(done.errors)) == (1, 1)
    assert done.hint
    assert "Traceback" not in done.err


def test_markup_in_an_error_is_shown_as_it_is(cli):
    assert "[bold]x[/]" in cli("experiment", "--set", "[bold]x[/]").err


def test_the_schema_is_one_and_accepts_every_shipped_scenario(cli):
    schema = json.loads(cli("schema").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    for path in shipped_scenarios().values():
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)


@pytest.mark.parametrize("name", shipped_scenarios())
def test_shipped_scenarios_are_valid_and_resolve_to_files_that_are(cli, name, tmp_path):
    done = cli("validate", name, "--resolved", "--set", "guests.db.vcpus=1", "--set", "guests.web.memory=256MiB")
    assert done.code == 0, done.err
    (tmp_path / "again.yaml").write_text(done.out)
    assert cli("validate", "again.yaml").code == 0


def test_the_environment_names_the_lan_of_a_scenario_and_an_option_another(cli, monkeypatch):
    monkeypatch.setenv("EMULAB_SUBNET", "198.18.9.0/24")
    small = ("--set", "guests.db.vcpus=1")
    for more, lan in (((), "198.18.9"), (("--set", "topology.subnet=198.18.7.0/24"), "198.18.7")):
        topology, guests = (yaml.safe_load(cli("validate", "--resolved", *small, *more).out)[key] for key in ("topology", "guests"))
        assert topology["subnet"] == f"{lan}.0/24"
        assert {guest["address"].rpartition(".")[0] for guest in guests.values()} == {lan}


def test_validate_tells_the_plan(cli):
    done = cli("validate", "one-migration", "--set", "migrations.1.to=host4", "--set", "guests.db.vcpus=1")
    assert "at 60 s: web from host1 to host4 by pre-copy" in done.out


def test_the_shipped_scenarios_can_be_listed(cli):
    done = cli("validate", "--list")
    assert all(name in done.out for name in shipped_scenarios())


def test_the_version(cli):
    assert cli("--version").out.strip() == f"emulab {emulab.__version__}"


def test_it_runs_as_a_module_too():
    done = subprocess.run((sys.executable, "-m", "emulab.cli", "--version"), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("emulab ")


def test_verbose_shows_where_an_error_came_from():
    done = subprocess.run(
        (sys.executable, "-m", "emulab.cli", "-v", "validate", "nothing-of-this-name"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr
