"""What the driver reads in a page: pictures, event links, and whether it is the page that was asked for. Plain searches in bytes: cheap."""

from __future__ import annotations

from emulab.load.workload import OperationError

_PICTURE = b'src="fileService.php?'
_EVENT = b'<a href="events.php?socialEventID='
_END = b"</html>"


def pictures(page: bytes) -> list[str]:
    """Paths of the pictures that the page shows from the file store, each once, in order."""
    found: dict[bytes, None] = {}
    for element in page.split(b"<img ")[1:]:
        tag = element[: element.find(b">")]
        at = tag.find(_PICTURE)
        if at >= 0:
            at += len(_PICTURE)
            found[tag[at : tag.find(b'"', at)]] = None
    return ["/fileService.php?" + query.decode("latin-1") for query in found]


def events(page: bytes) -> list[str]:
    """Ids of the events that the page links to, each once, in order."""
    found = dict.fromkeys(part[: part.find(b'"')].strip() for part in page.split(_EVENT)[1:])
    return [event.decode("latin-1") for event in found if event.isdigit()]


def expect(page: bytes, *marks: str, logged_in: bool = False) -> None:
    """Raise unless the page is whole, holds all marks and, for somebody logged in, no log-in box."""
    if _END not in page[-64:]:
        raise OperationError("wrong page: cut or empty")
    for mark in marks:
        if mark.encode() not in page:
            raise OperationError(f"wrong page: no {mark}")
    if logged_in and b"Username" in page:
        raise OperationError("wrong page: session lost")
