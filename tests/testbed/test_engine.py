"""The testbed on a real engine, under another name than the user's: up, in use, down, and nothing left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emulab.command import CommandError
from emulab.engine import NODES, Project, Settings, connect, ensure_images, frames, images, removal
from emulab.errors import EngineError, UsageError

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]

SETTINGS = Settings(project="emulab-test", subnet="198.18.128.0/24", ui_port=0)
STRANGER = "emulab-test-stranger"


def traces():
    """Everything of the test's project that this machine still has, by kind."""
    client = connect()
    label = {"label": f"com.docker.compose.project={SETTINGS.project}"}
    networks = client.networks.list(filters=label)
    bridges = [frames.bridge_name(network.id) for network in networks]
    found = {
        "containers": [container.name for container in client.containers.list(all=True, filters=label)],
        "networks": [network.name for network in networks],
        "volumes": [volume.name for volume in client.volumes.list(filters=label)],
        "bridges": [name for name in bridges if Path("/sys/class/net", name).exists()],
    }
    return {kind: names for kind, names in found.items() if names}


def remains(container_ids, bridge):
    """Mounts, cgroups, processes and interfaces that belonged to these containers."""
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if any(one in line for one in container_ids)]
    cgroups = [path for path in Path("/sys/fs/cgroup").rglob("*") if path.is_dir() and any(one in path.name for one in container_ids)]
    processes = []
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            processes += [path.parent.name] if any(one in path.read_text() for one in container_ids) else []
        except OSError:
            continue
    return mounts + cgroups + processes + ([bridge] if Path("/sys/class/net", bridge).exists() else [])


def remove_stranger():
    """Remove the container that looks like the project's but lacks our label: a run killed half way cannot have, and `down` must not."""
    for container in connect().containers.list(all=True, filters={"name": f"^{STRANGER}$"}):
        container.remove(force=True)


@pytest.fixture(scope="module")
def node_image():
    ensure_images(connect(), ["node"])


@pytest.fixture(scope="module")
def testbed(node_image):
    """Six nodes, up."""
    remove_stranger()
    project = Project(SETTINGS)
    project.gc(image_tags=False)
    project.up()
    yield project
    project.gc(image_tags=False)
    assert traces() == {}


class TestUp:
    def test_six_nodes_run_at_their_addresses_and_their_agents_answer(self, testbed):
        rows = testbed.status()
        assert [(row.name, row.state) for row in rows] == [(node, "running") for node in NODES]
        assert [row.address for row in rows] == [f"198.18.128.{10 + n}" for n in range(6)]
        assert all(testbed.exec_run(node, ("python", "-m", "emulab.agent.connect")).ok for node in NODES)

    def test_a_second_up_keeps_the_nodes(self, testbed):
        before = [row.started_at for row in testbed.status()]
        testbed.up()
        assert [row.started_at for row in testbed.status()] == before

    def test_nodes_hold_the_capabilities_asked_for_and_no_more(self, testbed):
        status = testbed.exec_run("host1", ("sh", "-c", "grep CapBnd /proc/self/status")).stdout
        held = int(status.split()[1], 16)
        names = {"SYS_MODULE": 16, "SYS_RAWIO": 17, "SYS_BOOT": 22, "SYS_TIME": 25, "MAC_ADMIN": 33, "SYSLOG": 34}
        assert not [name for name, bit in names.items() if held >> bit & 1]
        assert held >> 21 & held >> 12 & held >> 19 & 1  # SYS_ADMIN, NET_ADMIN, SYS_PTRACE

    def test_no_node_reaches_beyond_the_machine(self, testbed):
        code = "import socket; s = socket.socket(); s.settimeout(2); s.connect(('192.0.2.1', 80))"
        for node in ("head", "host1"):
            outcome = testbed.exec_run(node, ("python", "-c", code))
            assert not outcome.ok
            assert "unreachable" in outcome.stderr or "timed out" in outcome.stderr

    def test_criu_finds_what_it_needs(self, testbed):
        outcome = testbed.exec_run("host2", ("criu", "check"))
        assert outcome.ok, outcome.stderr
        version = testbed.exec_run("host2", ("criu", "--version")).stdout.split("\n")[0].split()[-1]
        assert tuple(map(int, version.split(".")[:2])) >= (4, 2)

    def test_the_image_keeps_nothing_of_this_machines_trust(self, testbed):
        script = "ls -A /run/secrets /etc/pip.conf 2>/dev/null; cat /etc/ssl/certs/ca-certificates.crt | sha256sum"
        inside = testbed.exec_run("head", ("sh", "-c", script)).stdout.split()
        assert len(inside) == 2  # the sum and "-": no secret, no pip configuration


class TestFrames:
    def test_guest_like_frames_pass_the_lans_bridge(self, testbed):
        assert frames.pass_through(frames.bridge_name(testbed._lan_id()), SETTINGS.lan_prefix)

    def test_a_strangers_rule_that_eats_them_is_overruled_and_ours_goes_with_the_lan(self, testbed):
        if not frames.filtered():
            pytest.skip("this machine's packet filter does not see bridged frames")
        network = testbed._lan_id()
        bridge = frames.bridge_name(network)
        stranger = ("FORWARD", "-i", bridge, "-o", bridge, "-j", "DROP")
        subprocess.run(("iptables", "-w", "-I", *stranger), check=True)
        try:
            assert not frames.pass_through(bridge, SETTINGS.lan_prefix)
            assert "iptables" in frames.ensure_pass(network, SETTINGS.lan_prefix)
            assert frames.pass_through(bridge, SETTINGS.lan_prefix)
            frames.forget(network)
            rules = subprocess.run(("iptables", "-w", "-S", "FORWARD"), check=True, capture_output=True, text=True).stdout
            assert f"-i {bridge} -o {bridge} -m comment" not in rules
        finally:
            subprocess.run(("iptables", "-w", "-D", *stranger), check=True)


class TestChannel:
    def test_output_error_and_code_come_apart(self, testbed):
        outcome = testbed.exec_run("host1", ("sh", "-c", "cat; echo wrong >&2; exit 3"), stdin=b"x" * 300_000)
        assert (outcome.code, outcome.stdout, outcome.stderr) == (3, "x" * 300_000, "wrong")

    def test_a_command_that_takes_too_long_is_killed_in_the_node(self, testbed):
        assert testbed.exec_run("host1", ("sleep", "987"), timeout_s=1).code == 124
        deadline = time.monotonic() + 10
        while testbed.exec_run("host1", ("pgrep", "-f", "sleep 987")).ok and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not testbed.exec_run("host1", ("pgrep", "-xf", "sleep 987")).ok

    def test_a_stream_is_duplex_and_ends_at_both_ends(self, testbed):
        with testbed.exec_stream("host1", ("cat",)) as stream:
            stream.write(b"there")
            assert stream.read() == b"there"
            stream.close_stdin()
            assert stream.read() == b""
            assert stream.wait() == 0

    def test_files_go_in_whole_and_come_out_alike(self, testbed, tmp_path):
        data = os.urandom(200_000)
        testbed.put_bytes("host1", "/run/emulab/folder/file", data, mode=0o600)
        written = testbed.copy_from("host1", "/run/emulab/folder", tmp_path)
        assert written == [tmp_path / "folder/file"]
        assert written[0].read_bytes() == data
        with pytest.raises(EngineError, match="No such file"):
            testbed.copy_from("host1", "/no/such/file", tmp_path)
        with pytest.raises(CommandError):
            testbed.put_bytes("host1", "/proc/nowhere/file", data)

    def test_links_and_paths_of_a_node_lead_nowhere_outside(self, testbed, tmp_path):
        script = "mkdir -p /run/emulab/evil && cd /run/emulab/evil && ln -sf /etc/passwd link && echo safe >file"
        assert testbed.exec_run("host1", ("sh", "-c", script)).ok
        assert testbed.copy_from("host1", "/run/emulab/evil", tmp_path) == [tmp_path / "evil/file"]
        assert not (tmp_path / "evil/link").exists()

    def test_an_unknown_node_is_the_users_error(self, testbed):
        with pytest.raises(UsageError, match="no node 'host9'"):
            testbed.exec_run("host9", ("true",))


class TestGuestImages:
    def test_an_image_is_unpacked_once_for_all_nodes_and_old_versions_go(self, testbed):
        stale = "/var/lib/emulab/images/small-000000000000"
        used = "/var/lib/emulab/images/small-111111111111"
        setup = f"mkdir -p {stale}/rootfs {used}/rootfs /var/lib/emulab/guests/t/u /var/lib/emulab/guests/t/w /var/lib/emulab/guests/t/m"
        assert testbed.exec_run("host3", ("sh", "-c", setup)).ok
        mount = f"lowerdir={used}/rootfs,upperdir=/var/lib/emulab/guests/t/u,workdir=/var/lib/emulab/guests/t/w"
        assert testbed.exec_run("host3", ("mount", "-t", "overlay", "overlay", "-o", mount, "/var/lib/emulab/guests/t/m")).ok
        image = testbed.ensure_guest_image("small", tag="emulab/base:trixie")
        listing = testbed.exec_run("host4", ("ls", "/var/lib/emulab/images")).stdout.split()
        assert image.folder in listing
        assert "small-000000000000" not in listing
        assert "small-111111111111" in listing  # a guest on host3 still stands on it
        assert testbed.exec_run("host5", ("stat", "-c", "%U %a", f"{image.rootfs}/usr/bin/su")).stdout == "root 4755\n"
        said = []
        assert testbed.ensure_guest_image("small", said.append, tag="emulab/base:trixie") == image
        assert said == []
        assert testbed.exec_run("host3", ("umount", "/var/lib/emulab/guests/t/m")).ok

    def test_an_image_that_is_not_built_is_named(self, testbed):
        with pytest.raises(EngineError, match="nothing is not built"):
            testbed.ensure_guest_image("nothing", tag="emulab/nothing:latest")


class TestDown:
    @pytest.fixture
    def up(self, node_image, testbed):
        testbed.up()
        yield testbed
        testbed.up()

    def test_nothing_of_ours_remains(self, up):
        ids = [row.container for row in up.status()]
        bridge = frames.bridge_name(up._lan_id())
        script = "mkdir -p /run/x && mount -t tmpfs none /run/x; unshare --net sleep 1000 & "
        assert up.exec_run(
            "host1",
            (
                "sh",
                "-c",
                script + "for g in /sys/fs/cgroup/freezer /sys/fs/cgroup; do mount -o remount,bind,rw $g; mkdir $g/guest; done; true",
            ),
        ).ok
        removed = up.down()
        assert len(removed.containers) == 6
        assert {name.removeprefix("emulab-test_") for name in removed.networks} == {"lan", "door"}
        assert set(traces().get("volumes", [])) <= {"emulab-test_images"}
        assert {kind for kind in traces() if kind != "volumes"} == set()
        assert remains(ids, bridge) == []
        assert not up.down()

    def test_half_a_testbed_left_by_a_killed_start_is_found(self, up):
        up.down()
        code = (
            "from emulab.engine import Project, Settings; "
            f"Project(Settings(project={SETTINGS.project!r}, subnet={SETTINGS.subnet!r}, ui_port=0)).up()"
        )
        starting = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not removal.our_containers(up.client, SETTINGS.project) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(starting.pid, signal.SIGKILL)
        starting.wait()
        time.sleep(0.5)  # what the engine was told just before
        assert removal.our_containers(up.client, SETTINGS.project)
        assert up.down()
        assert {kind for kind in traces() if kind != "volumes"} == set()

    def test_what_lacks_our_label_is_left_alone(self, up):
        label = {"com.docker.compose.project": SETTINGS.project}
        stranger = up.client.containers.create("emulab/base:trixie", command="true", labels=label, name=STRANGER)
        try:
            removed = up.down()
            assert removed.kept == [f"container {STRANGER}: not labelled as ours"]
            stranger.reload()
        finally:
            remove_stranger()

    def test_a_node_that_is_down_says_how_to_bring_it_up(self, up):
        up.down()
        assert {row.state for row in up.status()} == {"missing"}
        with pytest.raises(EngineError, match="head is not up"):
            up.exec_run("head", ("true",))


class TestFailures:
    def test_an_agent_that_dies_at_start_is_told_with_its_last_words(self, testbed):
        try:
            with pytest.raises(EngineError, match=r"stopped at start: boom"):
                testbed.up(environment={"EMULAB_NODE_COMMAND": "sh -c 'echo boom; exit 1'"})
        finally:
            testbed.down()
            testbed.up()

    def test_a_taken_port_is_told_with_its_remedy(self, testbed):
        port = testbed.client.containers.get(testbed.container("head")).ports["8089/tcp"][0]["HostPort"]
        other = Project(Settings(project="emulab-test-two", subnet="198.18.131.0/24", ui_port=int(port)))
        try:
            with pytest.raises(EngineError) as caught:
                other.up()
            assert "EMULAB_UI_PORT" in caught.value.hint
        finally:
            other.gc(image_tags=False)

    def test_an_overlapping_lan_is_told_with_its_remedy(self, testbed):
        other = Project(Settings(project="emulab-test-two", subnet=SETTINGS.subnet, ui_port=0))
        try:
            with pytest.raises(EngineError) as caught:
                other.up()
            assert "EMULAB_SUBNET" in caught.value.hint
        finally:
            other.gc(image_tags=False)


class TestImages:
    def test_unchanged_inputs_build_nothing(self, node_image):
        said = []
        ensure_images(connect(), ["node"], said.append)
        assert said == []

    def test_a_failing_build_is_told_by_its_own_word(self, node_image, tmp_path, monkeypatch):
        (tmp_path / "Dockerfile").write_text("ARG BASE\nFROM ${BASE}\nRUN echo before && cat /no/such/file\n")
        broken = images.Recipe("broken", "emulab/broken:latest", ((tmp_path, ""),))
        monkeypatch.setattr(images, "recipe", lambda _: broken)
        with pytest.raises(EngineError, match="No such file or directory") as caught:
            ensure_images(connect(), ["broken"])
        log = Path(caught.value.hint.split(": ")[1])
        assert "before" in log.read_text()
        log.unlink()

    def test_changed_inputs_build_again_and_the_old_image_goes(self, node_image, tmp_path, monkeypatch):
        client = connect()
        changing = images.Recipe("changing", "emulab/test-changing:latest", ((tmp_path, ""),))
        monkeypatch.setattr(images, "recipe", lambda _: changing)
        try:
            ids = []
            for content in ("one", "one", "two"):
                (tmp_path / "Dockerfile").write_text(f"ARG BASE\nFROM ${{BASE}}\nRUN echo {content} >/content\n")
                ids.append(ensure_images(client, ["changing"])["changing"])
            assert ids[0] == ids[1] != ids[2]
            assert images.image_id(client, ids[0]) is None
            text = client.containers.run("emulab/test-changing:latest", ["cat", "/content"], remove=True)
            assert text == b"two\n"
        finally:
            client.images.remove("emulab/test-changing:latest", force=True)
