"""What visitors change: sessions, attendance, comments, persons, events and friends; and what is refused."""

import io
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from workloads.olio.assets import event_jpeg, event_pdf, person_jpeg

sys.path.insert(0, str(Path(__file__).parent))
from olio_site import EVENT, PERSON, Browser, images, start

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]


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


def test_profile_of_2009_has_a_full_picture_on_the_person_page(client, network, site):
    old = start(client, network, "olio-0.1", site.db)
    browser = Browser(old.address)
    assert images(browser.get("users.php?username=user9").text) == ["fileService.php?file=p9.jpg"]
    browser.upload("addPersonResult.php", {"add_user_name": "newcomer2", **PERSON}, {"user_image": ("person.jpg", person_jpeg())})
    number = old.sql("SELECT userid FROM PERSON WHERE username = 'newcomer2'")
    for name in ("e4t.jpg", f"P{number}T.jpg"):
        with Image.open(io.BytesIO(browser.get(f"fileService.php?file={name}").body)) as picture:
            assert picture.size == (133, 99)
