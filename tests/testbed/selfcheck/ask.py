"""Runs inside the guest: prints what the guest says about itself."""

import socket

with socket.socket(socket.AF_UNIX) as control:
    control.settimeout(60)
    control.connect("/run/control")
    while part := control.recv(65536):
        print(part.decode(), end="")
