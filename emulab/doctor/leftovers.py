"""What an interrupted run or repair can leave behind."""

from __future__ import annotations

from emulab.doctor import packages
from emulab.doctor.model import Finding, Say, bad, good
from emulab.engine.client import connect
from emulab.engine.lock import exclusive
from emulab.engine.removal import our_containers, remove_project
from emulab.engine.settings import NODES, Settings
from emulab.errors import UsageError


def check_leftovers() -> Finding:
    """Half a testbed: nodes that have stopped, or only some of them; and apt entries of a killed repair.

    Six running nodes are no leftover: the next run finds them up. Nor is what somebody is at work on now.
    """
    try:
        with exclusive("emulab doctor"):
            return _look()
    except UsageError as error:
        return good(error.message)


def _look() -> Finding:
    found = [str(path) for path in packages.borrowed_files()]
    containers = our_containers(connect(), Settings.from_env().project)
    stopped = [f"{container.name} ({container.status})" for container in containers if container.status != "running"]
    if stopped:
        found += stopped
    elif 0 < len(containers) < len(NODES):
        found.append(f"only {len(containers)} of {len(NODES)} nodes")
    return bad(", ".join(found), "make down") if found else good("none")


def fix_leftovers(say: Say) -> None:
    packages.remove_borrowed()
    removed = remove_project(connect(), Settings.from_env().project)
    if removed:
        say(f"removed {len(removed.containers)} containers, {len(removed.networks)} networks, {len(removed.volumes)} volumes")
