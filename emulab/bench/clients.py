"""Clients of the web guest, on the head: ``python -m emulab.bench.clients closed|open|probe …`` until standard input ends.

``closed``  N clients, each with one kept-alive connection and no pause: as much as the guest can do.
``open``    requests at fixed intervals of 1/rate whatever the answers do, over a pool of N connections; latency counts from the intended
            instant, so a request that had to wait for a free connection shows it.
``probe``   the open-loop prober of the experiments.

Each prints "started" and, at the end, one JSON object: ``{"start_s", "end_s", "done", "errors", "rows": [[intended, latency], …]}`` in
monotonic seconds (``probe``: ``rows`` are ``[intended, done]``). Bounded: N connections, one request at a time on each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import gc
import json
import os
import random
import sys
import tempfile
import threading
from pathlib import Path

from emulab import clock
from emulab.load.prober import Prober

_TIMEOUT_S = 60.0
_IDLE_LIMIT_S = 1.0  # half of the site's keep-alive: the server never closes a connection that we are about to use


def paths(people: int, events: int, tags: int, seed: int = 1, count: int = 500) -> list[str]:
    """A fixed mix of pages that read the database: home, tag, event, person."""
    pick = random.Random(seed)
    kinds = (
        lambda: "/index.php",
        lambda: f"/taggedEvents.php?tag=tag{pick.randint(1, tags)}",
        lambda: f"/events.php?socialEventID={pick.randint(1, events)}",
        lambda: f"/users.php?username=user{pick.randint(1, people)}",
    )
    return [pick.choice(kinds)() for _ in range(count)]


class Connection:
    """One kept-alive connection; opened again after an error."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._used_s = 0.0
        self._cookie = ""  # one session per client: without it the guest would write a new session file for every request

    async def get(self, path: str) -> None:
        """One whole answer. Raises OSError or EOFError."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._get(path)
        except BaseException:
            self.close()
            raise

    async def _get(self, path: str) -> None:
        if clock.now() - self._used_s > _IDLE_LIMIT_S:
            self.close()
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, 80, limit=1 << 20)
        assert self._reader is not None
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n{self._cookie}\r\n".encode())
        raw = await self._reader.readuntil(b"\r\n\r\n")
        head = raw.lower()
        if (found := head.find(b"\r\nset-cookie: ")) >= 0:
            self._cookie = f"Cookie: {raw[found + 14 :].split(b';', 1)[0].decode()}\r\n"
        at = head.find(b"\r\ncontent-length:")
        if at >= 0:
            await self._reader.readexactly(int(head[at + 17 :].split(b"\r\n", 1)[0]))
        elif b"chunked" in head:
            while size := int((await self._reader.readline()).split(b";")[0], 16):
                await self._reader.readexactly(size + 2)
            await self._reader.readline()
        self._used_s = clock.now()
        if b"\r\nconnection: close" in head:
            self.close()
        if not head.startswith(b"http/1.1 200"):
            raise OSError(f"status {head[9:12].decode()}")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


class Clients:
    """All clients of one run and what they saw."""

    def __init__(self, host: str, count: int, wanted: list[str]) -> None:
        self._host = host
        self._count = count
        self._paths = wanted
        self._next = 0
        self.rows: list[tuple[float, float]] = []
        self.errors: dict[str, int] = {}
        self._stop = asyncio.Event()

    async def _one(self, connection: Connection, intended: float) -> None:
        path = self._paths[self._next % len(self._paths)]
        self._next += 1
        try:
            await connection.get(path)
        except (OSError, EOFError, ValueError) as error:
            name = type(error).__name__ if not str(error).startswith("status") else str(error)
            self.errors[name] = self.errors.get(name, 0) + 1
            await asyncio.sleep(0.05)
        else:
            self.rows.append((intended, clock.now() - intended))

    async def closed(self) -> None:
        async def client() -> None:
            connection = Connection(self._host)
            while not self._stop.is_set():
                await self._one(connection, clock.now())
            connection.close()

        await self._until_told([asyncio.create_task(client()) for _ in range(self._count)])

    async def open(self, rate: float) -> None:
        queue: asyncio.Queue[float] = asyncio.Queue()

        async def client() -> None:
            connection = Connection(self._host)
            while True:
                await self._one(connection, await queue.get())

        async def timetable() -> None:
            first, n = clock.now(), 0
            while not self._stop.is_set():
                due = first + n / rate
                if (left := due - clock.now()) > 0:
                    await asyncio.sleep(left)
                queue.put_nowait(due)
                n += 1

        tasks = [asyncio.create_task(client()) for _ in range(self._count)]
        await self._until_told([asyncio.create_task(timetable()), *tasks])

    async def _until_told(self, tasks: list[asyncio.Task[None]]) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        threading.Thread(target=lambda: (sys.stdin.buffer.read(), loop.call_soon_threadsafe(ended.set)), daemon=True).start()
        await ended.wait()
        self._stop.set()
        await asyncio.wait(tasks, timeout=1.0)  # what is on its way may come
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def probe(host: str, path: str, interval_s: float) -> list[tuple[float, float]]:
    """Probe until standard input ends; returns (intended, done) of the answered ones."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    gc.disable()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "probes.csv"
        prober = Prober(host, 80, path, interval_s=interval_s, duration_s=600.0, out=out)

        def stop() -> None:
            sys.stdin.buffer.read()
            prober.stop()

        threading.Thread(target=stop, daemon=True).start()
        prober.run()
        with out.open(newline="") as file:
            return [(float(row["intended_s"]), float(row["done_s"])) for row in csv.DictReader(file) if row["done_s"]]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emulab.bench.clients")
    parser.add_argument("mode", choices=("closed", "open", "probe"))
    parser.add_argument("host")
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--interval", type=float, default=0.01)
    parser.add_argument("--path", default="/probe.txt")
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--tags", type=int, default=50)
    args = parser.parse_args(argv)
    print("started", flush=True)
    start = clock.now()
    errors: dict[str, int] = {}
    if args.mode == "probe":
        rows = probe(args.host, args.path, args.interval)
    else:

        async def load() -> Clients:
            clients = Clients(args.host, args.clients, paths(args.people, args.events, args.tags))
            await (clients.closed() if args.mode == "closed" else clients.open(args.rate))
            return clients

        clients = asyncio.run(load())
        rows, errors = clients.rows, clients.errors
    result = {"start_s": start, "end_s": clock.now(), "done": len(rows), "errors": errors}
    print(json.dumps({**result, "rows": [(round(a, 5), round(b, 5)) for a, b in rows]}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # a thread may still wait for standard input


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
