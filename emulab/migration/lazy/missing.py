"""Which pages of a task have not arrived yet, while the task goes on changing its address space."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter


@dataclass(frozen=True, slots=True)
class Segment:
    """[start, end) as the task sees it now; ``origin``: the address of ``start`` when the guest was frozen."""

    start: int
    end: int
    origin: int

    @property
    def size(self) -> int:
        return self.end - self.start

    def part(self, start: int, end: int) -> Segment:
        """The part of it within [start, end)."""
        low, high = max(start, self.start), min(end, self.end)
        return Segment(low, high, self.origin + low - self.start)

    def moved(self, by: int) -> Segment:
        return Segment(self.start + by, self.end + by, self.origin)


_START, _END = attrgetter("start"), attrgetter("end")


class Missing:
    """Disjoint segments in the order of their addresses."""

    def __init__(self, segments: Iterable[Segment] = ()) -> None:
        self._segments = sorted(segments, key=_START)

    def __bool__(self) -> bool:
        return bool(self._segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments)

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(segment.size for segment in self._segments)

    def find(self, address: int) -> Segment | None:
        at = bisect_right(self._segments, address, key=_START) - 1
        return self._segments[at] if at >= 0 and address < self._segments[at].end else None

    def take(self, start: int, end: int) -> list[Segment]:
        """Remove what lies within [start, end) and return it."""
        first = bisect_right(self._segments, start, key=_END)
        last = bisect_left(self._segments, end, key=_START)
        touched = self._segments[first:last]
        if not touched:
            return []
        rest = [segment.part(segment.start, start) for segment in touched[:1] if segment.start < start]
        rest += [segment.part(end, segment.end) for segment in touched[-1:] if segment.end > end]
        self._segments[first:last] = rest
        return [segment.part(start, end) for segment in touched]

    def take_next(self, start: int, size: int) -> list[Segment]:
        """Remove the first ``size`` bytes of what lies at or after ``start``; from the beginning if nothing does."""
        at = bisect_right(self._segments, start, key=_END)
        if at == len(self._segments):
            at, start = 0, 0
        taken: list[Segment] = []
        while size > 0 and at < len(self._segments):
            segment = self._segments[at]
            low = max(start, segment.start)
            part = segment.part(low, low + size)
            taken.append(part)
            size -= part.size
            rest = [one for one in (segment.part(segment.start, low), segment.part(part.end, segment.end)) if one.start < one.end]
            self._segments[at : at + 1] = rest
            at += sum(one.end <= low for one in rest)
        return taken

    def put(self, segments: Iterable[Segment]) -> None:
        """Add segments that overlap with none."""
        for segment in segments:
            self._segments.insert(bisect_left(self._segments, segment.start, key=_START), segment)

    def remap(self, start: int, to: int, size: int) -> None:
        """[start, start + size) was moved to ``to``, over whatever was there."""
        moved = self.take(start, start + size)
        self.take(to, to + size)
        self.put(segment.moved(to - start) for segment in moved)

    def copy(self) -> Missing:
        return Missing(self._segments)
