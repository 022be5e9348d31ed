"""What the engine room decides without an engine: mirrors, recipes, arguments, grants, labels, the lock."""

import fcntl
import io
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from emulab.engine import base, build, frames, grants, mirror, project, recipe, removal, unpack
from emulab.engine.client import context_name, endpoint, socket_path
from emulab.engine.lock import exclusive
from emulab.engine.settings import NODES, Settings
from emulab.engine.streaming import run_lines
from emulab.errors import UsageError


class TestMirror:
    def test_one_line_entries_with_and_without_options(self):
        text = textwrap.dedent("""\
            deb [signed-by=/k arch=amd64] http://mirror/debian bookworm main contrib # note
            # deb http://off/debian bookworm main
            deb-src http://src/debian bookworm main
            """)
        assert list(mirror.parse_one_line(text)) == [mirror.Source("http://mirror/debian", ("bookworm",), ("main", "contrib"))]

    def test_deb822_stanzas_with_comments_continuations_and_disabled_ones(self):
        text = textwrap.dedent("""\
            Types: deb
            # a comment
            URIs: http://mirror/debian
              http://second/debian
            Suites: trixie trixie-updates
            Components: main

            Enabled: no
            Types: deb
            URIs: http://off/debian
            Suites: trixie
            Components: main
            """)
        assert list(mirror.parse_deb822(text)) == [
            mirror.Source("http://mirror/debian", ("trixie", "trixie-updates"), ("main",)),
            mirror.Source("http://second/debian", ("trixie", "trixie-updates"), ("main",)),
        ]

    def test_the_mirror_is_neither_security_nor_a_strangers_repository(self):
        sources = [
            mirror.Source("https://packages.example/tool", ("bookworm",), ("tool",)),
            mirror.Source("http://mirror/debian-security", ("bookworm-security",), ("main",)),
            mirror.Source("cdrom:[Debian]", ("bookworm",), ("main",)),
            mirror.Source("http://mirror/debian/", ("bookworm", "bookworm-updates"), ("main",)),
        ]
        assert mirror.debian_mirror(sources) == "http://mirror/debian"

    def test_ubuntu_has_no_debian_mirror(self):
        assert mirror.debian_mirror([mirror.Source("http://archive/ubuntu", ("noble",), ("main", "universe"))]) is None

    def test_files_are_read_in_apts_order_and_others_ignored(self, tmp_path):
        (tmp_path / "sources.list.d").mkdir()
        (tmp_path / "sources.list").write_text("deb http://first/debian bookworm main\n")
        (tmp_path / "sources.list.d/a.list").write_text("deb http://second/debian bookworm main\n")
        (tmp_path / "sources.list.d/b.sources.save").write_text(
            "Types: deb\nURIs: http://third/debian\nSuites: bookworm\nComponents: main\n"
        )
        assert [source.uri for source in mirror.read_sources(tmp_path)] == ["http://first/debian", "http://second/debian"]


class TestBase:
    def test_the_machines_own_mirror_is_used(self):
        argv = base.bootstrap_argv(Path("/t/base.tar"), "http://mirror/debian")
        assert argv[-3:] == (
            "trixie",
            "/t/base.tar",
            "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror/debian trixie main",
        )
        assert "--keyring" not in argv

    def test_a_machine_that_is_not_debian_gives_the_keys_instead_of_the_mirror(self):
        argv = base.bootstrap_argv(Path("/t/base.tar"), None)
        assert argv[-2:] == ("trixie", "/t/base.tar")
        assert argv[argv.index("--keyring") + 1] == base.KEYRING

    def test_both_ways_label_the_image_as_ours(self):
        assert "LABEL emulab.role=image" in base.import_argv(Path("/t/base.tar"))
        assert "emulab.role=image" in base.label_argv("default")


DOCKERFILE = """\
FROM x AS a
COPY shop/make /m
FROM x
COPY --chmod=755 \\
  shop/images/web/init /init
COPY --from=a /out /out
"""


@pytest.fixture
def checkout(tmp_path):
    files = {
        "workloads/__init__.py": "",
        "workloads/shop/images/web/Dockerfile": DOCKERFILE,
        "workloads/shop/images/web/init": "#!/bin/sh\n",
        "workloads/shop/make/one.py": "1",
        "workloads/shop/make/__pycache__/one.cpython-311.pyc": "x",
        "workloads/shop/driver.py": "drive",
        "compose/images/node/Dockerfile": "FROM x\n",
        "emulab/criu/native/tracker.c": "int main;",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


class TestRecipe:
    def test_a_guest_image_is_named_after_its_workload_and_holds_what_its_dockerfile_copies(self, checkout):
        recipes = recipe.guest_recipes(checkout)
        assert list(recipes) == ["shop-web"]
        assert [name for name, _ in recipes["shop-web"].files()] == [
            "shop/images/web/Dockerfile",
            "shop/images/web/init",
            "shop/make/one.py",
        ]

    def test_the_node_image_takes_the_c_sources_along(self, checkout):
        assert [name for name, _ in recipe.node_recipe(checkout).files()] == ["Dockerfile", "native/tracker.c"]

    def test_the_digest_follows_content_mode_and_parent_but_nothing_else(self, checkout):
        one = recipe.guest_recipes(checkout)["shop-web"]
        first = one.digest(one.context(), "parent")
        os.utime(checkout / "workloads/shop/make/one.py", (1, 1))
        (checkout / "workloads/shop/driver.py").write_text("drive faster")
        assert one.digest(one.context(), "parent") == first
        assert one.digest(one.context(), "other parent") != first
        (checkout / "workloads/shop/images/web/init").chmod(0o755)
        second = one.digest(one.context(), "parent")
        assert second != first
        (checkout / "workloads/shop/make/one.py").write_text("2")
        assert one.digest(one.context(), "parent") != second

    def test_the_context_is_a_tar_archive(self, checkout):
        one = recipe.node_recipe(checkout)
        with tarfile.open(fileobj=io.BytesIO(one.context())) as archive:
            assert archive.extractfile("native/tracker.c").read() == b"int main;"

    def test_an_unknown_image_is_the_users_error(self, checkout):
        with pytest.raises(UsageError, match="no image 'nope'") as caught:
            recipe.recipe("nope", checkout)
        assert "shop-web" in caught.value.hint

    def test_the_checkouts_own_guests_are_found_and_complete(self):
        for one in recipe.guest_recipes().values():
            assert all(path.is_file() or any(path.iterdir()) for path, _ in one.parts), one.name


class TestBuild:
    def test_secrets_and_labels_are_on_the_command_and_the_context_is_stdin(self):
        one = recipe.node_recipe()
        argv = build.build_argv(one, "abc", builder="default", secrets={"ca": Path("/ca.crt")}, proxies={"http_proxy": "http://p:3128"})
        assert argv[-1] == "-"
        text = " ".join(argv)
        for part in (
            "--secret id=ca,src=/ca.crt",
            "--label emulab.inputs=abc",
            "--label emulab.role=image",
            "--build-arg http_proxy=http://p:3128",
            "--load",
        ):
            assert part in text

    def test_only_indexes_that_a_build_can_reach_are_handed_on(self, tmp_path):
        conf = tmp_path / "pip.conf"
        conf.write_text(
            "[global]\nindex-url = https://index.example/simple\nextra-index-url = file:///opt/simple\n  https://more.example/simple\n"
        )
        assert (
            build.pip_settings({}, (conf,))
            == "[global]\nindex-url = https://index.example/simple\nextra-index-url = https://more.example/simple\n"
        )
        assert build.pip_settings({"PIP_INDEX_URL": "https://env.example/s"}, (conf,)).startswith(
            "[global]\nindex-url = https://env.example/s\n"
        )
        assert build.pip_settings({}, ()) == ""

    def test_a_build_step_is_told_without_its_mounts(self):
        line = '#7 [builder 2/3] RUN --mount=type=secret,id=ca     if [ -s /run/secrets/ca ]; then ca="-o x"; fi;     apt-get $ca update -q'
        assert build.step_of(line) == "2/3 apt-get $ca update -q"
        assert build.step_of("#7 0.5 Get:1 http://mirror") is None

    def test_the_deciding_line_of_a_failed_build_is_the_programs_own(self):
        lines = (
            "#9 1.234 Reading package lists...",
            "#9 1.300 E: Unable to locate package nonsense",
            '#9 ERROR: process "/bin/sh -c apt-get install nonsense" did not complete successfully: exit code: 100',
            "------",
            " > [2/2] RUN apt-get install nonsense:",
            "1.300 E: Unable to locate package nonsense",
            "------",
            "Dockerfile:2",
            "--------------------",
            "   2 | >>> RUN apt-get install nonsense",
            "ERROR: failed to solve: process did not complete successfully: exit code: 100",
        )
        assert build.deciding_line(lines) == "E: Unable to locate package nonsense"


class TestGrants:
    LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max open files            1024                 20000                files
"""

    def test_an_engine_without_the_capability_cannot_raise_its_limits(self):
        assert grants.parse_grants("CapBnd:\t000001fffeffffff\n", self.LIMITS) == grants.Grants(sys_resource=False, open_files=20000)

    def test_an_engine_with_it_can(self):
        assert grants.parse_grants("CapBnd:\t000001ffffffffff\n", self.LIMITS) == grants.Grants(sys_resource=True, open_files=1048576)

    def test_compose_gets_an_entry_that_changes_nothing_in_its_place(self):
        env = project.compose_environment(Settings(), grants.Grants(sys_resource=False, open_files=20000))
        assert env["EMULAB_CAP_SYS_RESOURCE"] == "CHOWN"
        assert env["EMULAB_NOFILE"] == "20000"


class TestSettings:
    def test_the_environment_chooses_another_testbed(self):
        settings = Settings.from_env({"EMULAB_PROJECT": "two", "EMULAB_SUBNET": "198.18.7.0/24", "EMULAB_UI_PORT": "8090"})
        assert (settings.project, settings.lan_prefix, settings.ui_port) == ("two", "198.18.7", 8090)

    @pytest.mark.parametrize(
        "bad",
        [
            {"EMULAB_PROJECT": "Two!"},
            {"EMULAB_SUBNET": "198.18.0.0/16"},
            {"EMULAB_SUBNET": "198.18.0.1/24"},
            {"EMULAB_SUBNET": "lan"},
            {"EMULAB_UI_PORT": "99999"},
            {"EMULAB_UI_PORT": "http"},
        ],
    )
    def test_nonsense_is_the_users_error(self, bad):
        with pytest.raises(UsageError):
            Settings.from_env(bad)

    def test_docker_host_and_context_decide_which_engine(self, monkeypatch, tmp_path):
        monkeypatch.delenv("DOCKER_HOST", raising=False)
        monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        assert endpoint() == "unix:///var/run/docker.sock"
        (tmp_path / "config.json").write_text('{"currentContext": "mine"}')
        assert context_name() == "mine"
        monkeypatch.setenv("DOCKER_HOST", "tcp://far:2375")
        assert (context_name(), endpoint(), socket_path(endpoint())) == ("default", "tcp://far:2375", None)


class TestCompose:
    def test_the_file_and_the_settings_name_the_same_nodes(self):
        content = yaml.safe_load(Settings().compose_file.read_text())
        assert tuple(content["services"]) == NODES
        assert all(service["labels"]["emulab.role"] == "node" for service in content["services"].values())
        assert content["networks"]["lan"]["internal"] is True

    def test_no_node_is_privileged_and_only_the_local_host_reaches_the_head(self):
        content = yaml.safe_load(Settings().compose_file.read_text())
        assert not any(service.get("privileged") for service in content["services"].values())
        assert [service["ports"] for service in content["services"].values() if "ports" in service] == [
            ["127.0.0.1:${EMULAB_UI_PORT:-8089}:8089"]
        ]

    def test_up_never_pulls_and_never_builds(self):
        argv = project.up_argv(Settings(project="two"))
        assert argv[:4] == ("docker", "compose", "-p", "two")
        assert argv[-4:] == ("--remove-orphans", "--no-build", "--pull", "never")

    @pytest.mark.parametrize(
        ("line", "hint"),
        [
            ("Error response from daemon: Bind for 127.0.0.1:8089 failed: port is already allocated", "EMULAB_UI_PORT"),
            (
                "failed to create network two_lan: Error response from daemon: Pool overlaps with other one on this address space",
                "EMULAB_SUBNET",
            ),
            ("Error response from daemon: No such image: emulab/node:latest", "make doctor"),
        ],
    )
    def test_a_failed_start_says_what_to_do(self, line, hint):
        error = project.up_failure(["Container two-head-1  Creating", line, ""])
        assert hint in error.hint
        assert "Creating" not in error.message


class TestLabels:
    @pytest.mark.parametrize(
        "labels",
        [
            None,
            {},
            {"com.docker.compose.project": "emulab"},
            {"emulab.role": "node"},
            {"com.docker.compose.project": "other", "emulab.role": "node"},
        ],
    )
    def test_without_both_labels_it_is_not_ours(self, labels):
        assert not removal.is_ours(labels, "emulab", ("node",))

    def test_with_both_it_is(self):
        assert removal.is_ours({"com.docker.compose.project": "emulab", "emulab.role": "node"}, "emulab", ("node",))

    def test_our_rule_carries_our_comment(self):
        assert "emulab-lan" in frames.rule("br-0123456789ab")


class TestUnpack:
    def test_the_folder_is_named_after_the_image_and_its_id(self):
        image = unpack.describe(
            "olio-web",
            {"Id": "sha256:0123456789abcdef", "Config": {"Entrypoint": ["/init"], "Cmd": ["-f"], "Env": ["A=1"], "WorkingDir": ""}},
        )
        assert (image.folder, image.command, image.environment, image.workdir) == ("olio-web-0123456789ab", ("/init", "-f"), ("A=1",), "/")
        assert image.rootfs == "/var/lib/emulab/images/olio-web-0123456789ab/rootfs"

    @pytest.mark.parametrize(
        ("entry", "expected"),
        [
            ("olio-web-0123456789ab", True),
            (".olio-web-0123456789ab.77", True),
            ("olio-db-0123456789ab", False),
            ("olio-web", False),
            ("my-olio-web-0123456789ab", False),
        ],
    )
    def test_only_versions_of_the_same_image_are_looked_at(self, entry, expected):
        assert unpack._is_version(entry, "olio-web") is expected


class TestLock:
    def test_the_second_is_refused_and_told_who_holds_it(self, tmp_path):
        path = tmp_path / "lock"
        refused = pytest.raises(UsageError, match=rf"an experiment \(pid {os.getpid()}, since .*\) is under way")
        with exclusive("an experiment", path), refused, exclusive("another", path):
            pytest.fail("both held it")
        with exclusive("another", path):
            assert path.read_text().startswith("another")

    def test_a_killed_holder_holds_nothing(self, tmp_path):
        path = tmp_path / "lock"
        code = """if True:
            import sys, time
            from pathlib import Path
            from emulab.engine.lock import exclusive
            with exclusive("a run", Path(sys.argv[1])):
                print("held", flush=True)
                time.sleep(60)
            """
        holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="a run"), exclusive("another", path):
            pytest.fail("both held it")
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
        with exclusive("another", path), path.open() as same, pytest.raises(BlockingIOError):
            fcntl.flock(same, fcntl.LOCK_EX | fcntl.LOCK_NB)


class TestStreaming:
    def test_lines_come_one_by_one_and_the_code_at_the_end(self):
        lines = []
        done = run_lines(("sh", "-c", "cat; echo wrong >&2; exit 3"), lines.append, stdin=b"one\ntwo\n")
        assert (done.code, done.late, lines) == (3, False, ["one", "two", "wrong"])

    def test_a_silent_program_is_given_up(self):
        start = time.monotonic()
        done = run_lines(("sleep", "30"), first_line_s=0.2)
        assert done.late
        assert not done.ok
        assert time.monotonic() - start < 20

    def test_one_that_has_spoken_is_not(self):
        done = run_lines(("sh", "-c", "echo here; sleep 0.5; echo done"), first_line_s=0.3)
        assert done.ok
        assert done.tail == ("here", "done")

    def test_a_missing_program_is_an_outcome(self):
        assert run_lines(("/no/such/program",)).code == 127
