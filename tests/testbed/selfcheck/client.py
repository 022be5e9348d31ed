"""Runs on the head: one connection to the guest, a request every millisecond until standard input ends, every answer verified."""

import json
import os
import select
import socket
import struct
import sys
import time
import zlib

address = sys.argv[1]
connection = socket.create_connection((address, 80), timeout=20)
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
print("connected", flush=True)
checksum, number, longest, error = 0, 0, 0.0, ""
stream = connection.makefile("rb")
try:
    while not select.select([0], [], [], 0.001)[0]:
        number += 1
        data = struct.pack(">Q", number) + os.urandom(1016)
        checksum = zlib.crc32(data, checksum)
        sent = time.monotonic()
        connection.sendall(data)
        answer = stream.read(1024)
        longest = max(longest, time.monotonic() - sent)
        if answer != data[:8] + struct.pack(">I", checksum) + data[12:]:
            error = f"request {number} was answered wrongly ({len(answer)} bytes)"
            break
except OSError as failure:
    error = f"request {number}: {failure!r}"
print(json.dumps({"requests": number, "longest_s": longest, "error": error}))
