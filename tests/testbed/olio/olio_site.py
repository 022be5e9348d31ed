"""The site's two guest images as plain containers, and a visitor of it that speaks HTTP."""

import contextlib
import http.client
import re
import sys
import urllib.parse
import uuid
from pathlib import Path

from workloads.olio.loader import counts

sys.path.insert(0, str(Path(__file__).parents[2]))
from waiting import wait_until

LABELS = {"emulab.test": "olio-site"}
WORKERS = 4
SIZE = counts(25, 10)


class Browser:
    """One visitor: one kept-alive connection, one cookie."""

    def __init__(self, address):
        self.connection = http.client.HTTPConnection(address, timeout=30)
        self.cookie = None

    def request(self, method, path, body=None, headers=None):
        headers = dict(headers or {})
        if self.cookie:
            headers["Cookie"] = self.cookie
        self.connection.request(method, "/" + path, body, headers)
        answer = self.connection.getresponse()
        answer.body = answer.read()
        answer.text = answer.body.decode(errors="replace")
        for name, value in answer.getheaders():
            if name == "Set-Cookie" and value.startswith("PHPSESSID="):
                self.cookie = None if "deleted" in value else value.split(";")[0]
        return answer

    def get(self, path, **headers):
        return self.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path, **fields):
        return self.request("POST", path, urllib.parse.urlencode(fields), {"Content-Type": "application/x-www-form-urlencoded"})

    def upload(self, path, fields, files):
        boundary = uuid.uuid4().hex
        parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
        for name, (filename, content) in files.items():
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
            parts.append(head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n")
        body = b"".join(parts) + f"--{boundary}--\r\n".encode()
        return self.request("POST", path, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})

    def login(self, number):
        return self.post("login.php", user_name=f"user{number}", password=str(number), submit="Login")


def images(html):
    """The references a driver finds: between ``<img `` and ``/>``."""
    found = re.findall(r'<img [^>]*src="(fileService\.php\?[^"]*)"[^>]*/>', html)
    return list(dict.fromkeys(found))


def events_on(html):
    return re.findall(r'<a href="events\.php\?socialEventID=(\d+)"', html)


class Site:
    """Two running guests."""

    def __init__(self, web, db, network):
        self.web, self.db, self.network = web, db, network
        web.reload()
        self.address = next(iter(web.attrs["NetworkSettings"]["Networks"].values()))["IPAddress"]

    def sql(self, statement):
        code, out = self.db.exec_run(["mariadb", "-N", "-B", "olio", "-e", statement])
        assert code == 0, out
        return out.decode().strip()

    def file(self, path):
        code, out = self.web.exec_run(["cat", path])
        assert code == 0, out
        return out


def start(client, network, profile="olio-0.2", db=None):
    """Start a web guest, and a database guest unless one is given."""
    common = {"detach": True, "labels": LABELS, "network": network.name, "entrypoint": "/sbin/guest-init"}
    if db is None:
        db = client.containers.run("emulab/olio-db:latest", mem_limit="1g", environment={"OLIO_DB_BUFFER_POOL": "128M"}, **common)
        wait_until(lambda: db.exec_run(["mariadb", "olio", "-e", "SELECT 1"]).exit_code == 0, 60.0)
    db.reload()
    address = db.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"]
    environment = {"OLIO_DB_HOST": address, "OLIO_WORKERS": str(WORKERS), "OLIO_PROFILE": profile}
    web = client.containers.run("emulab/olio-web:latest", environment=environment, cap_add=["SYS_PTRACE"], **common)
    site = Site(web, db, network)

    def answers():
        with contextlib.suppress(OSError, http.client.HTTPException):
            return Browser(site.address).get("probe.txt").status == 200
        return False

    wait_until(answers, 60.0)
    return site


ADDRESS = {
    "street1": "1 Main St",
    "street2": "",
    "city": "Springfield",
    "state": "CA",
    "zip": "12345",
    "country": "USA",
    "telephone": "+1 555",
}
PERSON = {
    **ADDRESS,
    "psword": "secret",
    "passwordx": "secret",
    "first_name": "<script>alert(1)</script>"[:25],
    "last_name": 'O\'Neil & "Co"',
    "email": "a@b.example",
    "timezone": "PST",
    "summary": "I like <b>tags</b>",
    "addpersonsubmit": "Create",
}
EVENT = {
    **ADDRESS,
    "title": "<script>alert('x')</script> party",
    "description": "Bring <i>cake</i> & tea",
    "timezone": "UTC",
    "year": "2030",
    "month": "02",
    "day": "03",
    "hour": "19",
    "minute": "45",
    "tags": "tag5 cake,tag1 cake",
    "submitter_user_name": "user9",
    "addeventsubmit": "Create",
}
