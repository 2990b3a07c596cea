"""pool_tokens and packed_pool_tokens: the rows of a sequence as one, 64 columns at a time, rows in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rlx.backends.cpu.emit import F32, I32, I64, LANES, VF, Emit, Val
from rlx.backends.cpu.kernels.registry import Body, Setting, always, kernel
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.dim import product
from rlx.core.graph import Node
from rlx.ops.op import int_attr


def _config(node: Node) -> dict[str, Setting]:
    return {"mode": str(node.attrs["mode"]), "skip": int_attr(node.attrs, "skip")}


def _plan_plain(node: Node, target: Target) -> KernelPlan:
    shape = node.inputs[0].type.shape
    config = {**_config(node), "packed": False}
    return KernelPlan("columns", config, (shape[-1], shape[-2]), product(shape[:-2]))


def _plan_packed(node: Node, target: Target) -> KernelPlan:
    shape, bounds = node.inputs[0].type.shape, node.inputs[1].type.shape[0]
    config = {**_config(node), "packed": True}
    return KernelPlan("columns", config, (shape[1], shape[0]), bounds - 1)


@kernel("pool_tokens", "columns", help="rows in order, a lane for each column", when=always, plan=_plan_plain)
def build_plain(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x, out; sizes width, tokens of a sequence; units are sequences."""
    e, rows = body.e, body.size(1)
    with e.loop(body.begin, body.end) as index:
        start = index * rows
        last = start + body.checked_index(rows - 1, rows)
        _pool(body, config, start, last, e.at(body.buffer(1), index * body.size(0), F32))


@kernel("packed_pool_tokens", "columns", help="rows in order, a lane for each column", when=always, plan=_plan_packed)
def build_packed(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x, bounds, out; sizes width, rows; units are sequences."""
    e, bounds, rows = body.e, body.buffer(1), body.size(1)
    with e.loop(body.begin, body.end) as index:
        start = body.checked_index(e.load(bounds, I32, index).sext(I64), rows)
        last = body.checked_index(e.load(bounds, I32, index + 1).sext(I64) - 1 - start, rows - start)
        _pool(body, config, start, start + last, e.at(body.buffer(2), index * body.size(0), F32))


def _pool(body: Body, config: Mapping[str, Setting], start: Val, last: Val, out: Val) -> None:
    """Rows `start` to `last`, those left out at the start among them, as one."""
    e, width, mode, skip = body.e, body.size(0), str(config["mode"]), int(config["skip"])
    stop = last + 1
    if skip:
        start = start + body.checked_index(e.i64(skip), stop - start)
    if mode == "first":
        stop = start + 1
    elif mode == "last":
        start = stop - 1

    def step(a: Val, b: Val) -> Val:
        return e.intrinsic("maximum", a, b) if mode == "max" else a + b

    count = (stop - start).to_float(F32)
    divisor = {
        "mean": count,
        "mean_sqrt": e.sqrt(count),
        "weighted_mean": ((stop - start) * (stop - start + 1) // 2).to_float(F32),
    }.get(mode)
    weighted = mode == "weighted_mean"
    whole = width - width % LANES
    with e.loop(0, whole, LANES) as column:
        e.store(_reduced(e, body.buffer(0), start, stop, width, column, step, divisor, weighted, None), out, column)
    with e.when(whole < width):
        mask = e.tail_mask(width - whole)
        value = _reduced(e, body.buffer(0), start, stop, width, whole, step, divisor, weighted, mask)
        e.masked_store(value, e.at(out, whole, F32), mask)


def _reduced(
    e: Emit,
    x: Val,
    start: Val,
    stop: Val,
    width: Val,
    column: Val,
    step: Callable[[Val, Val], Val],
    divisor: Val | None,
    weighted: bool,
    mask: Val | None,
) -> Val:
    """16 columns of rows `start` to `stop - 1` as one vector; with `weighted`, row i counts i times."""

    def row(index: Val) -> Val:
        address = e.at(x, index * width + column, F32)
        value = e.load(address, VF) if mask is None else e.masked_load(address, VF, mask)
        return value * e.splat((index - start + 1).to_float(F32)) if weighted else value

    total = e.var(row(start))
    with e.loop(start + 1, stop) as index:
        total.set(step(total.get(), row(index)))
    return total.get() if divisor is None else total.get() / e.splat(divisor)
