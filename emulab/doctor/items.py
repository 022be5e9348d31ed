"""The list: everything the machine must have, in the order in which it is looked at and repaired."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from emulab.command import Runner
from emulab.doctor import docker_engine, kernel, leftovers, packages, sysctls
from emulab.doctor.model import Finding, Item, Say, bad, good
from emulab.engine.base import ensure_base
from emulab.engine.client import connect
from emulab.engine.images import ensure_images, image_id, image_state
from emulab.engine.recipe import BASE, guest_recipes

# program -> package. All are part of a usual Debian or Ubuntu; a slim one may lack some.
TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "mount": "mount", "sysctl": "procps"}
_IMAGES_NEED = 4 << 30
_RUN_NEED = 2 << 30


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    return good(platform.python_version()) if version >= (3, 11) else bad(platform.python_version(), "Python 3.11 or newer")


def check_tools() -> Finding:
    missing = [program for program in TOOLS if not shutil.which(program)]
    return (
        bad(f"missing: {', '.join(missing)}", f"install {' '.join(sorted({TOOLS[name] for name in missing}))}")
        if missing
        else good(", ".join(TOOLS))
    )


def fix_tools(runner: Runner, say: Say) -> None:
    packages.install(sorted({package for program, package in TOOLS.items() if not shutil.which(program)}), runner, say)


def check_disk() -> Finding:
    """Room where the engine keeps its images, and for run folders."""
    client = connect()
    root = Path(str(client.info().get("DockerRootDir") or "/var/lib/docker"))
    while not root.exists():
        root = root.parent
    need = _RUN_NEED if all(image_id(client, one.tag) for one in guest_recipes().values()) else _IMAGES_NEED + _RUN_NEED
    free = shutil.disk_usage(root).free
    shown = f"{free / (1 << 30):.1f} GiB free in {root}"
    return good(shown) if free >= need else bad(shown, f"make room: {need >> 30} GiB are needed there")


def check_base() -> Finding:
    return good(BASE) if image_id(connect(), BASE) else bad("not there")


def check_image(name: str) -> Finding:
    state = image_state(connect(), name)
    if state.current:
        return good(f"{state.recipe.tag} {str(state.image_id).removeprefix('sha256:')[:12]}")
    return bad("out of date: its inputs have changed" if state.image_id else "not built")


def fix_image(name: str, say: Say) -> None:
    ensure_images(connect(), (name,), lambda line: say(line.removeprefix(f"{name} ")))


def check_browser() -> Finding:
    missing = [name for name in ("chromium", "chromedriver") if not _browser_program(name)]
    return bad(f"missing: {', '.join(missing)}", "install chromium and chromium-driver") if missing else good("chromium and its driver")


def _browser_program(name: str) -> str | None:
    """Chromium by Debian's name, or Chrome as on hosted runners."""
    return shutil.which(name) or (shutil.which("google-chrome") if name == "chromium" else None)


def fix_browser(runner: Runner, say: Say) -> None:
    if packages.distribution()[0] == "ubuntu":
        packages.install(("chromium-browser", "chromium-chromedriver"), runner, say)
    else:
        packages.install(("chromium", "chromium-driver"), runner, say)


def all_items(runner: Runner | None = None, *, images: Iterable[str] | None = None, tests: bool = False) -> list[Item]:
    """The whole list.

    Args:
        runner: executes the system's commands.
        images: short names of the guest images wanted; all of the checkout by default.
        tests: with what only the tests need.

    """
    runner = runner or Runner()
    names = ["node", *(guest_recipes() if images is None else images)]
    engine = ("root", "engine")
    items = [
        Item("root", "namespaces, packages and the engine's socket belong to root", docker_engine.check_root),
        Item("platform", "the nodes share this machine's kernel", kernel.check_platform),
        Item("python", "emulab itself", check_python),
        Item("tools", "links and namespaces are made with them", check_tools, partial(fix_tools, runner), "installs packages", ("root",)),
        Item(
            "kernel",
            "nodes are namespaces joined by bridges; guests have overlay roots",
            partial(kernel.check_features, runner),
            partial(kernel.load_modules, runner),
            "loads kernel modules",
            ("root", "tools"),
        ),
        Item("dirty tracking", "pre-copy sends again only what the guest has written", kernel.check_dirty_tracking, needs=("platform",)),
        Item("cgroups", "guests are limited by them", kernel.check_cgroups),
        Item("memory", "six nodes and two guests under load", kernel.check_memory),
        Item(
            "engine",
            "the nodes are containers",
            docker_engine.check_engine,
            partial(docker_engine.fix_engine, runner),
            "installs Docker Engine from the distribution's packages and starts it",
            ("root",),
        ),
        Item(
            "compose",
            "brings the nodes up",
            partial(docker_engine.check_plugin, "compose", (2,), runner),
            partial(docker_engine.fix_plugin, "compose", runner),
            "installs Docker's compose plugin",
            engine,
        ),
        Item(
            "buildx",
            "builds the images",
            partial(docker_engine.check_plugin, "buildx", (0, 10), runner),
            partial(docker_engine.fix_plugin, "buildx", runner),
            "installs Docker's buildx plugin",
            engine,
        ),
        Item("disk", "images and run folders", check_disk, needs=engine),
        Item(
            "settings",
            "CRIU without CAP_SYS_RESOURCE",
            sysctls.check_sysctls,
            sysctls.fix_sysctls,
            "sets kernel parameters until the next boot",
            engine,
        ),
        Item("leftovers", "an interrupted run must not disturb the next", leftovers.check_leftovers, leftovers.fix_leftovers, needs=engine),
        Item(
            "base image",
            "all images build on it",
            check_base,
            lambda say: _fix_base(runner, say),
            "may install mmdebstrap",
            (*engine, "buildx"),
        ),
    ]
    for name in names:
        what = "the six nodes run it" if name == "node" else "guests run it"
        items.append(Item(f"image {name}", what, partial(check_image, name), partial(fix_image, name), needs=("base image", "disk")))
    if tests:
        items.append(Item("browser", "tests open a report", check_browser, partial(fix_browser, runner), "installs packages", ("root",)))
    return items


def _fix_base(runner: Runner, say: Say) -> None:
    ensure_base(connect(), lambda line: say(line.removeprefix("base image: ")), runner)
