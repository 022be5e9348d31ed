"""Static files and pictures: Olio's sizes, readable by others, the same bytes each time."""

import io

import pytest
from PIL import Image

from workloads.olio.assets import SIZES, STATICS, event_jpeg, event_pdf, jpeg, pdf, person_jpeg
from workloads.olio.assets.__main__ import THUMBNAIL_SHAPES
from workloads.olio.assets.statics import static_file


@pytest.mark.parametrize("name", SIZES)
def test_static_file_has_its_size_and_never_changes(name):
    content = static_file(name)
    assert len(content) == SIZES[name]
    assert static_file(name) == content


@pytest.mark.parametrize("name", [name for name in SIZES if name.startswith("images/")])
def test_static_picture_is_readable(name):
    with Image.open(io.BytesIO(static_file(name))) as picture:
        picture.load()
        assert picture.format == name.rsplit(".", 1)[1].upper()


def test_numbers_of_statics_per_page():
    assert {operation: len(names) for operation, names in STATICS.items()} == {
        "HomePage": 18, "Login": 0, "TagSearch": 18, "EventDetail": 21, "PersonDetail": 17, "AddPerson": 18, "AddEvent": 18,
    }  # fmt: skip
    assert all(len(set(names)) == len(names) and set(names) <= set(SIZES) for names in STATICS.values())


def test_home_page_statics_weigh_about_191_kilobytes():
    assert 185_000 < sum(SIZES[name] for name in STATICS["HomePage"]) < 195_000


@pytest.mark.parametrize(
    ("make", "shape", "size"), [(event_jpeg, (1690, 1268), 669_128), (person_jpeg, (1050, 1124), 671_520)], ids=["event", "person"]
)
def test_upload_pictures(make, shape, size):
    content = make()
    assert len(content) == size
    assert make() == content
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        assert (picture.format, picture.size, picture.mode) == ("JPEG", shape, "RGB")
        assert len(picture.resize((64, 64)).getcolors(64 * 64)) > 500  # it shows something


@pytest.mark.parametrize("profile", THUMBNAIL_SHAPES)
def test_thumbnails(profile):
    width, height, *sizes = THUMBNAIL_SHAPES[profile]
    for size in sizes:
        content = jpeg(width, height, size, 1)
        assert len(content) == size
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            assert picture.size == (width, height)


def test_pictures_of_other_seeds_differ():
    assert jpeg(64, 64, 3000, 1) != jpeg(64, 64, 3000, 2)


def test_a_picture_needs_room():
    with pytest.raises(ValueError, match="too few"):
        jpeg(640, 480, 2000, 1)


def test_document_has_its_size_and_structure():
    content = event_pdf()
    assert len(content) == 129_617
    assert content.startswith(b"%PDF-1.4")
    start = int(content.split(b"startxref\n")[1].split(b"\n")[0])
    assert content[start : start + 4] == b"xref"
    for number, line in enumerate(content[start:].split(b"\n")[3:9], start=1):
        assert content[int(line[:10]) :].startswith(b"%d 0 obj" % number)


def test_a_document_needs_room():
    with pytest.raises(ValueError, match="no PDF"):
        pdf(100, 1)
