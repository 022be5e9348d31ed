"""A guest whose writable layer lies on a volume of all hosts: nothing is copied, one host at a time uses it, accidents leave it whole."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from conftest import answers, settled, wait_until
from killing import AGENT, Kill

from emulab.agent.rpc import RemoteError
from emulab.errors import EmulabError

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]

# Writes lines all the time: at the destination none may be missing or there twice.
_LINES = """
import itertools, time
with open('/var/tmp/lines', 'a', buffering=1) as file:
    for number in itertools.count(1):
        file.write(f'{number}\\n')
        time.sleep(0.02)
"""
WRITER = f'setsid python3 -c "{_LINES}" </dev/null >/dev/null 2>&1 & exit 0'


def in_guest(guest, command):
    return guest.testbed.exec_in_guest(guest.name, ("sh", "-c", command))


def users(testbed, node="host5"):
    return testbed.project.exec_run(node, ("sh", "-c", "ls -d /var/lib/emulab/shared/check/work-* | sed s/.*work-//")).stdout.split()


def test_files_written_until_the_freeze_are_there_and_none_was_copied(moving, start):
    guest = start(storage="shared")
    in_guest(guest, WRITER)
    for to, strategy in (("host2", "pre-copy"), ("host3", "stop-and-copy")):
        record = guest.move(to, strategy=strategy)
        assert (record["outcome"], record["layer_bytes"]) == ("committed", 0)
        assert guest.runs_only_here() == to
        assert users(moving) == [to]
        numbers = [int(line) for line in in_guest(guest, "cat /var/tmp/lines").split()]
        assert numbers == list(range(1, len(numbers) + 1))
    assert "the guest is ready" in moving.call("host3", "vm.logs", name="check", lines=100_000)
    assert moving.stop_guest("check") == "host3"
    assert moving.project.exec_run("host1", ("ls", "/var/lib/emulab/shared")).stdout == ""


def test_after_an_abort_the_source_goes_on_with_its_layer(moving, start):
    guest = start(storage="shared")
    in_guest(guest, "echo kept >/var/tmp/kept")
    with pytest.raises(RemoteError) as caught:
        guest.move("host2", max_blackout_s=0.0001)
    assert "check runs on host1" in caught.value.message
    for moment in (("program", "criu", "restore"), ("journal", '"prepared"')):
        with Kill(moving, "host2", AGENT, moment=moment) as kill:
            with pytest.raises(EmulabError):
                guest.move("host2")
            assert kill.happened()
        wait_until(lambda: answers(moving, "host2"))
        assert settled(guest) == "host1"
        assert users(moving) == ["host1"]
        assert in_guest(guest, "cat /var/tmp/kept; echo more >>/var/tmp/kept").startswith("kept\n")
    assert guest.move("host2")["outcome"] == "committed"
    assert in_guest(guest, "cat /var/tmp/kept") == "kept\nmore\nmore\n"


def test_a_source_whose_agent_dies_after_the_commit_leaves_the_layer_to_the_destination(moving, start):
    guest = start(storage="shared")
    in_guest(guest, "echo kept >/var/tmp/kept")
    with Kill(moving, "host1", AGENT, moment=("journal", '"commit"')) as kill:
        with pytest.raises(EmulabError):
            guest.move("host2")
        assert kill.happened()
    wait_until(lambda: answers(moving, "host1"))
    node = settled(guest)
    assert users(moving) == [node]
    assert in_guest(guest, "cat /var/tmp/kept") == "kept\n"


def test_a_layer_in_use_is_not_started_from_elsewhere(moving, start):
    start(storage="shared", WORKERS="1", PAGES="100")
    spec = {**moving.find("check")}
    with pytest.raises(RemoteError, match="in use on host1"):
        moving.call("host2", "vm.start", spec=spec)
    assert [guest["state"] for guest in moving.guests()] == ["running"]
