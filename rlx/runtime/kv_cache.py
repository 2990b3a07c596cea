"""Who owns which page of the KV cache.

In: how many positions a sequence needs. Out: physical page numbers, the sequence's row of the page table, and its slot
of recurrent state. The memory itself belongs to the step program (`step.py`); here is only the book-keeping. Next:
`engine.py`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from rlx.errors import CacheFullError, OptionError, RlxError
from rlx.runtime.state_slots import SlotAllocator


class PageAllocator:
    """Hands out pages, the lowest free numbers first, so that the same requests always get the same pages.

    Args:
        num_pages: pages of the cache, numbered from 0.
        page_size: positions held by one page.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 1 or page_size < 1:
            raise OptionError(
                "a KV cache needs pages",
                found=f"{num_pages} pages of {page_size} positions",
                expected="at least 1 of 1",
            )
        self.num_pages, self.page_size = num_pages, page_size
        self._free = list(range(num_pages))  # a heap: ascending order is one
        self._is_used = bytearray(num_pages)

    @property
    def num_free(self) -> int:
        """Pages nobody owns."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Pages somebody owns."""
        return self.num_pages - len(self._free)

    def pages_for(self, length: int) -> int:
        """Pages that `length` positions fill, the last one perhaps in part."""
        return -(-length // self.page_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages, all or none.

        Raises:
            CacheFullError: fewer are free.
        """
        if count > len(self._free):
            raise CacheFullError(
                "the KV cache has no free page left",
                found=f"{len(self._free)} of {self.num_pages} pages of {self.page_size} positions free",
                expected=f"{count} more pages",
                fix="use a larger context or fewer sequences at once",
            )
        pages = [heapq.heappop(self._free) for _ in range(count)]
        for page in pages:
            self._is_used[page] = 1
        return pages

    def free(self, pages: Iterable[int]) -> None:
        """Give pages back, all or none.

        Raises:
            RlxError: a page is not owned by anybody, or is named twice.
        """
        pages = list(pages)
        strangers = [page for page in pages if not 0 <= page < self.num_pages or not self._is_used[page]]
        if strangers or len(set(pages)) != len(pages):
            raise RlxError(
                "a page of the KV cache is given back twice",
                found=strangers or pages,
                expected="pages in use, each once",
            )
        for page in pages:
            self._is_used[page] = 0
            heapq.heappush(self._free, page)


class SequenceCache:
    """The pages of one sequence, in the order of its positions, and its slot of recurrent state.

    Args:
        allocator: of the pages.
        slots: of the states; None for a program without.
    """

    def __init__(self, allocator: PageAllocator, slots: SlotAllocator | None = None) -> None:
        self._allocator, self._slots = allocator, SlotAllocator(0) if slots is None else slots
        self._pages: list[int] = []
        self._slot: int | None = None
        self._row = np.zeros(8, np.int32)  # the pages again, with room to grow, as the page table wants them

    @property
    def pages(self) -> tuple[int, ...]:
        """Physical page of each logical page."""
        return tuple(self._pages)

    @property
    def num_pages(self) -> int:
        """How many pages the sequence owns."""
        return len(self._pages)

    @property
    def capacity(self) -> int:
        """Positions there is room for."""
        return len(self._pages) * self._allocator.page_size

    @property
    def slot(self) -> int:
        """The slot of recurrent state, which the sequence has from its first page on.

        Raises:
            RlxError: there is no room for any position yet.
        """
        if self._slot is None:
            raise RlxError("a sequence without pages has no slot", fix="call grow first")
        return self._slot

    def fits(self, length: int) -> bool:
        """Whether `grow(length)` finds what it needs."""
        return self.missing(length) <= self._allocator.num_free and (self._slot is not None or self._slots.has_free)

    def missing(self, length: int) -> int:
        """Pages to add so that `length` positions fit."""
        return max(0, self._allocator.pages_for(length) - len(self._pages))

    def grow(self, length: int) -> None:
        """Make room for `length` positions in all; nothing changes if they fit already.

        Raises:
            CacheFullError: too few pages are free, or no slot is. What the sequence owned, it still owns.
        """
        count = self.missing(length)
        if not count:
            return
        pages = self._allocator.allocate(count)
        if self._slot is None:
            try:
                self._slot = self._slots.take()
            except CacheFullError:
                self._allocator.free(pages)
                raise
        old = len(self._pages)
        self._pages += pages
        if len(self._pages) > self._row.size:
            row = np.zeros(max(len(self._pages), 2 * self._row.size), np.int32)
            row[:old] = self._row[:old]
            self._row = row
        self._row[old : old + count] = pages

    def release(self) -> None:
        """Give every page and the slot back; the cache is empty and may grow again."""
        pages, self._pages = self._pages, []
        self._allocator.free(pages)
        slot, self._slot = self._slot, None
        if slot is not None:
            self._slots.give_back(slot)

    def table_row(self) -> NDArray[np.int32]:
        """`[num_pages]` physical pages: the sequence's row of the page table (a view, valid until the next change)."""
        return self._row[: len(self._pages)]
