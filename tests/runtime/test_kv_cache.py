"""Pages: never two owners, nothing lost, the same requests always get the same pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx.errors import CacheFullError, OptionError, RlxError
from rlx.runtime.kv_cache import PageAllocator, SequenceCache


@given(
    num_pages=st.integers(1, 12),
    page_size=st.integers(1, 5),
    operations=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=60),
)
def test_no_page_has_two_owners_and_none_is_lost(
    num_pages: int, page_size: int, operations: list[tuple[int, int]]
) -> None:
    """Four sequences grow (or are released, for length 0) in any order."""
    allocator = PageAllocator(num_pages, page_size)
    caches = [SequenceCache(allocator) for _ in range(4)]
    for index, length in operations:
        cache = caches[index]
        before, free = cache.pages, set(range(num_pages)).difference(*(cache.pages for cache in caches))
        if length == 0:
            cache.release()
            assert cache.pages == ()
            assert cache.capacity == 0
        elif cache.missing(length) > len(free):
            with pytest.raises(CacheFullError):
                cache.grow(length)
            assert cache.pages == before
        else:
            cache.grow(length)
            assert cache.capacity >= length
            assert cache.pages[: len(before)] == before
            added = cache.pages[len(before) :]
            assert added == tuple(sorted(free)[: len(added)])
            assert (cache.num_pages - 1) * page_size < max(length, len(before) * page_size)
        owned = [page for cache in caches for page in cache.pages]
        assert len(owned) == len(set(owned)) == allocator.num_used == num_pages - allocator.num_free
        assert all(cache.table_row().tolist() == list(cache.pages) for cache in caches)
    for cache in caches:
        cache.release()
    assert allocator.num_free == num_pages
    assert allocator.allocate(num_pages) == list(range(num_pages))


def test_freed_pages_come_back_lowest_first() -> None:
    allocator = PageAllocator(5, 1)
    assert allocator.allocate(4) == [0, 1, 2, 3]
    allocator.free([2])
    allocator.free([0])
    assert allocator.allocate(3) == [0, 2, 4]


def test_full_cache_says_how_full() -> None:
    allocator = PageAllocator(3, 16)
    allocator.allocate(2)
    with pytest.raises(CacheFullError) as caught:
        allocator.allocate(2)
    assert "1 of 3 pages of 16 positions free" in str(caught.value)
    assert "2 more pages" in str(caught.value)
    assert allocator.num_free == 1


@pytest.mark.parametrize("pages", [[0, 0], [2], [0, 2], [-1], [3]])
def test_giving_back_twice_is_an_error_and_changes_nothing(pages: list[int]) -> None:
    allocator = PageAllocator(3, 1)
    allocator.allocate(2)
    with pytest.raises(RlxError, match="given back twice"):
        allocator.free(pages)
    assert allocator.num_used == 2
    allocator.free([0, 1])
    with pytest.raises(RlxError, match="given back twice"):
        allocator.free([0])


@pytest.mark.parametrize(("num_pages", "page_size"), [(0, 1), (1, 0), (-1, 4)])
def test_a_cache_needs_pages(num_pages: int, page_size: int) -> None:
    with pytest.raises(OptionError):
        PageAllocator(num_pages, page_size)


def test_pages_for() -> None:
    allocator = PageAllocator(9, 4)
    assert [allocator.pages_for(length) for length in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]
