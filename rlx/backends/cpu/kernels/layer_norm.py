"""layer_norm: a row at a time, a pass for the mean, one for the variance, one to scale.

A row is reduced in one order: 16 lanes walked along the row, then the lanes in a fixed tree. The mean is taken off
before the squares are summed, so that a large mean costs no digits. Next: `rows.py` for the other kernels of this kind.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlx.backends.cpu.emit import F32, LANES, VF, Val
from rlx.backends.cpu.kernels.registry import Body, Setting, always, kernel
from rlx.backends.cpu.kernels.rows import load_tail, reduce_row
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.dim import product
from rlx.core.graph import Node
from rlx.ops.op import float_attr, static_axis


def _plan(node: Node, target: Target) -> KernelPlan:
    x = node.inputs[0].type
    config: dict[str, Setting] = {
        "eps": float_attr(node.attrs, "eps"),
        "bias": len(node.inputs) == 3,
        "width": static_axis(x, -1, "the normalised axis"),
    }
    return KernelPlan("row", config, (), product(x.shape[:-1]))


@kernel("layer_norm", "row", help="passes for mean, variance and result over a row", when=always, plan=_plan)
def build(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x, weight [width], (bias [width]), out; units are rows of `width`."""
    e, width, has_bias = body.e, int(config["width"]), bool(config["bias"])
    x, weight, out = body.buffer(0), body.buffer(1), body.buffer(3 if has_bias else 2)
    bias = body.buffer(2) if has_bias else None
    whole, rest = width // LANES * LANES, width % LANES
    mask = e.tail_mask(e.i64(rest))
    with e.loop(body.begin, body.end) as row:
        source, target = e.at(x, row * width, F32), e.at(out, row * width, F32)
        lanes = reduce_row(e, source, e.i64(width), 0.0, lambda total, v: total + v, 0.0)
        mean = e.reduce(lanes, lambda a, b: a + b) / float(width)
        centre = e.splat(mean)
        squares = e.var(0.0, VF)
        with e.loop(0, whole, LANES) as i:
            distance = e.load(source, VF, i) - centre
            squares.set(e.fma(distance, distance, squares.get()))
        if rest:
            distance = load_tail(e, e.at(source, whole, F32), e.i64(rest), 0.0) - centre
            squares.set(e.select(mask, e.fma(distance, distance, squares.get()), squares.get()))
        variance = e.reduce(squares.get(), lambda a, b: a + b) / float(width) + float(config["eps"])
        scale = e.splat(e.like(1.0, variance) / e.sqrt(variance))

        def normed(value: Val, factor: Val, offset: Val | None, centre: Val = centre, scale: Val = scale) -> Val:
            scaled = (value - centre) * scale
            return scaled * factor if offset is None else e.fma(scaled, factor, offset)

        with e.loop(0, whole, LANES) as i:
            offset = None if bias is None else e.load(bias, VF, i)
            e.store(normed(e.load(source, VF, i), e.load(weight, VF, i), offset), target, i)
        if rest:
            loaded = [e.masked_load(e.at(p, whole, F32), VF, mask) for p in (source, weight)]
            offset = None if bias is None else e.masked_load(e.at(bias, whole, F32), VF, mask)
            e.masked_store(normed(loaded[0], loaded[1], offset), e.at(target, whole, F32), mask)
