"""CRIU's command lines as data.

The options are those of a runc guest with its own user namespace, whose network namespace CRIU recreates empty and our hook plugs in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emulab.command import Argv
from emulab.criu import NATIVE

HOOK = str(NATIVE / "hook")
SHIM = str(NATIVE / "shim.so")

# Level 1 prints errors only. runc's level 4 wrote 361 000 lines for one dump of a web server, inside the freeze; level 2 adds warnings.
VERBOSITY = "-v2"

GHOST_LIMIT = 512 * 2**20  # bytes of an open file that was deleted

_SHARED: Argv = (
    "--tcp-established",
    "--file-locks",
    "--ghost-limit", str(GHOST_LIMIT),  # open files that were deleted travel in the images
    "--link-remap",
    "--force-irmap",  # watched files are found by path: they have other inodes at the destination
    "--empty-ns", "net",
    "--network-lock", "skip",  # we hold the guest's frames ourselves
    "--manage-cgroups=ignore",  # the restore runs inside the guest's cgroup
    "--ext-mount-map", "auto",
    "--enable-external-masters",
    "--enable-external-sharing",
)  # fmt: skip


@dataclass(frozen=True)
class CriuCall:
    """A command line with the variables and the open descriptors it needs."""

    argv: Argv
    env: Mapping[str, str] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()


def _shim(freezer: str, *, write_protect: bool, final: bool) -> dict[str, str]:
    # The list of tasks is for the thread that asks about their mappings ahead of CRIU.
    env = {"LD_PRELOAD": SHIM, "EMULAB_SHIM_TASKS": f"{freezer}/cgroup.procs"}
    if write_protect:
        env["EMULAB_SHIM_WP"] = "1"
    if final:
        env["EMULAB_SHIM_FINAL"] = "1"
    return env


def _parent(parent: Path | None) -> Argv:
    return ("--prev-images-dir", f"../{parent.name}") if parent else ()


def _watched(paths: Sequence[str]) -> Argv:
    return tuple(word for path in paths for word in ("--irmap-scan-path", path))


def pre_dump(
    *, pid: int, images: Path, parent: Path | None, rootfs: str, freezer: str, write_protect: bool, watched: Sequence[str] = ()
) -> CriuCall:
    """One pre-copy round: pages written since ``parent`` (all, without one) go to ``images``; the guest runs on.

    CRIU's mode that reads them when it runs again stops it for a third less, but leaves out pages that its final dump then misses.

    ``watched``: paths of what the guest watches by inotify.
    """
    return CriuCall(
        (
            "criu", "pre-dump", "-t", str(pid), "-D", str(images), "-o", "pre-dump.log", VERBOSITY,
            "--track-mem", *_parent(parent), *_SHARED, *_watched(watched),
            "--freeze-cgroup", freezer, "--root", rootfs,
        ),
        _shim(freezer, write_protect=write_protect, final=False),
    )  # fmt: skip


def dump(
    *,
    pid: int,
    images: Path,
    parent: Path | None,
    rootfs: str,
    freezer: str,
    hook_socket: str,
    write_protect: bool,
    watched: Sequence[str] = (),
    lazy: int | None = None,
    timeout_s: int = 30,
) -> CriuCall:
    """The final dump of a frozen guest. Ends the guest only if the hook's answer at ``post-dump`` is yes.

    ``lazy``: leave private anonymous pages out of the images. CRIU would then serve them itself, on this descriptor: a socket whose other
    end is closed, so that it finds nobody to serve and goes on as it does without.
    """
    track: Argv = ("--track-mem",) if parent else ()
    leave_out: Argv = () if lazy is None else ("--lazy-pages", "--ps-socket", str(lazy))
    return CriuCall(
        (
            "criu", "dump", "-t", str(pid), "-D", str(images), "-o", "dump.log", VERBOSITY, *track, *_parent(parent), *leave_out,
            *_SHARED, *_watched(watched), "--freeze-cgroup", freezer, "--root", rootfs,
            "--action-script", HOOK, "--timeout", str(timeout_s),
        ),
        {**_shim(freezer, write_protect=write_protect, final=True), "EMULAB_HOOK_SOCKET": hook_socket},
        () if lazy is None else (lazy,),
    )  # fmt: skip


def restore(
    *,
    images: Path,
    rootfs: str,
    pidfile: Path,
    hook_socket: str,
    join_cgroup: str,
    distinct: Path,
    lazy: bool = False,
    in_place: bool = True,
) -> CriuCall:
    """Restore inside the guest's cgroup (``join_cgroup``: shell words). The hook decides at ``post-restore`` and plugs the network.

    ``distinct``: the file that the numbers beside the pages files refer to (native/pages.c).
    ``lazy``: hand a userfaultfd of each task to who listens on ``lazy-pages.socket`` in the image folder. ``in_place``: mappings are made
    where they belong, instead of moved there (native/premap.c).
    """
    left_out: Argv = ("--lazy-pages", "-W", str(images)) if lazy else ()
    criu: Argv = (
        "criu", "restore", "-D", str(images), "-o", "restore.log", VERBOSITY, "-d", "--pidfile", str(pidfile),
        *left_out, *_SHARED, "--root", rootfs, "--action-script", HOOK,
    )  # fmt: skip
    # Only CRIU is to be preloaded, not the shell that joins the cgroup.
    premap: Argv = () if lazy or not in_place else (f"EMULAB_SHIM_PREMAP={images}",)
    preloaded = ("env", f"LD_PRELOAD={SHIM}", f"EMULAB_SHIM_PAGES={distinct}", *premap, *criu)
    return CriuCall(("sh", "-c", f'{join_cgroup}; exec "$@"', "sh", *preloaded), {"EMULAB_HOOK_SOCKET": hook_socket})
