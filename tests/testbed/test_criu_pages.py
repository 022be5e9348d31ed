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


def test_pages_are_put_together_from_their_numbers(moving):
    outcome = moving.project.exec_run("host1", (PYTHON, "-c", _SETUP, _READ))
    assert outcome.ok, outcome.stderr
    right, refused, plain, left_over = json.loads(outcome.stdout)
    assert right
    assert refused == [4096, "Input/output error"]
    assert plain == ["as it is", "another"]
    assert left_over in (None, "/run/emulab/pages-test/distinct")  # Python has its own copy of the environment
