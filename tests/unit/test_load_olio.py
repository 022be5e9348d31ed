"""Olio's operations against a small real server: what is asked for, in which order, and what counts as an error."""

import email.parser
import email.policy
import io
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from emulab.load import config as configuration
from emulab.load.client import Client
from emulab.load.workload import OperationError
from workloads.olio.assets import STATICS
from workloads.olio.driver import Olio, forms, pages
from workloads.olio.driver.checks import judge

sys.path.insert(0, str(Path(__file__).parents[1]))
from load_site import PICTURE, serve


@pytest.fixture(scope="module")
def workloads():
    """One workload per profile, as making its uploads takes a second each."""
    return {}


@pytest.fixture
def site():
    with serve() as running:
        yield running


class User:
    def __init__(self, site, workloads, *, warm=1.0, profile="olio-0.2", number=3):
        key = (profile, warm)
        if key not in workloads:
            workloads[key] = Olio(configuration.parse({"profile": profile, "cache_warm": warm, "users": 10, "tags": 50, "events": 100}))
        self.olio = workloads[key]
        self.site = site
        self.seen = []
        self.client = Client("127.0.0.1", site.port, self.seen.append, timeout_s=5, keepalive_s=5)
        self.random = Random(1)
        self.session = self.olio.session(number, self.client, self.random)

    def perform(self, operation):
        self.seen.clear()
        self.site.requests.clear()
        return self.session.perform(operation, self.random)

    @property
    def kinds(self):
        return dict(Counter(one.kind for one in self.seen))

    @property
    def pages(self):
        return [(one.method, one.path.partition("?")[0]) for one in self.seen if one.kind not in {"static", "image"}]


@pytest.fixture
def user(site, workloads):
    made = User(site, workloads)
    yield made
    made.client.close()


def test_home_page_is_followed_by_18_static_files_and_10_pictures(user):
    counts = user.perform("HomePage")
    assert [one.kind for one in user.seen] == ["page"] + ["static"] * 18 + ["image"] * 10
    assert [one.path[1:] for one in user.seen[1:19]] == list(STATICS["HomePage"])
    assert counts == {"home_pictures": 10, "home_pictures_loaded": 10, "home_picture_bytes": 10 * len(PICTURE)}
    assert {one.connection for one in user.seen} == {0}


def test_a_warm_session_asks_for_every_static_every_time_and_pictures_once(user):
    user.perform("HomePage")
    counts = user.perform("HomePage")
    assert user.kinds == {"page": 1, "static": 18}
    assert {one.status for one in user.seen if one.kind == "static"} == {304}
    assert counts["home_pictures"] == 10
    assert counts["home_pictures_loaded"] == 0


def test_a_cold_session_fetches_every_static_once(site, workloads):
    user = User(site, workloads, warm=0.0)
    user.perform("HomePage")
    assert {one.status for one in user.seen if one.kind == "static"} == {200}
    assert all(since is None for _, _, since in site.requests)
    user.perform("HomePage")
    assert user.kinds == {"page": 1}
    user.perform("EventDetail")
    assert [one.path for one in user.seen if one.kind == "static"] == ["/js/starrating.js", "/images/star_on.png", "/images/star_off.png"]


def test_olio_0_1_asks_for_no_statics_in_a_warm_session(site, workloads):
    user = User(site, workloads, profile="olio-0.1")
    user.perform("HomePage")
    assert user.kinds == {"page": 1, "image": 10}


def test_forty_per_cent_of_sessions_begin_cold():
    olio = Olio(configuration.parse({"cache_warm": 0.6}))
    warm = [olio.session(0, None, Random(seed))._warm for seed in range(2000)]
    assert sum(warm) / 2000 == pytest.approx(0.6, abs=0.04)


def test_log_in_posts_and_loads_the_home_page_only(user):
    user.perform("Login")
    assert user.pages == [("POST", "/login.php"), ("GET", "/index.php")]
    assert user.kinds == {"post": 1, "redirect": 1}
    assert user.client.cookies


def test_a_second_log_in_logs_out_first_and_forgets_everything(user):
    user.perform("Login")
    user.perform("HomePage")
    user.perform("Login")
    assert user.pages == [("GET", "/logout.php"), ("POST", "/login.php"), ("GET", "/index.php")]
    assert [one.connection for one in user.seen] == [0, 1, 1]
    user.perform("HomePage")
    assert user.kinds["image"] == 10


def test_tag_search_posts_and_then_gets_the_same_tag(user):
    user.perform("TagSearch")
    assert user.pages == [("POST", "/taggedEvents.php"), ("GET", "/taggedEvents.php")]
    assert user.kinds == {"post": 1, "page": 1, "static": 18, "image": 1}
    query = user.seen[1].path.partition("?")[2]
    tag, count = (part.partition("=")[2] for part in query.split("&"))
    assert tag.startswith("tag")
    assert 100 <= int(count) <= 150


def test_event_detail_shows_an_event_of_the_page_before(user):
    user.perform("HomePage")
    counts = user.perform("EventDetail")
    event = user.seen[0].path
    assert event in {f"/events.php?socialEventID={number}" for number in range(1, 11)}
    assert user.kinds == {"page": 1, "static": 21}  # its picture was on the home page
    assert counts == {"event_pictures": 1}


def test_somebody_logged_in_attends_in_a_tenth_of_the_views(site, user):
    user.perform("Login")
    counts = Counter()
    for _ in range(300):
        counts.update(user.perform("EventDetail"))
    assert counts["attend_ready"] == 300
    assert counts["attended"] == len(site.attended) == pytest.approx(30, abs=18)


def test_person_detail(user):
    user.perform("PersonDetail")
    assert user.kinds == {"page": 1, "static": 17, "image": 2}
    assert user.seen[0].path.startswith("/users.php?username=user")


def test_add_person_uploads_and_follows_the_redirect(site, user):
    user.perform("Login")
    assert user.perform("AddPerson") == {"persons_added": 1}
    assert user.pages == [("GET", "/logout.php"), ("GET", "/addPerson.php"), ("POST", "/addPersonResult.php"), ("GET", "/users.php")]
    assert [one.kind for one in user.seen if one.kind != "static"] == ["page", "page", "upload", "redirect"]
    assert user.kinds["static"] == 18
    fields = site.uploads[-1]
    assert list(fields) == [
        "add_user_name", "psword", "passwordx", "first_name", "last_name", "email", "street1", "street2", "zip", "city", "state",
        "country", "telephone", "timezone", "user_image", "summary", "addpersonsubmit",
    ]  # fmt: skip
    assert len(fields["user_image"]) == 671_520
    assert 250 <= len(fields["summary"]) <= 2500
    assert fields["psword"] == fields["passwordx"]


def test_names_of_new_people_never_repeat(site, workloads):
    for number in (3, 4, 3):
        user = User(site, workloads, number=number)
        for _ in range(2):
            user.perform("AddPerson")
    assert len(site.people) == 6
    assert all(len(name) <= 25 for name in site.people)


def test_add_event_uploads_picture_and_literature(site, user):
    user.perform("Login")
    assert user.perform("AddEvent") == {"events_added": 1}
    assert user.pages == [("GET", "/addEvent.php"), ("POST", "/addEventResult.php"), ("GET", "/events.php")]
    fields = site.uploads[-1]
    assert list(fields) == [
        "title", "description", "telephone", "timezone", "street1", "street2", "city", "state", "zip", "country", "year", "month",
        "day", "hour", "minute", "tags", "submitter_user_name", "upload_image", "upload_literature", "addeventsubmit",
    ]  # fmt: skip
    assert (len(fields["upload_image"]), len(fields["upload_literature"])) == (669_128, 129_617)
    picture = Image.open(io.BytesIO(fields["upload_image"]))
    picture.load()
    assert (picture.format, picture.size) == ("JPEG", (1690, 1268))
    assert fields["upload_literature"].startswith(b"%PDF-")
    assert 1 <= len(fields["tags"].split()) <= 7


def test_add_event_of_somebody_not_logged_in_stops_at_the_form(user):
    assert user.perform("AddEvent") == {}
    assert user.pages == [("GET", "/addEvent.php")]


def test_olio_0_1_uploads_over_a_connection_of_its_own(site, workloads):
    user = User(site, workloads, profile="olio-0.1")
    user.perform("Login")
    user.perform("AddEvent")
    assert [one.connection for one in user.seen] == [0, 1, 0]
    assert len(site.uploads[-1]["upload_image"]) == 671_614


def test_a_lost_session_is_an_error(site, user):
    user.perform("Login")
    site.forget_sessions = True
    for operation in ("HomePage", "TagSearch", "PersonDetail"):
        with pytest.raises(OperationError, match="session lost"):
            user.perform(operation)
    with pytest.raises(OperationError, match="refused"):
        user.perform("Login")


def test_an_error_page_is_an_error(site, user, monkeypatch):
    monkeypatch.setattr("load_site.Handler.on_index_php", lambda handler: handler.send(b"sorry", 503))
    with pytest.raises(OperationError, match=r"/index\.php: status 503"):
        user.perform("HomePage")


@pytest.mark.parametrize("body", [b"", b"<html>cut off", b"<html>no events at all</html>"])
def test_a_page_that_is_not_the_home_page_is_an_error(site, user, monkeypatch, body):
    monkeypatch.setattr("load_site.Handler.on_index_php", lambda handler: handler.send(body))
    with pytest.raises(OperationError, match="wrong page"):
        user.perform("HomePage")


def test_a_missing_picture_is_an_error(site, user, monkeypatch):
    monkeypatch.setattr("load_site.Handler.on_fileService_php", lambda handler: handler.send(b"", 404))
    with pytest.raises(OperationError, match=r"/fileService\.php: status 404"):
        user.perform("HomePage")


def test_no_two_users_share_an_account():
    olio = Olio(configuration.parse({"users": 100, "registered_users": 10_000}))
    accounts = {user: {olio.account(user, Random(draw)) for draw in range(300)} for user in (0, 1, 57, 99)}
    assert all(1 <= number <= 10_000 and (number - 1) % 100 == user for user, numbers in accounts.items() for number in numbers)
    assert all(len(numbers) > 80 for numbers in accounts.values())


def test_pictures_and_events_of_a_page():
    page = (
        b'<img src="logo.png"/><a href="events.php?socialEventID=12">x</a><img alt="a" src="fileService.php?file=e12t.jpg" />'
        b'<img\nsrc="x"><img src="fileService.php?file=e12t.jpg"/><img src="fileService.php?file=p7t.jpg">'
        b'<a href="fileService.php?file=e12l.pdf">literature</a>'
        b'<a href="events.php?socialEventID=12"> <a href="events.php?socialEventID=40">'
    )
    assert pages.pictures(page) == ["/fileService.php?file=e12t.jpg", "/fileService.php?file=p7t.jpg"]
    assert pages.events(page) == ["12", "40"]


def test_a_multipart_body_is_what_the_standard_says():
    fields = [("title", "Grüße & more"), ("upload", forms.Upload("a.jpg", "image/jpeg", bytes(range(256)) * 10)), ("empty", "")]
    raw = f"Content-Type: {forms.CONTENT_TYPE}\r\n\r\n".encode() + forms.multipart(fields)
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(raw)
    parts = list(message.iter_parts())
    assert [part.get_param("name", header="content-disposition") for part in parts] == ["title", "upload", "empty"]
    assert [part.get_filename() for part in parts] == [None, "a.jpg", None]
    assert parts[0].get_payload(decode=True).decode() == "Grüße & more"
    assert parts[1].get_content_type() == "image/jpeg"
    assert parts[1].get_payload(decode=True) == bytes(range(256)) * 10
    assert not message.defects


def test_forms_depend_on_their_random_stream_only():
    upload = forms.Upload("x.jpg", "image/jpeg", b"x")
    assert forms.person(Random(5), "n", "1", upload) == forms.person(Random(5), "n", "1", upload)
    assert forms.person(Random(5), "n", "1", upload) != forms.person(Random(6), "n", "1", upload)


def test_texts_have_the_length_they_should():
    lengths = {len(forms._text(Random(seed), 15, 20)) for seed in range(200)}
    assert lengths == set(range(15, 21))
    words = forms._text(Random(1), 2000, 2500).split(" ")
    assert all(1 <= len(word) <= 12 for word in words)


def test_tags_of_an_event_are_different_and_exist():
    for seed in range(300):
        tags = forms._tags(Random(seed), 3)
        assert len(set(tags)) == len(tags) >= 1
        assert set(tags) <= {"tag1", "tag2", "tag3"}


GOOD = {
    "attended": 7, "home_pictures": 1000, "home_pictures_loaded": 300, "home_picture_bytes": 1_500_000, "tag_pictures": 400,
    "event_pictures": 100,
}  # fmt: skip
OPERATIONS = {"HomePage": 100, "TagSearch": 100, "EventDetail": 100}


def test_the_checks_of_a_good_run_pass():
    assert all(check["passed"] for check in judge(GOOD, OPERATIONS, 20.0, users=100, profile="olio-0.2"))


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"attended": 5}, "EventDetail views where an attendee was added (%)"),
        ({"home_pictures": 940}, "images referenced by a home page"),
        ({"home_pictures": 1060}, "images referenced by a home page"),
        ({"home_pictures_loaded": 99, "home_picture_bytes": 99 * 5895}, "images loaded per home page"),
        ({"home_picture_bytes": 1_499_000}, "bytes per image loaded by a home page"),
        ({"tag_pictures": 0}, "images on a page of a tag search"),
        ({"event_pictures": 99}, "images on an event page"),
    ],
)
def test_each_check_fails_beyond_its_limit(change, failing):
    checks = judge({**GOOD, **change}, OPERATIONS, 20.0, users=100, profile="olio-0.2")
    assert [check["name"] for check in checks if not check["passed"]] == [failing]


def test_an_overloaded_run_fails_the_check_of_its_rate():
    checks = judge(GOOD, OPERATIONS, 100 / 5.3, users=100, profile="olio-0.2")
    assert [check["name"] for check in checks if not check["passed"]] == ["users per operation per second"]


def test_nothing_passes_without_samples():
    assert not any(check["passed"] for check in judge({}, {}, 0.0, users=100, profile="olio-0.2"))
