"""Ends programs on a node of the testbed with signal 9, at a moment that a test chooses."""

from __future__ import annotations

import json

from emulab.testbed.testbed import PYTHON

AGENT = ("-m", "emulab.agent.server")

# Run on the node. Its arguments: the moment, the victim and how long to wait for one. A program is known by the first words of its command
# line, of a Python program by those after the interpreter; it is ended by its number.
_ASSASSIN = """
import json, os, pathlib, sys, time
moment, victim, delay, forked = json.loads(sys.argv[1])
journal = pathlib.Path("/var/lib/emulab/guests/journal.ndjson")

def running(words, at_work=True):
    if forked:
        return forking(words)
    return next((pid for pid in all_running(words) if not (at_work and waits(pathlib.Path(f"/proc/{pid}")))), 0)

def forking(words):
    found = all_running(words)
    for pid in found:
        try:
            parent = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
        except OSError:
            continue
        if parent in found:
            return parent
    return 0

def all_running(words):
    words, pids = [word.encode() for word in words], []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found = path.read_bytes().split(b"\\0")
        except OSError:
            continue
        if found[words[0][:1] == b"-" :][: len(words)] == words:
            pids.append(int(path.parent.name))
    return pids

def waits(process):
    # A CRIU that was started ahead of its time and reads at its gate does nothing yet.
    try:
        gate = [word for word in (process / "environ").read_bytes().split(b"\\0") if word.startswith(b"EMULAB_SHIM_GATE=")]
        call = (process / "syscall").read_text().split()
        if not gate:
            return False
        if call[:2] != ["0", hex(int(gate[0].split(b"=")[1]))]:
            time.sleep(0.015)  # it may not have come to its gate yet
            call = (process / "syscall").read_text().split()
        return call[:2] == ["0", hex(int(gate[0].split(b"=")[1]))]
    except (OSError, ValueError):
        return False

def recorded():
    return journal.read_bytes() if journal.exists() else b""

before = len(recorded())
print("waiting", flush=True)
kind, *wanted = moment
if kind == "order" and not sys.stdin.readline():
    sys.exit()
while kind == "program" and not running(wanted) or kind == "journal" and wanted[0].encode() not in recorded()[before:]:
    time.sleep(0.0003)
end = time.monotonic() + 20
while not (pid := running(victim, at_work=delay > 0)) and time.monotonic() < end:
    time.sleep(0.0003)
if pid:
    time.sleep(delay)
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        pid = 0
print("killed" if pid else "nobody", flush=True)
"""


class Kill:
    """Ends the first process of a node whose command line begins with ``victim``.

    ``moment``: ("now",), ("order",) for a call of ``order``, ("program", word, …) for the start of a program, ("journal", text) for a line
    of the journal. A victim that does not run yet is waited for; it lives ``delay_s`` longer, counted from when it is at work: a CRIU is
    started before its time. ``forked``: not before it has a child that has not become another program.
    """

    def __init__(self, testbed, node, victim, *, moment=("now",), delay_s=0.0, forked=False):
        argv = (PYTHON, "-c", _ASSASSIN, json.dumps([moment, victim, delay_s, forked]))
        self._stream = testbed.project.exec_stream(node, argv)

    def __enter__(self):
        assert read_line(self._stream) == "waiting"
        return self

    def __exit__(self, *_):
        self._stream.kill()
        self._stream.close()

    def order(self):
        self._stream.write(b"now\n")

    def happened(self):
        return read_line(self._stream) == "killed"


def read_line(stream):
    line = b""
    while not line.endswith(b"\n") and (part := stream.read(1)):
        line += part
    return line.decode().strip()
