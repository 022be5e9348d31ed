"""What the shim spares CRIU's restore: no page may get lost, whatever a family of tasks has mapped."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import emulab.criu

NATIVE = Path(emulab.criu.__file__).parent / "native"
FUZZ = Path(__file__).parent / "native" / "premap_fuzz.c"
_OUTCOME = r"(\d+) tasks, (\d+) with a window, (\d+) of (\d+) mappings in place, (\d+) of (\d+) pages unread, (\d+) of (\d+) there before\n"


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler; the node image has its own")

    def play(**changed: str) -> subprocess.CompletedProcess[str]:
        """``changed``: sources by name that are not as they should be."""
        folder = tmp_path_factory.mktemp("premap")
        for name in ("premap", "pages", "same", "prefill"):
            (folder / f"{name}.c").write_text(changed.get(name, source(name)))
        others = [folder / f"{name}.c" for name in ("pages", "same", "prefill")]
        subprocess.run((compiler, "-O1", "-I", folder, "-I", NATIVE, "-o", folder / "fuzz", FUZZ, *others), check=True)
        return subprocess.run((folder / "fuzz", "400", folder), capture_output=True, text=True, timeout=100, check=False)

    return play


def source(name: str) -> str:
    return (NATIVE / f"{name}.c").read_text()


def test_every_page_of_every_task_is_where_it_belongs(play):
    outcome = play()
    assert outcome.returncode == 0, outcome.stderr
    found = re.fullmatch(_OUTCOME, outcome.stdout)
    assert found is not None
    tasks, windows, in_place, mappings, unread, compared, there, read = map(int, found.groups())
    assert tasks / 4 < windows < tasks  # both ways were taken: CRIU's where its variable is not to be found
    assert in_place > 0.8 * mappings
    assert 0.2 * compared < unread < compared
    assert 0.02 * read < there < read


@pytest.mark.parametrize(
    ("name", "sound", "broken"),
    [
        ("premap", "*note = window.end - window.start;", ""),
        ("premap", "syscall(SYS_munmap, at, made.all[i].start - at);", ";"),
        ("premap", "if (up && new->at[i] > own->start)", "if (0)"),
        ("premap", "if (elder)\n\t\taside", "if (0)\n\t\taside"),
        ("premap", "same_replaced(to, size);", ""),
        ("same", "same_replaced((uintptr_t)at, size);", ""),
        ("same", "number + 1 ? number + 1 : number", "number + 1"),
        ("same", "*known = number; ", ""),
        ("same", "*new = known ? *known : 0;", "*new = known ? *known + 1 : 0;"),
        ("same", "differs ? 1 : ", ""),
        ("same", " && last.number != PAGE_OF_ZEROS", ""),
        ("prefill", "\tdrop(segment, reached, segment->high);", ""),
        ("prefill", "drop(segment, reached, start < segment->high ? start : segment->high);", ""),
        ("prefill", "\tsame_replaced(at, end - start);", ""),
        ("prefill", "next += SEGMENT + ALIGNED;", "next += SEGMENT;"),
        ("prefill", "\twhile (segment_count)\n\t\tdiscard(&segments[0]);\n}", "}"),
    ],
    ids=[
        "what is in place is cut off",
        "reserved pages stay",
        "the restorer's order",
        "the parent's mappings in the way",
        "a mapping moved over another",
        "a page that is gone",
        "a page of zeros",
        "a page that was changed",
        "a page that was moved",
        "memory for a page that is only looked at",
        "memory for a page of zeros",
        "pages behind the last one",
        "pages between others",
        "a page that was removed is still noted",
        "a mapping in two pieces",
        "what CRIU keeps",
    ],
)
def test_a_mistake_would_be_noticed(play, name, sound, broken):
    assert sound in source(name)
    assert play(**{name: source(name).replace(sound, broken)}).returncode == 1


def test_a_page_that_was_not_compared_ends_the_restore(play):
    assert play(same=source("same").replace("\tlast.buffer = 0;\n\treturn same", "\treturn same")).returncode == 1
