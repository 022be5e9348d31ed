"""What the shim asks the kernel ahead of CRIU is what CRIU would have been told."""

from __future__ import annotations

import json

import pytest

from emulab.testbed.testbed import PYTHON

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(120)]

# Run on the guest's node: saves the frozen guest several ways and prints a digest of every image.
_SAVE = """
import hashlib, json, shutil, subprocess, sys
from pathlib import Path
from emulab.command import Runner
from emulab.criu import commands
from emulab.criu.standby import environment
from emulab.node.guest import Guests
guest = Guests(Runner()).running("check")
base = Path("/run/emulab/prefetch-test")
found = {}
guest.cgroup.lift_quota()
guest.cgroup.freeze()
try:
    # The first is not compared: its reading of a deleted file may change the access time that is in the image.
    for way, extra in (("first", {}), ("stock", {"EMULAB_SHIM_STOCK": "1"}), ("ahead", {})):
        images = base / way
        images.mkdir(parents=True)
        call = commands.dump(pid=guest.pid, images=images, parent=None, rootfs=str(guest.rootfs.merged),
                             freezer=guest.cgroup.freezer_path(), hook_socket="", write_protect=False)
        argv = list(call.argv)
        at = argv.index("--action-script")
        del argv[at:at + 2]
        subprocess.run([*argv, "--leave-running"], env={**environment(call.env), **extra}, check=True)
        guest.cgroup.freeze()
        found[way] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in images.glob("*.img")}
finally:
    guest.cgroup.thaw()
    guest.cgroup.set_quota(guest.spec.vcpus)
    shutil.rmtree(base, ignore_errors=True)
print(json.dumps(found))
"""


def test_the_images_are_the_same(moving, start):
    """All but the pages (CRIU's parasite leaves words on the tasks' stacks each time) and what holds the time."""
    guest = start(WORKERS="6")
    outcome = moving.project.exec_run("host1", (PYTHON, "-c", _SAVE))
    assert outcome.ok, outcome.stderr
    found = json.loads(outcome.stdout)
    kept = {
        way: {name: digest for name, digest in images.items() if not name.startswith(("pages-", "inventory", "timens-"))}
        for way, images in found.items()
    }
    assert {"mm-1.img", "core-1.img", "files.img", "pstree.img"} <= set(kept["stock"])
    assert kept["ahead"] == kept["stock"]
    guest.check()
