"""The rows of every table, drawn by Olio's distributions, as one stream of SQL that ``mariadb olio`` can swallow.

Each table has its own random stream, so that a change to one leaves the others as they were. Times are written relative to the day
of loading: the bytes depend on (users, ratio, seed) only, and the events are always upcoming ones.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from workloads.olio.loader.passwords import hashed
from workloads.olio.loader.scale import Counts, counts
from workloads.olio.loader.sql import inserts, quoted
from workloads.olio.loader.text import Texts

SCHEMA = Path(__file__).resolve().parent.parent / "schema" / "schema.sql"
PERIOD_DAYS = 540  # events lie that many days ahead, comments and registrations that many days back
DAY_MINUTES = 24 * 60
STREET_KINDS = (" Blvd", " Ave", " St", " Ln", "")
TIMEZONES = ("PST", "EST", "UTC", "Europe/Berlin", "Europe/Paris", "Asia/Tokyo", "Asia/Kolkata", "Australia/Melbourne", "America/Sao_Paulo")
TAG_MEAN = 0.1  # of the tags: the popularity falls off exponentially with the tag's number

PROLOGUE = """SET NAMES utf8mb4;
SET time_zone = '+00:00', unique_checks = 0, foreign_key_checks = 0, autocommit = 0;
SET @base = CAST(UTC_DATE() AS DATETIME);
"""

EPILOGUE = """UPDATE SOCIALEVENTTAG t
  JOIN (SELECT socialeventtagid, COUNT(*) AS n FROM SOCIALEVENTTAG_SOCIALEVENT GROUP BY socialeventtagid) c
  ON c.socialeventtagid = t.socialeventtagid SET t.refcount = c.n;
UPDATE SOCIALEVENT e
  JOIN (SELECT socialeventid, COUNT(*) AS n, SUM(ratings) AS s FROM COMMENTS_RATING GROUP BY socialeventid) c
  ON c.socialeventid = e.socialeventid SET e.numberofvotes = c.n, e.totalscore = c.s;
COMMIT;
SET unique_checks = 1, foreign_key_checks = 1, autocommit = 1;
ANALYZE TABLE PERSON, PERSON_PERSON, SOCIALEVENT, PERSON_SOCIALEVENT, SOCIALEVENTTAG, SOCIALEVENTTAG_SOCIALEVENT, COMMENTS_RATING, ADDRESS;
"""

Rows = Iterator[str]


class Dataset:
    """Row generators, one per table. Each yields the text between the brackets of a VALUES item."""

    def __init__(self, size: Counts, seed: int) -> None:
        self.size = size
        self._seed = seed
        self._texts = Texts(f"{seed}:texts")

    def _rng(self, table: str) -> random.Random:
        return random.Random(f"{self._seed}:{table}")

    def addresses(self) -> Rows:
        """One per person."""
        rng, places = self._rng("address"), self._texts.places
        for n in range(1, self.size.registered_users + 1):
            street = f"{rng.randint(1, 99_999)} {rng.choice(places)}{rng.choice(STREET_KINDS)}"
            second = f"Apt {rng.randint(1, 999)}" if rng.random() < 0.5 else ""
            state = chr(rng.randint(65, 90)) + chr(rng.randint(65, 90))
            country = "USA" if rng.random() < 0.5 else rng.choice(places)
            yield (
                f"{n},'{street}','{second}','{rng.choice(places)}','{state}','{rng.randint(0, 99_999):05d}','{country}',"
                f"{rng.uniform(-66.56, 66.56):.6f},{rng.uniform(-179.99, 180):.6f}"  # nobody lives beyond the polar circles
            )

    def persons(self) -> Rows:
        """Person n is called ``user<n>`` and has the password ``<n>``."""
        rng, texts = self._rng("person"), self._texts
        for n in range(1, self.size.registered_users + 1):
            first, last = rng.choice(texts.first_names), rng.choice(texts.last_names)
            email = f"{first}_{last}@{rng.choice(texts.places).lower()}.com"
            yield ",".join(
                (
                    f"{n},'user{n}','{hashed(str(n), rng.randbytes(8))}'",
                    quoted(first),
                    quoted(last),
                    quoted(email),
                    f"'{phone(rng)}','p{n}.jpg','p{n}t.jpg'",
                    quoted(texts.text(rng, 250, 2500)),
                    f"'{rng.choice(TIMEZONES)}',{rng.randint(1, self.size.registered_users)}",
                )
            )

    def friends(self) -> Rows:
        """2 to 28 others for each person, pending and accepted in turn."""
        rng, people = self._rng("friends"), self.size.registered_users
        for n in range(1, people + 1):
            wanted = min(rng.randint(2, 28), people - 1)
            for i, other in enumerate(rng.sample(range(1, people), wanted)):
                yield f"{n},{other + (other >= n)},{i % 2}"  # the step over n: nobody is their own friend

    def events(self) -> Rows:
        """Three per tag, within the next 540 days, between 07:00 and 21:45 o'clock."""
        rng, texts, people = self._rng("event"), self._texts, self.size.registered_users
        for n in range(1, self.size.events + 1):
            starts = rng.randint(0, PERIOD_DAYS) * DAY_MINUTES + rng.randint(7, 21) * 60 + 15 * rng.randint(0, 3)
            created = rng.randint(0, PERIOD_DAYS * DAY_MINUTES)
            yield ",".join(
                (
                    str(n),
                    quoted(texts.text(rng, 15, 20)),
                    quoted(texts.text(rng, 50, 90)),
                    quoted(texts.text(rng, 50, 495)),
                    f"{rng.randint(1, people)},{rng.randint(1, people)},'e{n}.jpg','e{n}t.jpg','e{n}l.pdf'",
                    f"'{phone(rng)}','{rng.choice(TIMEZONES)}'",
                    f"@base+INTERVAL {starts} MINUTE,@base-INTERVAL {created} MINUTE",
                )
            )

    def attendees(self) -> Rows:
        """10 to 100 persons per event."""
        rng, people = self._rng("attendees"), self.size.registered_users
        for n in range(1, self.size.events + 1):
            for person in sorted(rng.sample(range(1, people + 1), min(rng.randint(10, 100), people))):
                yield f"{person},{n}"

    def tags(self) -> Rows:
        return (f"{n},'tag{n}',0" for n in range(1, self.size.tags + 1))

    def event_tags(self) -> Rows:
        """1 to 7 different tags per event."""
        rng = self._rng("event tags")
        for n in range(1, self.size.events + 1):
            wanted = min(rng.randint(1, 7), self.size.tags)
            chosen: set[int] = set()
            while len(chosen) < wanted:
                chosen.add(self._popular_tag(rng))
            for tag in sorted(chosen):
                yield f"{tag},{n}"

    def _popular_tag(self, rng: random.Random) -> int:
        while True:
            number = int(-math.log(1 - rng.random()) * TAG_MEAN * self.size.tags) + 1
            if number <= self.size.tags:
                return number

    def comments(self) -> Rows:
        """0 to 20 per event, ratings 2 to 5."""
        rng, texts, people = self._rng("comments"), self._texts, self.size.registered_users
        for n in range(1, self.size.events + 1):
            for _ in range(rng.randint(0, 20)):
                minutes = rng.randint(0, PERIOD_DAYS * DAY_MINUTES)
                text = quoted(texts.text(rng, 10, 1000))
                yield f"{rng.randint(1, people)},{n},{text},{rng.randint(2, 5)},@base-INTERVAL {minutes} MINUTE"


def phone(rng: random.Random) -> str:
    return f"+{rng.randint(1, 99)} {rng.randint(100, 999)} {rng.randint(100, 999)} {rng.randint(1000, 9999)}"


PERSON = "userid,username,password,firstname,lastname,email,telephone,imageurl,imagethumburl,summary,timezone,ADDRESS_addressid"
SOCIALEVENT = (
    "socialeventid,title,summary,description,submitter_userid,ADDRESS_addressid,imageurl,imagethumburl,literatureurl,telephone,timezone,"
    "eventtimestamp,createdtimestamp"
)


def tables(data: Dataset) -> tuple[tuple[str, Callable[[], Rows]], ...]:
    """Every table with its columns, and what fills it, in the order of loading."""
    return (
        ("ADDRESS (addressid,street1,street2,city,state,zip,country,latitude,longitude)", data.addresses),
        (f"PERSON ({PERSON})", data.persons),
        ("PERSON_PERSON (person_userid,friend_userid,is_accepted)", data.friends),
        (f"SOCIALEVENT ({SOCIALEVENT})", data.events),
        ("PERSON_SOCIALEVENT (userid,socialeventid)", data.attendees),
        ("SOCIALEVENTTAG (socialeventtagid,tag,refcount)", data.tags),
        ("SOCIALEVENTTAG_SOCIALEVENT (socialeventtagid,socialeventid)", data.event_tags),
        ("COMMENTS_RATING (userid,socialeventid,comments,ratings,created_at)", data.comments),
    )


def generate(users: int, ratio: int, seed: int) -> Iterator[bytes]:
    """SQL that drops, creates and fills every table; chunks of up to about half a megabyte. The same arguments give the same bytes.

    Args:
        users: concurrent users.
        ratio: registered persons per concurrent user.
        seed: of all random streams.

    """
    yield SCHEMA.read_bytes()
    yield PROLOGUE.encode()
    for target, rows in tables(Dataset(counts(users, ratio), seed)):
        # One transaction per empty table: InnoDB then builds it in bulk, sorted and without undo.
        yield f"-- {target.split()[0]}\nSTART TRANSACTION;\n".encode()
        yield from inserts(target, rows())
        yield b"COMMIT;\n"
    yield EPILOGUE.encode()
