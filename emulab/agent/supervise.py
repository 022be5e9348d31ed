"""``python -m emulab.agent.supervise``: keeps the node's agent running.

The node's guests are not its children, so they outlive an agent that was killed; the next one finds them again (``recovery``). An agent
that ends at once three times in a row is not started a fourth time: the node ends, and with it says why.
"""

from __future__ import annotations

import subprocess
import sys
import time

from emulab import clock

_QUICK_S = 2.0
_PATIENCE = 3


def main() -> int:
    quick = 0
    while quick < _PATIENCE:
        started = clock.now()
        code = subprocess.run((sys.executable, "-m", "emulab.agent.server"), check=False).returncode
        quick = quick + 1 if clock.now() - started < _QUICK_S else 0
        sys.stderr.write(f"the agent ended with {code}\n")
        time.sleep(0.1)
    return 1


if __name__ == "__main__":
    sys.exit(main())
