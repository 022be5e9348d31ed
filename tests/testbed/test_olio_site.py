"""The site as a driver meets it: both guest images as plain containers, 250 persons, every operation by HTTP."""

import contextlib
import http.client
import io
import re
import socket
import sys
import time
import urllib.parse
import uuid
from pathlib import Path

import docker
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from conftest import wait_until

from workloads.olio.assets import SIZES, STATICS, event_jpeg, event_pdf, person_jpeg
from workloads.olio.loader import counts, generate

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]

WORKLOADS = Path(__file__).parents[2] / "workloads"
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
        wait_until(lambda: db.exec_run(["mariadb", "olio", "-e", "SELECT 1"]).exit_code == 0)
    db.reload()
    address = db.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"]
    environment = {"OLIO_DB_HOST": address, "OLIO_WORKERS": str(WORKERS), "OLIO_PROFILE": profile}
    web = client.containers.run("emulab/olio-web:latest", environment=environment, cap_add=["SYS_PTRACE"], **common)
    site = Site(web, db, network)

    def answers():
        with contextlib.suppress(OSError, http.client.HTTPException):
            return Browser(site.address).get("probe.txt").status == 200
        return False

    wait_until(answers)
    return site


@pytest.fixture(scope="module")
def client():
    client = docker.from_env()
    for image in ("emulab/olio-web:latest", "emulab/olio-db:latest"):
        if not client.images.list(image):
            pytest.skip(f"image {image} is not built")
    yield client
    client.close()


def clear_away(client):
    """Remove what these tests made, in this run or in one that was killed half way."""
    label = {"label": [f"{key}={value}" for key, value in LABELS.items()]}
    for container in client.containers.list(all=True, filters=label):
        container.remove(force=True, v=True)
    for network in client.networks.list(filters=label):
        network.remove()


@pytest.fixture(scope="module")
def network(client):
    clear_away(client)
    yield client.networks.create(f"emulab-test-{uuid.uuid4().hex[:8]}", internal=True, labels=LABELS)
    clear_away(client)


@pytest.fixture(scope="module")
def site(client, network):
    site = start(client, network)
    stream = site.db.client.api.exec_create(site.db.id, ["mariadb", "olio"], stdin=True)
    pipe = site.db.client.api.exec_start(stream["Id"], socket=True)
    raw = pipe._sock
    for chunk in generate(25, 10, 1):
        raw.sendall(chunk)
    raw.shutdown(socket.SHUT_WR)
    wait_until(lambda: not site.db.client.api.exec_inspect(stream["Id"])["Running"])
    assert site.db.client.api.exec_inspect(stream["Id"])["ExitCode"] == 0
    pipe.close()
    return site


@pytest.fixture
def visitor(site):
    browser = Browser(site.address)
    yield browser
    browser.connection.close()


@pytest.fixture
def member(site):
    browser = Browser(site.address)
    browser.login(7)
    yield browser
    browser.connection.close()


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


def test_loaded_rows(site):
    assert site.sql("SELECT COUNT(*) FROM PERSON") == str(SIZE.registered_users)
    assert site.sql("SELECT COUNT(*) FROM SOCIALEVENT") == str(SIZE.events)
    assert site.sql("SELECT SUM(refcount) = (SELECT COUNT(*) FROM SOCIALEVENTTAG_SOCIALEVENT) FROM SOCIALEVENTTAG") == "1"
    assert int(site.sql("SELECT COUNT(*) FROM SOCIALEVENT WHERE eventtimestamp >= UTC_DATE()")) == SIZE.events


def test_home_page_shows_the_ten_nearest_events_with_pictures(site, visitor):
    page = visitor.get("index.php")
    assert page.status == 200
    nearest = site.sql(
        "SELECT socialeventid FROM SOCIALEVENT WHERE eventtimestamp >= UTC_TIMESTAMP() ORDER BY eventtimestamp LIMIT 10"
    ).split()
    assert sorted(set(events_on(page.text))) == sorted(nearest)
    assert sorted(images(page.text)) == sorted(f"fileService.php?file=e{n}t.jpg" for n in nearest)
    assert page.text.count('href="taggedEvents.php?tag=') == 50
    assert "Username" in page.text
    assert "calendar" in page.text
    assert visitor.cookie


def test_home_page_filters_and_pages(site, visitor):
    first, second = (events_on(visitor.get(f"index.php?page={n}").text) for n in (1, 2))
    assert not set(first) & set(second)
    number, zipcode = site.sql(
        "SELECT e.socialeventid, a.zip FROM SOCIALEVENT e JOIN ADDRESS a ON a.addressid = e.ADDRESS_addressid "
        "WHERE e.eventtimestamp > UTC_TIMESTAMP() LIMIT 1"
    ).split()
    assert number in events_on(visitor.get(f"index.php?zipcode={zipcode}").text)
    number, *day = site.sql(
        "SELECT socialeventid, YEAR(eventtimestamp), MONTH(eventtimestamp), DAY(eventtimestamp) FROM SOCIALEVENT LIMIT 1"
    ).split()
    found = visitor.get("index.php?year={}&month={}&day={}".format(*day)).text
    assert number in events_on(found)
    assert visitor.get("index.php?page=zzz&zipcode=%27%20OR%201=1--&year=99&month=x").status == 200


def test_pictures_expire_far_in_the_future_and_answer_304(visitor):
    answer = visitor.get("fileService.php?file=e12t.jpg")
    assert (answer.status, answer.getheader("Content-Type"), len(answer.body)) == (200, "image/jpeg", 5895)
    with Image.open(io.BytesIO(answer.body)) as picture:
        assert picture.size == (120, 120)
    assert "max-age=31536000" in answer.getheader("Cache-Control")
    again = visitor.get("fileService.php?file=e12t.jpg", If_Modified_Since=answer.getheader("Last-Modified"))
    assert (again.status, again.body) == (304, b"")
    assert len(visitor.get("fileService.php?file=p3.jpg").body) == 671_520
    assert visitor.get("fileService.php?file=e3l.pdf").body.startswith(b"%PDF")


@pytest.mark.parametrize(
    "name", ["", "E999999.jpg", "../../../etc/passwd", "e1t.php", "e1x.jpg", "E1t.jpg", "e1t.jpg%00.pdf", "p0.jpg", "e1t.jpg%0ax"]
)
def test_files_that_are_not_there(visitor, name):
    assert visitor.get(f"fileService.php?file={name}").status == 404


def test_statics_have_their_sizes_and_answer_304(visitor):
    for name in STATICS["EventDetail"]:
        answer = visitor.get(name)
        assert (answer.status, len(answer.body)) == (200, SIZES[name])
        assert answer.getheader("Last-Modified") == "Tue, 01 Sep 2009 00:00:00 GMT"
        again = visitor.get(name, If_Modified_Since=time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()))
        assert (again.status, again.body) == (304, b"")


def test_pages_ask_for_exactly_the_listed_scripts_and_styles(visitor):
    number = events_on(visitor.get("index.php").text)[0]
    pages = {"HomePage": "index.php", "EventDetail": f"events.php?socialEventID={number}", "PersonDetail": "users.php?username=user3",
             "AddPerson": "addPerson.php", "TagSearch": "taggedEvents.php?tag=tag1"}  # fmt: skip
    for operation, path in pages.items():
        asked = set(re.findall(r'(?:src|href)="((?:js|css)/[^"]+)"', visitor.get(path).text))
        assert asked == {name for name in STATICS[operation] if not name.startswith("images/")}


def test_wrong_login_shows_the_prompt_again(visitor):
    answer = visitor.post("login.php", user_name="user5", password="6", submit="Login")
    assert answer.status == 200
    assert "Username" in answer.text
    assert "Username" in visitor.get("index.php").text
    assert visitor.post("login.php", user_name="' OR '1'='1", password="x", submit="Login").status == 200


def test_login_session_and_logout(site, visitor):
    visitor.get("index.php")
    before = visitor.cookie
    answer = visitor.login(5)
    assert (answer.status, answer.getheader("Location")) == (302, "index.php")
    assert visitor.cookie != before  # a session known before the log-in is worth nothing after it
    assert len(answer.headers.get_all("Set-Cookie")) == 1
    stranger = Browser(site.address)
    assert len(stranger.login(6).headers.get_all("Set-Cookie")) == 1
    stranger.connection.close()
    home = visitor.get("index.php").text
    assert "Username" not in home
    assert "user5" in home
    session = visitor.cookie.split("=")[1]
    assert "user5" in site.file(f"/var/lib/php/sessions/sess_{session}").decode()
    visitor.connection.close()  # the session outlives the connection
    assert "Username" not in visitor.get("index.php").text
    assert visitor.get("logout.php").status == 302
    assert "Username" in visitor.get("index.php").text


def test_tag_search(site, visitor):
    found = site.sql("SELECT COUNT(*) FROM SOCIALEVENTTAG_SOCIALEVENT WHERE socialeventtagid = 1")
    for page in (
        visitor.post("taggedEvents.php", tag="tag1", tagsearchsubmit="Search Tags"),
        visitor.get("taggedEvents.php?tag=tag1&count=120"),
    ):
        assert page.status == 200
        shown = set(events_on(page.text))
        assert len(shown) == min(10, int(found)) == len(images(page.text))
        tagged = site.sql("SELECT socialeventid FROM SOCIALEVENTTAG_SOCIALEVENT WHERE socialeventtagid = 1").split()
        assert shown <= set(tagged)
    nothing = visitor.get("taggedEvents.php?tag=%3Cscript%3E&count=100")
    assert nothing.status == 200
    assert "<script>" not in nothing.text
    assert images(nothing.text) == []


def test_event_page_and_attendance(site, member, visitor):
    number = site.sql(
        "SELECT socialeventid FROM SOCIALEVENT "
        "WHERE socialeventid NOT IN (SELECT socialeventid FROM PERSON_SOCIALEVENT WHERE userid = 7) LIMIT 1"
    )
    attends = f"SELECT COUNT(*) FROM PERSON_SOCIALEVENT WHERE userid = 7 AND socialeventid = {number}"
    link = f'href="addAttendee.php?id={number}">Attend</a>'
    page = member.get(f"events.php?socialEventID={number}")
    assert page.status == 200
    assert len(images(page.text)) == 1
    assert link in page.text
    assert "Attend</a>" not in visitor.get(f"events.php?socialEventID={number}").text
    before = int(site.sql(f"SELECT COUNT(*) FROM PERSON_SOCIALEVENT WHERE socialeventid = {number}"))
    for _ in range(2):
        answer = member.get(f"addAttendee.php?id={number}")
        assert answer.status == 200
        assert f"{before + 1} people" in answer.text
    assert site.sql(attends) == "1"
    page = member.get(f"events.php?socialEventID={number}").text
    assert link not in page
    assert f'href="deleteAttendee.php?id={number}">Unattend</a>' in page
    assert member.get(f"deleteAttendee.php?id={number}").status == 200
    assert site.sql(attends) == "0"
    assert visitor.get(f"addAttendee.php?id={number}").status == 403
    assert visitor.get("events.php?socialEventID=999999").status == 404
    assert member.get("addAttendee.php?id=999999").status == 200
    assert site.sql("SELECT COUNT(*) FROM PERSON_SOCIALEVENT WHERE socialeventid = 999999") == "0"


def test_comments_and_rating(site, member, visitor):
    score = lambda: tuple(map(int, site.sql("SELECT totalscore, numberofvotes FROM SOCIALEVENT WHERE socialeventid = 3").split()))  # noqa: E731
    assert score() == tuple(
        map(int, site.sql("SELECT IFNULL(SUM(ratings), 0), COUNT(*) FROM COMMENTS_RATING WHERE socialeventid = 3").split())
    )
    points, votes = score()
    answer = member.post("addComment.php", socialEventID="3", comments="<script>alert(2)</script> fine", rating="4")
    assert (answer.status, answer.getheader("Location")) == (302, "events.php?socialEventID=3")
    assert score() == (points + 4, votes + 1)
    page = visitor.get("events.php?socialEventID=3").text
    assert "&lt;script&gt;alert(2)&lt;/script&gt; fine" in page
    assert "<script>alert" not in page
    assert visitor.post("addComment.php", socialEventID="3", comments="x", rating="4").status == 403
    assert member.post("addComment.php", socialEventID="3", comments="x", rating="9").status == 400
    own = site.sql("SELECT commentid FROM COMMENTS_RATING WHERE comments LIKE '%alert(2)%'")
    other = site.sql("SELECT MIN(commentid) FROM COMMENTS_RATING WHERE userid <> 7")
    assert member.post("deleteComment.php", commentid=other).status == 404
    assert member.post("deleteComment.php", commentid=own).status == 302
    assert score() == (points, votes)


def test_person_page(site, visitor):
    page = visitor.get("users.php?username=user9")
    accepted = int(site.sql("SELECT COUNT(*) FROM PERSON_PERSON WHERE person_userid = 9 AND is_accepted = 1"))
    assert page.status == 200
    assert len(images(page.text)) == 1 + min(6, accepted)
    assert images(page.text)[0] == "fileService.php?file=p9t.jpg"
    posted = site.sql("SELECT socialeventid FROM SOCIALEVENT WHERE submitter_userid = 9 ORDER BY createdtimestamp DESC LIMIT 10").split()
    assert list(dict.fromkeys(events_on(page.text))) == posted
    assert visitor.get("users.php?username=nobody").status == 404


def test_add_person(site, visitor):
    answer = visitor.upload("addPersonResult.php", {"add_user_name": "newcomer1", **PERSON}, {"user_image": ("person.jpg", person_jpeg())})
    assert (answer.status, answer.getheader("Location")) == (302, "users.php?username=newcomer1")
    page = visitor.get("users.php?username=newcomer1").text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert "O&apos;Neil &amp; &quot;Co&quot;" in page
    number, stored = site.sql("SELECT userid, password FROM PERSON WHERE username = 'newcomer1'").split()
    assert re.fullmatch(r"pbkdf2-sha256\$\d+\$[0-9a-f]{16}\$[0-9a-f]{64}", stored)
    assert "secret" not in stored
    assert images(page)[0] == f"fileService.php?file=P{number}T.jpg"
    thumbnail = visitor.get(f"fileService.php?file=P{number}T.jpg")
    with Image.open(io.BytesIO(thumbnail.body)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (120, 120))
    assert visitor.get(f"fileService.php?file=P{number}.jpg").body == person_jpeg()
    assert site.file(f"/var/lib/olio/files/persons/{int(number) % 1000}/0/P{number}.jpg") == person_jpeg()
    assert visitor.post("login.php", user_name="newcomer1", password="secret", submit="Login").status == 302
    assert visitor.upload("addPersonResult.php", {"add_user_name": "newcomer1", **PERSON}, {}).status == 409


@pytest.mark.parametrize(
    ("change", "files"),
    [
        ({"add_user_name": "<b>"}, {}),
        ({"passwordx": "other"}, {}),
        ({"first_name": ""}, {}),
        ({}, {"user_image": ("evil.jpg", b"<?php phpinfo();")}),
        ({}, {"user_image": ("broken.jpg", b"\xff\xd8\xff\xe0 not really")}),
    ],
)
def test_bad_persons_are_refused_and_leave_nothing(site, visitor, change, files):
    answer = visitor.upload("addPersonResult.php", {"add_user_name": "refused", **PERSON, **change}, files)
    assert answer.status == 400
    assert site.sql("SELECT COUNT(*) FROM PERSON WHERE username = 'refused'") == "0"
    assert site.web.exec_run(["find", "/var/lib/olio/tmp", "-type", "f"]).output == b""


def test_add_event(site, member):
    files = {"upload_image": ("event.jpg", event_jpeg()), "upload_literature": ("event.pdf", event_pdf())}
    answer = member.upload("addEventResult.php", EVENT, files)
    number = re.fullmatch(r"events\.php\?socialEventID=(\d+)", answer.getheader("Location")).group(1)
    page = member.get(answer.getheader("Location")).text
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page
    assert "Sunday, February 3, 2030, 19:45" in page
    assert "Unattend" in page  # who posts an event attends it
    assert site.sql(f"SELECT submitter_userid FROM SOCIALEVENT WHERE socialeventid = {number}") == "7"  # whatever the form says
    tags = site.sql(
        "SELECT t.tag FROM SOCIALEVENTTAG_SOCIALEVENT ts JOIN SOCIALEVENTTAG t USING (socialeventtagid) "
        f"WHERE ts.socialeventid = {number} ORDER BY 1"
    )
    assert tags.split() == ["cake", "tag1", "tag5"]
    assert site.sql("SELECT refcount FROM SOCIALEVENTTAG WHERE tag = 'cake'") == "1"
    thumbnail = member.get(images(page)[0])
    with Image.open(io.BytesIO(thumbnail.body)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (120, 120))
    assert member.get(f"fileService.php?file=E{number}L.pdf").body == event_pdf()
    assert member.get(f"fileService.php?file=E{number}.jpg").body == event_jpeg()


def test_bad_events_are_refused(member, visitor):
    assert visitor.upload("addEventResult.php", EVENT, {}).status == 403
    assert member.upload("addEventResult.php", {**EVENT, "day": "31"}, {}).status == 400
    assert member.upload("addEventResult.php", {**EVENT, "title": " "}, {}).status == 400
    assert member.upload("addEventResult.php", EVENT, {"upload_literature": ("x.pdf", b"MZ")}).status == 400
    form = visitor.get("addEvent.php").text
    assert "Username" in form
    assert 'name="addeventsubmit"' not in form
    assert 'name="addeventsubmit"' in member.get("addEvent.php").text


def test_friendship(site, member):
    other = Browser(site.address)
    other.login(8)
    state = lambda: site.sql(  # noqa: E731
        "SELECT person_userid, friend_userid, is_accepted FROM PERSON_PERSON "
        "WHERE (person_userid, friend_userid) IN ((7, 8), (8, 7)) ORDER BY 1"
    )
    site.sql("DELETE FROM PERSON_PERSON WHERE (person_userid, friend_userid) IN ((7, 8), (8, 7))")
    assert member.get("addFriend.php?username=user8").status == 302
    assert state() == "8\t7\t0"
    assert "user7" in other.get("users.php?username=user8").text
    member.get("revokeInvite.php?username=user8")
    assert state() == ""
    member.get("addFriend.php?username=user8")
    other.get("rejectInvite.php?username=user7")
    assert state() == ""
    member.get("addFriend.php?username=user8")
    other.get("approveFriendship.php?username=user7")
    assert state() == "7\t8\t1\n8\t7\t1"
    member.get("deleteFriend.php?username=user8")
    assert state() == ""
    member.get("addFriend.php?username=user7")
    assert site.sql("SELECT COUNT(*) FROM PERSON_PERSON WHERE person_userid = friend_userid") == "0"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("findUsers.php?query=user1", "user10"),
        ("findUsers.php?query=%25", "Find people"),
        ("friends.php?username=user9", "Friends of user9"),
        ("postedEvents.php?username=user9", "Events posted by user9"),
        ("upcomingEvents.php?username=user9", "Upcoming events of user9"),
        ("checkUser.php?username=user9", "taken"),
        ("checkUser.php?username=nobody", "available"),
        ("requestCityState.php?zip=00000", '"city"'),
        ("calendar.php?yr=2030&mon=2", "February 2030"),
        ("feed.php", "<rss"),
        ("index.php?order=created", "newest first"),
    ],
)
def test_further_pages(visitor, path, expected):
    page = visitor.get(path)
    assert page.status == 200
    assert expected in page.text


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
    connections = site.sql("SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'olio'")
    assert 1 <= int(connections) <= WORKERS
    for number in site.sql("SELECT id FROM information_schema.processlist WHERE user = 'olio'").split():
        site.sql(f"KILL {number}")
    for _ in range(3 * WORKERS):
        browser = Browser(site.address)
        assert browser.get("index.php").status == 200
        browser.connection.close()


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


def test_worker_stays_lean_and_the_pool_steady(site):
    script = 'for p in /proc/[0-9]*; do [ "$(cat $p/comm)" = apache2 ] && [ $p != /proc/1 ] && wc -l <$p/maps; done; true'
    numbers = [int(line) for line in site.web.exec_run(["sh", "-c", script]).output.split()]
    assert len(numbers) == WORKERS
    assert max(numbers) <= 300
    assert site.web.exec_run(["cat", "/proc/1/comm"]).output == b"apache2\n"  # no shell is left over
    assert site.db.exec_run(["cat", "/proc/1/comm"]).output == b"mariadbd\n"


def test_profile_of_2009_has_a_full_picture_on_the_person_page(client, network, site):
    old = start(client, network, "olio-0.1", site.db)
    browser = Browser(old.address)
    assert images(browser.get("users.php?username=user9").text) == ["fileService.php?file=p9.jpg"]
    browser.upload("addPersonResult.php", {"add_user_name": "newcomer2", **PERSON}, {"user_image": ("person.jpg", person_jpeg())})
    number = old.sql("SELECT userid FROM PERSON WHERE username = 'newcomer2'")
    for name in ("e4t.jpg", f"P{number}T.jpg"):
        with Image.open(io.BytesIO(browser.get(f"fileService.php?file={name}").body)) as picture:
            assert picture.size == (133, 99)
