"""patches: the pixels of each patch in one row, a line of pixels at a time."""

from __future__ import annotations

from collections.abc import Mapping

from rlx.backends.cpu.emit import F32, LANES, VF
from rlx.backends.cpu.kernels.registry import Body, Setting, always, kernel
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.dim import product
from rlx.core.graph import Node
from rlx.ops.op import int_attr
from rlx.ops.patches import patch_grid


def _plan(node: Node, target: Target) -> KernelPlan:
    image = node.inputs[0].type
    height, width = int_attr(node.attrs, "height"), int_attr(node.attrs, "width")
    rows, columns = patch_grid(image, height, width)
    sizes = (image.shape[-3], rows, columns)
    units = product(node.output.type.shape[:-1])
    return KernelPlan("lines", {"height": height, "width": width}, sizes, units)


@kernel("patches", "lines", help="a line of pixels at a time", when=always, plan=_plan)
def build(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: images, out. Sizes: channels, patches from top to bottom and from left to right. Units: patches."""
    e, height, width = body.e, int(config["height"]), int(config["width"])
    images, out = body.buffer(0), body.buffer(1)
    channels, rows, columns = (body.size(i) for i in range(3))
    line = columns * width
    with e.loop(body.begin, body.end) as patch:
        row, column = patch // columns, patch % columns
        image, row = row // rows, row % rows
        target = e.at(out, patch * channels * (height * width), F32)
        with e.loop(0, channels) as channel, e.loop(0, height) as y:
            above = ((image * channels + channel) * rows + row) * height + y
            source = e.at(images, above * line + column * width, F32)
            place = e.at(target, (channel * height + y) * width, F32)
            whole = width - width % LANES
            for x in range(0, whole, LANES):
                e.store(e.load(source, VF, x), place, x)
            if whole < width:
                mask = e.tail_mask(e.i64(width - whole))
                value = e.masked_load(e.at(source, whole, F32), VF, mask)
                e.masked_store(value, e.at(place, whole, F32), mask)
