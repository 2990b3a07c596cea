"""Pages of sequences that begin alike: what is full is shared, what is still written to is copied.

In: sequences that grow and fork. Out: rows of the page table. Beam search lets the best continuations of one sequence
go on as several, and sampling starts several from one prompt. Next: `speech_decoder.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rlx.runtime.kv_cache import PageAllocator


class ForkedPages:
    """The pages of a few sequences of the same length.

    Args:
        num_pages, page_size: of the cache.
        copy_page: makes a page hold what another one does.
    """

    def __init__(self, num_pages: int, page_size: int, copy_page: Callable[[int, int], None]) -> None:
        self._allocator, self._copy = PageAllocator(num_pages, page_size), copy_page
        self._owners: dict[int, int] = {}
        self._rows: list[list[int]] = []
        self._length = 0

    def start(self) -> None:
        """Forget everything; one sequence of no positions is left."""
        self._allocator.free(self._owners)
        self._owners.clear()
        self._rows, self._length = [[]], 0

    def grow(self, count: int) -> NDArray[np.int32]:
        """Make room for `count` more positions in each sequence; gives the page table `[sequences, pages]`.

        Raises:
            CacheFullError: too few pages are free.
        """
        self._length += count
        for row in self._rows:
            added = self._allocator.allocate(self._allocator.pages_for(self._length) - len(row))
            self._owners |= dict.fromkeys(added, 1)
            row.extend(added)
        return np.array(self._rows, np.int32)

    def fork(self, parents: Sequence[int]) -> None:
        """Sequence i goes on from what `parents[i]` was; their number may change.

        Raises:
            CacheFullError: too few pages are free.
        """
        if list(parents) == list(range(len(self._rows))):
            return
        whole = self._length // self._allocator.page_size
        old, used = self._rows, set[int]()
        self._rows = []
        for parent in parents:
            row = old[parent]
            if parent not in used:  # the first to go on from it keeps the page that is written to
                used.add(parent)
                self._rows.append(list(row))
                continue
            for page in row[:whole]:
                self._owners[page] += 1
            tail = self._allocator.allocate(len(row) - whole)
            for source, target in zip(row[whole:], tail, strict=True):
                self._copy(source, target)
                self._owners[target] = 1
            self._rows.append([*row[:whole], *tail])
        for index, row in enumerate(old):
            if index not in used:
                self._release(row)

    def _release(self, row: Sequence[int]) -> None:
        for page in row:
            self._owners[page] -= 1
            if not self._owners[page]:
                del self._owners[page]
                self._allocator.free([page])
