"""A random sample of the scored images, the same one whether a run was killed or not."""

from __future__ import annotations

import heapq
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .journal import Entry

MOST = 1000


class Sample:
    """Keeps the images whose number has the smallest hash; those without p-value are not counted."""

    def __init__(self) -> None:
        self._seen = 0
        self._kept: list[tuple[int, int, Entry]] = []  # a heap, the largest hash first

    def add(self, entry: Entry) -> None:
        """Look at the next row."""
        if entry.row.p_value is None:
            return
        digest = blake2b(self._seen.to_bytes(8, "little"), digest_size=8).digest()
        item = (-int.from_bytes(digest, "little"), self._seen, entry)
        self._seen += 1
        if len(self._kept) < MOST:
            heapq.heappush(self._kept, item)
        else:
            heapq.heappushpop(self._kept, item)

    def entries(self) -> list[Entry]:
        """A thousand rows, or all where there are fewer, in the order of the images."""
        return [entry for _, _, entry in sorted(self._kept, key=lambda item: item[1])]
