"""The doctor's logic with recorded answers of the system: what it finds, what it would install, what it never touches."""

import re
from pathlib import Path

import pytest

from emulab.command import Outcome, Runner
from emulab.doctor import Finding, Item, bootstrap, check_all, docker_engine, kernel, packages, repair, require, sysctls
from emulab.doctor.items import all_items
from emulab.doctor.model import bad, good
from emulab.errors import DoctorError, EmulabError


def answering(answers=(), calls=None):
    """A runner that answers by pattern, with code 0 and nothing said by default, and keeps what it was asked."""

    def handle(command):
        text = command.shell()
        if calls is not None:
            calls.append(text)
        for pattern, code, out, err in answers:
            if re.search(pattern, text):
                return Outcome(command, code, out, err, 0.0, 0.0)
        return Outcome(command, 0, "", "", 0.0, 0.0)

    return Runner(handle)


class Machine:
    """A thing that is broken until it is fixed."""

    def __init__(self, *, fix_helps=True):
        self.works = False
        self.fix_helps = fix_helps

    def check(self):
        return good("works") if self.works else bad("broken", "by hand")

    def fix(self, say):
        say("mending")
        self.works = self.fix_helps


class TestList:
    def test_looking_changes_nothing(self):
        machine = Machine()
        results = check_all([Item("thing", "", machine.check, machine.fix)])
        assert [result.finding.status for result in results] == ["failed"]
        assert not machine.works

    def test_repair_says_what_it_changes_before_it_does(self):
        machine, said = Machine(), []
        results = repair([Item("thing", "", machine.check, machine.fix, "installs a package")], said.append)
        assert results[0].repaired
        assert said == ["thing: broken", "thing: the repair changes this machine: installs a package", "thing: mending"]

    def test_what_works_is_not_repaired(self):
        machine = Machine()
        machine.works = True
        machine.fix = lambda say: pytest.fail("repaired what works")
        assert not repair([Item("thing", "", machine.check, machine.fix)])[0].repaired

    def test_a_repair_that_does_not_help_is_a_failure(self):
        machine = Machine(fix_helps=False)
        result = repair([Item("thing", "", machine.check, machine.fix)])[0]
        assert result.failed
        assert result.error
        assert result.remedy == "by hand"

    def test_a_repair_that_raises_leaves_its_own_hint(self):
        def fix(say):
            raise DoctorError("no network", hint="plug it in")

        result = repair([Item("thing", "", lambda: bad("broken"), fix)])[0]
        assert (result.finding.text, result.remedy) == ("no network", "plug it in")

    def test_an_item_is_skipped_without_what_it_needs(self):
        results = check_all([Item("engine", "", lambda: bad("none")), Item("image", "", lambda: pytest.fail("looked"), needs=("engine",))])
        assert results[1].finding.status == "skipped"
        assert results[1].failed

    def test_an_error_of_a_check_is_its_finding(self):
        def check():
            raise EmulabError("no engine answers", hint="start it")

        assert check_all([Item("engine", "", check)])[0].finding == bad("no engine answers", "start it")

    def test_the_first_failure_becomes_the_error(self):
        results = check_all([Item("a", "", lambda: Finding("warning", "small")), Item("b", "", lambda: bad("gone", "fetch it"))])
        with pytest.raises(DoctorError, match="b: gone") as caught:
            require(results)
        assert caught.value.hint == "fetch it"
        require(results[:1])

    def test_every_item_needs_only_what_comes_before_it(self):
        seen = set()
        for item in all_items(answering(), tests=True):
            assert seen.issuperset(item.needs), item.name
            assert item.explain
            seen.add(item.name)

    def test_every_repair_of_the_machine_says_so(self):
        own = re.compile(r"image (node|olio)|leftovers")
        assert all(item.changes or own.match(item.name) for item in all_items(answering(), tests=True) if item.fix)


class TestKernel:
    @pytest.mark.parametrize(("release", "version"), [("6.12.48+deb13-cloud-amd64", (6, 12)), ("5.4.0-1-generic", (5, 4)), ("odd", (0, 0))])
    def test_versions(self, release, version):
        assert kernel.version_of(release) == version

    def test_other_machines_are_refused(self):
        assert kernel.check_platform("6.1", "aarch64", "linux").status == "failed"
        assert kernel.check_platform("4.19.0", "x86_64", "linux").status == "failed"
        assert kernel.check_platform("6.1.0", "x86_64", "linux").status == "ok"

    def test_the_missing_feature_is_named_with_the_kernels_own_word(self):
        finding = kernel.check_features(answering([("htb", 2, "", "Error: Specified qdisc kind is unknown.")]))
        assert finding.status == "failed"
        assert "HTB" in finding.text
        assert "Specified qdisc kind is unknown." in finding.text

    def test_controllers_of_both_kinds_of_cgroups(self, tmp_path):
        for name in ("cpu", "memory", "pids"):
            (tmp_path / name).mkdir()
        assert kernel.check_cgroups(tmp_path).text == "cgroup v1 without freezer"
        (tmp_path / "freezer").mkdir()
        assert kernel.check_cgroups(tmp_path).status == "ok"
        (tmp_path / "cgroup.controllers").write_text("cpuset cpu io pids\n")
        assert kernel.check_cgroups(tmp_path).text == "cgroup v2 without memory"

    def test_memory_in_total_decides_and_free_memory_warns(self):
        def info(total, free):
            return f"MemTotal: {total << 20} kB\nMemAvailable: {free << 20} kB\n"

        assert [kernel.check_memory(info(*sizes)).status for sizes in ((4, 4), (8, 2), (8, 6))] == ["failed", "warning", "ok"]

    def test_this_machine_has_a_way_to_track_writes(self):
        assert kernel.has_soft_dirty() or kernel.has_write_protect()


class TestSettings:
    def test_a_limit_above_the_wanted_one_holds(self):
        size, exact = sysctls.Setting("fs.pipe-max-size", 4194304, "at least"), sysctls.Setting("fs.pipe-user-pages-soft", 0)
        assert [size.holds(8388608), size.holds(1048576), exact.holds(0), exact.holds(16384)] == [True, False, True, False]

    def test_a_setting_unknown_to_the_kernel_needs_no_change(self):
        assert sysctls.Setting("vm.unprivileged_userfaultfd", 1).holds(None)

    def test_the_old_value_is_told(self, tmp_path, monkeypatch):
        (tmp_path / "fs").mkdir()
        (tmp_path / "fs/pipe-max-size").write_text("1048576\n")
        monkeypatch.setattr(sysctls, "wanted", lambda: (sysctls.Setting("fs.pipe-max-size", 4194304, "at least"),))
        monkeypatch.setattr(sysctls, "read_sysctl", lambda name: kernel.read_sysctl(name, tmp_path))
        monkeypatch.setattr(sysctls, "write_sysctl", lambda name, value: kernel.write_sysctl(name, value, tmp_path))
        assert sysctls.check_sysctls().remedy == "sysctl -w fs.pipe-max-size=4194304"
        said = []
        sysctls.fix_sysctls(said.append)
        assert "was 1048576" in said[0]
        assert sysctls.check_sysctls().status == "ok"


class TestPackages:
    def test_plugins_by_distribution(self):
        assert docker_engine.plugin_package("compose", ("debian", "13")) == ("docker-compose", None)
        assert docker_engine.plugin_package("buildx", ("debian", "13")) == ("docker-buildx", None)
        assert docker_engine.plugin_package("compose", ("debian", "12")) == ("docker-compose", "trixie")
        assert docker_engine.plugin_package("compose", ("ubuntu", "24.04")) == ("docker-compose-v2", None)

    def test_a_borrowed_release_is_pinned_away_and_gone_afterwards(self, tmp_path):
        (tmp_path / "sources.list.d").mkdir()
        (tmp_path / "sources.list").write_text("deb http://mirror/debian bookworm main\n")
        with packages.borrowed_release("trixie", answering(), lambda _: None, tmp_path):
            assert "URIs: http://mirror/debian\nSuites: trixie\n" in (tmp_path / "sources.list.d/emulab-doctor.sources").read_text()
            assert "Pin-Priority: -1" in (tmp_path / "preferences.d/emulab-doctor").read_text()
        assert packages.borrowed_files(tmp_path) == []

    def test_a_borrowed_release_is_gone_after_a_failure_too(self, tmp_path):
        (tmp_path / "sources.list.d").mkdir()
        with pytest.raises(DoctorError), packages.borrowed_release("trixie", answering(), lambda _: None, tmp_path):
            raise DoctorError("no")
        assert packages.borrowed_files(tmp_path) == []

    def test_apts_own_word_is_the_error(self, monkeypatch):
        monkeypatch.setattr(packages, "can_install", lambda: True)
        runner = answering([(" install ", 100, "Reading package lists...\n", "E: Unable to locate package docker.io\n")])
        with pytest.raises(DoctorError, match=r"cannot install docker\.io: Unable to locate package"):
            packages.install(("docker.io",), runner, lambda _: None)

    def test_a_strangers_broken_repository_does_not_stop_an_installation(self, monkeypatch):
        monkeypatch.setattr(packages, "can_install", lambda: True)
        packages.install(("iproute2",), answering([(" update", 100, "", "E: a repository is not signed\n")]), lambda _: None)


class TestEngine:
    def test_versions_are_read_out_of_what_plugins_say(self):
        assert docker_engine.version_numbers("Docker Compose version v2.26.1-4") == (2, 26, 1)
        assert docker_engine.version_numbers("github.com/docker/buildx 0.13.1+ds1 0.13.1+ds1-3") == (0, 13, 1)
        assert docker_engine.version_numbers("no version") == ()

    @pytest.mark.parametrize(
        ("code", "out", "status"),
        [
            (0, "Docker Compose version v2.26.1", "ok"),
            (1, "docker: 'compose' is not a docker command.", "failed"),
            (0, "docker-compose version 1.29.2", "failed"),
        ],
    )
    def test_an_old_or_missing_compose_fails(self, code, out, status):
        assert docker_engine.check_plugin("compose", (2,), answering([("compose", code, out, "")])).status == status

    def test_an_engine_that_answers_is_never_touched(self, monkeypatch):
        calls = []
        monkeypatch.setattr(docker_engine, "_answers", lambda: True)
        monkeypatch.setattr(docker_engine.shutil, "which", lambda name: f"/usr/bin/{name}")
        monkeypatch.delenv("DOCKER_HOST", raising=False)
        docker_engine.fix_engine(answering(calls=calls), lambda _: None)
        assert calls == []

    def test_an_engine_chosen_by_the_user_is_neither_started_nor_replaced(self, monkeypatch):
        monkeypatch.setenv("DOCKER_HOST", "unix:///run/user/1000/docker.sock")
        calls = []
        with pytest.raises(DoctorError, match="chosen by DOCKER_HOST"):
            docker_engine.fix_engine(answering(calls=calls), lambda _: None)
        assert calls == []

    def test_an_installed_engine_is_started_not_installed(self, monkeypatch):
        calls, answers = [], iter([False, True])
        monkeypatch.setattr(docker_engine, "_answers", lambda: next(answers))
        monkeypatch.setattr(docker_engine.shutil, "which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr(docker_engine, "has_systemd", lambda: True)
        monkeypatch.delenv("DOCKER_HOST", raising=False)
        docker_engine.fix_engine(answering(calls=calls), lambda _: None)
        assert calls == ["systemctl enable --now docker.service"]

    def test_without_systemd_it_is_detached_and_keeps_a_log(self):
        argv = docker_engine.start_argv(systemd=False)
        assert "setsid dockerd" in argv[-1]
        assert "/var/log/" in argv[-1]


class TestBootstrap:
    def test_the_digest_follows_what_decides_the_environment(self):
        first = bootstrap.digest(b"[project]", (3, 11), "/src", dev=False)
        assert first == bootstrap.digest(b"[project]", (3, 11), "/src", dev=False)
        others = [
            bootstrap.digest(b"[project]\n", (3, 11), "/src", dev=False),
            bootstrap.digest(b"[project]", (3, 12), "/src", dev=False),
            bootstrap.digest(b"[project]", (3, 11), "/moved", dev=False),
            bootstrap.digest(b"[project]", (3, 11), "/src", dev=True),
        ]
        assert len({first, *others}) == 5

    def test_a_full_environment_serves_both_and_a_broken_one_neither(self, tmp_path):
        (tmp_path / "bin").mkdir()
        for program in ("python", "emulab"):
            (tmp_path / "bin" / program).touch()
        (tmp_path / bootstrap.STAMP).write_text("full\n")
        assert bootstrap.is_current(tmp_path, "small", "full")
        assert bootstrap.is_current(tmp_path, "full", "full")
        (tmp_path / bootstrap.STAMP).write_text("small\n")
        assert not bootstrap.is_current(tmp_path, "full", "full")
        (tmp_path / bootstrap.STAMP).write_text("full\n")
        (tmp_path / "bin/python").unlink()
        assert not bootstrap.is_current(tmp_path, "small", "full")

    def test_pip_trusts_what_the_machine_trusts_unless_told_otherwise(self, tmp_path):
        bundle = tmp_path / "ca.crt"
        bundle.touch()
        bundles = (str(tmp_path / "missing.crt"), str(bundle))
        assert bootstrap.trust({}, bundles) == {"PIP_CERT": str(bundle)}
        assert bootstrap.trust({"PIP_CERT": "/mine"}, bundles) == {}
        assert bootstrap.trust({}, ()) == {}

    def test_it_needs_nothing_but_the_standard_library(self):
        imports = re.findall(r"^(?:from|import) (\w+)", Path(bootstrap.__file__).read_text(), re.MULTILINE)
        assert set(imports) <= {
            "__future__",
            "argparse",
            "collections",
            "hashlib",
            "importlib",
            "os",
            "pathlib",
            "shutil",
            "subprocess",
            "sys",
        }
