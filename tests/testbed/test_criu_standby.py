"""CRIU that waits for its start, on a node: it does nothing before it is let go, and ends with who started it."""

from __future__ import annotations

import json

import pytest

from emulab.testbed.testbed import PYTHON

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(120)]

_TRY = """
import json, os, time
from pathlib import Path
from emulab.criu.commands import SHIM, CriuCall
from emulab.criu.standby import Standby

def standby(log):
    return Standby(CriuCall(("criu", "check", "-v2", "-o", log), {"LD_PRELOAD": SHIM}))

found = {}
log = Path("/run/emulab/standby.log")
waiting = standby(str(log))
time.sleep(0.5)
found["waits"] = waiting.process.poll() is None and not log.exists()
found["loaded"] = "shim.so" in Path(f"/proc/{waiting.process.pid}/maps").read_text()
waiting.go().wait(30)
found["works"] = log.exists()
log.unlink()
refused = standby(str(log))
refused.close()
found["closed"] = refused.process.returncode == 1 and not log.exists()
try:
    refused.go()
except Exception as error:
    found["after close"] = type(error).__name__
starter = os.fork()
if starter == 0:
    orphan = standby(str(log))
    Path("/run/emulab/orphan").write_text(str(orphan.process.pid))
    os.kill(os.getpid(), 9)
os.waitpid(starter, 0)
pid = Path("/run/emulab/orphan").read_text()
end = time.monotonic() + 10
while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
    time.sleep(0.01)
found["ends with its starter"] = not Path(f"/proc/{pid}").exists() and not log.exists()
print(json.dumps(found))
"""


def test_it_waits_works_and_ends(moving):
    outcome = moving.project.exec_run("host1", (PYTHON, "-c", _TRY))
    assert outcome.ok, outcome.stderr
    assert json.loads(outcome.stdout) == {
        "waits": True,
        "loaded": True,
        "works": True,
        "closed": True,
        "after close": "EmulabError",
        "ends with its starter": True,
    }


_TRY_DUMP = """
import json, os, shutil, subprocess, time
from pathlib import Path
from emulab.criu import commands
from emulab.migration.dump import FinalDump, is_traced

folder = Path("/run/emulab/dump-test")
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir()
nothing = {name: subprocess.DEVNULL for name in ("stdin", "stdout", "stderr")}
guest = subprocess.Popen(("sleep", "60"), start_new_session=True, **nothing)
where = {"images": folder, "parent": None, "rootfs": "/", "freezer": "/nowhere", "hook_socket": str(folder / "hook")}
call = commands.dump(pid=guest.pid, write_protect=False, **where)
dump = FinalDump(call, folder, folder / "hook")
end = time.monotonic() + 20
while not dump._criu.hooks.times and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.3)
found = {
    "stages": list(dump._criu.hooks.times),
    "touched": is_traced(guest.pid),
    "images": [path.name for path in folder.glob("*.img")],
}
if BEGINS:
    dump.begin()
    found["goes on"] = dump._criu.process.wait(20) != 0  # there is no such control group to freeze
    dump.end()
else:
    dump.refuse()
found["ended"] = dump._criu.process.poll() is not None
found["left"] = is_traced(guest.pid), guest.poll()
dump.close()
guest.kill()
guest.wait()
found["log"] = "freez" in (folder / "dump.log").read_text().lower()
shutil.rmtree(folder)
print(json.dumps(found))
"""


@pytest.mark.parametrize("begins", [True, False])
def test_the_final_dump_waits_for_the_freeze_before_it_looks_at_a_task(moving, begins):
    outcome = moving.project.exec_run("host1", (PYTHON, "-c", _TRY_DUMP.replace("BEGINS", str(begins))))
    assert outcome.ok, outcome.stderr
    found = json.loads(outcome.stdout)
    assert (found["stages"], found["touched"], found["images"]) == (["pre-dump"], False, [])
    assert found["ended"]
    assert found["left"] == [False, None]
    assert found.get("goes on", False) is found["log"] is begins
