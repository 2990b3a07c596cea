"""group_rows, combine_experts: what surrounds the products of experts. The products are in `linear.py`."""

from __future__ import annotations

from collections.abc import Mapping

from rlx.backends.cpu.emit import F32, I32, I64, LANES, VF
from rlx.backends.cpu.kernels.products import load_columns, store_columns
from rlx.backends.cpu.kernels.registry import Body, Setting, always, kernel
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.dim import product
from rlx.core.graph import Node
from rlx.ops.op import int_attr, static_axis


def _plan_group(node: Node, target: Target) -> KernelPlan:
    groups = int_attr(node.attrs, "groups")
    return KernelPlan("counting", {"groups": groups}, (product(node.inputs[0].type.shape),), 1)


@kernel("group_rows", "counting", help="a counting sort on one thread", when=always, plan=_plan_group)
def build_group(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: ids, order, starts; size is the number of ids."""
    e, groups, count = body.e, int(config["groups"]), body.size(0)
    ids, order, starts = body.buffer(0), body.buffer(1), body.buffer(2)
    following = e.local(I32, groups)
    with e.loop(0, groups) as group:
        e.store(e.typed(0, I32), following, group)
    with e.loop(0, count) as i:
        group = body.checked_index(e.load(ids, I32, i).sext(I64), e.i64(groups))
        e.store(e.load(following, I32, group) + 1, following, group)
    total = e.var(0, I32)
    with e.loop(0, groups) as group:
        size = e.load(following, I32, group)
        e.store(total.get(), starts, group)
        e.store(total.get(), following, group)
        total.set(total.get() + size)
    e.store(total.get(), starts, groups)
    with e.loop(0, count) as i:
        group = body.checked_index(e.load(ids, I32, i).sext(I64), e.i64(groups))
        place = e.load(following, I32, group)
        e.store(i.trunc(I32), order, place.sext(I64))
        e.store(place + 1, following, group)


def _plan_combine(node: Node, target: Target) -> KernelPlan:
    y = node.inputs[0].type
    width, each = static_axis(y, -1, "the width"), static_axis(y, -2, "the experts of a token")
    groups = -(-width // LANES)
    return KernelPlan("columns", {"partial": bool(width % LANES)}, (width, each), product(y.shape[:-2]) * groups)


@kernel("combine_experts", "columns", help="16 columns of a row, expert by expert", when=always, plan=_plan_combine)
def build_combine(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: y [rows, k, n], weights [rows, k], out [rows, n]; sizes n, k; units are 16 columns of a row."""
    e, width, each = body.e, body.size(0), body.size(1)
    groups = (width + (LANES - 1)) // LANES
    with e.loop(body.begin, body.end) as unit:
        row, column = unit // groups, unit % groups * LANES
        total = e.var(0.0, VF)
        with e.loop(row * each, (row + 1) * each) as i:
            weight = e.splat(e.load(body.buffer(1), F32, i))
            y = load_columns(e, e.at(body.buffer(0), i * width + column, F32), width - column, config)
            total.set(e.fma(y, weight, total.get()))
        store_columns(e, total.get(), e.at(body.buffer(2), row * width + column, F32), width - column, config)
