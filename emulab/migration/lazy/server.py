"""``python -m emulab.migration.lazy.server``: gives away the memory of a frozen guest, page by page, and ends the guest at last.

Started by the source's agent before the freeze. Its first line of input says what to serve, its first line of output on which port. It
ends with its agent unless it was told ``keep``, which the agent does once the destination has the guest: from then on the frozen tree is
this process's own. When the daemon at the destination says that the last page has arrived, it ends the tree and reports in one more line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emulab import clock
from emulab.command import Runner
from emulab.errors import EmulabError
from emulab.migration import journal
from emulab.migration.channel import Listener, Peer, PeerError
from emulab.migration.lazy.exchange import MAX_PAGES, PAGE, PageTeller
from emulab.migration.page_sender import Offer
from emulab.migration.store import Offered
from emulab.node.cgroup import guest_cgroup
from emulab.node.guest import Guests

log = logging.getLogger("emulab.migration.lazy")

# Nobody has asked for so long: the destination has given its guest up long before.
ABANDONED_S = 180.0
_EXCLUSIVE = 1 << 56  # pagemap: mapped by this task alone


@dataclass
class Task:
    """One frozen task. Its memory is read through /proc/PID/mem, which also shows what the task itself may not read."""

    pid: int
    memory: int = field(init=False)
    pagemap: int = field(init=False)

    def __post_init__(self) -> None:
        self.memory = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self.pagemap = os.open(f"/proc/{self.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def read(self, address: int, pages: int) -> tuple[bytes, list[bool]]:
        """Content, and for each page whether other tasks share it. Raises OSError."""
        parts, at, end = [], address, address + pages * PAGE
        while at < end:
            part = os.pread(self.memory, end - at, at)
            if not part:
                raise OSError(f"the memory of task {self.pid} cannot be read at {at:#x}")
            parts.append(part)
            at += len(part)
        entries = array("Q", os.pread(self.pagemap, pages * 8, address // PAGE * 8))
        return b"".join(parts), [not entry & _EXCLUSIVE for entry in entries]


def tasks_of(guest: str) -> dict[int, int]:
    """The guest's processes: number inside the guest to number on this node."""
    found = {}
    for pid in guest_cgroup(guest).pids():
        status = Path(f"/proc/{pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("NSpid:"))
        found[int(line.split()[-1])] = pid
    return found


class PageServer:
    """Serves one guest. ``wait`` returns what the daemon had to say once the guest here is no longer needed.

    ``offer``: pages that the other side has kept.
    """

    def __init__(
        self, *, guest: str, key: str, host: str, port: int, secret: bytes, limit_bytes_s: float = 0.0, offer: Offer | None = None
    ) -> None:
        self._guest = guest
        self._offer = offer
        self._key = key
        self._limit_bytes_s = limit_bytes_s
        self._kept = threading.Event()
        self._done = threading.Event()
        self._released = threading.Event()
        self._answered = threading.Event()
        self._lock = threading.Lock()
        self._tasks: dict[int, Task] = {}
        self._last_heard = clock.now()
        self._tellers: list[PageTeller] = []
        self._bytes = 0
        self.report: dict[str, Any] = {}
        self._listener = Listener(host, secret, self._serve, port=port)
        threading.Thread(target=self._listener.accept_forever, daemon=True, name="pages").start()

    @property
    def port(self) -> int:
        return self._listener.port

    def keep(self) -> None:
        """The destination has the guest: nobody else decides about the frozen tree any more."""
        self._kept.set()
        self._last_heard = clock.now()

    def wait(self) -> bool:
        """Until the last page has arrived (True), or nobody has asked for a long time (False)."""
        while not self._done.wait(1.0):
            if self._kept.is_set() and clock.now() - self._last_heard > ABANDONED_S:
                return False
        return True

    def released(self) -> None:
        """The tree is gone: the daemon may hear it and end."""
        self._released.set()
        self._answered.wait(2)

    def counts(self) -> dict[str, int]:
        tellers = self._tellers
        return {
            "pages": sum(one.pages for one in tellers),
            "zero_pages": sum(one.zero_pages for one in tellers),
            "distinct_pages": sum(one.distinct_pages for one in tellers),
            "stored_pages": sum(one.stored_pages for one in tellers),
            "bytes_on_wire": self._bytes,
        }

    def _serve(self, peer: Peer, address: str) -> None:
        peer.limit(self._limit_bytes_s or None)
        try:
            hello = peer.receive(timeout_s=10)
            if hello.kind != "pages" or hello.fields.get("key") != self._key:
                peer.send("error", message="this is the server of another guest's pages")
                return
            peer.send("ok")
            teller = PageTeller(self._offer if hello.fields.get("kept") else None)
            self._tellers.append(teller)
            while True:
                message = peer.receive(timeout_s=None)
                self._last_heard = clock.now()
                if message.kind == "want":
                    self._answer(peer, teller, message.fields)
                elif message.kind == "still-here":
                    continue
                elif message.kind == "done":
                    self._finish(peer, message.fields)
                    return
                else:
                    peer.send("error", message=f"unknown request {message.kind!r}")
                    return
        except (OSError, EmulabError, ValueError, TypeError, KeyError) as error:
            log.info("pages of %s for %s: %s", self._guest, address, error)
            with contextlib.suppress(PeerError):
                peer.send("error", message=f"pages cannot be read: {error}", lost=not guest_cgroup(self._guest).pids())

    def _answer(self, peer: Peer, teller: PageTeller, wanted: dict[str, Any]) -> None:
        task = self._task(int(wanted["pid"]))
        ranges = [(int(address), int(pages)) for address, pages in wanted["ranges"]]
        if not 0 < sum(pages for _, pages in ranges) <= MAX_PAGES or any(pages <= 0 or address % PAGE for address, pages in ranges):
            raise EmulabError("a question for pages that makes no sense")
        parts = [task.read(address, pages) for address, pages in ranges]
        refs, content, proof = teller.answer(b"".join(data for data, _ in parts), [one for _, shared in parts for one in shared])
        before = peer.bytes_out
        peer.send("pages", refs + content, id=wanted["id"], refs=len(refs), proof=proof.hex())
        self._bytes += peer.bytes_out - before

    def _task(self, number: int) -> Task:
        with self._lock:
            if not self._tasks:
                self._tasks = {inside: Task(pid) for inside, pid in tasks_of(self._guest).items()}
            return self._tasks[number]

    def _finish(self, peer: Peer, report: dict[str, Any]) -> None:
        if not self._kept.wait(60):
            raise EmulabError("the guest is not yet known to run at the destination")
        self.report = report
        self._done.set()
        self._released.wait(60)
        peer.send("ok")
        self._answered.set()

    def close(self) -> None:
        self._listener.close()


def say(**fields: Any) -> None:
    """A line for the agent, if there still is one."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), json.dumps(fields).encode() + b"\n")


def listen_to_agent(server: PageServer) -> None:
    """``keep`` hands the tree over to this process; the end of the input before that means that there is nothing to keep."""
    while line := sys.stdin.readline():
        if line.strip() == "keep":
            server.keep()
            return
    os._exit(0)


def main(argv: Sequence[str] = ()) -> int:
    del argv
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    call = json.loads(sys.stdin.readline())
    guest, key = str(call["guest"]), str(call["key"])
    server = PageServer(
        guest=guest,
        key=key,
        host=str(call["host"]),
        port=int(call.get("port", 0)),
        secret=bytes.fromhex(call["secret"]),
        limit_bytes_s=float(call.get("limit_bytes_s", 0.0)),
        offer=Offered(Path(call["offered"]).read_bytes()) if call.get("offered") else None,
    )
    say(port=server.port)
    threading.Thread(target=listen_to_agent, args=(server,), daemon=True).start()
    complete = server.wait()
    reason = str(server.report.get("reason", "")) if complete else "the destination asks for its memory no more"
    Guests(Runner()).discard_name(guest)
    journal.record(key, "released", role="source", vm=guest, reason=reason)
    say(complete=complete and not reason, reason=reason, **{**server.report, **server.counts()})
    if complete:
        server.released()
    server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
