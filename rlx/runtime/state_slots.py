"""Who owns which slot of recurrent state.

A layer whose state does not grow with the text (`ops/recurrent_state.py`) keeps one state per sequence, in a slot of
the step program's memory. A slot is the state after all tokens that were run, and after no others: it cannot be cut
back to a shorter text, and two sequences cannot share it as they could share pages. So a sequence that starts, or that
is computed anew after a pause, begins at position 0, where the program takes zeros: nothing has to be cleared. Next:
`kv_cache.py`, where a sequence holds its slot beside its pages.
"""

from __future__ import annotations

import heapq

from rlx.errors import CacheFullError, RlxError


class SlotAllocator:
    """Hands out slots, the lowest free number first.

    Args:
        num_slots: slots of the program; 0 for one without recurrent state, which has slot 0 for everybody.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = list(range(num_slots))

    @property
    def has_free(self) -> bool:
        """Whether a sequence can begin."""
        return not self.num_slots or bool(self._free)

    def take(self) -> int:
        """A slot for a sequence.

        Raises:
            CacheFullError: every slot has an owner.
        """
        if not self.num_slots:
            return 0
        if not self._free:
            raise CacheFullError(
                "no slot for recurrent state is left",
                found=f"{self.num_slots} sequences with a state",
                fix="run fewer sequences at once",
            )
        return heapq.heappop(self._free)

    def give_back(self, slot: int) -> None:
        """The owner needs its slot no more.

        Raises:
            RlxError: nobody owns it.
        """
        if not self.num_slots:
            return
        if not 0 <= slot < self.num_slots or slot in self._free:
            raise RlxError("a slot of recurrent state is given back twice", found=slot, expected="a slot in use")
        heapq.heappush(self._free, slot)
