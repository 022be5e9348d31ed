"""How the two servers behave: pipelining, lost connections to the database, errors, the number of workers."""

import http.client
import socket
import sys
from pathlib import Path

import pytest

from workloads.olio.assets import SIZES

sys.path.insert(0, str(Path(__file__).parent))
from olio_site import WORKERS, Browser

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]


def statuses(site, path, requests):
    """Those of as many requests, each on a connection of its own."""
    found = set()
    for _ in range(requests):
        browser = Browser(site.address)
        found.add(browser.get(path).status)
        browser.connection.close()
    return found


def test_pipelined_requests_are_answered_in_order(site):
    with socket.create_connection((site.address, 80), timeout=10) as connection:
        wanted = ["probe.txt", "fileService.php?file=e1t.jpg", "js/starrating.js", "probe.txt"]
        connection.sendall(b"".join(f"GET /{path} HTTP/1.1\r\nHost: olio\r\n\r\n".encode() for path in wanted))
        stream = connection.makefile("rb")
        lengths = []
        for _ in wanted:
            assert b"200" in stream.readline()
            headers = http.client.parse_headers(stream)
            lengths.append(int(headers["Content-Length"]))
            stream.read(lengths[-1])
        assert lengths == [3, 5895, SIZES["js/starrating.js"], 3]


def test_lost_database_connections_are_replaced(site, visitor):
    assert visitor.get("index.php").status == 200
    connections = site.sql("SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'olio'")
    assert 1 <= int(connections) <= WORKERS
    for number in site.sql("SELECT id FROM information_schema.processlist WHERE user = 'olio'").split():
        site.sql(f"KILL {number}")
    assert statuses(site, "index.php", 3 * WORKERS) == {200}


def test_errors_stay_in_the_log(site, visitor):
    site.sql("RENAME TABLE COMMENTS_RATING TO AWAY")
    try:
        page = visitor.get("events.php?socialEventID=3")
    finally:
        site.sql("RENAME TABLE AWAY TO COMMENTS_RATING")
    assert page.status == 500
    assert "COMMENTS_RATING" not in page.text
    assert b"COMMENTS_RATING" in site.file("/var/log/apache2/error.log")
    assert visitor.get("events.php?socialEventID=3").status == 200


def test_refused_statements_cost_no_worker(site):
    """With values (``execute_query`` of PHP 8.4 would), in every worker, and the requests that follow on its kept connection."""

    def workers():
        return sorted(site.web.exec_run(["pgrep", "-P", "1", "apache2"]).output.split())

    before, event = workers(), "events.php?socialEventID=3"
    site.sql("RENAME TABLE COMMENTS_RATING TO AWAY")
    try:
        assert statuses(site, event, 4 * WORKERS) == {500}
    finally:
        site.sql("RENAME TABLE AWAY TO COMMENTS_RATING")
    assert statuses(site, event, 8 * WORKERS) == {200}
    assert workers() == before
    assert len(before) == WORKERS
    assert b"exit signal" not in site.file("/var/log/apache2/error.log")


def test_worker_stays_lean_and_the_pool_steady(site):
    script = 'for p in /proc/[0-9]*; do [ "$(cat $p/comm)" = apache2 ] && [ $p != /proc/1 ] && wc -l <$p/maps; done; true'
    numbers = [int(line) for line in site.web.exec_run(["sh", "-c", script]).output.split()]
    assert len(numbers) == WORKERS
    assert max(numbers) <= 300
    assert site.web.exec_run(["cat", "/proc/1/comm"]).output == b"apache2\n"  # no shell is left over
    assert site.db.exec_run(["cat", "/proc/1/comm"]).output == b"mariadbd\n"
