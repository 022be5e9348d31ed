"""An agent is killed, at rest and at every stage of a migration: its successor takes over, and exactly one guest runs, itself."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from conftest import TAKES_ROUNDS, agent_of, answers, settled, wait_until
from killing import AGENT, Kill

from emulab.errors import EmulabError
from emulab.testbed.testbed import PYTHON

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]


def test_an_agent_that_is_killed_at_rest_is_followed_by_one_that_knows_its_guests(moving, start):
    guest = start()
    with guest.under_requests() as requests:
        first = agent_of(moving, "host1")
        with Kill(moving, "host1", AGENT) as kill:
            assert kill.happened()
        wait_until(lambda: answers(moving, "host1"))
        assert agent_of(moving, "host1") != first
        assert guest.runs_only_here() == "host1"
        assert guest.move("host2")["outcome"] == "committed"
        assert guest.runs_only_here() == "host2"
    assert requests["requests"] > 100


MOMENTS = [
    pytest.param("host1", ("program", *TAKES_ROUNDS), "host1", id="source in a round"),
    pytest.param("host1", ("program", "criu", "dump"), "host1", id="source at the final dump"),
    pytest.param("host2", ("journal", '"prepared"'), "host1", id="destination while memory arrives"),
    pytest.param("host2", ("program", "criu", "restore"), "host1", id="destination at the restore"),
    pytest.param("host1", ("journal", '"commit"'), None, id="source at the commit"),
    pytest.param("host2", ("journal", '"commit"'), None, id="destination at the commit"),
    pytest.param("host1", ("journal", '"released"'), "host2", id="source after the commit"),
]


@pytest.mark.parametrize(("node", "moment", "ends_on"), MOMENTS)
def test_an_agent_is_killed_during_a_migration(moving, start, node, moment, ends_on):
    """``ends_on``: None where the moment alone does not decide on which side of the commit it fell."""
    guest = start()
    with guest.under_requests():
        errors = []
        with Kill(moving, node, AGENT, moment=moment) as kill:
            thread = threading.Thread(target=attempt, args=(guest, "host2", errors))
            thread.start()
            assert kill.happened()
            thread.join(100)
        wait_until(lambda: answers(moving, node))
        assert settled(guest) in ({ends_on} if ends_on else {"host1", "host2"})
    if ends_on == "host1":
        assert errors
    to = "host3"
    assert guest.move(to)["outcome"] == "committed"
    assert guest.runs_only_here() == to


def attempt(guest, to, errors):
    try:
        guest.move(to)
    except EmulabError as error:
        errors.append(error)


def test_a_guest_that_came_back_is_not_taken_for_one_that_has_left(moving, start):
    """The journal of its first node still says that it was given away."""
    guest = start()
    for to in ("host2", "host1"):
        assert guest.move(to)["outcome"] == "committed"
    with guest.under_requests():
        for moment in (("now",), ("program", "criu", "dump")):
            errors = []
            with Kill(moving, "host1", AGENT, moment=moment) as kill:
                thread = threading.Thread(target=attempt, args=(guest, "host2", errors))
                if moment != ("now",):
                    thread.start()
                assert kill.happened()
                if moment != ("now",):
                    thread.join(100)
            wait_until(lambda: answers(moving, "host1"))
            assert settled(guest) == "host1"


_LEFT = """
import shutil, subprocess, tempfile, time
from emulab.agent.recovery import _wait_for_criu
with tempfile.TemporaryDirectory() as folder:
    criu = shutil.copy("/bin/sleep", f"{folder}/criu")
    short, long = (subprocess.Popen((criu, seconds)) for seconds in ("0.5", "60"))
    time.sleep(0.2)
    _wait_for_criu(patience_s=1.0)
    print(short.wait(5), long.wait(5))
"""


def test_a_criu_that_does_not_end_with_its_agent_is_ended(moving):
    """One whose tasks it still holds gets its time; a child that it had forked when it was killed would sleep for ever."""
    done = moving.project.exec_run("host4", (PYTHON, "-c", _LEFT))
    assert done.stdout.split() == ["0", "-9"], done.stderr
