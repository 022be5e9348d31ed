"""``--set KEY=VALUE`` options."""

from __future__ import annotations

from collections.abc import Iterable

from emulab.errors import UsageError


def parse_settings(settings: Iterable[str] | None) -> dict[str, str | None]:
    """Split each at its first equals sign. Raises UsageError for one without."""
    parsed: dict[str, str | None] = {}
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {setting!r} is not KEY=VALUE", hint="for example --set load.drivers=2")
        parsed[key.strip()] = value
    return parsed
