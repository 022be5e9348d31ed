"""Command lines of the baselines: what a user of stock CRIU and runc would type, with CRIU's own best settings for this guest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from emulab.command import Argv
from emulab.criu import NATIVE

HOOK = str(NATIVE / "hook")
RUNC_CONF = Path("/etc/criu/runc.conf")
_VERBOSITY = "-v1"  # errors only: every line is written inside the freeze

_SHARED: Argv = (
    "--tcp-established",
    "--file-locks",
    "--skip-in-flight",
    "--ghost-limit", "64M",
    "--link-remap",
    "--empty-ns", "net",
    "--network-lock", "skip",  # the hook blocks the guest's port, as for ours
    "--manage-cgroups=ignore",
    "--ext-mount-map", "auto",
    "--enable-external-masters",
    "--enable-external-sharing",
)  # fmt: skip
# The same through CRIU's configuration file, for runc, which has no options for them.
_RUNC_CONF = """\
verbosity 1
skip-in-flight
ghost-limit 64M
link-remap
network-lock skip
manage-cgroups ignore
enable-external-masters
enable-external-sharing
action-script {hook}
"""


def environment(*, stand_in: bool = False, final: bool = False, hook_socket: str = "") -> dict[str, str]:
    """Variables of a CRIU run.

    ``stand_in``: this kernel has no soft-dirty, so write-protect takes its place; every speed-up of the shim is switched off.
    """
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    if stand_in:
        env |= {"LD_PRELOAD": str(NATIVE / "shim.so"), "EMULAB_SHIM_WP": "1", "EMULAB_SHIM_STOCK": "1"}
        if final:
            env["EMULAB_SHIM_FINAL"] = "1"
    if hook_socket:
        env["EMULAB_HOOK_SOCKET"] = hook_socket
    return env


def parent_option(parent: str) -> Argv:
    return ("--prev-images-dir", f"../{parent}") if parent else ()


def page_server(images: Path, parent: str, *, address: str, port: int) -> Argv:
    """At the destination: takes the pages of one dump into ``images``, then ends."""
    return (
        "criu", "page-server", "-D", str(images), "-o", "page-server.log", _VERBOSITY,
        *parent_option(parent), "--address", address, "--port", str(port),
    )  # fmt: skip


def dump(action: str, *, pid: int, images: Path, parent: str, rootfs: str, freezer: str, address: str, port: int, read: bool) -> Argv:
    """``pre-dump`` or the final ``dump`` with pages to the destination's page server.

    ``freezer`` empty: CRIU stops each task by ptrace. ``read``: a pre-dump reads pages when the tasks run again.
    """
    freeze: Argv = ("--freeze-cgroup", freezer) if freezer else ()
    argv: Argv = (
        "criu", action, "-t", str(pid), "-D", str(images), "-o", f"{action}.log", _VERBOSITY, "--track-mem", *parent_option(parent),
        *_SHARED, "--root", rootfs, *freeze, "--page-server", "--address", address, "--port", str(port),
    )  # fmt: skip
    if action == "pre-dump":
        return (*argv, "--pre-dump-mode", "read") if read else argv
    return (*argv, "--action-script", HOOK, "--timeout", "60")


def restore(*, images: Path, rootfs: str, pidfile: Path, join_cgroup: str) -> Argv:
    criu: Argv = (
        "criu", "restore", "-D", str(images), "-o", "restore.log", _VERBOSITY, "-d", "--pidfile", str(pidfile),
        *_SHARED, "--root", rootfs, "--action-script", HOOK,
    )  # fmt: skip
    return ("sh", "-c", f'{join_cgroup}; exec "$@"', "sh", *criu)


_RUNC_SHARED: Argv = ("--tcp-established", "--file-locks", "--empty-ns", "network")


def runc_checkpoint(name: str, images: Path, log: Path) -> Argv:
    return ("runc", "--log", str(log), "checkpoint", "--image-path", str(images), "--work-path", str(images), *_RUNC_SHARED, name)


def runc_restore(name: str, images: Path, bundle: Path, pidfile: Path, log: Path) -> Argv:
    paths = ("--image-path", str(images), "--work-path", str(images), "--bundle", str(bundle), "--pid-file", str(pidfile))
    return ("runc", "--log", str(log), "restore", "--detach", *paths, *_RUNC_SHARED, name)


def write_runc_conf(path: Path = RUNC_CONF) -> None:
    """The file that runc hands to CRIU by itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_RUNC_CONF.format(hook=HOOK))


def merged(base: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    return {**base, **more}
