"""``python -m emulab.migration.lazy.daemon``: the memory of a guest that runs here before its pages are here.

Started by the destination's agent while the guest is staged. A line of input says where the images and the source's page server are;
``ready`` is answered once CRIU may restore. CRIU hands over a userfaultfd per task; from the first moment faults are answered, and once
the guest runs the rest is fetched in the background. The process ends with its agent unless it was told ``keep``, at the commit.

A second process, the keeper, holds the descriptors too: if this one dies, pages must not read as zero before the guest is ended.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import statistics
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emulab import clock
from emulab.errors import EmulabError
from emulab.migration.channel import connect
from emulab.migration.lazy import keeper
from emulab.migration.lazy.arriving import plan
from emulab.migration.lazy.exchange import MAX_PAGES, PAGE
from emulab.migration.lazy.missing import Missing, Segment
from emulab.migration.lazy.server import say
from emulab.migration.lazy.source import PATIENCE_S, Answer, Source
from emulab.migration.lazy.uffd import Uffd
from emulab.migration.lazy.watched import Scratch, Watched
from emulab.migration.store import KeptPages

log = logging.getLogger("emulab.migration.lazy")

_RESTORED = 0x52535446  # CRIU's word for: every task is complete
_FAULT_PAGES = 16  # around a fault: what was used together is used together again
_AHEAD = 2  # background questions on their way
_SOON_S, _LATE_S = 0.015, 0.05  # an answer that takes longer holds up the faults behind it
_WORD_S = 20.0


class LostError(EmulabError):
    """Pages of the guest that nobody has any more."""


class Daemon:
    """One arriving guest."""

    def __init__(self, call: dict[str, Any], held: keeper.Keeper) -> None:
        self.key = str(call["key"])
        self.guest = str(call["guest"])
        self._keeper = held
        folder = Path(call["folder"])
        self._criu = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._criu.bind(str(folder / "lazy-pages.socket"))
        self._criu.listen(1)
        secret = bytes.fromhex(call["secret"])
        kept = KeptPages(**call["kept"]) if call.get("kept") else None
        self._source = Source(lambda: connect(str(call["host"]), secret, port=int(call["port"])), self.key, kept)
        self._epoll = select.epoll()
        self._missing = plan(folder)
        self._handed_over = False
        self._tasks: dict[int, Watched] = {}  # by descriptor
        self._order: deque[Watched] = deque()
        self._questions: dict[int, tuple[Watched, list[tuple[int, int]], float, bool]] = {}
        self._numbers = 0
        self._line = 0
        self._chunk = 64
        self._scratch = Scratch()
        self._agent_there = True
        self._kept = False
        self._restored = False
        self._began = self._word = clock.now()
        self._pages = 0

    def reachable(self, timeout_s: float = 5.0) -> bool:
        """Whether the source answers."""
        end = clock.now() + timeout_s
        while not self._source.line and clock.now() < end:
            time.sleep(0.005)
        return bool(self._source.line)

    # -- the loop ----------------------------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Until every page is here. Raises LostError if the source does not answer any more, EmulabError if the guest was not restored."""
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        self._epoll.register(self._criu.fileno(), select.EPOLLIN)
        self._epoll.register(self._source.descriptor, select.EPOLLIN)
        while not self._complete():
            for descriptor, _ in self._epoll.poll(0.2):
                self._news(descriptor)
            self._take_answers()
            if self._restored:
                self._ask_for_more()
            self._watch_the_line()
        return self._report()

    def _complete(self) -> bool:
        return self._restored and all(task.complete for task in self._tasks.values())

    def _news(self, descriptor: int) -> None:
        if descriptor == sys.stdin.fileno():
            self._hear_agent()
        elif descriptor == self._source.descriptor:
            self._source.quiet()
        elif descriptor == self._criu.fileno():
            self._hear_criu()
        elif (task := self._tasks.get(descriptor)) is not None:
            self._hear(task)

    def _hear_agent(self) -> None:
        line = os.read(sys.stdin.fileno(), 4096)
        if b"keep" in line:
            self._kept = True
            self._keeper.mind()
            self._began = clock.now()
        if not line:
            if not self._kept:
                raise EmulabError("the agent is gone and the guest was never let go")
            self._epoll.unregister(sys.stdin.fileno())

    # -- the handing over --------------------------------------------------------------------------------------------------------------

    def _hear_criu(self) -> None:
        """CRIU connects once and then names each task, followed by its descriptor; a zombie has a negative number and none."""
        if not self._handed_over:
            self._handed_over = True
            listening, (self._criu, _) = self._criu, self._criu.accept()
            self._epoll.unregister(listening.fileno())
            listening.close()
            self._epoll.register(self._criu.fileno(), select.EPOLLIN)
            return
        data = self._criu.recv(4, socket.MSG_WAITALL)
        if len(data) < 4:
            self._epoll.unregister(self._criu.fileno())
            if not self._restored:
                raise EmulabError("CRIU gave up before the guest was restored")
            return
        (pid,) = struct.unpack("=i", data)
        if pid == _RESTORED:
            self._restored = True
        elif pid > 0:
            _, descriptors, _, _ = socket.recv_fds(self._criu, 1, 1)
            self._watch(Watched(Uffd(descriptors[0]), pid, Missing(self._missing.pop(pid, ()))))

    def _watch(self, task: Watched) -> None:
        if task.complete:  # a child of a task that has everything
            task.uffd.close()
            return
        self._keeper.hold(task.uffd.descriptor)
        self._tasks[task.uffd.descriptor] = task
        self._order.append(task)
        self._epoll.register(task.uffd.descriptor, select.EPOLLIN)

    # -- faults ------------------------------------------------------------------------------------------------------------------------

    def _hear(self, task: Watched) -> None:
        if task.gone:
            return
        heard = task.hear(self._watch)
        for address in heard:
            self._answer_fault(task, address)
        if heard:
            self._order.remove(task)
            self._order.appendleft(task)

    def _hear_during_change(self, task: Watched) -> None:
        self._hear(task)
        time.sleep(0.0001)

    def _answer_fault(self, task: Watched, address: int) -> None:
        if task.missing.find(address) is None:
            return  # asked for by an earlier fault of the same batch
        taken = task.missing.take(address, address + _FAULT_PAGES * PAGE)
        self._ask(task, taken, urgent=True)

    def _ask(self, task: Watched, segments: list[Segment], *, urgent: bool) -> None:
        if not segments:
            return
        self._numbers += 1
        ranges = task.send_for(self._numbers, segments)
        self._questions[self._numbers] = (task, ranges, clock.now(), urgent)
        self._source.ask(self._line, self._numbers, task.pid, ranges)

    # -- the background ----------------------------------------------------------------------------------------------------------------

    def _ask_for_more(self) -> None:
        """The next pages of the task that faulted last. Never so many that a fault has to wait long behind them."""
        urgent = any(question[3] for question in self._questions.values())
        while self._line and self._line == self._source.line and len(self._questions) < (1 if urgent else _AHEAD):
            task = next((one for one in self._order if not one.gone and one.missing), None)
            if task is None:
                return
            segments = task.missing.take_next(task.cursor, self._chunk * PAGE)
            task.cursor = segments[-1].end
            self._ask(task, segments, urgent=False)

    def _take_answers(self) -> None:
        for answer in self._source.answers():
            if answer.line == self._line and answer.number in self._questions:
                self._take(answer)

    def _take(self, answer: Answer) -> None:
        task, ranges, asked_s, urgent = self._questions.pop(answer.number)
        took = clock.now() - asked_s
        if not urgent:
            if took < _SOON_S:
                self._chunk = min(self._chunk * 2, MAX_PAGES // 2)
            elif took > _LATE_S:
                self._chunk = max(self._chunk // 2, 8)
        if not task.gone:
            task.arrived(answer.number, answer.pages, ranges, self._scratch, lambda: self._hear_during_change(task))
            self._pages += len(answer.pages)

    def _watch_the_line(self) -> None:
        """A new connection knows nothing of what was asked on the old one."""
        line, now = self._source.line, clock.now()
        if line != self._line:
            self._line = line
            self._ask_again()
        if self._source.lost:
            raise LostError("its memory at the source is gone")
        if not line and self._restored and now - max(self._source.lost_s, self._began) > PATIENCE_S:
            raise LostError(f"the source of its memory has not answered for {PATIENCE_S:.0f} s")
        if now - self._word > _WORD_S:
            self._word = now
            self._source.still_here()

    def _ask_again(self) -> None:
        lost, self._questions = self._questions, {}
        for number, (task, _, _, _) in lost.items():
            task.missing.put(task.on_their_way.pop(number, ()))
        if self._line:
            for task in list(self._order):
                for address in list(task.waiting):
                    self._answer_fault(task, address)

    # -- the end -----------------------------------------------------------------------------------------------------------------------

    def _report(self) -> dict[str, Any]:
        latencies = sorted(latency for task in self._tasks.values() for latency in task.latencies)
        return {
            "pages_faulted": len(latencies),
            "fault_p50_s": statistics.median(latencies) if latencies else 0.0,
            "fault_max_s": latencies[-1] if latencies else 0.0,
            "pages_fetched": self._pages,
            "end_s": clock.now(),
        }

    def let_go(self) -> None:
        """Everything is here: the kernel watches over the guest's memory no longer."""
        for task in self._tasks.values():
            task.uffd.close()
        self._keeper.dismiss()

    def tell_source(self, report: dict[str, Any]) -> None:
        if not self._source.finish(report):
            log.warning("the source of %s cannot be told that all of its memory is here", self.guest)


def main(argv: Sequence[str] = ()) -> int:
    del argv
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    line = sys.stdin.readline()
    if not line:
        return 0
    call = json.loads(line)
    held = keeper.start(str(call["guest"]), str(call["key"]))  # before there are threads
    try:
        daemon = Daemon(call, held)
        if not daemon.reachable():
            raise EmulabError("the source's page server cannot be reached")
        say(ready=True)
        report = daemon.run()
    except LostError as error:
        keeper.end_guest(str(call["guest"]), str(call["key"]), error.message)
        held.dismiss()
        say(error=error.message)
        return 1
    except (EmulabError, ValueError, IndexError, OSError) as error:
        say(error=getattr(error, "message", str(error)))
        return 1
    daemon.let_go()
    daemon.tell_source(report)
    say(**report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
