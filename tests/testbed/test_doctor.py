"""The doctor on this very machine: after a repair nothing is wrong, and a second look changes nothing."""

import pytest

from emulab.command import Runner
from emulab.doctor import all_items, check_all, kernel, repair
from emulab.engine import connect

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(1500)]


def test_after_a_repair_everything_is_there_and_a_second_one_does_nothing():
    results = repair(all_items())
    assert [(result.item.name, result.finding.text) for result in results if result.failed] == []
    said = []
    again = repair(all_items(), said.append)
    assert said == []
    assert not any(result.repaired for result in again)


def test_looking_leaves_the_engine_as_it_is():
    def state():
        client = connect()
        return sorted(str(image.id) for image in client.images.list()), sorted(network.name for network in client.networks.list())

    before = state()
    check_all(all_items())
    assert state() == before


def test_every_missing_kernel_feature_is_noticed(monkeypatch):
    monkeypatch.setattr(kernel, "_LINKS", kernel._LINKS.replace("htb", "no-such-discipline"))
    finding = kernel.check_features(Runner())
    assert finding.status == "failed"
    assert "bridges, veth pairs and HTB" in finding.text
