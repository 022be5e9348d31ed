"""A guest that keeps writing memory: ``MEGABYTES`` of it, over and over, with content that does not compress.

Each page costs it a fraction of a millisecond of CPU time, so that it writes as fast as it may compute.
"""

import hashlib
import mmap
import os
import signal
import socket
import threading

PAGE = 4096
EFFORT = 15
SIZE = int(os.environ.get("MEGABYTES", "64")) << 20


def answer():
    """Some words for whoever asks whether it is ready."""
    control = socket.socket(socket.AF_UNIX)
    control.bind("/run/control")
    control.listen()
    while True:
        connection, _ = control.accept()
        with connection:
            connection.sendall(b'{"workers": [], "broken": []}')


signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
threading.Thread(target=answer, daemon=True).start()
turn = 0
while True:
    turn += 1
    for at in range(0, SIZE, PAGE):
        memory[at : at + PAGE] = hashlib.shake_128(b"%d %d" % (turn, at)).digest(EFFORT * PAGE)[-PAGE:]
