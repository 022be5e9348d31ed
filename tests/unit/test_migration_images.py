"""A CRIU image folder crosses as it is, whole or page by page, and cannot write anywhere else."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest
import zstandard

from emulab.errors import EmulabError
from emulab.migration.image_files import check_file_name
from emulab.migration.images import FolderReceiver, FolderSender, send_folder
from emulab.migration.page_receiver import PageReceiver
from emulab.migration.page_sender import PageSender
from emulab.migration.pages import DISTINCT, PAGE

sys.path.insert(0, str(Path(__file__).parents[1]))
from waiting import wait_until
from wire import Wire, arrived, content, content_there, fill


@pytest.fixture
def there(tmp_path):
    folder = tmp_path / "there" / "final"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def here(tmp_path):
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.fixture
def receiver(here):
    pages = PageReceiver(here / DISTINCT)
    yield FolderReceiver(here, pages)
    pages.close()


def test_every_image_arrives_as_it_is(there, here, receiver):
    fill(there, pages_1=os.urandom(PAGE) * 3, pages_2=b"", core_1=b"core", inventory=b"", files=os.urandom(5000))
    wire = Wire()
    send_folder(wire, there, PageSender())
    assert wire.deliver(receiver) is True
    assert content_there(here / "final") == content(there)


def test_logs_and_statistics_stay_at_home(there, here, receiver):
    fill(there, core_1=b"core")
    for name in ("dump.log", "stats-dump", "irmap-cache"):
        (there / name).write_text("local")
    (there / "parent").symlink_to("../1")
    wire = Wire()
    send_folder(wire, there, PageSender())
    wire.deliver(receiver)
    assert set(content_there(here / "final")) == {"core-1.img"}


def carried(wire):
    """How many pages of each file have left so far."""
    found = {}
    for message in list(wire.sent):
        for name, first, count in message.fields.get("parts", ()):
            assert found.get(name, 0) == first
            found[name] = first + count
    return found


def test_pages_travel_while_criu_still_writes_them(there, here, receiver):
    wire = Wire()
    stream = FolderSender(wire, there, PageSender())
    with (there / "pages-1.img").open("wb", buffering=0) as file:
        file.write(os.urandom(100 * PAGE + 5))
        wait_until(lambda: carried(wire) == {"pages-1.img": 100}, timeout_s=10.0)
        file.write(os.urandom(100 * PAGE - 5))
        wait_until(lambda: carried(wire) == {"pages-1.img": 200}, timeout_s=10.0)
        file.write(os.urandom(3 * PAGE))  # too few to go by themselves
    fill(there, pages_2=b"", pages_10=b"\2" * PAGE * 80, core_1=b"core")
    wait_until(lambda: "pages-10.img" in carried(wire), timeout_s=10.0)
    stream.poll()
    stream.finish()
    assert carried(wire) == {"pages-1.img": 203, "pages-2.img": 0, "pages-10.img": 80}
    assert wire.deliver(receiver) is True
    assert content_there(here / "final") == content(there)


def sent_files(wire):
    """Names in each message of other files, in order."""
    found = []
    for message in list(wire.sent):
        if message.kind == "files":
            index = zstandard.ZstdDecompressor().decompress(message.payload)[: message.fields["index"]]
            found.append([name for name, _, _ in json.loads(index)])
    return found


def test_files_of_finished_tasks_travel_early_and_once(there, here, receiver):
    fill(there, core_1=b"core", mm_1=b"mappings", empty=b"", large=os.urandom(300_000))
    wire = Wire()
    stream = FolderSender(wire, there, PageSender(), eager=True)
    wait_until(lambda: sent_files(wire) == [["core-1.img", "mm-1.img"]], timeout_s=10.0)
    fill(there, core_2=b"another")
    stream.finish()
    assert [name for names in sent_files(wire) for name in names].count("core-1.img") == 1
    assert wire.deliver(receiver) is True
    assert content_there(here / "final") == content(there)


def test_a_file_that_changes_after_it_was_sent_is_sent_again(there, here, receiver):
    fill(there, files=b"the first of them", core_1=b"core")
    wire = Wire()
    stream = FolderSender(wire, there, PageSender(), eager=True)
    wait_until(lambda: sent_files(wire) == [["core-1.img", "files.img"]], timeout_s=10.0)
    fill(there, files=b"fewer")  # as large would do, too: its time tells
    stream.finish()
    assert sent_files(wire)[-1] == ["files.img"]
    assert wire.deliver(receiver) is True
    assert content_there(here / "final") == content(there)


def test_a_file_that_is_removed_after_it_was_sent_is_an_error(there):
    fill(there, core_1=b"core")
    wire = Wire()
    stream = FolderSender(wire, there, PageSender(), eager=True)
    wait_until(lambda: sent_files(wire), timeout_s=10.0)
    (there / "core-1.img").unlink()
    with pytest.raises(EmulabError, match="removed after"):
        stream.finish()


class Slow(Wire):
    """Takes no pages until it is told to."""

    def __init__(self):
        super().__init__()
        self.go_on = threading.Event()

    def send(self, kind, payload=b"", **fields):
        if kind == "chunk":
            self.go_on.wait()
        super().send(kind, payload, **fields)


def is_locked(folder, name):
    """Whoever reads this pages file waits."""
    with (folder / f"{name}.numbers").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_restore_can_begin_before_the_last_pages_are_sent(there, here, receiver):
    """All files go past the pages that wait for the link, and none of them again. Whoever reads pages can tell what is still to come."""
    wire = Slow()
    stream = FolderSender(wire, there, PageSender(), eager=True)
    pages = [os.urandom(6000 * PAGE), os.urandom(200 * PAGE)]  # more than may wait for the link
    fill(there, pages_1=pages[0], pages_2=pages[1], pages_3=b"", core_1=b"core", files=os.urandom(400_000))
    counts = stream.finish_files()
    assert counts == {"pages-1.img": 6000, "pages-2.img": 200, "pages-3.img": 0}
    wire.deliver(receiver)
    folder = here / "final"
    assert {path.name for path in folder.iterdir()} >= {"core-1.img", "files.img"}
    receiver.expect(counts)
    assert (here / DISTINCT).stat().st_size == 6200 * PAGE  # it is mapped now
    assert [is_locked(folder, name) for name in counts] == [True, True, False]
    time.sleep(0.1)  # by now it would look for files again
    wire.go_on.set()
    stream.finish()
    assert {message.kind for message in wire.messages} == {"chunk", "folder-end"}
    while is_locked(folder, "pages-1.img"):
        assert wire.deliver(receiver, most=1) is False
    assert arrived(folder, here / DISTINCT)["pages-1.img"] == pages[0]
    assert wire.deliver(receiver) is True
    assert not is_locked(folder, "pages-2.img")
    assert content_there(folder) == content(there)


@pytest.mark.parametrize("change", [1, -1])
def test_more_or_fewer_pages_than_were_told_are_refused(there, here, receiver, change):
    wire = Slow()
    stream = FolderSender(wire, there, PageSender(), eager=True)
    fill(there, pages_1=os.urandom(500 * PAGE))
    counts = stream.finish_files()
    wire.deliver(receiver)
    receiver.expect({name: count + change for name, count in counts.items()})
    wire.go_on.set()
    stream.finish()
    with pytest.raises(EmulabError, match="have not arrived" if change > 0 else "more pages"):
        wire.deliver(receiver)


def test_small_files_share_a_chunk(there):
    for number in range(1, 41):
        fill(there, **{f"pages_{number}": os.urandom(PAGE)})
    wire = Wire()
    send_folder(wire, there, PageSender())
    assert [message.kind for message in wire.sent].count("chunk") == 1


def test_files_that_are_larger_than_a_message_arrive_in_pieces(there, here, receiver):
    large = os.urandom(9 * 1024 * 1024)
    fill(there, tmpfs_dev_9=large, ghost_file_1=bytes(10 * 1024 * 1024), a=b"a", zz=large[:4096])
    wire = Wire()
    send_folder(wire, there, PageSender())
    assert max(len(message.payload) for message in wire.sent) < 5 * 1024 * 1024
    wire.deliver(receiver)
    assert content_there(here / "final") == content(there)


def test_stopping_early_ends_the_threads(there):
    before = set(threading.enumerate())
    stream = FolderSender(Wire(), there, PageSender())
    fill(there, pages_1=os.urandom(200 * PAGE))
    stream.close()
    stream.close()
    assert set(threading.enumerate()) <= before


def test_a_link_that_takes_nothing_more_is_given_up_when_stopping(there):
    class Stuck(Wire):
        def __init__(self):
            super().__init__()
            self.asked, self.given_up = threading.Event(), threading.Event()

        def send(self, kind, payload=b"", **fields):
            if kind == "chunk":
                self.asked.set()
                assert self.given_up.wait(10)
                raise ConnectionError("cut")

        def cut(self):
            self.given_up.set()

    wire = Stuck()
    stream = FolderSender(wire, there, PageSender())
    fill(there, pages_1=os.urandom(2000 * PAGE))
    wait_until(wire.asked.is_set, timeout_s=10.0)
    stream.close()
    with pytest.raises(ConnectionError):
        stream.poll()


def test_a_file_that_shrinks_while_it_is_sent_is_an_error(there):
    stream = FolderSender(Wire(), there, PageSender())
    path = there / "pages-1.img"
    path.write_bytes(os.urandom(100 * PAGE))
    wait_until(lambda: stream._sent.get(path.name) == 100, timeout_s=10.0)
    os.truncate(path, 50 * PAGE)
    with pytest.raises(EmulabError, match="became shorter"):
        stream.finish()


def test_a_second_folder_refers_to_pages_of_the_first(there, here, receiver, tmp_path):
    page = os.urandom(PAGE)
    sender, wire = PageSender(), Wire()
    for number in ("1", "2"):
        folder = tmp_path / number
        folder.mkdir()
        fill(folder, pages_1=page)
        send_folder(wire, folder, sender)
    wire.deliver(receiver)
    assert content_there(here / "1") == content_there(here / "2")
    assert sender.distinct_pages == 1


def test_a_pages_file_that_ends_within_a_page_is_an_error(there):
    fill(there, pages_1=b"x" * 100)
    with pytest.raises(EmulabError, match="ends within a page"):
        send_folder(Wire(), there, PageSender())


def test_an_error_while_reading_pages_is_raised_and_not_lost(there):
    class Broken(PageSender):
        def name(self, folder, parts, data, give_way):
            raise OSError("the disk is gone")

    stream = FolderSender(Wire(), there, Broken())
    fill(there, pages_1=bytes(100 * PAGE))

    def failed():
        try:
            stream.poll()
        except OSError:
            return True
        return False

    wait_until(failed, timeout_s=10.0)
    with pytest.raises(OSError, match="the disk is gone"):
        stream.finish()


def test_a_broken_connection_ends_the_sending(there):
    fill(there, pages_1=bytes(8 * 1024 * PAGE))  # more than waits for the link

    class Broken(Wire):
        def send(self, kind, payload=b"", **fields):
            if kind == "chunk":
                raise ConnectionError("broken")
            super().send(kind, payload, **fields)

    with pytest.raises(ConnectionError):
        send_folder(Broken(), there, PageSender())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b"])
def test_a_name_that_is_more_than_a_file_name_is_refused(name):
    with pytest.raises(EmulabError, match="refused"):
        check_file_name(name)


@pytest.mark.parametrize("name", ["..", "../../etc", "/tmp/x", "a/b"])
@pytest.mark.parametrize("kind", ["folder", "files", "chunk"])
def test_nothing_is_written_outside_of_the_folder(here, receiver, kind, name, tmp_path):
    wire = Wire()
    if kind != "folder":
        wire.send("folder", folder="final")
    index = json.dumps([(name, 0, 4)]).encode()
    payload = zstandard.compress(index + b"evil") if kind == "files" else b""
    wire.send(kind, payload, folder=name, index=len(index), size=4, parts=[(name, 0, 1)], refs=0, form=0)
    before = {path for path in tmp_path.rglob("*") if "final" not in path.parts}
    with pytest.raises(EmulabError, match="refused"):
        wire.deliver(receiver)
    assert {path for path in tmp_path.rglob("*") if "final" not in path.parts} == before


@pytest.mark.parametrize("kind", ["files", "chunk", "commit"])
def test_messages_out_of_turn_are_refused(receiver, kind):
    wire = Wire()
    wire.send(kind, b"", index=0, size=0, parts=[], refs=0, form=0)
    with pytest.raises(EmulabError):
        wire.deliver(receiver)


@pytest.mark.parametrize(
    ("pieces", "content", "size"),
    [
        ([("a", 0, 4)], b"12345", 5),
        ([("a", 0, 6)], b"12345", 5),
        ([("a", 0, 6), ("b", 0, -1)], b"12345", 5),
        ([("a", 1, 5)], b"12345", 5),
        ([("a", 0, 5)], b"12345", 6),
        ([("a", 0, 5)], b"12345", 2**40),
        ([("a", 0)], b"12345", 5),
        ([5], b"12345", 5),
    ],
)
def test_files_that_are_not_what_their_index_says_are_refused(here, receiver, pieces, content, size):
    index = json.dumps(pieces).encode()
    wire = Wire()
    wire.send("folder", folder="final")
    wire.send("files", zstandard.compress(index + content), index=len(index), size=size)
    with pytest.raises(EmulabError):
        wire.deliver(receiver)
    assert all(path.stat().st_size == 0 for path in (here / "final").iterdir())
