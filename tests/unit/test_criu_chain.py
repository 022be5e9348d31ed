"""Image folders that build on each other: every task has earlier images, if need be empty ones, and nothing that was there is changed."""

from __future__ import annotations

import os

import pytest

from emulab.criu.chain import link_parents
from emulab.criu.pagemap import PRESENT, parse_pagemap, write_entry, write_head


def fill(folder, *tasks):
    folder.mkdir()
    for number, task in enumerate(tasks, 1):
        (folder / f"pagemap-{task}.img").write_bytes(write_head(number) + write_entry(4096, 8192, PRESENT))
        (folder / f"pages-{number}.img").touch()


@pytest.mark.parametrize("earlier", [(), ("1",), ("1", "2", "3")])
def test_each_folder_names_the_one_before_and_every_task_has_a_page_map_there(tmp_path, earlier):
    for name in earlier:
        fill(tmp_path / name, 1, 7)
    fill(tmp_path / "final", 1, 8, 9)
    link_parents(tmp_path, [*earlier, "final"])
    names = [*earlier, "final"] if earlier else ["nothing", "final"]
    assert [os.readlink(tmp_path / name / "parent") for name in names[1:]] == [f"../{name}" for name in names[:-1]]
    assert not (tmp_path / names[0] / "parent").exists()
    last = tmp_path / names[-2]
    for task in (1, 8, 9):
        pagemap = parse_pagemap((last / f"pagemap-{task}.img").read_bytes())
        assert (last / f"pages-{pagemap.pages_file}.img").exists()
        assert len(pagemap.runs) == (task == 1 and bool(earlier))
    assert {path.name for name in earlier[:-1] for path in (tmp_path / name).glob("pagemap-*")} <= {"pagemap-1.img", "pagemap-7.img"}
