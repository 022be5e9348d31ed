"""What CRIU is shown of a pages file at a restore is what the numbers beside it say, through whichever call it reads."""

from __future__ import annotations

import json

import pytest

from emulab.testbed.testbed import PYTHON

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(120)]

# Run on a node: a program with the shim reads as CRIU does. It prints whether all that it read is right, and what is refused.
_SETUP = """
import json, os, random, shutil, subprocess, sys
from array import array
from pathlib import Path
from emulab.criu.commands import SHIM
folder = Path("/run/emulab/pages-test")
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir()
distinct = [os.urandom(4096) for _ in range(50)]
(folder / "distinct").write_bytes(b"".join(distinct))
numbers = array("I", [random.choice([*range(50), 0xFFFFFFFF]) for _ in range(300)])
(folder / "pages-7.img").touch()
(folder / "pages-7.img.numbers").write_bytes(numbers.tobytes())
(folder / "whole").write_bytes(b"".join(bytes(4096) if n == 0xFFFFFFFF else distinct[n] for n in numbers))
(folder / "pages-8.img").touch()
(folder / "pages-8.img.numbers").write_bytes(array("I", [3, 50]).tobytes())
(folder / "pages-9.img").write_bytes(b"as it is")
(folder / "other-7.img").write_bytes(b"another")
environment = {**os.environ, "LD_PRELOAD": SHIM, "EMULAB_SHIM_PAGES": str(folder / "distinct")}
outcome = subprocess.run((sys.executable, "-c", sys.argv[1], str(folder)), env=environment, capture_output=True, text=True)
shutil.rmtree(folder)
print(outcome.stdout or json.dumps(outcome.stderr))
"""
_READ = """
import ctypes, json, os, random, sys
class Part(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))
def preadv(file, parts, at):  # Python's own is preadv2
    all = (Part * len(parts))(*((ctypes.addressof(ctypes.c_char.from_buffer(one)), len(one)) for one in parts))
    return ctypes.CDLL(None).preadv64(file, all, len(parts), ctypes.c_long(at))
base = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
def opened(name):
    return os.open(name, os.O_RDONLY, dir_fd=base)
whole = os.pread(opened("whole"), 300 * 4096, 0)
file, right = opened("pages-7.img"), True
for _ in range(400):
    at, size = random.randrange(300 * 4096), random.choice([1, 4096, 5000, 70000])
    at -= at % random.choice([1, 4096])
    right &= os.pread(file, size, at) == whole[at : at + size]
    parts = [bytearray(random.choice([4096, 8192, 100])) for _ in range(5)]
    got = preadv(file, parts, at)
    right &= got == min(sum(map(len, parts)), len(whole) - at) and b"".join(parts)[:got] == whole[at : at + got]
refused = []
for page in (0, 1):
    try:
        refused.append(len(os.pread(opened("pages-8.img"), 4096, page * 4096)))
    except OSError as error:
        refused.append(os.strerror(error.errno))
child = os.fork()
if child == 0:
    os._exit(os.pread(file, 4096, 8192) != whole[8192:12288])
right &= os.waitpid(child, 0)[1] == 0
os.close(file)
again = opened("whole")  # has the number of the one that was closed
right &= again != file or os.pread(again, 10, 5) == whole[5:15]
plain = [os.pread(opened(name), 20, 0).decode() for name in ("pages-9.img", "other-7.img")]
print(json.dumps([right, refused, plain, os.environ.get("EMULAB_SHIM_PAGES")]))
"""
# The same for a pages file that is opened while pages of it are still to come: 2 of 3 in one file, 1 of 1 in another one that never come.
_SETUP_LATE = """
import json, os, shutil, subprocess, sys, threading, time
from array import array
from pathlib import Path
from blake3 import blake3
from emulab.criu.commands import SHIM
from emulab.migration.page_receiver import PageReceiver
from emulab.migration.pages import Chunk, Part, pack_refs
folder = Path("/run/emulab/pages-test")
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir()
pages = [os.urandom(4096) for _ in range(2)]
(folder / "whole").write_bytes(pages[0] + bytes(4096) + pages[1])
def chunk(first, refs, page):
    digest = blake3(page)
    digest.update(array("I", refs).tobytes())
    return Chunk((Part("pages-5.img", first, len(refs)),), digest.digest(), pack_refs(refs), 0, page)
receiver = PageReceiver(folder / "distinct")
receiver.write(folder, chunk(0, [0], pages[0]))
receiver.expect({folder / "pages-5.img": 3, folder / "pages-6.img": 1})
def come():
    time.sleep(0.5)
    receiver.write(folder, chunk(1, [0xFFFFFFFF, 1], pages[1]))
    time.sleep(0.5)
    receiver.close()
threading.Thread(target=come).start()
environment = {**os.environ, "LD_PRELOAD": SHIM, "EMULAB_SHIM_PAGES": str(folder / "distinct")}
outcome = subprocess.run((sys.executable, "-c", sys.argv[1], str(folder)), env=environment, capture_output=True, text=True)
shutil.rmtree(folder)
print(outcome.stdout or json.dumps(outcome.stderr))
"""
_READ_LATE = """
import json, os, sys, time
base = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
whole = os.pread(os.open("whole", os.O_RDONLY, dir_fd=base), 3 * 4096, 0)
started, said = time.monotonic(), []
for name in ("pages-5.img", "pages-6.img"):
    file = os.open(name, os.O_RDONLY, dir_fd=base)
    said.append(time.monotonic() - started)
    said.append([os.pread(file, 4096, at * 4096) == whole[at * 4096 : (at + 1) * 4096] for at in range(3)])
print(json.dumps(said))
"""


def test_what_is_still_to_come_is_waited_for(moving):
    outcome = moving.project.exec_run("host1", (PYTHON, "-c", _SETUP_LATE, _READ_LATE))
    assert outcome.ok, outcome.stderr
    opened_s, right, given_up_s, never_came = json.loads(outcome.stdout)
    assert right == [True] * 3
    assert 0.2 < opened_s < given_up_s  # the waits themselves: neither was answered before its time
    assert never_came == [False] * 3


def test_pages_are_put_together_from_their_numbers(moving):
    outcome = moving.project.exec_run("host1", (PYTHON, "-c", _SETUP, _READ))
    assert outcome.ok, outcome.stderr
    right, refused, plain, left_over = json.loads(outcome.stdout)
    assert right
    assert refused == [4096, "Input/output error"]
    assert plain == ["as it is", "another"]
    assert left_over in (None, "/run/emulab/pages-test/distinct")  # Python has its own copy of the environment
