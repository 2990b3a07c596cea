"""route: a row of router logits at a time; scores in vectors of 16, then the best one again and again.

Of equal scores the first wins, as in the reference. Rows are reduced in one order and apart from each other. An
expert's number is always one that there is, whatever the logits are. Next: `experts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlx.backends.cpu import vmath
from rlx.backends.cpu.emit import F32, I32, I64, LANES, VF, VI, Emit, Val
from rlx.backends.cpu.kernels.registry import Body, Setting, always, kernel
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.dim import product
from rlx.core.graph import Node
from rlx.ops.op import bool_attr, float_attr, int_attr, static_axis
from rlx.ops.route import LEAST_SUM


def _plan(node: Node, target: Target) -> KernelPlan:
    logits, attrs = node.inputs[0].type, node.attrs
    config: dict[str, Setting] = {
        **{name: int_attr(attrs, name) for name in ("top_k", "groups", "top_groups")},
        "score": str(attrs["score"]),
        "normalise": bool_attr(attrs, "normalise"),
        "scale": float_attr(attrs, "scale"),
        "corrected": len(node.inputs) == 2,
        "experts": static_axis(logits, -1, "the number of experts"),
    }
    return KernelPlan("rows", config, (), product(logits.shape[:-1]))


@dataclass(frozen=True, slots=True)
class _Scores:
    """`count` float32 in scratch memory, filled up with minus infinity to whole vectors."""

    e: Emit
    address: Val
    count: int

    @property
    def padded(self) -> int:
        """The size of the memory."""
        return -(-self.count // LANES) * LANES

    def take_best(self) -> Val:
        """The number (i64) of the first of the largest, which is then minus infinity."""
        e = self.e
        largest, first = e.var(-math.inf, VF), e.var(self.count - 1, VI)
        with e.loop(0, self.padded, LANES) as start:
            largest.set(e.maximum(e.load(self.address, VF, start), largest.get()))
        best = e.splat(e.reduce(largest.get(), e.maximum))
        with e.loop(0, self.padded, LANES) as start:
            number = e.table(I32, list(range(LANES))) + e.splat(start.trunc(I32))
            is_best = e.load(self.address, VF, start).equals(best)
            first.set(e.minimum(e.select(is_best, number, first.get()), first.get()))
        index = e.reduce(first.get(), e.minimum).sext(I64)
        e.store(e.like(-math.inf, e.lane(best, 0)), self.address, index)
        return index


def _scratch(e: Emit, count: int) -> _Scores:
    scores = _Scores(e, e.local(F32, -(-count // LANES) * LANES), count)
    e.store(e.typed(-math.inf, VF), scores.address, scores.padded - LANES)
    return scores


@kernel("route", "rows", help="scores in vectors, the best one at a time", when=always, plan=_plan)
def build(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: logits, (correction), ids, weights; units are rows."""
    e, experts, top_k = body.e, int(config["experts"]), int(config["top_k"])
    corrected = bool(config["corrected"])
    ids, weights = body.buffer(1 + corrected), body.buffer(2 + corrected)
    with e.loop(body.begin, body.end) as row:
        scores, ranked = _scratch(e, experts), _scratch(e, experts)
        _score(e, str(config["score"]), e.at(body.buffer(0), row * experts, F32), scores)
        with e.loop(0, experts) as i:
            value = e.load(scores.address, F32, i)
            e.store(value + e.load(body.buffer(1), F32, i) if corrected else value, ranked.address, i)
        if int(config["top_groups"]) < int(config["groups"]):
            _close_groups(e, ranked, int(config["groups"]), int(config["top_groups"]), corrected)
        total, first = e.var(0.0, F32), row * top_k
        with e.loop(0, top_k) as place:
            index = ranked.take_best()
            weight = e.load(scores.address, F32, index)
            e.store(index.trunc(I32), ids, first + place)
            e.store(weight, weights, first + place)
            total.set(total.get() + weight)
        divisor = total.get() + LEAST_SUM if config["normalise"] else None
        with e.loop(0, top_k) as place:
            weight = e.load(weights, F32, first + place)
            if divisor is not None:
                weight = weight / divisor
            e.store(weight * float(config["scale"]), weights, first + place)


def _score(e: Emit, score: str, logits: Val, scores: _Scores) -> None:
    """The scores of a row of logits; lanes behind the last expert are not looked at by what follows."""
    with e.loop(0, scores.count) as i:
        e.store(e.load(logits, F32, i), scores.address, i)
    if score == "sigmoid":
        with e.loop(0, scores.padded, LANES) as start:
            e.store(vmath.sigmoid(e, e.load(scores.address, VF, start)), scores.address, start)
        return
    largest, total = e.var(-math.inf, VF), e.var(0.0, VF)
    with e.loop(0, scores.padded, LANES) as start:
        largest.set(e.maximum(e.load(scores.address, VF, start), largest.get()))
    top = e.splat(e.reduce(largest.get(), e.maximum))
    with e.loop(0, scores.padded, LANES) as start:
        value = vmath.exp(e, e.load(scores.address, VF, start) - top)
        total.set(total.get() + value)
        e.store(value, scores.address, start)
    divisor = e.splat(e.reduce(total.get(), lambda a, b: a + b))
    with e.loop(0, scores.padded, LANES) as start:
        e.store(e.load(scores.address, VF, start) / divisor, scores.address, start)


def _close_groups(e: Emit, ranked: _Scores, groups: int, top_groups: int, by_two: bool) -> None:
    """Minus infinity for all experts but those of the best groups; a group is worth its best, or its two best."""
    size, worth, closed = ranked.count // groups, _scratch(e, groups), e.local(F32, groups)
    with e.loop(0, groups) as group:
        best, second = e.var(-math.inf, F32), e.var(-math.inf, F32)
        with e.loop(0, size) as i:
            value = e.load(ranked.address, F32, group * size + i)
            second.set(e.maximum(e.minimum(value, best.get()), second.get()))
            best.set(e.maximum(value, best.get()))
        e.store(best.get() + second.get() if by_two and size > 1 else best.get(), worth.address, group)
        e.store(e.typed(-math.inf, F32), closed, group)
    with e.loop(0, top_groups):
        e.store(e.typed(0.0, F32), closed, worth.take_best())
    with e.loop(0, groups) as group:
        offset = e.load(closed, F32, group)
        with e.loop(group * size, (group + 1) * size) as i:
            e.store(e.load(ranked.address, F32, i) + offset, ranked.address, i)
