"""The port on which agents listen for each other: only who has the testbed's key is heard, and nobody can bring an agent down.

Each attack runs on one node against another's agent; afterwards that agent must answer its peers as before.
"""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import IMAGE_TAG, SETTINGS, traces, wait_until

from emulab.testbed.testbed import PYTHON

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(120)]

# What every attacker can use. Each attack sets ``result``.
_COMMON = """
import json, os, socket, struct, sys, threading
from emulab.migration.channel import PORT, Peer, PeerError, PeerLostError, connect
host, secret = sys.argv[1], bytes.fromhex(sys.argv[2])
result = None

def plain():
    connection = socket.create_connection((host, PORT), timeout=10)
    return connection

def everything(connection):
    parts = b""
    try:
        while part := connection.recv(65536):
            parts += part
    except OSError:
        pass
    return parts

def answer(peer):
    try:
        return peer.receive(10).kind
    except PeerLostError:
        return "closed"

def tls_records(data):
    kinds = []
    while len(data) >= 5:
        kinds.append(data[0])
        data = data[5 + int.from_bytes(data[3:5], "big"):]
    return kinds
"""


@pytest.fixture(scope="module")
def key(moving):
    """The testbed's key, made known to the test."""
    secret = secrets.token_hex(32)
    for node in moving.addresses:
        moving.call(node, "node.configure", peers=moving.addresses, secret=secret, rate_bit_s=10**9, subnet=moving.settings.subnet)
    return secret


@pytest.fixture
def attack(moving, key):
    """Runs code on host1 against host2's agent; returns its ``result``. Then checks that the agent is as it was."""

    def run(code, secret=None):
        argv = (PYTHON, "-c", f"{_COMMON}\n{code}\nprint(json.dumps(result))", moving.addresses["host2"], secret or key)
        outcome = moving.project.exec_run("host1", argv, timeout_s=60)
        assert outcome.ok, outcome.stderr
        return json.loads(outcome.stdout.splitlines()[-1])

    yield run
    assert run(_ASK) == "unknown"
    assert moving.call("host2", "ping")["configured"]


_ASK = """
peer = connect(host, secret)
result = peer.ask("status", key="nothing-of-this-name")["state"]
"""


def test_who_has_the_key_is_answered(attack):
    assert attack(_ASK) == "unknown"


def test_a_wrong_key_is_refused(attack):
    code = """
try:
    connect(host, secret).ask("status", key="x")
    result = "heard"
except PeerLostError:
    result = "refused"
"""
    assert attack(code, secret="00" * 32) == "refused"


def test_plain_text_is_not_heard(attack):
    """Neither garbage nor a well-formed request without the key's protection."""
    code = """
result = []
header = json.dumps({"kind": "status", "key": "x"}).encode()
request = struct.pack(">II", len(header), 0) + header
for data in (os.urandom(5000), b"GET / HTTP/1.1\\r\\n\\r\\n", request, b"\\x16\\x03\\x01\\xff\\xff" + bytes(70000)):
    with plain() as connection:
        try:
            connection.sendall(data)
        except OSError:
            pass
        result.append(b"state" in everything(connection))
"""
    assert attack(code) == [False] * 4


def test_a_header_that_promises_too_much_ends_the_connection(attack):
    code = """
result = []
for head in ((0xFFFFFFFF, 0), (2, 0xFFFFFFFF), (17 << 20, 0)):
    peer = connect(host, secret)
    peer._connection.sendall(struct.pack(">II", *head) + b"{}")
    result.append(answer(peer))
"""
    assert attack(code) == ["closed"] * 3


def test_headers_without_sense_end_the_connection(attack):
    code = """
result = []
for header in (b"not json", b"[1]", b"{}", b"\\xff\\xfe", b"null"):
    peer = connect(host, secret)
    peer._connection.sendall(struct.pack(">II", len(header), 0) + header)
    result.append(answer(peer))
"""
    assert attack(code) == ["closed"] * 5


def test_unknown_requests_and_incomplete_ones_are_errors(attack):
    code = """
result = []
outside = {"key": "../x", "spec": {}, "source": "y"}
for kind, fields in (("format-disk", {}), ("arrive", {}), ("arrive", outside), ("status", {}), ("arrive", {"spec": []})):
    peer = connect(host, secret)
    peer.send(kind, **fields)
    result.append(answer(peer) in ("error", "closed"))
"""
    assert attack(code) == [True] * 5


@pytest.fixture(scope="module")
def image(moving):
    """Folder of a guest image that every node has."""
    return moving.project.ensure_guest_image("selfcheck", tag=IMAGE_TAG).folder


def arrival(name, image, key="key-1"):
    spec = {"name": name, "image": image, "address": f"{SETTINGS.lan_prefix}.98", "vcpus": 1, "memory_bytes": 1 << 28}
    return f"""
peer = connect(host, secret)
peer.send("arrive", key={key!r}, source="host1", spec={spec!r})
result = answer(peer)
"""


_LISTING = """
find /var/lib/emulab -maxdepth 2 -not -name journal.ndjson; ls -A / /etc /run/emulab; ip -br link
ls -d /sys/fs/cgroup/guest-* /sys/fs/cgroup/*/guest-* 2>/dev/null
"""


@pytest.mark.parametrize("name", ["../../etc", "../x", "a/b", "", ".", "x" * 200])
def test_a_guest_with_a_name_that_is_none_cannot_arrive(moving, attack, image, name):
    before = moving.project.exec_run("host2", ("sh", "-c", _LISTING)).stdout
    assert attack(arrival(name, image)) in {"error", "closed"}
    assert moving.project.exec_run("host2", ("sh", "-c", _LISTING)).stdout == before


@pytest.mark.parametrize("other", ["../guests", "..", ".", "/etc", "none"])
def test_a_guest_of_an_image_that_is_none_cannot_arrive(moving, attack, other):
    before = moving.project.exec_run("host2", ("sh", "-c", _LISTING)).stdout
    assert attack(arrival("half", other)) in {"error", "closed"}
    assert moving.project.exec_run("host2", ("sh", "-c", _LISTING)).stdout == before


@pytest.mark.parametrize("migration", ["../x", "", "a/b"])
def test_a_migration_with_a_name_that_is_none_cannot_begin(moving, attack, image, migration):
    before = moving.project.exec_run("host2", ("sh", "-c", _LISTING)).stdout
    assert attack(arrival("half", image, migration)) in {"error", "closed"}
    assert moving.project.exec_run("host2", ("sh", "-c", _LISTING)).stdout == before


def test_an_earlier_conversation_cannot_be_played_again(attack):
    """Its bytes are recorded by one who sits between the two, and sent again to the agent: it answers nothing to the request in them."""
    code = """
recorded = bytearray()
relay = socket.create_server(("127.0.0.1", 0))

def pump(source, target, note):
    while data := source.recv(65536):
        if note:
            recorded.extend(data)
        target.sendall(data)

def sit_between():
    client, _ = relay.accept()
    server = plain()
    threading.Thread(target=pump, args=(server, client, False), daemon=True).start()
    pump(client, server, True)

threading.Thread(target=sit_between, daemon=True).start()
peer = connect("127.0.0.1", secret, port=relay.getsockname()[1])
heard = peer.ask("status", key="x")["state"]
with plain() as connection:
    connection.sendall(recorded)
    connection.settimeout(10)
    result = {"first": heard, "recorded": 23 in tls_records(bytes(recorded)), "again": 23 in tls_records(everything(connection))}
"""
    assert attack(code) == {"first": "unknown", "recorded": True, "again": False}


def test_changed_bytes_within_a_conversation_end_it(attack):
    code = """
relay = socket.create_server(("127.0.0.1", 0))

def pump(source, target, change):
    try:
        while data := source.recv(65536):
            if change and data[0] == 23:
                data = data[:-1] + bytes([data[-1] ^ 1])
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass

def sit_between():
    client, _ = relay.accept()
    server = plain()
    threading.Thread(target=pump, args=(server, client, False), daemon=True).start()
    pump(client, server, True)

threading.Thread(target=sit_between, daemon=True).start()
try:
    result = connect("127.0.0.1", secret, port=relay.getsockname()[1]).ask("status", key="x", timeout_s=10)
except PeerLostError:
    result = "lost"
"""
    assert attack(code) == "lost"


def test_a_record_played_again_within_its_conversation_ends_it(attack):
    """One who sits between the two sends the client's first request twice: the agent answers once and hangs up."""
    code = """
relay = socket.create_server(("127.0.0.1", 0))
heard = bytearray()

def pump(source, target, again):
    try:
        while data := source.recv(65536):
            heard.extend(b"" if again else data)
            if again and data[0] == 23:
                data, again = data * 2, False
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass

def sit_between():
    client, _ = relay.accept()
    server = plain()
    back = threading.Thread(target=pump, args=(server, client, False), daemon=True)
    back.start()
    pump(client, server, True)

threading.Thread(target=sit_between, daemon=True).start()
peer = connect("127.0.0.1", secret, port=relay.getsockname()[1])
peer.send("arrive", key="twice", source="host1", spec={})
while answer(peer) != "closed":
    pass
result = tls_records(bytes(heard)).count(23)
"""
    assert attack(code) <= 1


def test_a_destination_without_the_key_is_not_given_a_guest(attack):
    """Both sides prove that they have the key: a listener with another one learns nothing."""
    code = """
from emulab.migration.channel import Listener
seen = []
false = Listener("127.0.0.1", b"another key of 32 bytes, not ours", lambda peer, address: seen.append(peer.receive(5).kind), port=0)
threading.Thread(target=false.accept_forever, daemon=True).start()
try:
    connect("127.0.0.1", secret, port=false.port).ask("arrive", key="x", timeout_s=5)
    result = "trusted"
except PeerLostError:
    result = seen
"""
    assert attack(code) == []


def test_a_handshake_that_never_ends_is_cut_off_and_keeps_nobody_out(attack):
    """A byte every half second, and hellos that stop in the middle."""
    code = """
import time
hello = b"\\x16\\x03\\x01\\x00\\xc8" + bytes(200)
dribbling = [plain() for _ in range(20)]
for connection in [plain() for _ in range(20)]:
    connection.sendall(hello[:20])
begun, at, ended, asked = time.monotonic(), 0, 0, []
while ended < len(dribbling) and time.monotonic() < begun + 30:
    for connection in dribbling:
        try:
            connection.sendall(hello[at : at + 1])
        except OSError:
            pass
    at += 1
    before = time.monotonic()
    assert connect(host, secret).ask("status", key="x")["state"] == "unknown"
    asked.append(time.monotonic() - before)
    time.sleep(0.5)
    ended = 0
    for connection in dribbling:
        connection.setblocking(False)
        try:
            ended += connection.recv(1) == b""
        except BlockingIOError:
            pass
        except OSError:
            ended += 1
result = ended
"""
    assert attack(code) == 20


def test_many_silent_connections_do_not_keep_others_out(attack):
    code = """
silent = [plain() for _ in range(40)]
result = connect(host, secret).ask("status", key="x")["state"]
"""
    assert attack(code) == "unknown"


def test_a_connection_that_breaks_in_the_middle_of_an_arrival_leaves_nothing(moving, attack, image):
    code = """
peer.send("layer", b"", entries=[], size=0)
peer.close()
"""
    assert attack(arrival("half", image) + code) == "ok"
    wait_until(lambda: traces(moving, "host2", "half") == {})
