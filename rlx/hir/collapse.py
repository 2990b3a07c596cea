"""A node of a plain forward pass over one axis of rows in place of `[batch, seq]`: what the derivations share.

In: a node and its operands, already collapsed. Out: the node `[count, inner...]`. Next: `derive_step.py`,
`derive_packed.py`, `derive_source.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlx.core.dim import Shape, Size
from rlx.core.graph import AttrValue, Node, Value
from rlx.errors import ShapeError
from rlx.hir.row_kinds import RowKinds, refuse
from rlx.ops.op import Emitter, int_attr


def key_shape(node: Node) -> tuple[int, int]:
    """KV heads and head_dim of an attention node."""
    num_kv_heads, width = int_attr(node.attrs, "num_kv_heads"), node.inputs[1].type.shape[-1]
    if not isinstance(width, int):
        refuse(node, "the width is symbolic")
    return num_kv_heads, width // num_kv_heads


def collapsed(emit: Emitter, node: Node, operands: Sequence[Value], rows: RowKinds, count: Size) -> tuple[Value, ...]:
    """The node over `[count, inner...]` in place of the row axes of the plain pass.

    Raises:
        FlowError: the op does not work on rows of tokens, or does not keep them apart.
    """
    try:
        results = emit.many(node.op, *operands, **{**node.attrs, **collapsed_attrs(node, rows, count)})
    except ShapeError as error:
        refuse(node, f"{node.op} does not work on rows of tokens ({error.what})")
    for plain, result in zip(node.outputs, results, strict=True):
        if result.type != plain.type.with_shape((count, *rows.inner(plain))):
            refuse(node, f"{node.op} does not keep one row for each token")
    return results


def collapsed_attrs(node: Node, rows: RowKinds, count: Size) -> dict[str, AttrValue]:
    """The attributes that speak of axes, for one row axis in place of `row_axes`."""
    if node.op in ("reshape", "broadcast"):
        shape: Shape = (count, *rows.inner(node.output))
        return {"shape": shape}
    if node.op not in ("transpose", "slice", "concat"):
        return {}
    extra = rows.row_axes(node.output) - 1
    if node.op == "transpose":
        axes = node.attrs["axes"]
        inner = axes[extra + 1 :] if isinstance(axes, tuple) else ()
        return {"axes": (0, *(axis - extra for axis in inner if isinstance(axis, int)))}
    return {"axis": int_attr(node.attrs, "axis") - extra}
