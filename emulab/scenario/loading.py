"""From a name or a path, and what was typed on the command line, to a checked ``Scenario``."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

import workloads
from emulab.errors import UsageError
from emulab.scenario.checks import NodeSize, check
from emulab.scenario.model import Scenario
from emulab.scenario.problems import Location, Problem, did_you_mean, from_validation, known_keys, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

# Short names for the command line; any other override is a dotted path such as "migrations.1.to" (lists count from 1).
SHORT_NAMES: dict[str, str] = {
    "users": "load.users",
    "steady": "load.steady",
    "ramp_up": "load.ramp_up",
    "ramp_down": "load.ramp_down",
    "drivers": "load.drivers",
    "pacing": "load.pacing",
    "rate": "topology.rate",
    "hosts": "topology.hosts",
    "workers": "workload.workers",
    "data_ratio": "workload.data_ratio",
    "profile": "workload.profile",
}
# "STEADY=120" is plain enough on a command line; in a file the unit is written.
_SECONDS = frozenset({"steady", "ramp_up", "ramp_down", "mean", "cap", "request_timeout", "keepalive", "at", "window"})
_PLAIN_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def shipped_scenarios() -> dict[str, Path]:
    """Scenarios that come with the workloads, by name."""
    found = Path(workloads.__file__).parent.glob("*/scenarios/*.yaml")
    return {path.stem: path for path in sorted(found)}


def load_scenario(name_or_path: str, overrides: Mapping[str, str | None] | None = None, *, node: NodeSize | None = None) -> Scenario:
    """Read, override and check a scenario.

    Args:
        name_or_path: a shipped scenario's name, or the path of a YAML file (anything with a slash or ending in .yaml).
        overrides: key -> value as typed; keys are those of ``SHORT_NAMES``, top-level ones or dotted paths. None = not given.
        node: size of a node; None = guests' sizes are not checked against it.

    Raises:
        UsageError: with every problem in one line.

    """
    path = _find(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the scenario {path}: {getattr(error, 'strerror', None) or error}") from error
    return parse_scenario(text, overrides, source=name_or_path, default_name=path.stem, node=node)


def parse_scenario(
    text: str,
    overrides: Mapping[str, str | None] | None = None,
    *,
    source: str = "scenario",
    default_name: str | None = None,
    node: NodeSize | None = None,
) -> Scenario:
    """The same from YAML text."""
    try:
        data = yaml.load(text, _NoDuplicates)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise UsageError(f"{source}: not valid YAML{place}: {getattr(error, 'problem', None) or 'unreadable'}") from error
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise refuse(source, [Problem((), f"must be a mapping of keys to values, got {type(data).__name__}")])
    if default_name is not None:
        data.setdefault("name", re.sub(r"[^a-z0-9]+", "-", default_name.lower()).strip("-") or "unnamed")
    problems = _override(data, overrides or {})
    scenario, found, doubtful = _validate(data)
    problems += found
    if scenario is not None:
        problems += [
            p for p in check(scenario, node) if not any(_touches(place, q) for place in (p.location, *p.because_of) for q in doubtful)
        ]
    if problems or scenario is None:
        raise refuse(source, problems)
    return scenario


def to_yaml(scenario: Scenario) -> str:
    """The whole scenario with units; reading it back gives an equal scenario."""
    return yaml.safe_dump(scenario.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=140)


def _find(name_or_path: str) -> Path:
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise UsageError(f"no scenario file {name_or_path}", hint=f"shipped scenarios: {', '.join(shipped_scenarios())}")
        return path
    shipped = shipped_scenarios()
    if name_or_path not in shipped:
        near = did_you_mean(name_or_path, shipped)
        raise UsageError(
            f"no scenario named {name_or_path!r}", hint=near or f"there are {', '.join(shipped)}; or give the path of a YAML file"
        )
    return shipped[name_or_path]


def _override(data: dict[str, Any], overrides: Mapping[str, str | None]) -> list[Problem]:
    problems = []
    for key, typed in overrides.items():
        if typed is None:
            continue
        parts = SHORT_NAMES.get(key, key).split(".")
        location: Location = tuple(int(part) - 1 if part.isdigit() else part for part in parts)
        if len(location) == 1 and location[0] not in known_keys(()):
            known = [*SHORT_NAMES, *known_keys(())]
            problems.append(Problem((key,), "cannot be set: unknown", did_you_mean(key, known)))
            continue
        value = f"{typed.strip()}s" if location[-1] in _SECONDS and _PLAIN_NUMBER.fullmatch(typed.strip()) else typed.strip()
        try:
            _place(data, location, value)
        except (LookupError, TypeError):
            problems.append(Problem(location, "cannot be set: there is no such place in this scenario"))
    return problems


def _place(data: Any, location: Location, value: str) -> None:
    for part in location[:-1]:
        if isinstance(part, str) and isinstance(data, dict):
            data = data.setdefault(part, {})
            continue
        data = data[part]
    if isinstance(data, list) and not 0 <= int(location[-1]) < len(data):
        raise LookupError
    data[location[-1]] = value


def _validate(data: dict[str, Any]) -> tuple[Scenario | None, list[Problem], list[Location]]:
    """Validate; where something is wrong leave it out and go on, so that what depends on sound values is still checked.

    Returns the scenario (possibly with defaults in the wrong places; None if even that fails), the problems, and the places in doubt.
    """
    data = copy.deepcopy(data)
    problems: list[Problem] = []
    for _ in range(2):
        try:
            return Scenario.model_validate(data), problems, [problem.location for problem in problems]
        except ValidationError as error:
            found = from_validation(error)
            if problems:
                break  # what was left out is itself required
            problems = found
            for location in sorted({p.location for p in found}, key=repr, reverse=True):
                _leave_out(data, location)
    return None, problems, []


def _leave_out(data: Any, location: Location) -> None:
    *path, last = location
    try:
        for part in path:
            data = data[part]
        if isinstance(data, list):
            return
        data.pop(last, None)
    except (LookupError, TypeError, AttributeError):
        return


def _touches(place: Location, doubtful: Location) -> bool:
    shorter = min(len(place), len(doubtful))
    return place[:shorter] == doubtful[:shorter]


class _NoDuplicates(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice instead of forgetting the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
