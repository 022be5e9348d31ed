"""Pages kept of a guest that has left: offered again when it comes back, never if anything about them is in doubt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from blake3 import blake3

from emulab.errors import EmulabError
from emulab.migration import store
from emulab.migration.channel import Incoming, PeerError
from emulab.migration.page_sender import PageSender
from emulab.migration.pages import PAGE, Part
from emulab.migration.store import Offered, Visit, ask, discard, keep_in_background, kept, make_room


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def fill(tmp_path, count, name="pages-1.img"):
    """A pages file; returns its content and what a sender says of it."""
    content = os.urandom(count * PAGE)
    (tmp_path / name).write_bytes(content)
    pages = [content[at : at + PAGE] for at in range(0, len(content), PAGE)]
    return pages, [(tmp_path / name, n) for n in range(count)]


def offered(folder, guest="web"):
    """(what is offered, the visit)"""
    visit = Visit(guest, folder)
    return Offered(visit.offer()), visit


def places(folder, pages):
    offer, visit = offered(folder)
    visit.close()
    return [offer.find(blake3(page).digest()) for page in pages]


def test_another_process_reads_what_was_offered_even_if_it_is_replaced_meanwhile(tmp_path, folder):
    pages, found = fill(tmp_path, 20)
    kept("web", found, folder)
    offer, visit = offered(folder)
    kept("web", fill(tmp_path, 30, "pages-2.img")[1], folder)
    code = "import json, sys; from emulab.migration.store import KeptPages; k = KeptPages(**json.loads(sys.argv[1])); "
    code += "sys.stdout.buffer.write(k.read(3) + k.read(19)); k.read(20)"
    done = subprocess.run((sys.executable, "-c", code, json.dumps(visit.handed_on())), check=False, capture_output=True)
    assert done.stdout == pages[3] + pages[19]
    assert b"never offered" in done.stderr
    assert offer.find(blake3(pages[3]).digest()) == 3
    visit.close()
    nothing = Visit("db", folder)
    nothing.offer()
    assert nothing.handed_on() is None
    nothing.close()


def test_the_names_of_what_is_kept_are_known_without_reading_it(tmp_path, folder):
    pages, found = fill(tmp_path, 700)
    nothing = Offered(store.names("web", folder))
    kept("web", found, folder)
    offer = Offered(store.names("web", folder))
    for n, digest in enumerate(blake3(page).digest() for page in pages):
        assert (nothing.find(digest), offer.find(digest)) == (None, n)
    content = bytearray((folder / "web").read_bytes())
    content[700 * PAGE] ^= 1
    (folder / "web").write_bytes(content)
    assert Offered(store.names("web", folder)).find(blake3(pages[1]).digest()) is None


def test_what_was_kept_is_offered_and_read_again(tmp_path, folder):
    pages, found = fill(tmp_path, 700)
    assert kept("web", found, folder) == 700
    offer, visit = offered(folder)
    assert [offer.find(blake3(page).digest()) for page in pages] == list(range(700))
    assert offer.find(blake3(b"another page").digest()) is None
    target = bytearray(3 * PAGE)
    visit.read_into(255, memoryview(target))
    visit.close()
    assert bytes(target) == b"".join(pages[255:258])


def test_nothing_is_offered_of_a_guest_that_was_never_here(folder):
    assert places(folder, [b"x"]) == [None]


def test_the_names_on_the_wire_are_short_and_differ_from_leave_to_leave(tmp_path, folder):
    _, distinct = fill(tmp_path, 100)
    messages = []
    for _ in range(2):
        kept("web", distinct, folder)
        visit = Visit("web", folder)
        messages.append(visit.offer())
        visit.close()
    assert [len(message) for message in messages] == [32 + 100 * 8] * 2
    assert len({bytes(message[at : at + 8]) for message in messages for at in range(32, 832, 8)}) == 200


@pytest.mark.parametrize("at", [5 * PAGE, 300 * PAGE + 1])
def test_a_block_that_the_disk_spoiled_is_not_offered(tmp_path, folder, at):
    pages, distinct = fill(tmp_path, 600)
    kept("web", distinct, folder)
    with (folder / "web").open("r+b") as file:
        file.seek(at)
        file.write(b"spoiled")
    found = places(folder, pages)
    bad = at // PAGE // 256
    assert [place is None for place in found] == [n // 256 == bad for n in range(600)]


@pytest.mark.parametrize("where", ["names", "blocks", "footer", "cut", "empty"])
def test_a_damaged_index_offers_nothing(tmp_path, folder, where):
    pages, distinct = fill(tmp_path, 300)
    kept("web", distinct, folder)
    path = folder / "web"
    content = bytearray(path.read_bytes())
    at = {"names": 300 * PAGE + 7, "blocks": 300 * (PAGE + 8) + 3, "footer": len(content) - 60}.get(where)
    if at:
        content[at] ^= 1
    path.write_bytes({"cut": content[:-PAGE], "empty": b""}.get(where, content))
    assert places(folder, pages) == [None] * 300


def test_a_crash_in_the_middle_of_writing_leaves_the_store_before(tmp_path, folder):
    pages, distinct = fill(tmp_path, 300)
    kept("web", distinct, folder)

    def interrupted():
        yield from distinct[:260]
        raise OSError("the power went")

    with pytest.raises(OSError, match="the power went"):
        kept("web", interrupted(), folder)
    assert [path.name for path in folder.iterdir()] == ["web"]
    assert places(folder, pages) == list(range(300))


def test_no_more_is_kept_than_the_limit_says(tmp_path, folder):
    _, distinct = fill(tmp_path, 300)
    assert kept("web", distinct, folder, limit=100 * PAGE) == 100
    assert (folder / "web").stat().st_size < 102 * PAGE


def test_the_stores_that_were_written_first_make_room(tmp_path, folder):
    _, distinct = fill(tmp_path, 10)
    for age, name in enumerate(("newest", "middle", "oldest")):
        kept(name, distinct, folder)
        os.utime(folder / name, (time.time() - age * 100,) * 2)
    size = (folder / "newest").stat().st_size
    make_room(folder, limit=2 * size)
    assert {path.name for path in folder.iterdir()} == {"newest", "middle"}
    make_room(folder, limit=1)
    assert {path.name for path in folder.iterdir()} == {"newest"}


def test_the_place_is_checked_before_it_is_read(tmp_path, folder):
    _, distinct = fill(tmp_path, 10)
    kept("web", distinct, folder)
    _, visit = offered(folder)
    for first, count in ((-1, 1), (10, 1), (9, 2), (2**31 - 1, 1)):
        with pytest.raises(EmulabError, match="never offered"):
            visit.read_into(first, memoryview(bytearray(count * PAGE)))
    visit.close()


def test_keeping_in_the_background_removes_the_images_and_a_visit_waits_for_it(tmp_path, folder):
    images = tmp_path / "out"
    (images / "final").mkdir(parents=True)
    pages, _ = fill(images / "final", 500)
    sender = PageSender()
    sender.name(images / "final", [Part("pages-1.img", 0, 500)], b"".join(pages))
    keep_in_background("web", sender, images, folder)
    assert places(folder, pages) == list(range(500))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    discard("web", folder)
    discard("web", folder)
    assert list(folder.iterdir()) == []


def test_keeping_leaves_nothing_behind_when_the_images_are_gone(tmp_path, folder):
    sender = PageSender()
    (tmp_path / "out").mkdir()
    pages, _ = fill(tmp_path, 5)
    sender.name(tmp_path / "out", [Part("pages-1.img", 0, 5)], b"".join(pages))
    keep_in_background("web", sender, tmp_path / "out", folder)
    assert places(folder, pages) == [None] * 5
    assert list(folder.iterdir()) == []


class Answering:
    """The other side of ``ask``."""

    def __init__(self, kind, payload=b""):
        self.answer = Incoming(kind, {}, payload)
        self.asked = []

    def send(self, kind, payload=b"", **fields):
        self.asked.append(kind)

    def receive(self, timeout_s=None):
        return self.answer


def test_the_destination_is_asked_once_and_only_if_wanted(tmp_path, folder):
    pages, distinct = fill(tmp_path, 20)
    kept("web", distinct, folder)
    visit = Visit("web", folder)
    peer = Answering("stored", visit.offer())
    visit.close()
    ask(peer, PageSender())
    assert peer.asked == []
    sender = PageSender(asks=True)
    ask(peer, sender)
    ask(peer, sender)
    assert peer.asked == ["stored"]
    sender.name(tmp_path, [Part("pages-1.img", 0, 20)], b"".join(pages))
    assert sender.stored_pages == 20


@pytest.mark.parametrize("answer", [Answering("ok"), Answering("stored"), Answering("stored", b"x" * 31)])
def test_an_answer_that_is_none_is_refused(answer):
    with pytest.raises(PeerError):
        ask(answer, PageSender(asks=True))


def test_an_answer_of_an_odd_length_offers_what_it_holds():
    assert Offered(bytes(32) + b"x" * 13).find(b"x" * 32) is None


def test_stores_lie_on_the_volume_of_the_layers_and_are_no_guests():
    assert store.FOLDER.parent == store.GUESTS
    assert store.FOLDER.name.startswith(".")
