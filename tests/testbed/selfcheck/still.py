"""A guest whose memory changes only when it is told to: on a signal each task writes some pages anew, then all is still again."""

import hashlib
import mmap
import os
import signal

PAGE, PAGES = 4096, 600
number = next((n for n in (1, 2) if os.fork() == 0), 0)
memory = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
version = 0


def write(*_):
    global version  # noqa: PLW0603
    for page in range(version % 3, PAGES // 2, 1 if version == 0 else 3):
        memory[page * PAGE : (page + 1) * PAGE] = hashlib.blake2b(b"%d %d %d" % (number, page, version)).digest() * (PAGE // 64)
    version += 1


write()
signal.signal(signal.SIGUSR1, write)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
if number == 0:
    open("/run/still", "w").close()
while True:
    signal.pause()
