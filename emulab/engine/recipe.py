"""What an image is built from: a list of folders, packed into one archive whose digest tells whether a build is needed."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emulab.engine.settings import CHECKOUT
from emulab.errors import UsageError

BASE = "emulab/base:trixie"
NODE = os.environ.get("EMULAB_NODE_IMAGE") or "emulab/node:latest"  # two checkouts on one machine: give each its own
_RECIPE_VERSION = "1"  # raise it when the way of building changes
_SKIPPED = {"__pycache__", ".git", ".mypy_cache", ".ruff_cache"}


@dataclass(frozen=True)
class Recipe:
    """How one image is made.

    Args:
        name: short name, as in a scenario's ``guests.web.image``.
        tag: its tag in the engine.
        parts: (folder or file, its place in the build context) pairs.
        dockerfile: path inside the context.
        after: tag of the image it builds on.

    """

    name: str
    tag: str
    parts: tuple[tuple[Path, str], ...]
    dockerfile: str = "Dockerfile"
    after: str = BASE

    def files(self) -> Iterator[tuple[str, Path]]:
        """(path in the context, file) pairs, sorted."""
        found: dict[str, Path] = {}
        for folder, prefix in self.parts:
            if folder.is_file():
                found[prefix] = folder
            for path in folder.rglob("*"):
                inside = path.relative_to(folder)
                if path.is_file() and path.suffix != ".pyc" and not _SKIPPED.intersection(inside.parts):
                    found[f"{prefix}/{inside.as_posix()}".lstrip("/")] = path
        return iter(sorted(found.items()))

    def context(self) -> bytes:
        """The build context as a tar archive; the same files give the same bytes."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for name, path in self.files():
                content = path.read_bytes()
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()

    def digest(self, context: bytes, parent: str) -> str:
        """Of everything that decides the content of the image, ``parent`` being the id of the image it builds on."""
        seen = hashlib.sha256()
        for part in (_RECIPE_VERSION, self.tag, self.dockerfile, parent):
            seen.update(part.encode() + b"\0")
        seen.update(context)
        return seen.hexdigest()


def node_recipe(checkout: Path = CHECKOUT) -> Recipe:
    return Recipe("node", NODE, ((checkout / "compose/images/node", ""), (checkout / "emulab/criu/native", "native")))


def copied(dockerfile: str) -> list[str]:
    """The paths of the build context that a Dockerfile copies."""
    sources: list[str] = []
    for line in re.sub(r"\\\n", " ", dockerfile).splitlines():
        words = line.split()
        if words[:1] in (["COPY"], ["ADD"]) and not any(word.startswith("--from=") for word in words):
            sources += [word.rstrip("/") for word in words[1:-1] if not word.startswith("--")]
    return sorted(set(sources))


def guest_recipes(checkout: Path = CHECKOUT) -> dict[str, Recipe]:
    """Guest images by name: ``workloads/olio/images/web/Dockerfile`` makes ``olio-web``.

    The context is the folder ``workloads``, narrowed to what the Dockerfile copies: a change elsewhere rebuilds nothing.
    """
    recipes: dict[str, Recipe] = {}
    workloads = checkout / "workloads"
    for dockerfile in sorted(workloads.glob("*/images/*/Dockerfile")):
        place = dockerfile.relative_to(workloads).as_posix()
        name = f"{dockerfile.parents[2].name}-{dockerfile.parent.name}"
        parts = tuple((workloads / source, source) for source in [place, *copied(dockerfile.read_text())])
        recipes[name] = Recipe(name, f"emulab/{name}:latest", parts, place)
    return recipes


def recipe(name: str, checkout: Path = CHECKOUT) -> Recipe:
    """By short name. Raises UsageError for an unknown one."""
    known = {"node": node_recipe(checkout), **guest_recipes(checkout)}
    if name not in known:
        raise UsageError(f"there is no image {name!r}", hint=f"known: {', '.join(known)}")
    return known[name]
