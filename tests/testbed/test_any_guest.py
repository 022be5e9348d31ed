"""Whatever a program may hold moves with it, by every strategy, and more than once; what cannot move is refused by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import IMAGE_TAG, MEMORY, SELFCHECK, SETTINGS, read_line, wait_until

from emulab.engine import connect, ensure_images
from emulab.errors import EmulabError
from emulab.experiment.guests import wait_for_database
from emulab.node.guest import GuestSpec
from emulab.testbed.testbed import PYTHON

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]


class Holder:
    """A guest of ``selfcheck/holdings.py``."""

    def __init__(self, testbed, name, address):
        self.testbed, self.name, self.address = testbed, name, address

    def report(self):
        return json.loads(self.testbed.exec_in_guest(self.name, ("python3", "-c", (SELFCHECK / "ask.py").read_text())))

    def ready(self):
        try:
            return bool(self.report())
        except EmulabError:
            return False

    def move(self, to, **options):
        return self.testbed.migrate(self.name, to, options)


@pytest.fixture
def hold(moving):
    """Starts a guest that holds things; it is gone at the end of the test."""

    def hold(**env):
        address = f"{SETTINGS.lan_prefix}.160"
        program = (SELFCHECK / "holdings.py").read_text()
        spec = GuestSpec("holder", "selfcheck", address, 1.0, 2 * MEMORY, argv=("python3", "-c", program), env=env)
        moving.start_guest("host1", spec, tag=IMAGE_TAG)
        guest = Holder(moving, "holder", address)
        wait_until(guest.ready)
        return guest

    yield hold
    if any(guest["name"] == "holder" for guest in moving.guests()):
        moving.stop_guest("holder")


def test_whatever_it_holds_moves_with_it_by_every_way_and_twice(hold):
    guest = hold()
    assert guest.report()["broken"] == {}
    for to, strategy in (("host2", "pre-copy"), ("host3", "stop-and-copy"), ("host1", "pre-copy")):
        assert guest.move(to, strategy=strategy, deadline_s=60)["outcome"] == "committed"
        report = guest.report()
        assert report["broken"] == {}, f"after {strategy} to {to}"
        assert len(report["checked"]) == 12


def test_a_database_moves_with_its_transactions_and_clients(moving):
    """Eight clients keep transferring money over three moves; a ninth's transaction is open across each and commits after it."""
    ensure_images(connect(), ["node", "olio-db"])
    address = f"{SETTINGS.lan_prefix}.161"
    moving.start_guest("host1", GuestSpec("db", "olio-db", address, 1.0, 2 * MEMORY, env={"OLIO_DB_BUFFER_POOL": "64M"}))
    try:
        wait_for_database(moving)
        with moving.project.exec_stream("head", (PYTHON, "-c", (SELFCHECK / "bank.py").read_text(), address)) as bank:

            def order(text):
                bank.write(text + b"\n")
                return json.loads(read_line(bank))

            assert json.loads(read_line(bank)) == "ready"
            for number, (to, strategy) in enumerate((("host2", "pre-copy"), ("host3", "stop-and-copy"), ("host1", "pre-copy"))):
                before = order(b"open")
                assert before["visible"] == number
                record = moving.migrate("db", to, {"strategy": strategy, "deadline_s": 60})
                assert record["outcome"] == "committed"
                assert record["tcp_established"] >= 10
                after = order(b"commit")
                assert after["visible"] == number + 1
                assert after["transfers"] > before["transfers"]
            bank.close_stdin()
            books = json.loads(bank.read_all())
        assert books["errors"] == []
        assert books["journal"] == books["transfers"]
        assert books["total"] == 20 * 1000
        assert books["check"] == ["OK"] * 3
    finally:
        moving.stop_guest("db")
