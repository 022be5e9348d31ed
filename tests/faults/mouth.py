"""Runs on a node and talks to another node's agent with the testbed's key: one conversation per line of standard input, its end per line.

A conversation is a list of messages, [kind, fields, payload in hex] or [raw header in hex]. It ends with what the agent said last, or how
the connection ended; "silent" means that the agent neither answered nor hung up in time.
"""

import json
import struct
import sys
from pathlib import Path

from emulab.migration.channel import PeerLostError, connect

host, patience_s = sys.argv[1], float(sys.argv[2])
secret = bytes.fromhex(json.loads(Path("/run/emulab-agent.json").read_text())["secret"])


def hold(messages):
    peer = connect(host, secret)
    said = []
    try:
        try:
            for message in messages:
                say(peer, message)
                if message[0] == "arrive":
                    said.append(peer.receive(patience_s).kind)
            peer.send("abort")
        except (OSError, PeerLostError):
            pass  # it has hung up; its last word may still be there
        while "error" not in said:  # after its last word the agent waits for us to hang up
            said.append(peer.receive(patience_s).kind)
        return said, "closed"
    except PeerLostError as error:
        return said, "silent" if "timed out" in str(error) else "closed"
    finally:
        peer.close()


def say(peer, message):
    if len(message) == 1:
        header = bytes.fromhex(message[0])
        peer._connection.sendall(struct.pack(">II", len(header), 0) + header)
    else:
        kind, fields, payload = message
        peer.send(kind, bytes.fromhex(payload), **fields)


print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(hold(json.loads(line))), flush=True)
