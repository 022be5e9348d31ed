import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from emulab.load.client import Client, RequestError

sys.path.insert(0, str(Path(__file__).parents[1]))
from load_site import KEEPALIVE_S, serve


@pytest.fixture
def site():
    with serve() as running:
        yield running


class Visit:
    """A client and what it reported."""

    def __init__(self, port, *, timeout_s=5.0, keepalive_s=5.0):
        self.seen = []
        self.client = Client("127.0.0.1", port, self.seen.append, timeout_s=timeout_s, keepalive_s=keepalive_s)

    def get(self, path, kind="page", **more):
        return self.client.get(path, kind, **more)

    @property
    def last(self):
        return self.seen[-1]


@pytest.fixture
def visit(site):
    visit = Visit(site.port)
    yield visit
    visit.client.close()


def test_requests_share_one_connection_and_say_so(site, visit):
    for _ in range(3):
        assert visit.get("/probe.txt").body == b"ok\n"
    assert [(one.connection, one.reused, one.status, one.error) for one in visit.seen] == [
        (0, False, 200, None),
        (0, True, 200, None),
        (0, True, 200, None),
    ]
    assert site.connections == 1


def test_a_request_lasts_from_the_first_byte_out_to_the_last_byte_in(visit):
    before = time.monotonic()
    visit.get("/slow?s=0.2")
    after = time.monotonic()
    assert before <= visit.last.start_s < visit.last.end_s <= after
    assert visit.last.end_s - visit.last.start_s >= 0.2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chunked", b"one " + b"two " * 5000 + b"three"),
        ("/unsized", b"until the end"),
        ("/continued", b"real answer"),
        ("/probe.txt", b"ok\n"),
    ],
)
def test_every_way_to_frame_an_answer(site, visit, path, body):
    assert visit.get(path).body == body
    assert visit.get("/probe.txt").body == b"ok\n"
    assert visit.seen[0].size > len(body)


def test_large_answers_arrive_whole(visit):
    assert len(visit.get("/fileService.php?file=x").body) == 6404


def test_a_304_has_no_body(visit):
    answer = visit.get("/js/prototype.js", "static", headers=b"If-Modified-Since: Fri, 01 Jan 2010 00:00:00 GMT\r\n")
    assert (answer.status, answer.body) == (304, b"")
    assert visit.get("/probe.txt").body == b"ok\n"


def test_an_error_status_is_an_answer_and_is_marked(visit):
    assert visit.get("/error").status == 500
    assert visit.last.error == "status 500"
    visit.get("/probe.txt")
    assert visit.last.reused


def test_a_connection_that_the_server_ends_is_not_used_again(visit):
    assert visit.get("/last").body == b"the last on this connection"
    visit.get("/probe.txt")
    assert (visit.last.connection, visit.last.reused, visit.last.error) == (1, False, None)


def test_the_advertised_idle_timeout_is_honoured_with_a_margin(site, visit):
    assert KEEPALIVE_S == 2
    visit.get("/probe.txt")
    time.sleep(0.8)  # less than 2 s - 1 s
    visit.get("/probe.txt")
    assert visit.last.reused
    time.sleep(1.2)  # the server would still take it
    visit.get("/probe.txt")
    assert (visit.last.connection, visit.last.reused, visit.last.error) == (1, False, None)


def test_an_idle_connection_that_the_server_closed_is_noticed_before_the_request(site):
    raw = socket.create_server(("127.0.0.1", 0))
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: timeout=60\r\n\r\nok"

    def answer_once_and_close():
        for _ in range(2):
            connection, _ = raw.accept()
            connection.recv(4096)
            connection.sendall(answer)
            connection.close()

    thread = threading.Thread(target=answer_once_and_close, daemon=True)
    thread.start()
    visit = Visit(raw.getsockname()[1])
    visit.get("/")
    time.sleep(0.2)
    visit.get("/")
    thread.join(5)
    raw.close()
    assert [(one.connection, one.reused, one.error) for one in visit.seen] == [(0, False, None), (1, False, None)]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/vanish", "closed without an answer"),
        ("/reset", "ECONNRESET"),
        ("/short", "closed before the end of the answer"),
        ("/garbage", "not an HTTP answer"),
    ],
)
def test_failures_are_reported_and_nothing_is_sent_twice(site, visit, path, error):
    visit.get("/probe.txt")
    with pytest.raises(RequestError, match=error):
        visit.get(path)
    assert (visit.last.error, visit.last.status, visit.last.connection, visit.last.reused) == (error, 0, 0, True)
    time.sleep(0.1)
    assert [request[1] for request in site.requests] == ["/probe.txt", path]
    visit.get("/probe.txt")
    assert (visit.last.connection, visit.last.error) == (1, None)


@pytest.mark.parametrize("path", ["/slow?s=3", "/drip"])
def test_the_timeout_limits_the_whole_request(site, path):
    visit = Visit(site.port, timeout_s=0.4)
    with pytest.raises(RequestError, match="timeout"):
        visit.get(path)
    assert visit.last.error == "timeout"
    assert 0.4 <= visit.last.end_s - visit.last.start_s < 1.5
    assert [request[1] for request in site.requests] == [path]


def test_a_timeout_while_connecting_is_told_apart():
    with socket.socket() as full:
        # A full backlog: further connections wait unanswered.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            waiting.append(one)
        visit = Visit(port, timeout_s=0.3)
        with pytest.raises(RequestError, match="connect timeout"):
            visit.get("/")
        assert (visit.last.status, visit.last.reused, visit.last.connection) == (0, False, 0)
        for one in waiting:
            one.close()


def test_a_refused_connection_is_reported():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        visit = Visit(unused.getsockname()[1])
        with pytest.raises(RequestError, match="connect: ECONNREFUSED"):
            visit.get("/")
    assert visit.last.status == 0


def test_a_request_survives_a_pause_of_the_server(site, visit):
    visit.get("/probe.txt")
    site.pause(0.5)
    visit.get("/probe.txt")
    assert visit.last.end_s - visit.last.start_s > 0.4
    assert (visit.last.connection, visit.last.reused, visit.last.error) == (0, True, None)


def test_cookies_are_kept_until_forgotten(visit):
    assert visit.get("/cookies").body == b"none"
    assert visit.get("/cookies").body == b"a=1; b=2"
    visit.client.forget()
    assert visit.get("/cookies").body == b"none"
    assert visit.last.connection == 1


def test_a_request_on_a_connection_of_its_own_leaves_the_kept_one(site, visit):
    visit.get("/probe.txt")
    visit.client.post_alone("/cookies", "upload", b"x" * 10, "text/plain")
    visit.get("/probe.txt")
    assert [(one.connection, one.reused) for one in visit.seen] == [(0, False), (1, False), (0, True)]
    assert site.connections == 2
