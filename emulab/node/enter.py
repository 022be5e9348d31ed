"""``python -m emulab.node.enter GUEST COMMAND...``: run a command inside a guest, in its cgroup and namespaces.

The command line reaches it through the engine's exec, with or without a terminal, so input and output need no protocol of ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from emulab.command import Argv, Runner
from emulab.errors import EmulabError
from emulab.node.guest import Guest, Guests


def enter_command(guest: Guest, argv: Sequence[str]) -> Argv:
    """Join the cgroup, then user, mount, network, pid, ipc and uts namespaces, then become the guest's root."""
    inside = (
        "nsenter",
        "--target",
        str(guest.pid),
        "--user",
        "--mount",
        "--net",
        "--pid",
        "--ipc",
        "--uts",
        "--root",
        "--wdns=/",  # of the guest: what goes on after the command may move with it
        "--",
        *argv,
    )
    return ("sh", "-c", f'{guest.cgroup.join_command()}; exec "$@"', "sh", *inside)


def main(arguments: Sequence[str]) -> int:
    """Becomes the command; returns an exit code only if it cannot."""
    if len(arguments) < 2:
        sys.stderr.write("usage: enter GUEST COMMAND...\n")
        return 2
    try:
        guest = Guests(Runner()).running(arguments[0])
    except EmulabError as error:
        sys.stderr.write(f"{error.message}\n{error.hint}\n" if error.hint else f"{error.message}\n")
        return error.exit_code
    command = enter_command(guest, arguments[1:])
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", **guest.spec.env}
    if "TERM" in os.environ:
        env["TERM"] = os.environ["TERM"]
    return os.execvpe(command[0], command, env)  # noqa: S606


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
