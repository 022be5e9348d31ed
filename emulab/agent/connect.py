"""Bridge between this process's stdio and the agent's socket: what ``docker exec`` starts for each channel.

Runs with the standard library alone, so that a channel opens in milliseconds.
"""

import os
import selectors
import socket
import sys

SOCKET = "/run/emulab-agent.sock"


def main() -> int:
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        agent.connect(SOCKET)
    except OSError as error:
        sys.stderr.write(f"the node's agent does not answer: {error}\n")
        return 1
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(agent, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj == 0:
                data = os.read(0, 65536)
                if not data:
                    return 0
                agent.sendall(data)
            else:
                data = agent.recv(65536)
                if not data:
                    return 0
                view = memoryview(data)
                while view:
                    view = view[os.write(1, view) :]


if __name__ == "__main__":
    sys.exit(main())
