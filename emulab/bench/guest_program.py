"""A guest whose memory is known: run as its first process from the node image, with the standard library alone.

Environment: MEMORY_MB of content that neither compresses nor repeats; DIRTY_MB_S rewritten with new content of that kind, page after page;
TASKS forked children, each with 64 pages of its own. Answers every HTTP request on port 80 with a small page (so that it can be probed).
"""

import mmap
import os
import signal
import socket
import threading
import time

MEMORY = int(float(os.environ.get("MEMORY_MB", "16")) * 2**20)
DIRTY = float(os.environ.get("DIRTY_MB_S", "0")) * 1e6
TASKS = int(os.environ.get("TASKS", "1"))
PAGE = 4096
OWN = 64 * PAGE
BLOCK = 1 << 20
TICK_S = 0.01


def fill(memory: mmap.mmap) -> None:
    for at in range(0, len(memory), BLOCK):
        size = min(BLOCK, len(memory) - at)
        memory[at : at + size] = os.urandom(size)


def keep_writing(memory: mmap.mmap) -> None:
    """Whole pages at a steady rate of the monotonic clock; time lost to a freeze is not caught up."""
    at, owed, last = 0, 0.0, time.monotonic()
    while True:
        time.sleep(TICK_S)
        now = time.monotonic()
        owed += min(now - last, 0.1) * DIRTY
        last = now
        while owed >= PAGE:
            size = min(int(owed) // PAGE * PAGE, BLOCK, len(memory) - at)
            memory[at : at + size] = os.urandom(size)
            owed -= size
            at = (at + size) % len(memory)


def serve(connection: socket.socket) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
    pending = b""
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(65536):
            pending += data
            count = pending.count(b"\r\n\r\n")
            if count:
                pending = pending[pending.rindex(b"\r\n\r\n") + 4 :]
                connection.sendall(answer * count)


def child() -> None:
    own = mmap.mmap(-1, OWN, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    fill(own)
    while True:
        time.sleep(3600)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    for _ in range(TASKS - 1):
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            child()
    memory = mmap.mmap(-1, MEMORY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    fill(memory)
    if DIRTY:
        threading.Thread(target=keep_writing, args=(memory,), daemon=True).start()
    server = socket.create_server(("0.0.0.0", 80))
    while True:
        connection, _ = server.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


main()
