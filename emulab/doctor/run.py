"""Goes through the list: looks, and repairs where asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from emulab.doctor.model import Finding, Item, Result, Say, bad
from emulab.errors import DoctorError, EmulabError

OnResult = Callable[[Result], None]


def _ignore(_: object) -> None:
    return


def look(item: Item) -> Finding:
    """Check one item; an error of the check is a failure of the item."""
    try:
        return item.check()
    except EmulabError as error:
        return bad(error.message, error.hint)
    except OSError as error:
        return bad(f"cannot be checked: {error}")


def _blocked(item: Item, failed: set[str]) -> Result | None:
    missing = [name for name in item.needs if name in failed]
    return Result(item, Finding("skipped", f"not looked at without {', '.join(missing)}")) if missing else None


def check_all(items: Iterable[Item], on_result: OnResult = _ignore) -> list[Result]:
    """Look at every item, in order; changes nothing."""
    return _go(items, lambda item: Result(item, look(item)), on_result)


def repair(items: Iterable[Item], say: Say = _ignore, on_result: OnResult = _ignore) -> list[Result]:
    """Look at every item and repair those that fail. ``say`` hears each step; what changes the machine is said before it is done."""

    def mend(item: Item) -> Result:
        found = look(item)
        if found.status != "failed" or item.fix is None:
            return Result(item, found)
        say(f"{item.name}: {found.text}")
        if item.changes:
            say(f"{item.name}: the repair changes this machine: {item.changes}")
        try:
            item.fix(lambda line: say(f"{item.name}: {line}"))
        except EmulabError as error:
            return Result(item, bad(error.message, error.hint or found.remedy), error=error.message)
        except OSError as error:
            return Result(item, bad(str(error), found.remedy), error=str(error))
        after = look(item)
        if after.status == "failed":
            return Result(item, after, error="the repair did not help")
        return Result(item, after, repaired=True)

    return _go(items, mend, on_result)


def _go(items: Iterable[Item], treat: Callable[[Item], Result], on_result: OnResult) -> list[Result]:
    results: list[Result] = []
    failed: set[str] = set()
    for item in items:
        result = _blocked(item, failed) or treat(item)
        if result.failed:
            failed.add(item.name)
        results.append(result)
        on_result(result)
    return results


def require(results: Iterable[Result]) -> None:
    """Raise DoctorError naming the first item that failed."""
    failed = [result for result in results if result.failed]
    if failed:
        first = failed[0]
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise DoctorError(f"{first.item.name}: {first.finding.text}{more}", hint=first.remedy or "make doctor")
