"""matmul of two activations: one row of the result at a time, 16 columns in registers, k in order."""

from __future__ import annotations

from collections.abc import Mapping

from rlx.backends.cpu.emit import F32, LANES, VF, Val
from rlx.backends.cpu.kernels.movement import strides_of
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
    config: dict[str, Setting] = {"batch_rank": len(batch)}
    return KernelPlan("rows", config, sizes, product(out[:-1]))


@kernel("matmul", "rows", help="16 columns at a time, k in order", when=always, plan=_plan)
def build(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: a [..., m, k], b [..., k, n], out; sizes m, n, k, batch sizes, strides of a, strides of b."""
    e, rank = body.e, int(config["batch_rank"])
    m, n, k = (body.size(i) for i in range(3))
    a, b, out = (body.buffer(i) for i in range(3))
    with e.loop(body.begin, body.end) as unit:
        rest, row = unit // m, unit % m
        a_base, b_base = row * k, e.i64(0)
        for axis in reversed(range(rank)):
            size = body.size(3 + axis)
            index = rest % size
            rest = rest // size
            a_base = a_base + index * body.size(3 + rank + axis)
            b_base = b_base + index * body.size(3 + 2 * rank + axis)
        left, right, target = e.at(a, a_base, F32), e.at(b, b_base, F32), e.at(out, unit * n, F32)
        whole = n - n % LANES
        with e.loop(0, whole, LANES) as column:
            e.store(_columns(body, left, e.at(right, column, F32), n, k, None), target, column)
        with e.when(whole < n):
            mask = e.tail_mask(n - whole)
            e.masked_store(_columns(body, left, e.at(right, whole, F32), n, k, mask), e.at(target, whole, F32), mask)


def _columns(body: Body, left: Val, right: Val, n: Val, k: Val, mask: Val | None) -> Val:
    e = body.e
    total = e.var(0.0, VF)
    with e.loop(0, k) as i:
        address = e.at(right, i * n, F32)
        values = e.load(address, VF) if mask is None else e.masked_load(address, VF, mask)
        total.set(e.fma(values, e.splat(e.load(left, F32, i)), total.get()))
    return total.get()
