"""From a sequence and a logical page to the page of the cache, every index checked on the way."""

from __future__ import annotations

from rlx.backends.cpu.emit import I32, I64, Val
from rlx.backends.cpu.kernels.registry import Body


def table_entry(body: Body, sequence: Val, page: Val) -> Val:
    """The place of a logical page in the table; the first two sizes of the body are those of the table."""
    sequence = body.checked_index(sequence, body.size(0))
    return sequence * body.size(1) + body.checked_index(page, body.size(1))


def physical_page(body: Body, table: Val, entry: Val, step: int) -> Val:
    """The page of the cache behind an entry of the table: size 2 is their number, page step and offset begin at `step`.

    Step and offset are sizes and not constants, so that layers share one kernel.
    """
    page = body.e.load(table, I32, entry).sext(I64)
    return body.checked_index(page * body.size(step) + body.size(step + 1), body.size(2))
