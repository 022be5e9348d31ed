"""One Olio user with a browser: the seven operations, each a series of requests on one kept-alive connection.

Follows Olio's ``UIDriver`` (0.2, and 0.1 where the profile says so): page first, then style sheets, scripts and images one after another. A
wrong page fails the operation: without that, an error page that is served fast would look like a good result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from emulab.load.workload import OperationError
from workloads.olio.assets import STATICS
from workloads.olio.driver import forms, pages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from emulab.load.client import Client, Response
    from workloads.olio.driver import Olio

_STATICS: Final = {operation: tuple("/" + name for name in names) for operation, names in STATICS.items()}
_NOT_MODIFIED_SINCE: Final = b"If-Modified-Since: Fri, 01 Jan 2010 00:00:00 GMT\r\n"


class Session:
    """Browser state of one user: log-in, cache, chosen event. See ``emulab.load.workload.Session``."""

    def __init__(self, olio: Olio, user: int, client: Client, random: Random) -> None:
        self._olio = olio
        self._user = user
        self._client = client
        self._name: str | None = None
        self._event: str | None = None
        self._cached: set[str] = set()
        self._warm = self._draw_cache(random)
        self._operations: dict[str, Callable[[Random], Mapping[str, float]]] = {
            "HomePage": self.home_page,
            "Login": self.login,
            "TagSearch": self.tag_search,
            "EventDetail": self.event_detail,
            "PersonDetail": self.person_detail,
            "AddPerson": self.add_person,
            "AddEvent": self.add_event,
        }

    def perform(self, operation: str, random: Random) -> Mapping[str, float]:
        return self._operations[operation](random)

    def home_page(self, random: Random) -> Mapping[str, float]:
        page = self._page("/index.php")
        events = pages.events(page)
        if not events:
            raise OperationError("wrong page: no events")
        self._statics("HomePage")
        found, loaded, size = self._pictures(page)
        self._event = random.choice(events)
        return {"home_pictures": found, "home_pictures_loaded": loaded, "home_picture_bytes": size}

    def login(self, random: Random) -> Mapping[str, float]:
        self._logout(random)
        number = self._olio.account(self._user, random)
        form = _form(user_name=f"user{number}", password=str(number), submit="Login")
        self._ok("/login.php", self._client.post("/login.php", "post", *form))
        # The answer redirects to the home page; Olio's driver asks for that page by its own.
        page = self._ok("/index.php", self._client.get("/index.php", "redirect")).body
        if b"Username" in page:
            raise OperationError(f"log-in of user{number} refused")
        pages.expect(page)
        self._name = f"user{number}"
        return {}

    def tag_search(self, random: Random) -> Mapping[str, float]:
        tag = f"tag{random.randint(1, self._olio.config.tags)}"
        count = random.randint(100, 150)
        first = self._client.post("/taggedEvents.php", "post", *_form(tag=tag, tagsearchsubmit="Search Tags"))
        pages.expect(self._ok("/taggedEvents.php", first).body, tag)
        page = self._page(f"/taggedEvents.php?tag={tag}&count={count}", tag)
        self._statics("TagSearch")
        found, _, _ = self._pictures(page)
        events = pages.events(page)
        if events:
            self._event = random.choice(events)
        return {"tag_pictures": found}

    def event_detail(self, random: Random) -> Mapping[str, float]:
        event = self._event or str(random.randint(1, self._olio.config.events))
        page = self._page(f"/events.php?socialEventID={event}")
        if not pages.pictures(page):
            raise OperationError("wrong page: no picture of the event")
        self._statics("EventDetail")
        found, _, _ = self._pictures(page)
        counts = {"event_pictures": found}
        if self._name is not None and b">Attend<" in page:
            counts["attend_ready"] = 1
            if random.randrange(10) == 0:
                path = f"/addAttendee.php?id={event}"
                if self._name.encode() not in self._ok(path, self._client.get(path, "page")).body:
                    raise OperationError("attendance was not recorded")
                counts["attended"] = 1
        return counts

    def person_detail(self, random: Random) -> Mapping[str, float]:
        name = f"user{random.randint(1, self._olio.config.registered_users)}"
        page = self._page(f"/users.php?username={name}", name)
        self._statics("PersonDetail")
        self._pictures(page)
        return {}

    def add_person(self, random: Random) -> Mapping[str, float]:
        self._logout(random)
        self._page("/addPerson.php", "add_user_name")
        self._statics("AddPerson")
        name, password = self._olio.newcomer(self._user)
        answer = self._upload("/addPersonResult.php", forms.person(random, name, password, self._olio.person_picture))
        self._follow("/addPersonResult.php", answer, "users.php?username=", name)
        return {"persons_added": 1}

    def add_event(self, random: Random) -> Mapping[str, float]:
        page = self._page("/addEvent.php")
        self._statics("AddEvent")
        if self._name is None:
            return {}
        if b"addeventsubmit" not in page:
            raise OperationError("wrong page: no form for events")
        fields = forms.event(random, self._olio.config.tags, self._name, self._olio.event_picture, self._olio.event_literature)
        answer = self._upload("/addEventResult.php", fields)
        title = fields[0][1]
        assert isinstance(title, str)
        self._follow("/addEventResult.php", answer, "events.php?socialEventID=", title)
        return {"events_added": 1}

    def _logout(self, random: Random) -> None:
        if self._name is None:
            return
        self._name = None
        try:
            self._ok("/logout.php", self._client.get("/logout.php", "page"))
        finally:
            # Whatever the server said, this browser is closed and a new one opened.
            self._client.forget()
            self._cached.clear()
            self._warm = self._draw_cache(random)

    def _draw_cache(self, random: Random) -> bool:
        return random.random() < self._olio.config.cache_warm

    def _page(self, path: str, *marks: str) -> bytes:
        page = self._ok(path, self._client.get(path, "page")).body
        pages.expect(page, *marks, logged_in=self._name is not None)
        return page

    def _ok(self, path: str, answer: Response) -> Response:
        if answer.status >= 400:
            raise OperationError(f"{path.partition('?')[0]}: status {answer.status}")
        return answer

    def _statics(self, operation: str) -> None:
        if self._warm:
            if self._olio.config.profile != "olio-0.1":
                for path in _STATICS[operation]:
                    self._ok(path, self._client.get(path, "static", headers=_NOT_MODIFIED_SINCE))
            return
        for path in _STATICS[operation]:
            if path not in self._cached:
                self._ok(path, self._client.get(path, "static"))
                self._cached.add(path)

    def _pictures(self, page: bytes) -> tuple[int, int, int]:
        """Load the page's pictures that this session has not seen. Returns how many it shows, how many were loaded, and their bytes."""
        found = pages.pictures(page)
        loaded = size = 0
        for path in found:
            if path not in self._cached:
                size += len(self._ok(path, self._client.get(path, "image")).body)
                loaded += 1
                self._cached.add(path)
        return len(found), loaded, size

    def _upload(self, path: str, fields: list[forms.Field]) -> Response:
        # Olio 0.1 used a client of its own for uploads. That one had no cookie; our site wants the session, so it is sent in both profiles.
        send = self._client.post_alone if self._olio.config.profile == "olio-0.1" else self._client.post
        return self._ok(path, send(path, "upload", forms.multipart(fields), forms.CONTENT_TYPE))

    def _follow(self, path: str, answer: Response, target: str, mark: str) -> None:
        location = (answer.header(b"location") or b"").decode("latin-1")
        if answer.status != 302 or not location.lstrip("/").startswith(target):
            raise OperationError(f"{path}: no redirect to {target.partition('?')[0]}")
        following = "/" + location.lstrip("/")
        page = self._ok(following, self._client.get(following, "redirect")).body
        pages.expect(page, mark, logged_in=self._name is not None)


def _form(**fields: str) -> tuple[bytes, str]:
    body = "&".join(f"{name}={quote(value).replace('%20', '+')}" for name, value in fields.items())
    return body.encode(), "application/x-www-form-urlencoded"
