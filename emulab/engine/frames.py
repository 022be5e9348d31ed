"""Do frames between guests pass this machine's bridge? Guests have addresses of their own that the engine knows nothing about.

With br_netfilter the machine's packet filter also sees frames that only cross a bridge, and a FORWARD policy of DROP (Docker's) or a
stranger's rule may eat them. So it is tried: two short-lived network namespaces on the LAN's bridge, with addresses as guests have them.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from emulab.command import Argv, Runner
from emulab.errors import EngineError

_COMMENT = "emulab-lan"
_NETFILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
# Runs in its own network namespace, which ends with it: waits for its veth, answers or asks by UDP.
_PEER = """
import socket, subprocess, sys
print("ready", flush=True)
sys.stdin.readline()
role, own, other = sys.argv[1:]
for argv in (["ip", "address", "add", own + "/24", "dev", "probe"], ["ip", "link", "set", "probe", "up"]):
    subprocess.run(argv, check=True)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((own, 9999))
if role == "answer":
    udp.settimeout(20)
    print("ready", flush=True)
    data, sender = udp.recvfrom(100)
    udp.sendto(data, sender)
    sys.exit(0)
udp.settimeout(0.25)
for _ in range(8):
    udp.sendto(b"frame", (other, 9999))
    try:
        udp.recvfrom(100)
        sys.exit(0)
    except OSError:
        pass
sys.exit(1)
"""


def bridge_name(network_id: str) -> str:
    """The bridge that the engine makes for a network, unless it was told another name."""
    return f"br-{network_id[:12]}"


def filtered(path: Path = _NETFILTER) -> bool:
    """Whether the packet filter sees bridged frames at all."""
    try:
        return path.read_text().strip() == "1"
    except OSError:
        return False


def plug_commands(pid: int, port: str, bridge: str) -> list[Argv]:
    """A veth pair: one end a port of the bridge, the other one named ``probe`` in the namespace of a process."""
    return [
        ("ip", "link", "add", port, "type", "veth", "peer", "name", "probe", "netns", str(pid)),
        ("ip", "link", "set", port, "master", bridge, "up"),
    ]


def pass_through(bridge: str, lan_prefix: str, runner: Runner | None = None) -> bool:
    """Whether a frame gets from one guest-like address (.251) to another (.252) across the bridge and back."""
    runner = runner or Runner()
    own, other = f"{lan_prefix}.251", f"{lan_prefix}.252"
    with ExitStack() as stack:
        peers = []
        for role, here, there in (("answer", other, own), ("ask", own, other)):
            argv = ("unshare", "--net", sys.executable, "-c", _PEER, role, here, there)
            peer = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            stack.callback(peer.communicate)
            stack.callback(peer.kill)
            peers.append(peer)
        answer, ask = peers
        for number, peer in enumerate(peers):
            assert peer.stdin
            assert peer.stdout
            peer.stdout.readline()
            runner.run_all(plug_commands(peer.pid, f"emu{peer.pid}", bridge))
            peer.stdin.write("go\n")
            peer.stdin.flush()
            if number == 0:
                answer.stdout.readline() if answer.stdout else None
        return ask.wait(timeout=30) == 0


def rule(bridge: str) -> Argv:
    """Our rule: what stays on the bridge may pass."""
    return ("FORWARD", "-i", bridge, "-o", bridge, "-m", "comment", "--comment", _COMMENT, "-j", "ACCEPT")


def ensure_pass(network_id: str, lan_prefix: str, runner: Runner | None = None) -> str:
    """Try it; where frames are eaten put in a rule of our own and try again. Returns what was changed, or "". Raises EngineError."""
    runner = runner or Runner()
    bridge = bridge_name(network_id)
    if not filtered() or not Path("/sys/class/net", bridge).exists() or pass_through(bridge, lan_prefix, runner):
        return ""
    added = runner.try_run(("iptables", "-w", "-I", *rule(bridge)))
    if added.ok and pass_through(bridge, lan_prefix, runner):
        return f"iptables: frames that stay on {bridge} may pass (removed by `down`)"
    forget(network_id, runner)
    raise EngineError(
        f"this machine's packet filter drops frames between guests on {bridge}",
        hint="allow them there, or: sysctl net.bridge.bridge-nf-call-iptables=0",
    )


def forget(network_id: str, runner: Runner | None = None) -> None:
    """Take our rule away again, if there is one."""
    runner = runner or Runner()
    for _ in range(4):
        if not runner.try_run(("iptables", "-w", "-D", *rule(bridge_name(network_id)))).ok:
            return
