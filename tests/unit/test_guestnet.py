"""The guest's network around a move: what is in flight, its neighbours, and what its new namespace is told."""

from __future__ import annotations

import contextlib
import json
import os
import socket

import pytest

from emulab.command import Outcome, Runner
from emulab.migration import guestnet


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def rows_of(port):
    """Rows of this process's own table that belong to a port, by way of what the kernel prints."""
    with open("/proc/self/net/tcp") as table:
        return [line for line in table if f":{port:04X} " in line]


def counted(kind, steps):
    """How the number of this machine's connections changes with each step, the first time that its other ones leave it alone."""
    for _ in range(50):
        before, found = getattr(guestnet.connections(os.getpid()), kind), []
        with contextlib.ExitStack() as stack:
            for step in steps:
                step(stack)
                found.append(getattr(guestnet.connections(os.getpid()), kind) - before)
        yield found


def test_a_connection_that_nobody_has_accepted_is_in_flight(server):
    port = server.getsockname()[1]

    def connect(stack):
        stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert rows_of(port)

    def accept(stack):
        stack.enter_context(server.accept()[0])

    assert [1, 0] in counted("in_flight", (connect, accept))


def test_established_connections_are_counted_at_both_ends(server):
    def establish(stack):
        stack.enter_context(socket.create_connection(server.getsockname()))
        stack.enter_context(server.accept()[0])

    assert [2] in counted("established", (establish,))


def test_connections_over_ipv6_count_too():
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=64) as server:
        assert [1] in counted("in_flight", (lambda stack: stack.enter_context(socket.create_connection(server.getsockname()[:2])),))


def test_a_process_that_has_gone_has_no_connections():
    assert guestnet.connections(4194304) == guestnet.Connections(0, 0)


def answering(text):
    return Runner(lambda command: Outcome(command, 0, text, "", 0.0, 0.0))


def test_only_neighbours_whose_mac_is_known_are_taken_along():
    recorded = json.dumps(
        [
            {"dst": "198.18.0.10", "lladdr": "02:42:c6:12:00:0a", "state": ["REACHABLE"]},
            {"dst": "198.18.0.15", "state": ["FAILED"]},
            {"dst": "198.18.0.101", "lladdr": "02:65:6d:12:00:65", "state": ["STALE"]},
        ]
    )
    assert guestnet.neighbours(1, answering(recorded)) == [
        ("198.18.0.10", "02:42:c6:12:00:0a"),
        ("198.18.0.101", "02:65:6d:12:00:65"),
    ]


@pytest.mark.parametrize("text", ["", "Cannot open network namespace"])
def test_without_an_answer_there_are_no_neighbours(text):
    assert guestnet.neighbours(1, answering(text)) == []
