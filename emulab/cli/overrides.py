"""``--set KEY=VALUE`` options, and what the environment says of a scenario."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from emulab.errors import UsageError


def parse_settings(settings: Iterable[str] | None, environ: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """Split each at its first equals sign; EMULAB_SUBNET is a setting that others may replace. Raises UsageError for one without."""
    parsed: dict[str, str | None] = {"topology.subnet": environ["EMULAB_SUBNET"]} if environ.get("EMULAB_SUBNET") else {}
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {setting!r} is not KEY=VALUE", hint="for example --set load.drivers=2")
        parsed[key.strip()] = value
    return parsed
