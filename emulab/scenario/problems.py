"""What is wrong with a scenario, in sentences for the user: all of it at once, each with its place, what was found and what was meant."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from emulab.errors import UsageError
from emulab.scenario.model import Scenario

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Location = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing wrong.

    ``because_of`` names other places that the judgement rests on: it is not reported while one of them is itself in doubt.
    """

    location: Location
    message: str
    hint: str = ""
    because_of: tuple[Location, ...] = ()

    def __str__(self) -> str:
        return f"{dotted(self.location)}: {self.message}"


def dotted(location: Location) -> str:
    return ".".join(str(part + 1) if isinstance(part, int) else part for part in location) or "scenario"


def did_you_mean(word: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f"did you mean {near[0]!r} instead of {str(word)!r}?" if near else ""


def refuse(source: str, problems: Sequence[Problem]) -> UsageError:
    """One error for all problems. ``source`` says what was read: a name or a path."""
    hints = list(dict.fromkeys(problem.hint for problem in problems if problem.hint))
    return UsageError(f"{source}: " + "; ".join(str(problem) for problem in problems), hint=" ".join(hints))


def from_validation(error: ValidationError) -> list[Problem]:
    """Pydantic's findings in our words, in the order of the file's keys."""
    return [_problem(found["type"], found["loc"], found.get("input"), found.get("ctx", {}), found["msg"]) for found in error.errors()]


def _problem(kind: str, location: Location, value: object, context: dict[str, Any], fallback: str) -> Problem:
    if location and location[-1] == "[key]":  # a dict's key, not its value
        location = location[:-1]
    got = _got(value)
    if kind == "extra_forbidden":
        known = known_keys(location[:-1])
        return Problem(location, "unknown key", did_you_mean(location[-1], known) or f"known here: {', '.join(known)}.")
    if kind == "missing":
        return Problem(location, "is missing")
    if kind in {"int_parsing", "int_type", "int_from_float"}:
        return Problem(location, f"must be a whole number, got {got}")
    if kind in {"float_parsing", "float_type"}:
        return Problem(location, f"must be a number, got {got}")
    if kind == "greater_than_equal":
        return Problem(location, f"must be at least {context['ge']}, got {got}")
    if kind == "less_than_equal":
        return Problem(location, f"must be at most {context['le']}, got {got}")
    if kind == "literal_error":
        return Problem(location, f"must be one of {context['expected']}, got {got}", _nearest_literal(value, context["expected"]))
    if kind == "string_pattern_mismatch":
        return Problem(location, f"must be small letters, digits and dashes, got {got}")
    if kind == "string_type":
        return Problem(location, f"must be text, got {got}")
    if kind in {"model_type", "dict_type", "model_attributes_type"}:
        return Problem(location, f"must be a mapping of keys to values, got {got}")
    if kind in {"tuple_type", "list_type"}:
        return Problem(location, f"must be a list, got {got}")
    if kind == "value_error":
        return Problem(location, f"{context['error']}, got {got}")
    return Problem(location, f"{fallback}, got {got}")


def _got(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest_literal(value: object, expected: str) -> str:
    return did_you_mean(value, [word.strip("' ") for word in expected.replace(" or ", ",").split(",")])


def known_keys(location: Location) -> list[str]:
    """The keys that may stand at a place of the scenario; empty where the user names them."""
    kind = type_at(location)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def type_at(location: Location) -> Any:
    """The declared type at a place of the scenario; None where there is none."""
    kind: Any = Scenario
    for part in location:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(part))
            if field is None:
                return None
            kind = field.annotation
        elif get_origin(kind) in {dict, tuple}:
            kind = get_args(kind)[1 if get_origin(kind) is dict else 0]
        else:
            return None
    return kind
