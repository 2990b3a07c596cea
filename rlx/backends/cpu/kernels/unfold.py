"""unfold: the rows under each place of a window, side by side, for the product that makes it a convolution.

A unit is one place. Each tap's row is read in vectors and written with the taps between its elements. Next:
`linear_float.py`, which multiplies.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlx.backends.cpu.emit import F32
from rlx.backends.cpu.kernels.registry import Body, Setting, always, kernel
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.dim import product
from rlx.core.graph import Node
from rlx.ops.op import int_attr


def _plan_unfold(node: Node, target: Target) -> KernelPlan:
    x, out = node.inputs[0].type, node.output.type
    config: dict[str, Setting] = {name: int_attr(node.attrs, name) for name in ("kernel", "stride", "padding")}
    return KernelPlan("rows", config, (x.shape[-2], x.shape[-1], out.shape[-2]), product(out.shape[:-1]))


@kernel("unfold", "rows", help="one place of the window at a time", when=always, plan=_plan_unfold)
def build_unfold(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x, out. Sizes: frames, channels, places of a sequence. Units: places of all sequences."""
    e = body.e
    kernel, stride, padding = (int(config[name]) for name in ("kernel", "stride", "padding"))
    frames, channels, places = (body.size(index) for index in range(3))
    with e.loop(body.begin, body.end) as unit:
        sequence, place = unit // places, unit % places
        target = e.at(body.buffer(1), unit * channels * kernel, F32)
        for tap in range(kernel):
            frame = place * stride + (tap - padding)
            inside = (frame >= 0) & (frame < frames)
            source = e.at(body.buffer(0), (sequence * frames + e.select(inside, frame, 0)) * channels, F32)
            with e.either(inside) as (copied, outside):
                with copied, e.loop(0, channels) as channel:
                    e.store(e.load(source, F32, channel), target, channel * kernel + tap)
                with outside, e.loop(0, channels) as channel:
                    e.store(e.typed(0.0, F32), target, channel * kernel + tap)
