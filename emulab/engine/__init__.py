"""The host's Docker side: images, the compose project, a byte stream to each node. The only room that imports docker.

Main way in: ``Project(Settings.from_env())``, ``ensure_images(connect(), names)``, ``exclusive("an experiment")``.
"""

from emulab.engine.channel import ExecStream
from emulab.engine.client import connect
from emulab.engine.images import ImageState, ensure_images, image_state
from emulab.engine.lock import exclusive
from emulab.engine.project import NodeStatus, Project
from emulab.engine.removal import Removed
from emulab.engine.settings import NODES, Settings
from emulab.engine.unpack import GuestImage

__all__ = [
    "NODES",
    "ExecStream",
    "GuestImage",
    "ImageState",
    "NodeStatus",
    "Project",
    "Removed",
    "Settings",
    "connect",
    "ensure_images",
    "exclusive",
    "image_state",
]
