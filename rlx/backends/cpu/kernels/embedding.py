"""embedding: rows of a table that may be packed (and shared with a tied head)."""

from __future__ import annotations

from collections.abc import Mapping

from rlx.backends.cpu.emit import F32, I32, I64
from rlx.backends.cpu.kernels.formats import FORMATS, format_name
from rlx.backends.cpu.kernels.movement import copy_row
from rlx.backends.cpu.kernels.registry import Body, Setting, kernel
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.graph import Node
from rlx.ops.op import float_attr, static_axis


def _why_not(node: Node, target: Target) -> str | None:
    dtype = node.inputs[1].type.dtype
    return None if dtype.name in FORMATS else f"there is no layout for {dtype} tables"


def _plan(node: Node, target: Target) -> KernelPlan:
    tokens, table = node.inputs[0].type, node.inputs[1].type
    rows, k = static_axis(table, 0, "rows"), static_axis(table, 1, "hidden")
    config: dict[str, Setting] = {"weight": format_name(table), "scale": float_attr(node.attrs, "scale")}
    return KernelPlan("rows", config, (k, rows), tokens.num_elements, {1: "rows16"})


@kernel("embedding", "rows", help="one row for each token, tokens checked", when=_why_not, plan=_plan)
def build(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: tokens, table (rows16), out f32; sizes hidden, table rows."""
    e, k, limit = body.e, body.size(0), body.size(1)
    tokens, table, out = (body.buffer(i) for i in range(3))
    scale = float(config["scale"])
    with e.loop(body.begin, body.end) as unit:
        row = body.checked_index(e.load(tokens, I32, unit).sext(I64), limit)
        target = e.at(out, unit * k, F32)
        copy_row(body, str(config["weight"]), table, row, target, k, None if scale == 1.0 else scale)
