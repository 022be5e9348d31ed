"""One tree of errors. The command line prints ``message`` and ``hint`` and exits with ``exit_code``; ``-v`` adds the traceback.

EmulabError (1)
├── UsageError (2)          what the user asked for cannot be: bad scenario, unknown guest, source equals destination
├── DoctorError (3)         the machine lacks something; the hint names the repair
├── CommandError (1)        a command of the system failed; carries its outcome
├── EngineError (1)         the container engine refused or vanished
├── AgentError (1)          a node's agent reported an error, or its channel broke
├── CalibrationError (4)    a link is not what was asked for
├── MigrationError (5)      a migration was aborted; says where the guest runs now
└── LoadError (1)           the load generator failed
"""

from __future__ import annotations


class EmulabError(Exception):
    """Base of all errors that are told to the user in one line.

    Args:
        message: what happened, in one line.
        hint: what to do about it, in one line; may be empty.

    """

    exit_code: int = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(EmulabError, ValueError):
    exit_code = 2


class DoctorError(EmulabError):
    exit_code = 3


class EngineError(EmulabError):
    pass


class AgentError(EmulabError):
    """Raised for an error that a node's agent sent back. ``kind`` is the class name of the error over there."""

    def __init__(self, message: str, *, hint: str = "", kind: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class CalibrationError(EmulabError):
    exit_code = 4


class MigrationError(EmulabError):
    exit_code = 5


class LoadError(EmulabError):
    pass
