"""route: the experts of each token, chosen by its router logits, and their weights.

Sources: Shazeer et al. 2017, Mixtral (Jiang et al. 2024); groups of experts: DeepSeek-V2 (2024); scores by sigmoid and
their correction: DeepSeek-V3 (2024). Next: `experts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.core.dim import Dim
from rlx.core.dtype import f32, i32
from rlx.core.graph import Attrs
from rlx.core.type import TensorType
from rlx.errors import ShapeError
from rlx.ops.op import (
    Array,
    Attribute,
    Missing,
    OpDef,
    Sample,
    Types,
    bool_attr,
    check_arity,
    float_attr,
    int_attr,
    register,
    static_axis,
)

LEAST_SUM = 1e-20
"""Added to the sum that weights are divided by, so that scores which are all zero give zero (as DeepSeek-V3 does)."""

SCORES = ("softmax", "sigmoid")


def _infer_route(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1, 2)
    logits, experts = types[0], static_axis(types[0], -1, "the number of experts")
    top_k, groups, top_groups = (int_attr(attrs, name) for name in ("top_k", "groups", "top_groups"))
    if logits.dtype != f32 or not 1 <= top_k <= experts:
        raise ShapeError("route chooses 1 to all of the experts by float32 logits", found=f"{logits}, top_k {top_k}")
    if attrs["score"] not in SCORES:
        raise ShapeError("unknown score", found=repr(attrs["score"]), expected=" or ".join(SCORES))
    if groups < 1 or experts % groups or not 1 <= top_groups <= groups or top_k > experts // groups * top_groups:
        raise ShapeError("groups have to divide the experts", found=f"{experts} experts, {groups} groups, {top_groups}")
    if len(types) == 2 and types[1] != TensorType(f32, (experts,)):
        raise ShapeError("the correction has to be f32[experts]", found=str(types[1]))
    bool_attr(attrs, "normalise")
    float_attr(attrs, "scale")
    shape = (*logits.shape[:-1], top_k)
    return TensorType(i32, shape), TensorType(f32, shape)


def _reference_route(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    logits = inputs[0]
    if attrs["score"] == "softmax":
        scores = np.exp(logits - logits.max(-1, keepdims=True))
        scores = scores / scores.sum(-1, keepdims=True)
    else:
        scores = 1 / (1 + np.exp(-logits))
    ranked = scores + inputs[1] if len(inputs) == 2 else scores
    groups, top_groups = attrs["groups"], attrs["top_groups"]
    if top_groups < groups:
        by_group = ranked.reshape(*ranked.shape[:-1], groups, -1)
        # with a correction a group is worth its two best experts, else its best
        worth = np.sort(by_group, -1)[..., -2:].sum(-1) if len(inputs) == 2 else by_group.max(-1)
        kept = np.argsort(-worth, -1, kind="stable")[..., :top_groups]
        open_groups = np.zeros(worth.shape, bool)
        np.put_along_axis(open_groups, kept, True, -1)
        ranked = np.where(open_groups[..., None], by_group, -np.inf).reshape(ranked.shape)
    ids = np.argsort(-ranked, -1, kind="stable")[..., : attrs["top_k"]]
    weights = np.take_along_axis(scores, ids, -1)
    if attrs["normalise"]:
        weights = weights / (weights.sum(-1, keepdims=True) + LEAST_SUM)
    return ids.astype(np.int32), (weights * attrs["scale"]).astype(logits.dtype)


def _route_samples() -> Sequence[Sample]:
    seq = Dim("seq", max=64)
    logits, correction = TensorType(f32, (seq, 16)), TensorType(f32, (16,))
    grouped = {"top_k": 3, "score": "sigmoid", "groups": 4, "top_groups": 2, "scale": 2.5}
    return (
        Sample("one", (TensorType(f32, (1, 3)),), {"top_k": 3}),
        Sample("many", (TensorType(f32, (seq, 43)),), {"top_k": 6}, {"seq": 5}),
        Sample("few", (TensorType(f32, (seq, 5)),), {"top_k": 1, "score": "sigmoid", "normalise": False}, {"seq": 5}),
        Sample("softmax", (logits,), {"top_k": 4}, {"seq": 7}),
        Sample("plain", (logits,), {"top_k": 2, "normalise": False}, {"seq": 7}),
        Sample("groups", (logits,), {**grouped, "score": "softmax"}, {"seq": 7}),
        Sample("corrected", (logits, correction), grouped, {"seq": 7}),
    )


route = register(
    OpDef(
        "route",
        "The top_k experts of each token by its router logits, best first, and their weights.",
        _infer_route,
        _reference_route,
        Missing("primitive: a choice of the largest has no simpler form here"),
        _route_samples,
        (
            Attribute("top_k", "experts a token uses"),
            Attribute("score", "softmax or sigmoid of the logits", "softmax"),
            Attribute("normalise", "divide the weights by their sum", True),
            Attribute("scale", "factor of the weights", 1.0),
            Attribute("groups", "groups of experts", 1),
            Attribute("top_groups", "groups a token may use", 1),
        ),
        row_wise=True,
    )
)
