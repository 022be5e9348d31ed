"""The load generator: ``python -m emulab.load.run --config load.json --out DIR``.

Runs a Locust master in this process, Locust workers and the prober in children, and the timetable: ramp-up, steady state, ramp-down.

* Standard output: one JSON object per line. First ``load.process`` with its ``pid``; ``load.ramp_up``, ``load.steady`` and
  ``load.ramp_down`` with ``kind`` begin and end and the exact instant in ``mono_s``; about once a second ``load.progress``.
* ``DIR``: ``operations-N.csv`` and ``requests-N.csv`` per worker, ``probes.csv``, ``load.json`` (see ``emulab.load.totals``), ``logs/``.
* Stops by itself; on SIGTERM, SIGINT, or when its standard input, if that is a pipe or socket, is closed. No child outlives it.

With ``--ui`` the users are set in Locust's web page instead, and records go to ``DIR/run-1`` and so on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from emulab import clock
from emulab.errors import EmulabError
from emulab.load import config as configuration


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m emulab.load.run", description="Generate Faban-style load.")
    parser.add_argument("--config", type=Path, required=True, help="JSON, see emulab.load.config")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for records")
    parser.add_argument("--ui", action="store_true", help="interactive: Locust's web page instead of a timetable")
    parser.add_argument("--port", type=int, default=8089, help="port of the web page")
    parser.add_argument("--bind", default="127.0.0.1", help="address of the web page")
    args = parser.parse_args(argv)
    try:
        config = configuration.read(args.config)
        args.out.mkdir(parents=True, exist_ok=True)
        # Importing Locust patches the standard library for gevent, so it is left to the process that needs it.
        from emulab.load import master

        emit({"mono_s": clock.now(), "wall": clock.wall(), "name": "load.process", "kind": "event", "pid": os.getpid()})
        if args.ui:
            return master.interactive(config, args.out.resolve(), bind=args.bind, port=args.port, emit=emit)
        return master.timetable(config, args.out.resolve(), emit=emit)
    except EmulabError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code


def emit(event: dict[str, Any]) -> None:
    """Write one event to standard output."""
    try:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody listens any more; the end of standard input will stop us.
        sys.stdout = open("/dev/null", "w", encoding="utf-8")  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(main())
