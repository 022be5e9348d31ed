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


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler; the node image has its own")

    def play(source: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path_factory.mktemp("premap")
        (folder / "premap.c").write_text(source)
        subprocess.run((compiler, "-O1", "-I", folder, "-I", NATIVE, "-o", folder / "fuzz", FUZZ), check=True)
        return subprocess.run((folder / "fuzz", "400"), capture_output=True, text=True, timeout=100, check=False)

    return play


def test_every_page_of_every_task_is_where_it_belongs(play):
    outcome = play((NATIVE / "premap.c").read_text())
    assert outcome.returncode == 0, outcome.stderr
    found = re.fullmatch(r"(\d+) tasks, (\d+) with a window, (\d+) of (\d+) mappings in place\n", outcome.stdout)
    assert found is not None
    tasks, windows, in_place, mappings = map(int, found.groups())
    assert tasks / 4 < windows < tasks  # both ways were taken: CRIU's where its variable is not to be found
    assert in_place > 0.8 * mappings


@pytest.mark.parametrize(
    ("sound", "broken"),
    [
        ("*note = window.end - window.start;", ""),
        ("syscall(SYS_munmap, at, made.all[i].start - at);", ";"),
        ("if (up && new->at[i] > own->start)", "if (0)"),
        ("if (elder)\n\t\taside", "if (0)\n\t\taside"),
    ],
    ids=["what is in place is cut off", "reserved pages stay", "the restorer's order", "the parent's mappings in the way"],
)
def test_a_mistake_would_be_noticed(play, sound, broken):
    source = (NATIVE / "premap.c").read_text()
    assert sound in source
    assert play(source.replace(sound, broken)).returncode == 1
