"""Messages that no agent of ours would send, from one who has the key: each ends in an error, none in a dead or hanging agent.

``tests/testbed/test_agent_channel.py`` shows what becomes of those who have no key.
"""

from __future__ import annotations

import json
import string
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from conftest import IMAGE_TAG, SETTINGS, traces, wait_until
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from killing import read_line

from emulab.testbed.testbed import PYTHON

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]

PATIENCE_S = 20
FIELDS = {
    "layer": ("entries", "size"),
    "layer-end": (),
    "folder": ("folder",),
    "files": ("names",),
    "pages": ("name", "pages"),
    "chunk": ("first", "refs"),
    "folder-end": (),
    "hold": (),
    "announce": (),
    "restore": ("chain", "neighbours", "pages", "pages_port"),
    "commit": (),
    "status": ("key",),
    "arrive": ("key", "source", "spec"),
}
ENTRY = ("name", "mode", "uid", "gid", "mtime", "atime", "xattrs", "target", "rdev", "link", "size", "blocks", "replace", "base", "remove")
SPEC = ("name", "image", "address", "vcpus", "memory_bytes", "prefix", "argv", "env")

# -- what is said --------------------------------------------------------------------------------------------------------------------------

names = st.sampled_from(
    [
        "..",
        ".",
        "",
        "/",
        "../x",
        "../../../../etc/emulab-was-here",
        "/etc/emulab-was-here",
        "a/../../../x",
        "a\0b",
        "a",
        "a/b",
        "./a",
        "a" * 300,
    ]
)
numbers = st.sampled_from(
    [0, 1, -1, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**30, 1.5, 1e308, 0o100644, 0o120777, 0o040755, 0o020666, 0o060666]
)
scalars = st.none() | st.booleans() | numbers | names | st.text(string.printable, max_size=12)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(ENTRY) | names, inner, max_size=4), max_leaves=8
)
entries = st.lists(st.fixed_dictionaries({"name": names, "mode": numbers}, optional=dict.fromkeys(ENTRY[2:], values)), max_size=3)


@st.composite
def messages(draw):
    kind = draw(st.sampled_from([*FIELDS, "format-disk", ""]))
    fields = {name: draw(values) for name in FIELDS.get(kind, ("anything",)) if draw(st.integers(0, 5))}
    if "entries" in fields and draw(st.booleans()):
        fields["entries"] = draw(entries)
    return [kind, fields, draw(st.binary(max_size=64)).hex()]


raw_headers = st.binary(max_size=40).map(lambda data: [data.hex()])
conversations = st.lists(messages() | raw_headers, min_size=1, max_size=5)
specs = st.fixed_dictionaries({}, optional=dict.fromkeys(SPEC, values))


# -- who is spoken to ----------------------------------------------------------------------------------------------------------------------

_STATE = """
find /var/lib/emulab -maxdepth 2 -not -name journal.ndjson | sort; ls -A / /etc /run/emulab; ip -br link | wc -l
ls -d /sys/fs/cgroup/guest-* /sys/fs/cgroup/*/guest-* 2>/dev/null; grep -l emulab.node.agen[t] /proc/[0-9]*/cmdline
"""


@pytest.fixture(scope="module")
def say(moving):
    """Holds a conversation with host2's agent; returns ([kinds of its answers], end)."""
    with mouth(moving) as say:
        yield say


@contextmanager
def mouth(moving):
    argv = (PYTHON, "-c", (Path(__file__).parent / "mouth.py").read_text(), moving.addresses["host2"], str(PATIENCE_S))
    with moving.project.exec_stream("host1", argv) as stream:
        assert read_line(stream) == "ready"

        def say(messages):
            stream.write(json.dumps(messages).encode() + b"\n")
            line = read_line(stream)
            assert line, stream.stderr
            return json.loads(line)

        yield say


@pytest.fixture
def unharmed(moving, say):
    """Afterwards the agent is the one it was, with nothing more on its node, and hears who asks it properly."""
    image = moving.project.ensure_guest_image("selfcheck", tag=IMAGE_TAG).folder
    state = moving.project.exec_run("host2", ("sh", "-c", _STATE)).stdout
    yield image
    wait_until(lambda: traces(moving, "host2", "half") == {})
    # Images are removed when the answer is out already.
    wait_until(lambda: moving.project.exec_run("host2", ("sh", "-c", _STATE)).stdout == state)
    assert say([["status", {"key": "nothing"}, ""]]) == [["ok"], "closed"]


_keys = count(1)


def half(image_folder, **changed):
    """The beginning of a migration that will not be one. Like every migration it has a key of its own."""
    spec = {"name": "half", "image": image_folder, "address": f"{SETTINGS.lan_prefix}.98", "vcpus": 1, "memory_bytes": 1 << 28, **changed}
    return ["arrive", {"key": f"half-{next(_keys)}", "source": "host1", "spec": spec}, ""]


def fuzzed(examples):
    return settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def test_whatever_is_said_first_gets_an_error_or_nothing(say, unharmed):
    @fuzzed(40)
    @given(conversations)
    def check(messages):
        answers, end = say(messages)
        assert end == "closed"
        assert "ok" not in answers or messages[0][0] == "status"

    check()


def test_whatever_is_said_during_an_arrival_ends_in_an_error(say, unharmed):
    """Whatever went well before: the last word is an error, or the agent hung up on what is no message."""

    @fuzzed(40)
    @given(conversations)
    @example([["layer", {"entries": [{"name": ".", "mode": 0o040755, "uid": 0, "gid": 0, "mtime": 0, "atime": 0}], "size": 0}, ""]])
    @example([["layer", {"entries": [], "size": 1 << 62}, "28b52ffd"]])
    @example([["files", {"names": [["x", 1 << 62]]}, "28b52ffd"]])
    @example([["commit", {}, ""]])
    @example([["restore", {"chain": ["final", "final"], "neighbours": [], "pages": {}}, ""]])
    def check(messages):
        answers, end = say([half(unharmed), *messages])
        assert end == "closed"
        assert answers[0] == "ok"
        assert answers[-1] == "error" or any(len(message) == 1 for message in messages)

    check()


def test_a_guest_that_is_none_cannot_arrive(say, unharmed):
    @fuzzed(40)
    @given(specs)
    def check(spec):
        usable = {key: value for key, value in spec.items() if key in ("name", "image")} or {"name": "../half"}
        answers, end = say([half(unharmed, **{**spec, **usable})])
        assert end == "closed"
        assert answers in (["error"], []) or (answers[0] == "ok" and answers[-1] == "error")

    check()
