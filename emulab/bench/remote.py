"""Programs of the bench on the nodes: started, spoken to line by line, ended with their stream."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from typing import Any, Self

from emulab.command import last_line
from emulab.engine.project import Project
from emulab.errors import EmulabError
from emulab.testbed.testbed import PYTHON


class Remote:
    """``python -m emulab.bench.<module>`` on a node. ``timeout_s``: it is killed after this long, whatever it does."""

    def __init__(self, project: Project, node: str, module: str, *args: str, timeout_s: float = 300.0) -> None:
        self._what = f"{module} on {node}"
        self._stream = project.exec_stream(node, (PYTHON, "-m", module, *args))
        self._timer = threading.Timer(timeout_s, self._late)
        self._timer.daemon = True
        self._timer.start()
        self._is_late = False

    def _late(self) -> None:
        self._is_late = True
        self._stream.kill()
        self._stream.close()

    def line(self) -> str:
        """The next line of output. Raises EmulabError if it ends without one."""
        line = bytearray()
        while not line.endswith(b"\n"):
            part = self._stream.read(1)
            if not part:
                reason = "took too long" if self._is_late else last_line(self._stream.stderr, "no reason given")
                raise EmulabError(f"{self._what} ended early: {reason}")
            line += part
        return line.decode().strip()

    def expect(self, word: str) -> None:
        line = self.line()
        if line != word:
            raise EmulabError(f"{self._what} said {line[:200]!r}, not {word!r}")

    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.line()))

    def say(self, text: str = "go") -> None:
        self._stream.write(text.encode() + b"\n")

    def end_input(self) -> None:
        self._stream.close_stdin()

    def end(self, *, at_once: bool = False) -> None:
        """Let it come to its end (``at_once``: kill it)."""
        self._stream.close_stdin()
        with suppress(EmulabError):
            if at_once or self._stream.wait() == -1:
                self._stream.kill()
        self._timer.cancel()
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(at_once=kind is not None)
