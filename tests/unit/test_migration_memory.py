"""What moving a large guest's pages costs the two agents in memory: beyond the images themselves, less than 256 MB each."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from array import array
from pathlib import Path

import pytest

from emulab.migration.pages import NUMBERS, PAGE

MB = 2**20
LIMIT = 256 * MB

# Either end runs in a process of its own, as on two nodes, and tells its largest resident size.
_END = """
import json, socket, sys
from pathlib import Path
from emulab.migration.channel import Peer
from emulab.migration.images import FolderReceiver, send_folder
from emulab.migration.page_receiver import PageReceiver
from emulab.migration.page_sender import PageSender

side, descriptor, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
peer = Peer(socket.socket(fileno=descriptor))
if side == "sender":
    pages = PageSender(lambda: float(sys.argv[4]))
    send_folder(peer, folder, pages)
    peer.expect_ok(None)
else:
    receiver = FolderReceiver(folder, PageReceiver(folder / "distinct"))
    while not receiver.handle(peer.receive(None)):
        pass
    peer.send("ok")
status = Path("/proc/self/status").read_text()  # rusage would count what the parent had when it forked
print(json.dumps({"peak": int(status.split("VmHWM:")[1].split()[0]) * 1024}))
"""


def digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def move(there, here, rate):
    """Move an image folder between two processes; returns what each tells."""
    ends = socket.socketpair()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [
        subprocess.Popen(
            (sys.executable, "-c", _END, side, str(end.fileno()), str(folder), str(rate)),
            pass_fds=(end.fileno(),), stdout=subprocess.PIPE, env=environment,
        )
        for side, end, folder in zip(("sender", "receiver"), ends, (there, here), strict=True)
    ]  # fmt: skip
    for end in ends:
        end.close()
    told = []
    for process in processes:
        output, _ = process.communicate(timeout=580)
        assert process.returncode == 0
        told.append(json.loads(output))
    return told


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rate", [1e6, 117e6])  # the slower link takes the compressor that needs most memory
def test_a_large_guest_needs_little_memory_to_move(tmp_path, rate):
    size = 640 * MB if rate > 1e7 else 64 * MB
    there, here = tmp_path / "there" / "1", tmp_path / "here"
    there.mkdir(parents=True)
    here.mkdir()
    path = there / "pages-1.img"
    with path.open("wb") as file:
        for _ in range(size // (16 * MB)):  # half of it no compressor can do anything about
            file.write(os.urandom(8 * MB))
            file.write(os.urandom(4 * MB).hex().encode())
    try:
        for end in move(there, here, rate):
            assert end["peak"] < LIMIT
        assert digest(here / "distinct") == digest(path)  # no page is like another
        numbers = array("I", (here / "1" / f"{path.name}{NUMBERS}").read_bytes())
        assert numbers == array("I", range(size // PAGE))
    finally:
        path.unlink()
        (here / "distinct").unlink()
