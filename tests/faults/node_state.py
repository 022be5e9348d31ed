# ruff: noqa: PTH110, PTH208, SIM115
"""Runs on a node: prints what of it could grow with every migration, as JSON. Sizes in bytes."""

import json
import os
import pathlib
import re


def agent():
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().split(b"\0")[1:3] == [b"-m", b"emulab.agent.server"]:
                return path.parent
        except OSError:
            continue
    raise SystemExit("no agent")


def node_memory():
    """Without what the kernel keeps of files and gives back when it is needed; with files in memory."""
    for path in ("/sys/fs/cgroup/memory/memory.stat", "/sys/fs/cgroup/memory.stat"):
        if os.path.exists(path):
            stat = dict(line.split() for line in open(path))
            return int(stat.get("total_rss", stat.get("anon", 0))) + int(stat.get("total_shmem", stat.get("shmem", 0)))
    raise SystemExit("no memory control group")


process = agent()
status = (process / "status").read_text()
print(
    json.dumps(
        {
            "agent memory": int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024,
            "node memory": node_memory(),
            "agent descriptors": len(os.listdir(process / "fd")),
            "agent threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
            "processes": sum(name.isdecimal() for name in os.listdir("/proc")),
            "mounts": len(open("/proc/self/mounts").readlines()),
            "control groups": sum(len(folders) for _, folders, _ in os.walk("/sys/fs/cgroup")),
            "nft rules": len(os.popen("nft list ruleset 2>/dev/null").readlines()),
            "interfaces": len(os.listdir("/sys/class/net")),
            "image files": sum(len(files) for _, _, files in os.walk("/run/emulab")),
            # The store of pages comes with the first strategy that keeps some.
            "guest folders": len(set(os.listdir("/var/lib/emulab/guests")) - {".store"}),
        }
    )
)
