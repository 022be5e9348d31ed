"""The keeper of a post-copy daemon: a process that only holds its userfaultfds.

If the daemon is killed, the kernel would take the watch off the guest's memory and every missing page would read as zero. With the
keeper's descriptors still open the guest's tasks wait instead, until it has ended them.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from dataclasses import dataclass

from emulab.migration import journal
from emulab.node.cgroup import guest_cgroup
from emulab.node.rootfs import GUESTS

log = logging.getLogger("emulab.migration.lazy")

_HELD = b"+"
_MINDED = b"!"
_DISMISSED = b"."


@dataclass(frozen=True)
class Keeper:
    """The daemon's end."""

    connection: socket.socket
    pid: int

    def hold(self, descriptor: int) -> None:
        """Hold a descriptor too, from now on."""
        socket.send_fds(self.connection, [_HELD], [descriptor])

    def mind(self) -> None:
        """From now on the guest runs, or is about to."""
        self.connection.sendall(_MINDED)

    def dismiss(self) -> None:
        """The guest's memory is complete."""
        self.connection.sendall(_DISMISSED)
        self.connection.close()
        os.waitpid(self.pid, 0)


def start(guest: str, key: str) -> Keeper:
    """Fork the keeper. It shares nothing with this process but the connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            _close_all_but(theirs.fileno())
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _keep(theirs, guest, key)
        finally:
            os._exit(0)
    theirs.close()
    return Keeper(ours, pid)


def _close_all_but(kept: int) -> None:
    os.closerange(3, kept)
    os.closerange(kept + 1, 65536)


def _keep(connection: socket.socket, guest: str, key: str) -> None:
    held, minded = [], False
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        held += descriptors
        minded = minded or data == _MINDED
        if data == _DISMISSED:
            return
        if not data:
            break
    if minded:
        end_guest(guest, key, "the process that was fetching its memory is gone")


def end_guest(guest: str, key: str, reason: str) -> None:
    """A guest that lacks pages which nobody has cannot go on: end it, and say why where its last words are looked for."""
    if not guest_cgroup(guest).pids():
        return  # it has ended already
    sentence = f"emulab: guest {guest} was ended: {reason}"
    log.error("%s", sentence)
    try:
        with (GUESTS / guest / "runc.log").open("a") as file:
            file.write(sentence + "\n")
    except OSError as error:
        log.warning("%s", error)
    guest_cgroup(guest).kill()
    journal.record(key, "lost", role="destination", vm=guest, reason=reason)
