"""What the site shows: pages, pictures and statics, as a driver asks for them."""

import io
import re
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from workloads.olio.assets import SIZES, STATICS

sys.path.insert(0, str(Path(__file__).parent))
from olio_site import SIZE, events_on, images

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]


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


def test_person_page(site, visitor):
    page = visitor.get("users.php?username=user9")
    accepted = int(site.sql("SELECT COUNT(*) FROM PERSON_PERSON WHERE person_userid = 9 AND is_accepted = 1"))
    assert page.status == 200
    assert len(images(page.text)) == 1 + min(6, accepted)
    assert images(page.text)[0] == "fileService.php?file=p9t.jpg"
    posted = site.sql("SELECT socialeventid FROM SOCIALEVENT WHERE submitter_userid = 9 ORDER BY createdtimestamp DESC LIMIT 10").split()
    assert list(dict.fromkeys(events_on(page.text))) == posted
    assert visitor.get("users.php?username=nobody").status == 404


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
