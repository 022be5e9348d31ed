"""A testbed of the tests' own, up once for all tests that move guests, and guests that can tell whether they are still themselves."""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from emulab.agent.rpc import RemoteError
from emulab.criu import NATIVE
from emulab.criu.tracker import has_write_protect
from emulab.engine import connect, ensure_images
from emulab.engine.recipe import NODE
from emulab.engine.settings import Settings
from emulab.errors import EmulabError
from emulab.node.guest import GuestSpec
from emulab.testbed import Testbed
from emulab.testbed.testbed import HOSTS, PYTHON

sys.path.insert(0, str(Path(__file__).parents[1]))
import waiting
from killing import read_line

# A second checkout on the same machine sets its own, so that both can test at once.
SETTINGS = Settings(
    project=os.environ.get("EMULAB_TEST_PROJECT", "emulab-move"), subnet=os.environ.get("EMULAB_TEST_SUBNET", "198.18.129.0/24"), ui_port=0
)
# A machine whose processor is emulated is that many times slower; a kernel may have one dirty tracker only.
SLOWNESS = float(os.environ.get("EMULAB_TEST_SLOWNESS", "1"))
TRACKER = os.environ.get("EMULAB_DIRTY_TRACKER", "auto")
# The program that is at work in a round of pre-copy.
TAKES_ROUNDS = (str(NATIVE / "tracker"),) if TRACKER != "soft-dirty" and has_write_protect() else ("criu", "pre-dump")
SELFCHECK = Path(__file__).parent / "selfcheck"
IMAGE_TAG = NODE
MEMORY = 512 * 2**20

# Everything of guests that a node has: what a finished or undone migration leaves on the other side must be nothing.
_TRACES = r"""
import json, os, pathlib, sys
names = sys.argv[1:]
guests = pathlib.Path("/var/lib/emulab/guests")
found = {
    "folders": [path.name for path in guests.iterdir() if path.name in names],
    "mounts": [line.split()[1] for line in open("/proc/self/mounts") if any(f"/{name}/" in line.split()[1] for name in names)],
    "ports": [name for name in os.listdir("/sys/class/net") if any(name in (f"vm-{one}", f"xvm-{one}") for one in names)],
    "images": [path.name for path in pathlib.Path("/run/emulab").glob("*") if any(f"-{name}-" in path.name for name in names)],
    "cgroups": [str(path) for pattern in ("guest-*", "*/guest-*") for path in pathlib.Path("/sys/fs/cgroup").glob(pattern)
                if path.name.removeprefix("guest-") in names],
    "blocked": [line.strip() for line in os.popen("nft list table bridge emulab 2>/dev/null") if any(f"vm-{one}" in line for one in names)],
    "processes": [],
}
for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        words = (path / "cmdline").read_bytes().split(b"\0")
        inside = any(f"/guest-{name}" in (path / "cgroup").read_text() for name in names)
    except OSError:
        continue
    if inside or words[0] == b"criu":
        found["processes"].append(b" ".join(words[:2]).decode())
print(json.dumps({kind: values for kind, values in found.items() if values}))
"""


def pytest_collection_modifyitems(config, items):
    """An emulated processor needs longer for every test."""
    for item in items:
        if SLOWNESS == 1 or hasattr(item, "usual_s"):
            continue
        marker = item.get_closest_marker("timeout")
        item.usual_s = float(marker.args[0] if marker else config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(item.usual_s * SLOWNESS), append=False)


class SelfCheckingGuest:
    """A guest of ``selfcheck/guest.py``, wherever it runs."""

    def __init__(self, testbed, name, address):
        self.testbed, self.name, self.address = testbed, name, address

    @property
    def node(self):
        return self.testbed.find(self.name)["node"]

    def report(self):
        return json.loads(self.testbed.exec_in_guest(self.name, ("python3", "-c", (SELFCHECK / "ask.py").read_text())))

    def check(self):
        """Every page of its memory and everything it has open are as they must be."""
        report = self.report()
        assert [worker["bad_pages"] for worker in report["workers"]] == [0] * len(report["workers"])
        assert report["broken"] == []
        return report

    def move(self, to, **options):
        return self.testbed.migrate(self.name, to, {"dirty_tracker": TRACKER, **options})

    @contextmanager
    def under_requests(self):
        """A client on the head talks to it over one connection; at the end no answer may have been wrong or missing."""
        with self.a_client() as result:
            yield result
        assert result["error"] == ""

    @contextmanager
    def a_client(self, program="client.py"):
        """The same, whatever becomes of the client: its ``requests``, ``longest_s`` without an answer and ``error`` are told at the end."""
        argv = (PYTHON, "-c", (SELFCHECK / program).read_text(), self.address)
        result = {}
        with self.testbed.project.exec_stream("head", argv) as stream:
            assert read_line(stream) == "connected"
            yield result
            stream.close_stdin()
            result.update(json.loads(stream.read_all()))

    def runs_only_here(self):
        """Exactly one of it in the whole testbed, running, itself, no trace of it on any other node and none of a migration on its own."""
        found = [guest for guest in self.testbed.guests() if guest["name"] == self.name]
        assert [guest["state"] for guest in found] == ["running"]
        home = found[0]["node"]
        with ThreadPoolExecutor(len(HOSTS)) as pool:
            left = dict(zip(HOSTS, pool.map(lambda node: traces(self.testbed, node, self.name), HOSTS), strict=True))
        at_home = left.pop(home)
        assert {node: found for node, found in left.items() if found} == {}
        assert [name for name in at_home["processes"] if name.startswith("criu")] == []
        assert at_home["ports"] == [f"vm-{self.name}"]
        assert not at_home.keys() & {"images", "blocked"}
        self.check()
        return home


def agent_of(testbed, node):
    """Process number of a node's agent."""
    argv = ("sh", "-c", "for p in /proc/[0-9]*; do grep -qzx emulab.agent.server $p/cmdline 2>/dev/null && basename $p; done; true")
    return int(testbed.project.exec_run(node, argv).stdout.split()[0])


def traces(testbed, node, *names):
    for _ in range(5):
        found = testbed.project.exec_run(node, (PYTHON, "-c", _TRACES, *names))
        if found.ok:
            return json.loads(found.stdout)
        time.sleep(0.2)  # something went away while it was looked at
    raise AssertionError(found.stderr)


@pytest.fixture(scope="session")
def moving():
    """Six nodes, up, under a name of their own."""
    ensure_images(connect(), ["node"])
    testbed = Testbed(SETTINGS)
    testbed.project.gc(image_tags=False)
    testbed.up()
    yield testbed
    testbed.project.gc(image_tags=False)


@pytest.fixture
def start(moving):
    """Starts self-checking guests; they are gone at the end of the test."""
    names = []

    def start(name="check", host="host1", **wanted):
        names.append(name)
        return start_guest(moving, name, host, number=len(names) - 1, **wanted)

    yield start
    for guest in moving.guests():
        if guest["name"] in names:
            wait_until(lambda name=guest["name"]: has_stopped(moving, name))


def has_stopped(testbed, name):
    """Stop a guest; False while a move that has ended is still clearing away."""
    try:
        testbed.stop_guest(name)
    except RemoteError as error:
        if "busy" in error.message:
            return False
        raise
    return True


def start_guest(testbed, name, host, *, number=0, vcpus=1.0, memory=MEMORY, program=None, storage="local", **env):
    """Start a self-checking guest and wait until it answers. ``number`` tells its address from that of others."""
    address = f"{SETTINGS.lan_prefix}.{100 + number}"
    argv = ("python3", "-c", program or (SELFCHECK / "guest.py").read_text())
    spec = GuestSpec(name, "selfcheck", address, vcpus, memory, argv=argv, env=env, storage=storage)
    testbed.start_guest(host, spec, tag=IMAGE_TAG)
    guest = SelfCheckingGuest(testbed, name, address)
    wait_until(lambda: is_ready(guest))
    return guest


def is_ready(guest):
    try:
        return bool(guest.report())
    except EmulabError:
        return False


def wait_until(check, timeout_s=60.0):
    waiting.wait_until(check, timeout_s * SLOWNESS, every_s=0.05)


def answers(testbed, node):
    """Whether the agent of a node is up and knows its testbed."""
    try:
        return testbed.call(node, "ping")["configured"]
    except EmulabError:
        return False


def settled(guest, timeout_s=30.0):
    """One of it runs and nothing of it is left elsewhere: what every accident must come to. Returns where it runs."""
    last = []

    def check():
        try:
            last.append(guest.runs_only_here())
        except (AssertionError, EmulabError, ValueError) as error:
            last.append(error)
            return False
        return True

    try:
        wait_until(check, timeout_s)
    except AssertionError:
        raise last[-1] from None
    return last[-1]
