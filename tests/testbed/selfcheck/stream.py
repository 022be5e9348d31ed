"""Runs on the head: one connection to the guest on which a block leaves every millisecond, whatever has come back, until input ends.

Each answer carries the number of its block and a checksum over every block before it, so that a byte lost, doubled or out of order anywhere
in the stream is found at the first answer after it.
"""

import json
import os
import select
import socket
import struct
import sys
import threading
import time
import zlib
from collections import deque

SIZE, INTERVAL_S = 1024, 0.001
connection = socket.create_connection((sys.argv[1], 80), timeout=60)
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
expected = deque()
ended = threading.Event()
result = {"sent": 0, "answered": 0, "longest_s": 0.0, "most_in_flight": 0, "error": ""}
print("connected", flush=True)


def send():
    checksum, due = 0, time.monotonic()
    try:
        while not ended.is_set():
            data = struct.pack(">Q", result["sent"]) + os.urandom(SIZE - 8)
            checksum = zlib.crc32(data, checksum)
            expected.append(data[:8] + struct.pack(">I", checksum) + data[12:])
            connection.sendall(data)
            result["sent"] += 1
            due = max(due + INTERVAL_S, time.monotonic() - 1)  # what could not leave in time is made up for, at most a second of it
            time.sleep(max(0.0, due - time.monotonic()))
        connection.shutdown(socket.SHUT_WR)
    except OSError as failure:
        result["error"] = result["error"] or f"block {result['sent']}: {failure!r}"
        ended.set()


def receive():
    stream, last = connection.makefile("rb"), time.monotonic()
    try:
        while answer := stream.read(SIZE):
            result["longest_s"] = max(result["longest_s"], time.monotonic() - last)
            last = time.monotonic()
            result["most_in_flight"] = max(result["most_in_flight"], len(expected))
            if not expected or answer != expected.popleft():
                result["error"] = f"answer {result['answered']} is not the one that was due ({len(answer)} bytes)"
                break
            result["answered"] += 1
    except OSError as failure:
        result["error"] = f"answer {result['answered']}: {failure!r}"
    ended.set()


threads = [threading.Thread(target=work, daemon=True) for work in (send, receive)]
for thread in threads:
    thread.start()
while not ended.is_set() and not select.select([0], [], [], 0.1)[0]:
    pass
ended.set()
for thread in threads:
    thread.join(60)
print(json.dumps(result))
