"""Where this machine gets Debian packages from: read from apt's own sources, so that an image is made from the same place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

APT = Path("/etc/apt")
# Debian's releases by name: an entry for one of them, security apart, is a full Debian mirror.
_RELEASES = {"bookworm", "trixie", "forky", "duke", "sid", "oldstable", "stable", "testing", "unstable"}


@dataclass(frozen=True)
class Source:
    """One entry of apt's sources."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]


def parse_one_line(text: str) -> Iterator[Source]:
    """Entries of a ``sources.list``: ``deb [options] URI SUITE COMPONENT...``."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s*([^#]*)", line)
        if match:
            yield Source(match[1], (match[2],), tuple(match[3].split()))


def parse_deb822(text: str) -> Iterator[Source]:
    """Entries of a ``*.sources`` file: stanzas of ``Field: value`` lines, continued by indentation."""
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace() and name:
                fields[name] += " " + line.strip()
            elif ":" in line:
                name, value = line.split(":", 1)
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in {"no", "false", "0"} or "deb" not in fields.get("types", "").split():
            continue
        for uri in fields.get("uris", "").split():
            yield Source(uri, tuple(fields.get("suites", "").split()), tuple(fields.get("components", "").split()))


def read_sources(apt: Path = APT) -> Iterator[Source]:
    """All entries, in the order in which apt reads them."""
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if path.suffix == ".list":
            yield from parse_one_line(text)
        elif path.suffix == ".sources":
            yield from parse_deb822(text)


def debian_mirror(sources: Iterable[Source]) -> str | None:
    """The first full Debian mirror among the entries, or None (as on Ubuntu)."""
    for source in sources:
        if source.uri.startswith(("http://", "https://")) and "main" in source.components and _RELEASES.intersection(source.suites):
            return source.uri.rstrip("/")
    return None


def deb_line(mirror: str, suite: str, keyring: str) -> str:
    """One-line apt entry for Debian's main component."""
    return f"deb [signed-by={keyring}] {mirror} {suite} main"
