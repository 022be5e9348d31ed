"""What the driver types into forms and uploads: names, texts, addresses, and multipart bodies (RFC 7578).

Lengths and choices follow Olio's ``UIDriver`` and ``RandomUtil``.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_TIMEZONES = ("UTC", "Europe/Berlin", "Europe/Lisbon", "America/New_York", "America/Sao_Paulo", "Asia/Tokyo", "Asia/Kolkata")
BOUNDARY = "----emulab-7d93f1c2b04e"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


class Upload(NamedTuple):
    """A file in a form."""

    name: str
    content_type: str
    content: bytes


Field = tuple[str, str | Upload]


def multipart(fields: Sequence[Field]) -> bytes:
    """The body of a form in ``CONTENT_TYPE``, in the order of the fields."""
    parts: list[bytes] = []
    for name, value in fields:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'
        if isinstance(value, str):
            parts.append(f"{head}\r\n\r\n{value}\r\n".encode())
        else:
            parts += (f'{head}; filename="{value.name}"\r\nContent-Type: {value.content_type}\r\n\r\n'.encode(), value.content, b"\r\n")
    parts.append(f"--{BOUNDARY}--\r\n".encode())
    return b"".join(parts)


def person(random: Random, name: str, password: str, picture: Upload) -> list[Field]:
    """The form of AddPerson."""
    first, last = _name(random, 2, 12), _name(random, 5, 15)
    address = dict(_address(random))
    return [
        ("add_user_name", name),
        ("psword", password),
        ("passwordx", password),
        ("first_name", first),
        ("last_name", last),
        ("email", f"{first}_{last}@{_word(random, 3, 10)}.com"),
        *((key, address[key]) for key in ("street1", "street2", "zip", "city", "state", "country")),
        ("telephone", _phone(random)),
        ("timezone", random.choice(_TIMEZONES)),
        ("user_image", picture),
        ("summary", _text(random, 250, 2500)),
        ("addpersonsubmit", "Create"),
    ]


def event(random: Random, tags: int, submitter: str, picture: Upload, literature: Upload) -> list[Field]:
    """The form of AddEvent; its title is the first field."""
    when = datetime.now(UTC) + timedelta(days=random.randint(0, 540), minutes=random.randrange(1440))
    return [
        ("title", _text(random, 15, 20)),
        ("description", _text(random, 50, 495)),
        ("telephone", _phone(random)),
        ("timezone", random.choice(_TIMEZONES)),
        *_address(random),
        *((unit, f"{getattr(when, unit):02d}") for unit in ("year", "month", "day", "hour", "minute")),
        ("tags", " ".join(_tags(random, tags))),
        ("submitter_user_name", submitter),
        ("upload_image", picture),
        ("upload_literature", literature),
        ("addeventsubmit", "Create"),
    ]


def _tags(random: Random, count: int) -> list[str]:
    """One to seven different tags, early ones more often (negative exponential, its mean at a tenth of the tags)."""
    wanted = min(random.randint(1, 7), count)
    chosen: dict[int, None] = {}
    while len(chosen) < wanted:
        number = int(-math.log1p(-random.random()) * max(1.0, count * 0.1))
        if number < count:
            chosen[number + 1] = None
    return [f"tag{number}" for number in chosen]


def _address(random: Random) -> list[tuple[str, str]]:
    street = f"{random.randrange(1, 100_000)} {_name(random, 1, 11)} {random.choice(('Blvd', 'Ave', 'St', 'Ln', ''))}".rstrip()
    return [
        ("street1", street),
        ("street2", _word(random, 5, 20) if random.random() < 0.5 else ""),
        ("city", _word(random, 4, 14)),
        ("state", _word(random, 2, 2).upper()),
        ("zip", f"{random.randrange(100_000):05d}"),
        ("country", "USA" if random.random() < 0.5 else _name(random, 6, 16)),
    ]


def _phone(random: Random) -> str:
    area = f"1 {random.randrange(1000):03d}" if random.random() < 0.5 else f"{random.randrange(10, 100)} {random.randrange(100):02d}"
    return f"+{area} {random.randrange(1000):03d} {random.randrange(10_000):04d}"


def _word(random: Random, shortest: int, longest: int) -> str:
    return "".join(random.choices(_LETTERS, k=random.randint(shortest, longest)))


def _name(random: Random, shortest: int, longest: int) -> str:
    return _word(random, shortest, longest).capitalize()


def _text(random: Random, shortest: int, longest: int) -> str:
    """Words of 1 to 12 letters, ``shortest`` to ``longest`` characters together."""
    length = random.randint(shortest, longest)
    letters = random.choices(_LETTERS, k=length)
    at = random.randint(1, 12)
    while at < length - 1:
        letters[at] = " "
        at += random.randint(2, 13)
    return "".join(letters)
