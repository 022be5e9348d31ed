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
        return subprocess.run((folder / "fuzz", "300"), capture_output=True, text=True, timeout=60, check=False)

    return play


def test_every_page_of_every_task_is_where_it_belongs(play):
    outcome = play((NATIVE / "premap.c").read_text())
    assert outcome.returncode == 0, outcome.stderr
    put_aside = re.fullmatch(r"300 families, put aside in (\d+)\n", outcome.stdout)
    assert put_aside is not None
    assert int(put_aside[1]) > 100  # the rare way was tried


def test_without_putting_aside_pages_are_lost(play):
    """The play would notice."""
    source = (NATIVE / "premap.c").read_text()
    broken = source.replace("static int make_room(uintptr_t end)\n{\n", "static int make_room(uintptr_t end)\n{\n\treturn 0;\n")
    assert broken != source
    assert play(broken).returncode == 1
