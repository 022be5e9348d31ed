"""The command line: thin. Each module is one group of commands that parses, calls and prints."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from emulab.cli.app import app, verbose
from emulab.cli.console import print_error
from emulab.errors import EmulabError

__all__ = ["app", "main"]


def _terminated(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line. Errors of ours become one line with a hint; Ctrl-C and SIGTERM end cleanly with 130."""
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    try:
        app()
    except EmulabError as error:
        if verbose():
            raise
        print_error(error.message, error.hint)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != 130:
            raise
        # Typer makes this exit code of a Ctrl-C, and says nothing.
        sys.stderr.write("\ninterrupted\n")
        sys.exit(130)
    except BrokenPipeError:  # `emulab … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
