"""A CRIU image folder crosses as it is, whole or page by page, and cannot write anywhere else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from emulab.errors import EmulabError
from emulab.migration.images import FolderReceiver, FolderSender, check_file_name, send_folder
from emulab.migration.pages import PAGE, PageReceiver, PageSender

sys.path.insert(0, str(Path(__file__).parents[1]))
from wire import Wire


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
    pages = PageReceiver()
    yield FolderReceiver(here, pages)
    pages.close()


def fill(folder, **files):
    for name, content in files.items():
        (folder / f"{name.replace('_', '-')}.img").write_bytes(content)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_image_arrives_as_it_is(there, here, receiver):
    fill(there, pages_1=os.urandom(PAGE) * 3, pages_2=b"", core_1=b"core", inventory=b"", files=os.urandom(5000))
    wire = Wire()
    send_folder(wire, there, PageSender())
    assert wire.deliver(receiver) is True
    assert content(here / "final") == content(there)


def test_logs_and_statistics_stay_at_home(there, here, receiver):
    fill(there, core_1=b"core")
    for name in ("dump.log", "stats-dump", "irmap-cache"):
        (there / name).write_text("local")
    (there / "parent").symlink_to("../1")
    wire = Wire()
    send_folder(wire, there, PageSender())
    wire.deliver(receiver)
    assert set(content(here / "final")) == {"core-1.img"}


def test_pages_of_finished_tasks_travel_while_criu_still_writes(there, here, receiver):
    wire = Wire()
    stream = FolderSender(wire, there, PageSender())
    fill(there, pages_1=b"\1" * PAGE)
    stream.poll()
    assert [message.kind for message in wire.sent] == ["folder"]  # the first may still grow
    fill(there, pages_2=b"\2" * PAGE)
    stream.poll()
    assert [message.fields.get("name") for message in wire.sent if message.kind == "pages"] == ["pages-1.img"]
    fill(there, pages_3=b"\3" * PAGE, core_1=b"core")
    stream.finish()
    wire.deliver(receiver)
    assert content(here / "final") == content(there)
    assert [message.fields["name"] for message in wire.sent if message.kind == "pages"] == [f"pages-{n}.img" for n in (1, 2, 3)]


def test_a_second_folder_refers_to_pages_of_the_first(there, here, receiver, tmp_path):
    page = os.urandom(PAGE)
    sender, wire = PageSender(), Wire()
    for number in ("1", "2"):
        folder = tmp_path / number
        folder.mkdir()
        fill(folder, pages_1=page)
        send_folder(wire, folder, sender)
    wire.deliver(receiver)
    assert content(here / "1") == content(here / "2")
    assert sender.distinct_pages == 1


def test_pages_files_of_another_size_are_sent_as_plain_files(there, here, receiver):
    fill(there, pages_1=b"x" * 100)
    wire = Wire()
    send_folder(wire, there, PageSender())
    wire.deliver(receiver)
    assert content(here / "final") == {"pages-1.img": b"x" * 100}


def test_an_error_while_reading_pages_is_raised_and_not_lost(there):
    fill(there, pages_1=bytes(PAGE))

    class Broken(PageSender):
        def chunks(self, path):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        send_folder(Wire(), there, Broken())


def test_a_broken_connection_ends_the_sending(there):
    fill(there, pages_1=os.urandom(40 * 1024 * PAGE // 4))

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
@pytest.mark.parametrize("kind", ["folder", "files", "pages"])
def test_nothing_is_written_outside_of_the_folder(here, receiver, kind, name, tmp_path):
    wire = Wire()
    if kind != "folder":
        wire.send("folder", folder="final")
    wire.send(kind, b"", folder=name, name=name, names=[(name, 0)], pages=1)
    before = {path for path in tmp_path.rglob("*") if "final" not in path.parts}
    with pytest.raises(EmulabError, match="refused"):
        wire.deliver(receiver)
    assert {path for path in tmp_path.rglob("*") if "final" not in path.parts} == before


@pytest.mark.parametrize("kind", ["files", "pages", "chunk", "commit"])
def test_messages_out_of_turn_are_refused(receiver, kind):
    wire = Wire()
    wire.send(kind, b"", names=[], name="a", pages=1, first=0, refs=0)
    with pytest.raises(EmulabError):
        wire.deliver(receiver)
