"""The OCI bundle of a guest: what runc needs to start it.

The guest has namespaces of its own for pid, network, ipc, uts, mount and user. The user namespace maps ids onto themselves: it
is what lets CRIU work where the node lacks CAP_SYS_RESOURCE, because the owner of a user namespace has every capability in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ID_RANGE = 65536
# Docker's default set; inside the guest's user namespace it reaches nothing outside of the guest.
CAPABILITIES = (
    "CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
)  # fmt: skip


def guest_mounts() -> list[dict[str, Any]]:
    """Mounts of every guest. Few on purpose: each one is dumped and restored inside the freeze."""
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
    ]


def bundle_config(
    *,
    hostname: str,
    rootfs: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    cgroup: str,
    open_files: int = 65536,
) -> dict[str, Any]:
    """The content of config.json (OCI runtime specification 1.0.2).

    ``open_files`` may not exceed the node's own hard limit: raising it needs CAP_SYS_RESOURCE on the machine.
    """
    capabilities = {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")}
    ids = [{"containerID": 0, "hostID": 0, "size": ID_RANGE}]
    variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", **env}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(argv),
            "env": [f"{key}={value}" for key, value in variables.items()],
            "cwd": "/",
            "capabilities": capabilities,
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": open_files, "soft": open_files}],
            "noNewPrivileges": False,
        },
        "root": {"path": rootfs, "readonly": False},
        "hostname": hostname,
        "mounts": guest_mounts(),
        "linux": {
            "uidMappings": ids,
            "gidMappings": ids,
            "cgroupsPath": f"/{cgroup}",
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "user")],
        },
    }
