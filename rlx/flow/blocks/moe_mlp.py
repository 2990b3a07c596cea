"""A mixture of experts: a router chooses a few gated MLPs for each token. Source: Mixtral (Jiang et al. 2024).

In: `[..., hidden]`. Out: the same. Next: `parallel.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.core.graph import AttrValue
from rlx.flow.blocks.gated_mlp import GatedKeys
from rlx.flow.stage import BlockStage

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


GATED_OPS: Mapping[str, tuple[str, Mapping[str, AttrValue]]] = {
    "swiglu": ("swiglu", {}),
    "geglu": ("geglu", {"approximate": False}),
    "geglu_tanh": ("geglu", {"approximate": True}),
}
"""Kinds of gated units: the op, and its attributes."""


@dataclass(frozen=True, slots=True)
class Routing:
    """How experts are chosen.

    Attributes:
        top_k: experts a token uses.
        score: "softmax" or "sigmoid" of the router's logits.
        normalise: divide the weights of the chosen experts by their sum.
        scale: factor of the weights.
        groups, top_groups: groups of experts, and how many of them a token may use.
        correction_key: what is added to the scores for the choice alone (DeepSeek-V3), or None.
    """

    top_k: int
    score: str = "softmax"
    normalise: bool = True
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    correction_key: str | None = None


@dataclass(frozen=True, slots=True)
class MoeMlpStage:
    """The weighted sum of the chosen experts' gated MLPs, and of a shared MLP that every token uses.

    Attributes:
        router_key: weight `[experts, hidden]`.
        keys: gate and up `[experts, intermediate, hidden]`, down `[experts, hidden, intermediate]`.
        num_experts, intermediate_size: the sizes.
        kind: "swiglu", "geglu", or "geglu_tanh" for the tanh form of GELU.
        shared: an MLP for every token, or None.
    """

    router_key: str
    keys: GatedKeys
    num_experts: int
    intermediate_size: int
    routing: Routing
    kind: str = "swiglu"
    shared: BlockStage | None = None
    path: str = "mlp"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., hidden]` to the same."""
        routing, hidden, inner = self.routing, input.width, self.intermediate_size
        router = ctx.load_param(self.router_key, transpose=True, shape=(self.num_experts, hidden))
        operands = [ctx.matmul(input, router)]
        if routing.correction_key is not None:
            operands.append(ctx.load_plain(routing.correction_key, (self.num_experts,)))
        ids, weights = ctx.emit.many(
            "route",
            *(operand.value for operand in operands),
            top_k=routing.top_k,
            score=routing.score,
            normalise=routing.normalise,
            scale=routing.scale,
            groups=routing.groups,
            top_groups=routing.top_groups,
        )

        def project(value: FlowValue, key: str, shape: tuple[int, int]) -> FlowValue:
            stack = ctx.load_param(key, shape=(self.num_experts, *shape))
            return ctx.wrap(ctx.emit("expert_linear", value.value, stack.value, ids))

        gate = project(input, self.keys.gate, (inner, hidden))
        up = project(input, self.keys.up, (inner, hidden))
        activation, attrs = GATED_OPS[self.kind]
        results = project(ctx.op(activation, gate, up, **attrs), self.keys.down, (hidden, inner))
        combined = ctx.op("combine_experts", results, ctx.wrap(weights))
        return combined if self.shared is None else ctx.op("add", combined, ctx.run(self.shared, input))
