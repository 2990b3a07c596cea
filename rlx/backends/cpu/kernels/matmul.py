"""matmul of two activations, with the tiles of linear; each element of the result is one chain in the order of k.

    for each matrix that the rows of this call (units, split over threads) belong to
      few rows: the columns are streamed as they lie;  many: panels of 16 columns are copied for each block of rows

Next: `float_tiles.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rlx.backends.cpu.emit import F32, LANES, VF, Val
from rlx.backends.cpu.kernels.float_tiles import (
    BLOCK_WORDS,
    FLOAT32,
    Operands,
    Stream,
    blocked,
    registers,
    stream,
)
from rlx.backends.cpu.kernels.movement import strides_of
from rlx.backends.cpu.kernels.products import load_columns, store_columns
from rlx.backends.cpu.kernels.registry import Body, Setting, always, kernel
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.dim import Shape, Size, product
from rlx.core.graph import Node


def _batch_strides(operand: Shape, batch: Shape) -> list[Size]:
    """Elements to the next matrix along each batch axis; 0 where the operand is repeated."""
    strides = strides_of(operand)[:-2]
    missing = len(batch) - len(strides)
    kept = [0 if operand[i] == 1 and batch[missing + i] != 1 else strides[i] for i in range(len(strides))]
    return [0] * missing + kept


def _plan(node: Node, target: Target) -> KernelPlan:
    a, b, out = node.inputs[0].type.shape, node.inputs[1].type.shape, node.output.type.shape
    batch = out[:-2]
    sizes: tuple[Size, ...] = (out[-2], out[-1], a[-1], *batch, *_batch_strides(a, batch), *_batch_strides(b, batch))
    columns = out[-1]
    whole = isinstance(columns, int) and columns % LANES == 0
    config: dict[str, Setting] = {"batch_rank": len(batch), "partial": not whole}
    return KernelPlan("rows", config, sizes, product(out[:-1]))


@kernel("matmul", "rows", help="register tiles of rows and columns, k in order", when=always, plan=_plan)
def build(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: a [..., m, k], b [..., k, n], out; sizes m, n, k, batch sizes, strides of a, strides of b."""
    e, m = body.e, body.size(0)
    next_row = e.var(body.begin)
    with e.loop_while(lambda: next_row.get() < body.end):
        first = next_row.get()
        matrix, row = first // m, first % m
        rows = e.minimum(m - row, body.end - first)
        a, b = _matrices(body, int(config["batch_rank"]), matrix)
        left = e.at(a, row * body.size(2), F32)
        _Matrices(body, config, left, b, e.at(body.buffer(2), first * body.size(1), F32), rows).multiply()
        next_row.set(first + rows)


def _matrices(body: Body, rank: int, matrix: Val) -> tuple[Val, Val]:
    """The addresses of the two matrices of a result."""
    e, rest = body.e, matrix
    bases = [e.i64(0), e.i64(0)]
    for axis in reversed(range(rank)):
        size = body.size(3 + axis)
        index, rest = rest % size, rest // size
        bases = [base + index * body.size(3 + (1 + side) * rank + axis) for side, base in enumerate(bases)]
    return e.at(body.buffer(0), bases[0], F32), e.at(body.buffer(1), bases[1], F32)


@dataclass(frozen=True, slots=True)
class _Matrices:
    """Some rows of one matrix with another one."""

    body: Body
    config: Mapping[str, Setting]
    left: Val
    right: Val
    out: Val
    rows: Val

    def multiply(self) -> None:
        """Both forms; one of them runs."""
        e, n, k = self.body.e, self.body.size(1), self.body.size(2)
        streams = registers(e.target).streams
        most = max(rows * together for rows, together in streams)
        # rows of the right matrix lie apart: as much as possible of one at a time
        sizes = [(rows, most // rows) for rows, _ in streams]
        groups, whole = (n + (LANES - 1)) // LANES, n // LANES
        with e.either(self.rows <= sizes[-1][0]) as (few, many):
            with few:
                self._stream(e.i64(0), whole, sizes, masked=False)
                if self.config["partial"]:
                    # one group is left, for which one tile is enough
                    self._stream(whole, groups, ((sizes[-1][0], 1),), masked=True)
            with many:
                panels = e.local(F32, registers(e.target).groups * BLOCK_WORDS * LANES)

                def panel(group: Val, start: Val, words: Val, slot: int) -> Val:
                    target = e.at(panels, slot * BLOCK_WORDS * LANES, F32)
                    with e.loop(0, words) as word:
                        e.store(self._columns(start + word, group, None), target, word * LANES)
                    return target

                form = Operands(self.rows, k, e.i64(0), groups, self._row, panel, self._load, self._store)
                blocked(e, FLOAT32, form)

    def _stream(self, begin: Val, end: Val, sizes: Sequence[tuple[int, int]], masked: bool) -> None:
        e = self.body.e

        @contextmanager
        def walk(groups: Sequence[Val]) -> Generator[list[tuple[Val, list[Val]]]]:
            with e.loop(0, self.body.size(2)) as word:
                yield [(word, [self._columns(word, group, masked) for group in groups])]

        form = Stream(self.rows, begin, end, self._row, lambda group: group, walk, self._store)
        stream(e, FLOAT32, form, sizes)

    def _row(self, row: Val) -> Val:
        return self.body.e.at(self.left, row * self.body.size(2), F32)

    def _columns(self, word: Val, group: Val, masked: bool | None) -> Val:
        """16 columns of a row of the right matrix: all of them there, not all, or (None) to be found out."""
        e, n = self.body.e, self.body.size(1)
        address, left = e.at(self.right, word * n + group * LANES, F32), n - group * LANES
        if masked is None and self.config["partial"]:
            columns = e.var(0.0, VF)
            with e.either(left >= LANES) as (whole, part):
                with whole:
                    columns.set(e.load(address, VF))
                with part:
                    columns.set(e.masked_load(address, VF, e.tail_mask(left)))
            return columns.get()
        return e.masked_load(address, VF, e.tail_mask(left)) if masked else e.load(address, VF)

    def _out(self, row: Val, group: Val) -> tuple[Val, Val]:
        n = self.body.size(1)
        return self.body.e.at(self.out, row * n + group * LANES, F32), n - group * LANES

    def _load(self, row: Val, group: Val) -> Val:
        address, left = self._out(row, group)
        return load_columns(self.body.e, address, left, self.config)

    def _store(self, total: Val, row: Val, group: Val, is_last: Val | None = None) -> None:
        address, left = self._out(row, group)
        store_columns(self.body.e, total, address, left, self.config)
