"""How long tasks take, so many at a time, each after what it needs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from heapq import heapify, heappop, heappush

Timed = tuple[str, Collection[str], float]  # name, names of what it needs, seconds


def makespan_s(tasks: Sequence[Timed], width: int) -> float:
    """Seconds until the last one ends where `width` run at a time, the first of those that are ready before the rest.

    What a task needs and is not among them is done already. List scheduling (Graham 1966): at most twice the least.
    """
    place = {name: index for index, (name, _, _) in enumerate(tasks)}
    needs = [{place[need] for need in wanted if need in place} for _, wanted, _ in tasks]
    readers: dict[int, list[int]] = {}
    for index, wanted in enumerate(needs):
        for need in wanted:
            readers.setdefault(need, []).append(index)
    ready, running, now = [i for i, wanted in enumerate(needs) if not wanted], [], 0.0
    heapify(ready)
    while ready or running:
        while ready and len(running) < width:
            index = heappop(ready)
            heappush(running, (now + tasks[index][2], index))
        now, ended = heappop(running)
        for index in readers.get(ended, ()):
            needs[index].discard(ended)
            if not needs[index]:
                heappush(ready, index)
    return now
