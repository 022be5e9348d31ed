"""The images of the testbed: made once, made again only when what they are built from has changed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from docker.errors import DockerException, ImageNotFound

from emulab.engine.base import ensure_base
from emulab.engine.build import build
from emulab.engine.recipe import BASE, Recipe, recipe
from emulab.engine.settings import INPUTS_LABEL, ROLE_LABEL
from emulab.engine.streaming import Say, quiet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from docker import DockerClient


@dataclass(frozen=True)
class ImageState:
    """``current``: the image is there and was built from what lies in the checkout now."""

    recipe: Recipe
    image_id: str | None
    current: bool


def image_id(client: DockerClient, tag: str) -> str | None:
    """``sha256:…`` of a tag, or None."""
    try:
        return str(client.images.get(tag).id)
    except ImageNotFound:
        return None


def _inspect(client: DockerClient, one: Recipe, context: bytes) -> tuple[ImageState, str | None]:
    """The state of an image and the digest of its inputs (None while the image below is missing)."""
    try:
        image = client.images.get(one.tag)
    except ImageNotFound:
        image = None
    parent = image_id(client, one.after)
    if parent is None:
        return ImageState(one, image.id if image else None, current=False), None
    inputs = one.digest(context, parent)
    return ImageState(one, image.id if image else None, bool(image and image.labels.get(INPUTS_LABEL) == inputs)), inputs


def image_state(client: DockerClient, name: str) -> ImageState:
    """Whether the image of that short name (``node``, ``olio-web``) is there and current. Changes nothing."""
    one = recipe(name)
    return _inspect(client, one, one.context())[0]


def ensure_images(client: DockerClient, names: Iterable[str], say: Say = quiet) -> dict[str, str]:
    """Build what is missing or out of date, the base image first. Returns image ids by short name. Raises EngineError."""
    ensure_base(client, say)
    made = {}
    for name in names:
        one = recipe(name)
        context = one.context()
        state, inputs = _inspect(client, one, context)
        assert inputs is not None, f"{BASE} has just been made"
        if not state.current:
            build(one, context, inputs, say)
            new = image_id(client, one.tag)
            if state.image_id and state.image_id != new:
                with suppress(DockerException):  # still used by a container: gc will find it by its label
                    client.images.remove(state.image_id)
            made[name] = new or ""
        else:
            made[name] = state.image_id or ""
    return made


def remove_images(client: DockerClient) -> list[str]:
    """Remove every image that carries our label, tagged or not. Returns the names of those that went."""
    gone: list[str] = []
    # Those built on others go first: an image that another one needs is refused, so go round until nothing moves.
    for _ in range(5):
        images = client.images.list(filters={"label": f"{ROLE_LABEL}=image"}, all=False)
        before = len(gone)
        for image in images:
            with suppress(DockerException):
                client.images.remove(str(image.id), force=len(image.tags) > 1)
                gone.extend(image.tags or [str(image.short_id)])
        if len(gone) == before:
            break
    return gone
