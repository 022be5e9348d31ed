"""A small real web server for tests of the load generator: Olio's URLs with made-up content, and paths that misbehave in known ways.

With ``serve()`` it runs in a thread; ``python tests/load_site.py`` prints its port and serves until its input ends.
"""

from __future__ import annotations

import http.server
import itertools
import socket
import struct
import sys
import threading
import time
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

KEEPALIVE_S = 2
PICTURE = b"\xff\xd8" + b"picture " * 800 + b"\xff\xd9"


class Site(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.sessions = {}
        self.people = set()
        self.events = {}
        self.uploads = []
        self.attended = []
        self.requests = []
        self.connections = 0
        self.number = itertools.count(1)
        self.lock = threading.Lock()
        self.forget_sessions = False
        self.answering = threading.Event()
        self.answering.set()

    @property
    def port(self):
        return self.server_address[1]

    def pause(self, seconds):
        """Answer nothing for a while; requests that came in are answered afterwards."""
        self.answering.clear()
        threading.Timer(seconds, self.answering.set).start()

    def handle_error(self, request, client_address):
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = KEEPALIVE_S
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self):
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def log_message(self, *args):
        pass

    def do_POST(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    def do_GET(self):
        self.body = b""
        self.answer()

    def answer(self):
        self.server.answering.wait(30)
        url = urlsplit(self.path)
        self.server.requests.append((self.command, self.path, self.headers.get("If-Modified-Since")))
        cookies = self.headers.get("Cookie", "")
        self.name = None
        if "PHPSESSID=" in cookies and not self.server.forget_sessions:
            self.name = self.server.sessions.get(cookies.split("PHPSESSID=")[1].split(";")[0])
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        kind, _, name = url.path.lstrip("/").partition("/")
        if kind in {"js", "css", "images"} and name:
            if self.headers.get("If-Modified-Since"):
                return self.send(b"", 304)
            return self.send(b"/* static */" * 20)
        method = getattr(self, "on_" + url.path.strip("/").replace(".", "_"), None)
        if method is None:
            return self.send(b"no such thing", 404)
        return method()

    def send(self, body, status=200, headers=(), *, keep=True):
        self.wfile.write(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode())
        for name, value in (*headers, ("Keep-Alive", f"timeout={KEEPALIVE_S}") if keep else ("Connection", "close")):
            self.wfile.write(f"{name}: {value}\r\n".encode())
        if status not in {204, 304}:
            self.wfile.write(f"Content-Length: {len(body)}\r\n".encode())
        self.wfile.write(b"\r\n" + (body if status != 304 else b""))
        self.wfile.flush()
        self.close_connection = not keep

    def page(self, *parts):
        box = f'<a href="logout.php">{self.name}</a>' if self.name else "Username: <input>"
        self.send(f"<html><body>{box}{''.join(parts)}</body></html>\n".encode())

    def redirect(self, location, headers=()):
        self.send(b"", 302, (("Location", location), *headers))

    def form(self):
        return {key: values[0] for key, values in parse_qs(self.body.decode()).items()}

    def fields(self):
        boundary = self.headers["Content-Type"].split("boundary=")[1].encode()
        found = {}
        for part in self.body.split(b"--" + boundary)[1:-1]:
            head, _, value = part.partition(b"\r\n\r\n")
            name = head.split(b'name="')[1].split(b'"')[0].decode()
            found[name] = value[:-2]
        return found

    def pictures(self, *numbers):
        return "".join(f'<img class="x" src="fileService.php?file=e{number}t.jpg" alt="" />' for number in numbers)

    def on_index_php(self):
        links = "".join(f'<a href="events.php?socialEventID={number}">event</a>' for number in range(1, 11))
        self.page(links, self.pictures(*range(1, 11)))

    def on_login_php(self):
        form = self.form()
        if form["user_name"] != "user" + form["password"]:
            return self.page("wrong")
        key = f"s{next(self.server.number)}"
        self.server.sessions[key] = form["user_name"]
        return self.redirect("index.php", [("Set-Cookie", f"PHPSESSID={key}; path=/; HttpOnly")])

    def on_logout_php(self):
        self.redirect("index.php")

    def on_taggedEvents_php(self):  # noqa: N802
        tag = self.form()["tag"] if self.command == "POST" else self.query["tag"]
        number = int(tag.removeprefix("tag"))
        self.page(tag, f'<a href="events.php?socialEventID={number}">event</a>', self.pictures(number))

    def on_events_php(self):
        number = self.query["socialEventID"]
        attend = f'<a href="addAttendee.php?id={number}">Attend</a>' if self.name else ""
        self.page(self.server.events.get(number, "an event"), self.pictures(number), attend)

    def on_addAttendee_php(self):  # noqa: N802
        self.server.attended.append((self.query["id"], self.name))
        self.send(f"<ul><li>{self.name}</li></ul>".encode())

    def on_users_php(self):
        self.page(self.query["username"], self.pictures(1, 2))

    def on_addPerson_php(self):  # noqa: N802
        self.page('<form><input name="add_user_name"></form>')

    def on_addEvent_php(self):  # noqa: N802
        self.page('<form><input name="addeventsubmit"></form>' if self.name else "")

    def on_addPersonResult_php(self):  # noqa: N802
        fields = self.fields()
        name = fields["add_user_name"].decode()
        self.server.uploads.append(fields)
        if name in self.server.people:
            return self.send(b"taken", 409)
        self.server.people.add(name)
        return self.redirect(f"users.php?username={name}")

    def on_addEventResult_php(self):  # noqa: N802
        if self.name is None:
            return self.send(b"not logged in", 403)
        fields = self.fields()
        self.server.uploads.append(fields)
        number = str(100_000 + next(self.server.number))
        self.server.events[number] = fields["title"].decode()
        return self.redirect(f"events.php?socialEventID={number}")

    def on_fileService_php(self):  # noqa: N802
        self.send(PICTURE)

    def on_probe_txt(self):
        self.send(b"ok\n")

    def on_slow(self):
        time.sleep(float(self.query["s"]))
        self.send(b"at last")

    def on_drip(self):
        """Never silent, never done: a byte every 50 ms."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        for _ in range(200):
            self.wfile.write(b".")
            self.wfile.flush()
            time.sleep(0.05)

    def on_vanish(self):
        """Close without an answer."""
        self.close_connection = True

    def on_reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def on_short(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
        self.close_connection = True

    def on_last(self):
        self.send(b"the last on this connection", keep=False)

    def on_chunked(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in (b"one ", b"two " * 5000, b"three"):
            self.wfile.write(f"{len(part):x};x=y\r\n".encode() + part + b"\r\n")
            self.wfile.flush()
            time.sleep(0.01)
        self.wfile.write(b"0\r\nTrailer: x\r\n\r\n")
        self.wfile.flush()

    def on_unsized(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
        self.close_connection = True

    def on_continued(self):
        self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.wfile.flush()
        time.sleep(0.02)
        self.send(b"real answer")

    def on_garbage(self):
        self.wfile.write(b"what is this?\r\n\r\n")
        self.close_connection = True

    def on_cookies(self):
        self.send(self.headers.get("Cookie", "none").encode(), 200, [("Set-Cookie", "a=1; path=/"), ("Set-Cookie", "b=2")])

    def on_error(self):
        self.send(b"sorry", 500)


@contextmanager
def serve():
    site = Site()
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.answering.set()
        site.shutdown()
        site.server_close()


if __name__ == "__main__":
    with serve() as running:
        print(running.port, flush=True)
        sys.stdin.read()
