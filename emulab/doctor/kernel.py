"""What the kernel can do, found out by doing it."""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
import struct
import sys
from pathlib import Path

from emulab.command import Argv, Runner
from emulab.criu.tracker import has_write_protect
from emulab.doctor.model import Finding, Say, bad, good, warn
from emulab.errors import EmulabError

OLDEST = (5, 4)
_SOFT_DIRTY = 1 << 55  # Documentation/admin-guide/mm/soft-dirty.rst

# In a network namespace of its own: what the nodes' links are made of.
_LINKS = """set -e
ip link add b0 type bridge; ip link add v0 type veth peer name v1
ip link set v0 master b0 up
tc qdisc add dev v1 root handle 1: htb default 1
tc class add dev v1 parent 1: classid 1:1 htb rate 1gbit quantum 60000
"""
# In namespaces of its own: what guests are made of.
_OVERLAY = """set -e
mount -t tmpfs none /mnt; cd /mnt; mkdir lower upper work root
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work root
"""


def version_of(release: str) -> tuple[int, int]:
    """(6, 12) of ``6.12.48+deb13-cloud-amd64``; (0, 0) if it cannot be read."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def check_platform(release: str = "", machine: str = "", system: str = sys.platform) -> Finding:
    release, machine = release or platform.release(), machine or platform.machine()
    if system != "linux" or machine != "x86_64":
        return bad(f"{system} on {machine}", "emulab needs Linux on x86-64")
    if version_of(release) < OLDEST:
        return bad(f"Linux {release}", f"Linux {OLDEST[0]}.{OLDEST[1]} or newer")
    return good(f"Linux {release} on {machine}")


def links_argv() -> Argv:
    return ("unshare", "--net", "sh", "-c", _LINKS)


def guests_argv() -> Argv:
    return ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--ipc", "--uts", "true")


def overlay_argv() -> Argv:
    return ("unshare", "--mount", "sh", "-c", _OVERLAY)


_PROBES = (
    ("network bridges, veth pairs and HTB", links_argv, ("bridge", "veth", "sch_htb")),
    ("user namespaces", guests_argv, ()),
    ("overlay mounts", overlay_argv, ("overlay",)),
)


def check_features(runner: Runner) -> Finding:
    """Bridge, veth, HTB, user namespaces, overlay: each is tried in a namespace that ends with the trial."""
    for what, argv, modules in _PROBES:
        outcome = runner.try_run(argv(), timeout_s=20)
        if not outcome.ok:
            lines = [line for line in outcome.stderr.splitlines() if line.strip()] or [f"code {outcome.code}"]
            hint = f"modprobe {' '.join(modules)}" if modules else "sysctl user.max_user_namespaces=10000"
            return bad(f"{what} do not work: {lines[-1]}", f"{hint}, or a stock kernel of the distribution")
    return good("bridge, veth, HTB, overlay, user namespaces")


def load_modules(runner: Runner, say: Say) -> None:
    """Load what the probes may miss; a kernel that has them built in has nothing to load."""
    for module in sorted({module for _, _, modules in _PROBES for module in modules}):
        if runner.try_run(("modprobe", module)).ok:
            say(f"loaded the kernel module {module}")


def _page() -> tuple[mmap.mmap, int]:
    """A page of our own, present, and its address."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page[0] = 1
    return page, ctypes.addressof(ctypes.c_char.from_buffer(page))


def _pagemap_entry(address: int) -> int:
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(address // mmap.PAGESIZE * 8)
        return int(struct.unpack("Q", pagemap.read(8))[0])


def has_soft_dirty() -> bool:
    """Whether a write sets a page's soft-dirty bit and clear_refs clears it: tried on a page of our own."""
    page, address = _page()
    try:
        Path("/proc/self/clear_refs").write_text("4")
        cleared = not _pagemap_entry(address) & _SOFT_DIRTY
        page[0] = 2
        return cleared and bool(_pagemap_entry(address) & _SOFT_DIRTY)
    except (OSError, struct.error):
        return False


def check_dirty_tracking() -> Finding:
    ways = [name for name, has in (("soft-dirty", has_soft_dirty()), ("asynchronous write-protect", has_write_protect())) if has]
    if not ways:
        return bad("neither soft-dirty pages nor asynchronous write-protect", "a kernel with CONFIG_MEM_SOFT_DIRTY, or Linux 6.7 or newer")
    return good(" and ".join(ways))


def check_cgroups(root: Path = Path("/sys/fs/cgroup")) -> Finding:
    """The controllers that limit guests: cpu, memory, pids, and a freezer."""
    unified = root / "cgroup.controllers"
    wanted = {"cpu", "memory", "pids"}
    if unified.is_file():
        missing = wanted - set(unified.read_text().split())
        kind = "v2"
    else:
        wanted |= {"freezer"}
        missing = {name for name in wanted if not (root / name).is_dir()}
        kind = "v1"
    if missing:
        return bad(f"cgroup {kind} without {', '.join(sorted(missing))}", "boot with cgroup_enable=memory, or mount the cgroup controllers")
    return good(f"cgroup {kind} with {', '.join(sorted(wanted))}")


def check_memory(meminfo: str = "", *, need: int = 7 << 30, free: int = 4 << 30) -> Finding:
    """Guests and nodes take up to 6 GB. Sizes in bytes."""
    text = meminfo or Path("/proc/meminfo").read_text()
    sizes = {match[1]: int(match[2]) * 1024 for match in re.finditer(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    total, available = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    shown = f"{total / (1 << 30):.1f} GiB, {available / (1 << 30):.1f} free"
    if total < need:
        return bad(shown, f"an experiment needs a machine with {need >> 30} GiB")
    if available < free:
        return warn(shown, f"an experiment takes up to {free >> 30} GiB or more: end other programs, or make down")
    return good(shown)


def read_sysctl(name: str, root: Path = Path("/proc/sys")) -> int | None:
    try:
        return int((root / name.replace(".", "/")).read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def write_sysctl(name: str, value: int, root: Path = Path("/proc/sys")) -> None:
    try:
        (root / name.replace(".", "/")).write_text(f"{value}\n")
    except OSError as error:
        raise EmulabError(f"cannot set {name}: {error.strerror}", hint=f"sysctl {name}={value}") from error
