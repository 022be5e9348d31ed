"""Guest images as folders in the nodes: unpacked once into the volume that all nodes share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from docker.errors import DockerException

from emulab import clock
from emulab.engine import channel
from emulab.engine.images import image_id
from emulab.engine.recipe import recipe
from emulab.engine.streaming import Say, elapsed, quiet
from emulab.errors import EngineError

if TYPE_CHECKING:
    from docker import DockerClient

IMAGES = "/var/lib/emulab/images"
# A half unpacked image must never be found: it is renamed into place when it is whole.
_UNPACK = """set -eu
cd "$1"; part=".$2.$$"; trap 'rm -rf "$part"' EXIT; mkdir "$part" "$part/rootfs"
tar --numeric-owner --xattrs --xattrs-include='*' -xpf - -C "$part/rootfs"
rm -f "$part/rootfs/.dockerenv"; printf '%s' "$3" >"$part/image.json"
[ -d "$2" ] || mv "$part" "$2"
"""
_IN_USE = "cat /proc/[0-9]*/mounts 2>/dev/null | grep -o 'lowerdir=[^,: ]*' | sort -u || true"


@dataclass(frozen=True)
class GuestImage:
    """An unpacked guest image.

    Args:
        name: short name, ``olio-web``.
        folder: name of its folder below the nodes' images folder; ``rootfs`` and ``image.json`` are inside.
        digest: id of the image in the engine, ``sha256:…``.
        command: entrypoint and command of the image.
        environment: ``NAME=value`` strings.
        workdir: working directory of the command.

    """

    name: str
    folder: str
    digest: str
    command: tuple[str, ...]
    environment: tuple[str, ...]
    workdir: str

    @property
    def rootfs(self) -> str:
        return f"{IMAGES}/{self.folder}/rootfs"


def describe(name: str, attributes: dict[str, Any]) -> GuestImage:
    """From the engine's description of an image."""
    digest = str(attributes["Id"])
    config = attributes.get("Config") or {}
    command = (*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ()))
    return GuestImage(
        name,
        f"{name}-{digest.removeprefix('sha256:')[:12]}",
        digest,
        command,
        tuple(config.get("Env") or ()),
        config.get("WorkingDir") or "/",
    )


def ensure_guest_image(
    client: DockerClient, head: str, name: str, *, nodes: Iterable[str] = (), say: Say = quiet, tag: str | None = None
) -> GuestImage:
    """Unpack an image into the nodes' shared volume unless it is there; remove its older versions that no guest uses.

    Args:
        client: the engine.
        head: container id of the node that unpacks.
        name: short name.
        nodes: container ids of all nodes, asked for guests that still use an older version.
        say: told when something is unpacked.
        tag: the image's tag, if it is not one of the checkout's recipes.

    """
    tag = tag or recipe(name).tag
    if image_id(client, tag) is None:
        raise EngineError(f"the guest image {name} is not built", hint="make doctor FIX=1")
    image = describe(name, client.images.get(tag).attrs or {})
    listing = channel.run(client, head, ("ls", "-A", IMAGES)).stdout.split()
    if image.folder not in listing:
        _unpack(client, head, image, tag, say)
    old = [entry for entry in listing if entry != image.folder and _is_version(entry, name)]
    if old:
        _remove_unused(client, head, old, nodes)
    return image


def _is_version(entry: str, name: str) -> bool:
    """Another version of the image, or the remains of an interrupted unpacking of it."""
    stem, _, tail = entry.lstrip(".").rpartition("-")
    return stem == name and len(tail.split(".")[0]) == 12


def _unpack(client: DockerClient, head: str, image: GuestImage, tag: str, say: Say) -> None:
    start = clock.now()
    say(f"unpacking {image.name} for the nodes")
    settings = json.dumps({"digest": image.digest, "command": image.command, "environment": image.environment, "workdir": image.workdir})
    try:
        source: Any = client.containers.create(tag, command="true", labels={"emulab.role": "unpack"}, network_disabled=True)
    except DockerException as error:
        raise EngineError(f"cannot unpack {image.name}: {error}") from error
    try:
        with channel.ExecStream(client, head, ("sh", "-c", _UNPACK, "unpack", IMAGES, image.folder, settings)) as stream:
            for block in source.export(chunk_size=1 << 20):
                stream.write(block)
            stream.close_stdin()
            if stream.wait() != 0:
                raise EngineError(f"cannot unpack {image.name}: {stream.stderr}", hint="is the disk full? make doctor")
    finally:
        with suppress(DockerException):
            source.remove(force=True)
    say(f"unpacked {image.name} ({elapsed(start)})")


def _remove_unused(client: DockerClient, head: str, folders: list[str], nodes: Iterable[str]) -> None:
    used = "\n".join(channel.run(client, node, ("sh", "-c", _IN_USE)).stdout for node in nodes)
    unused = [f"{IMAGES}/{folder}" for folder in folders if f"{IMAGES}/{folder}/" not in used]
    if unused:
        channel.run(client, head, ("rm", "-rf", "--", *unused), timeout_s=300)
