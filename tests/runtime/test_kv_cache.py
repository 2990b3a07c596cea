"""Pages: never two owners, nothing lost, the same requests always get the same pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx.errors import CacheFullError, OptionError, RlxError
from rlx.runtime.kv_cache import PageAllocator, SequenceCache
from rlx.runtime.state_slots import SlotAllocator


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


def test_a_sequence_has_a_slot_from_its_first_page_to_its_release() -> None:
    allocator, slots = PageAllocator(4, 2), SlotAllocator(2)
    first, second, third = (SequenceCache(allocator, slots) for _ in range(3))
    with pytest.raises(RlxError, match="no slot"):
        _ = first.slot
    for cache, length in ((first, 1), (second, 2), (first, 3)):
        assert cache.fits(length)
        cache.grow(length)
    assert (first.slot, second.slot) == (0, 1)
    assert not third.fits(1)
    with pytest.raises(CacheFullError, match="no slot"):
        third.grow(1)
    assert allocator.num_free == 1, "the page goes back where there is no slot"
    first.release()
    assert third.fits(1)
    third.grow(1)
    assert third.slot == 0


@pytest.mark.parametrize("slot", [-1, 0, 2])
def test_a_slot_is_given_back_once(slot: int) -> None:
    slots = SlotAllocator(2)
    taken = slots.take()
    slots.give_back(taken)
    with pytest.raises(RlxError, match="given back twice"):
        slots.give_back(slot)


def test_without_recurrent_state_everybody_has_slot_0() -> None:
    slots = SlotAllocator(0)
    assert [slots.take(), slots.take()] == [0, 0]
    slots.give_back(0)
    assert slots.has_free
