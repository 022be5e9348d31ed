# ruff: noqa: SIM115, PTH110, PTH103 (what is open stays open)
"""A guest that can tell whether it is still itself: run as its first process, asked through a unix socket (``ask.py``) or over TCP.

Workers keep changing their memory and can recompute what every page must hold. The main process keeps open whatever a program may
keep open: a deleted file, a pipe, socket pairs, shared memory of both kinds, a locked file, a mapped file.
"""

import ctypes
import fcntl
import hashlib
import json
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time
import zlib

PAGE = 4096
WORKERS = int(os.environ.get("WORKERS", "3"))
PAGES = int(os.environ.get("PAGES", "3000"))
WRITES_PER_S = int(os.environ.get("WRITES_PER_S", "300"))
SPARSE = bool(os.environ.get("SPARSE"))  # a write changes eight bytes of a page, not all of it


def content(worker, page, version):
    if SPARSE:
        return struct.pack(">Q", version) + content_of(worker, page, 0)[8:]
    return content_of(worker, page, version)


def content_of(worker, page, version):
    if "INCOMPRESSIBLE" in os.environ:
        return hashlib.shake_128(struct.pack(">III", worker, page, version)).digest(PAGE)
    return hashlib.blake2b(struct.pack(">III", worker, page, version)).digest() * (PAGE // 64)


class Worker:
    """Memory of which every page is known: its number and how often it was written decide its content."""

    def __init__(self, number):
        self.number = number
        self.memory = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.versions = [0] * PAGES
        self.locks = [threading.Lock(), threading.Lock()]
        self.writes = 0
        for page in range(PAGES // 2):  # the other half stays untouched for now
            self.write(page)

    def write(self, page):
        self.versions[page] += 1
        self.memory[page * PAGE : (page + 1) * PAGE] = content(self.number, page, self.versions[page])
        self.writes += 1

    def keep_writing(self, half):
        page = half
        while True:
            with self.locks[half]:
                self.write(page % PAGES)
            page += 2 * 37
            time.sleep(2 / WRITES_PER_S)

    def check(self):
        bad = 0
        for half in (0, 1):
            with self.locks[half]:
                for page in range(half, PAGES, 2):
                    expected = content(self.number, page, self.versions[page]) if self.versions[page] else bytes(PAGE)
                    bad += self.memory[page * PAGE : (page + 1) * PAGE] != expected
        return {"bad_pages": bad, "writes": self.writes}

    def serve(self, orders):
        for half in (0, 1):
            threading.Thread(target=self.keep_writing, args=(half,), daemon=True).start()
        while orders.recv(1):
            orders.sendall(json.dumps(self.check()).encode() + b"\n")
        os._exit(0)


def sysv_shared_memory(size):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    number = libc.shmget(0, size, 0o1600)
    return ctypes.cast(libc.shmat(number, None, 0), ctypes.POINTER(ctypes.c_char * size)).contents


class Possessions:
    """Things that are open while the guest moves."""

    TEXT = b"what a program keeps open"

    def __init__(self):
        self.deleted = open("/var/tmp/deleted", "w+b", buffering=0)
        self.deleted.write(self.TEXT)
        os.unlink("/var/tmp/deleted")
        self.pipe = os.pipe()
        os.write(self.pipe[1], self.TEXT)
        self.pair = socket.socketpair()
        self.pair[0].sendall(self.TEXT)
        self.sysv = sysv_shared_memory(PAGE)
        self.sysv.value = self.TEXT
        self.posix = self.mapped("/dev/shm/posix")
        self.file = self.mapped("/var/tmp/mapped")
        self.locked = open("/var/tmp/locked", "w")
        fcntl.lockf(self.locked, fcntl.LOCK_EX)
        self.stores = 0
        threading.Thread(target=self.keep_storing, daemon=True).start()

    def mapped(self, path):
        with open(path, "w+b") as file:
            file.truncate(PAGE)
            mapping = mmap.mmap(file.fileno(), PAGE)
        mapping[: len(self.TEXT)] = self.TEXT
        return mapping

    def keep_storing(self):
        """Stores that no system call sees."""
        while True:
            self.stores += 1
            self.file[100:108] = self.sysv[100:108] = self.posix[100:108] = struct.pack(">Q", self.stores)
            time.sleep(0.003)

    def check(self):
        size = len(self.TEXT)
        os.write(self.deleted.fileno(), b"+")
        with open("/var/tmp/mapped", "rb") as file:
            on_disk = file.read(size)
        least = self.stores - 1
        stored = {bytes(memory[100:108]) for memory in (self.sysv, self.posix, self.file)}
        again = os.fork()
        if again == 0:
            try:
                fcntl.lockf(open("/var/tmp/locked", "w"), fcntl.LOCK_EX | fcntl.LOCK_NB)
                os._exit(1)
            except OSError:
                os._exit(0)
        fine = {
            "deleted file": os.pread(self.deleted.fileno(), size, 0) == self.TEXT and not os.path.exists("/var/tmp/deleted"),
            "pipe": refill(lambda: os.read(self.pipe[0], size), lambda data: os.write(self.pipe[1], data)) == self.TEXT,
            "socket pair": refill(lambda: self.pair[1].recv(size), self.pair[0].sendall) == self.TEXT,
            "sysv shared memory": self.sysv.raw[:size] == self.TEXT,
            "posix shared memory": self.posix[:size] == self.TEXT,
            "mapped file": self.file[:size] == on_disk == self.TEXT,
            "file lock": os.waitpid(again, 0)[1] == 0,
            "latest stores": all(struct.unpack(">Q", one)[0] >= least for one in stored),
        }
        return [name for name, ok in fine.items() if not ok]


def refill(take, give):
    data = take()
    give(data)
    return data


def serve_stream(connection):
    """Echo with memory: each answer is a checksum over everything that this connection ever brought."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    checksum = 0
    with connection:
        while data := receive(connection, 1024):
            checksum = zlib.crc32(data, checksum)
            connection.sendall(data[:8] + struct.pack(">I", checksum) + data[12:])


def receive(connection, size):
    parts = b""
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            return b""
        parts += part
    return parts


def accept_forever(server, serve):
    while True:
        connection, _ = server.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def main():
    os.makedirs("/var/log", exist_ok=True)
    log = open("/var/log/guest.log", "a", buffering=1)
    workers = []
    for number in range(WORKERS):
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            Worker(number).serve(theirs)
        theirs.close()
        workers.append(ours)
    possessions = Possessions()
    lock = threading.Lock()
    if os.environ.get("HOLDS") == "io_uring":
        parameters = ctypes.create_string_buffer(120)
        ring = ctypes.CDLL(None, use_errno=True).syscall(425, 8, parameters)
        log.write(f"io_uring is descriptor {ring}\n")

    def report(connection):
        with connection, lock:
            for worker in workers:
                worker.sendall(b"?")
            answers = [json.loads(worker.makefile("rb").readline()) for worker in workers]
            connection.sendall(json.dumps({"workers": answers, "broken": possessions.check(), "log": log.tell()}).encode())

    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    control = socket.socket(socket.AF_UNIX)
    control.bind("/run/control")
    control.listen()
    threading.Thread(target=accept_forever, args=(control, report), daemon=True).start()
    server = socket.create_server(("0.0.0.0", 80))
    log.write("the guest is ready\n")
    threading.Thread(target=accept_forever, args=(server, serve_stream), daemon=True).start()
    while True:
        log.write(f"{time.time():.3f}\n")
        time.sleep(0.5)


sys.exit(main())
