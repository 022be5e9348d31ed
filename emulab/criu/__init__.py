"""CRIU through its command line: argument builders, action-script hooks, statistics, dirty trackers.

``native/`` holds three small C programs that are built in the node image: ``tracker`` and ``shim.so`` (dirty tracking by write-protect
where the kernel has no soft-dirty) and ``hook`` (CRIU's action script, which asks the agent).
"""

from pathlib import Path

NATIVE = Path("/usr/local/lib/emulab")
