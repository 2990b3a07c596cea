"""rope_table and rope."""

from __future__ import annotations

from collections.abc import Mapping

from rlx.backends.cpu.emit import F32, I32, LANES, Emit, Val, vec
from rlx.backends.cpu.kernels.registry import Body, Setting, always, kernel
from rlx.backends.cpu.target import Target
from rlx.backends.cpu.vmath import sin_cos
from rlx.core.backend import KernelPlan
from rlx.core.dim import product
from rlx.core.graph import Node
from rlx.ops.op import float_attr, int_attr, static_axis


def _plan_table(node: Node, target: Target) -> KernelPlan:
    positions, frequencies = node.inputs[0].type, node.inputs[1].type
    width = static_axis(frequencies, 0, "the number of frequencies")
    config: dict[str, Setting] = {"scaling": float_attr(node.attrs, "scaling")}
    return KernelPlan("rows", config, (width,), positions.num_elements)


@kernel("rope_table", "rows", help="float32 angles, cosine and sine by way of float64", when=always, plan=_plan_table)
def build_table(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: positions i32, frequencies f32, cos, sin; sizes width."""
    e, width = body.e, body.size(0)
    positions, frequencies, cos, sin = (body.buffer(i) for i in range(4))
    lanes, scaling = 8, float(config["scaling"])

    def tables(position: Val, frequency: Val) -> tuple[Val, Val]:
        sine, cosine = sin_cos(e, position * frequency)
        return cosine * scaling, sine * scaling

    with e.loop(body.begin, body.end) as row:
        position = e.load(positions, I32, row).to_float()
        with e.loop(0, width, lanes) as i:
            mask = e.tail_mask(width - i, lanes)
            frequency = e.masked_load(e.at(frequencies, i, F32), vec(F32, lanes), mask)
            cosine, sine = tables(e.splat(position, lanes), frequency)
            for value, out in ((cosine, cos), (sine, sin)):
                e.masked_store(value, e.at(out, row * width + i, F32), mask)


def _plan_rope(node: Node, target: Target) -> KernelPlan:
    x, cos = node.inputs[0].type, node.inputs[1].type
    heads = int_attr(node.attrs, "num_heads")
    config: dict[str, Setting] = {
        "heads": heads,
        "head_dim": static_axis(x, -1, "the width of x") // heads,
        "half": static_axis(cos, -1, "the width of the table"),
        "style": str(node.attrs["style"]),
    }
    return KernelPlan("rows", config, (cos.shape[0],), product(x.shape[:-1]))


@kernel("rope", "rows", help="one row of heads at a time", when=always, plan=_plan_rope)
def build_rope(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x, cos, sin, out; sizes rows of the table (leading axes repeat it)."""
    e = body.e
    heads, head_dim, half = (int(config[name]) for name in ("heads", "head_dim", "half"))
    x, cos, sin, out = (body.buffer(i) for i in range(4))
    table_rows = body.size(0)
    with e.loop(body.begin, body.end) as row:
        table = (row % table_rows) * half
        with e.loop(0, heads) as head:
            base = row * (heads * head_dim) + head * head_dim
            source, target = e.at(x, base, F32), e.at(out, base, F32)
            cosines, sines = e.at(cos, table, F32), e.at(sin, table, F32)
            rotate_head(e, str(config["style"]), source, target, cosines, sines, head_dim, half)


def rotate_head(e: Emit, style: str, source: Val, target: Val, cos: Val, sin: Val, head_dim: int, half: int) -> None:
    """One head with its row of the tables; the dims from 2 * half on are copied. All are addresses of float32."""
    rotate = _rotate_half if style == "half" else _rotate_interleaved
    rotate(e, source, target, cos, sin, half)
    with e.loop(2 * half, head_dim) as i:
        e.store(e.load(source, F32, i), target, i)


def _rotate(e: Emit, a: Val, b: Val, c: Val, s: Val) -> tuple[Val, Val]:
    return e.fma(a, c, -(b * s)), e.fma(b, c, a * s)


def _rotate_half(e: Emit, source: Val, target: Val, cos: Val, sin: Val, half: int) -> None:
    whole = half // LANES * LANES
    for start, stop, lanes in ((0, whole, LANES), (whole, half, 1)):
        if start == stop:
            continue
        type_ = vec(F32, lanes)
        with e.loop(start, stop, lanes) as i:
            a, b = e.load(source, type_, i, F32), e.load(source, type_, i + half, F32)
            first, second = _rotate(e, a, b, e.load(cos, type_, i, F32), e.load(sin, type_, i, F32))
            e.store(first, target, i)
            e.store(second, target, i + half)


def _rotate_interleaved(e: Emit, source: Val, target: Val, cos: Val, sin: Val, half: int) -> None:
    whole = half // LANES * LANES
    if whole:
        with e.loop(0, whole, LANES) as i:
            both = [e.load(source, vec(F32), i * 2 + part) for part in (0, LANES)]
            a = e.shuffle(both[0], both[1], range(0, 2 * LANES, 2))
            b = e.shuffle(both[0], both[1], range(1, 2 * LANES, 2))
            first, second = _rotate(e, a, b, e.load(cos, vec(F32), i), e.load(sin, vec(F32), i))
            order = [lane for pair in zip(range(LANES), range(LANES, 2 * LANES), strict=True) for lane in pair]
            for part in (0, LANES):
                e.store(e.shuffle(first, second, order[part : part + LANES]), target, i * 2 + part)
    with e.loop(whole, half) as i:
        a, b = e.load(source, F32, i * 2), e.load(source, F32, i * 2 + 1)
        first, second = _rotate(e, a, b, e.load(cos, F32, i), e.load(sin, F32, i))
        e.store(first, target, i * 2)
        e.store(second, target, i * 2 + 1)
