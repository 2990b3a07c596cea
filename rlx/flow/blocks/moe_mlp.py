"""A mixture of experts: a router chooses a few gated MLPs for each token. Source: Mixtral (Jiang et al. 2024).

In: `[..., hidden]`. Out: the same. Next: `parallel.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlx.core.graph import AttrValue
from rlx.flow.blocks.gated_mlp import GatedKeys
from rlx.flow.blocks.linear import bias_key
from rlx.flow.stage import BlockStage

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@dataclass(frozen=True, slots=True)
class GatedUnit:
    """What an expert does with gate and up.

    Attributes:
        kind: "swiglu", "geglu", "geglu_tanh" for the tanh form of GELU, or "swiglu_clamped" (gpt-oss).
        alpha, limit: of "swiglu_clamped".
    """

    kind: str = "swiglu"
    alpha: float = 1.702
    limit: float = 7.0

    def emit(self, ctx: FlowCtx, gate: FlowValue, up: FlowValue) -> FlowValue:
        """Both of one shape, to the same."""
        attrs: Mapping[str, Mapping[str, AttrValue]] = {
            "geglu": {"approximate": False},
            "geglu_tanh": {"approximate": True},
            "swiglu_clamped": {"alpha": self.alpha, "limit": self.limit},
        }
        return ctx.op(self.kind.removesuffix("_tanh"), gate, up, **attrs.get(self.kind, {}))


@dataclass(frozen=True, slots=True)
class Routing:
    """How experts are chosen.

    Attributes:
        top_k: experts a token uses.
        score: "softmax" or "sigmoid" of the router's logits.
        normalise: divide the weights of the chosen experts by their sum.
        scale: factor of the weights.
        groups, top_groups: groups of experts, and how many of them a token may use.
        corrected: `router.correction` is added to the scores for the choice alone (DeepSeek-V3).
    """

    top_k: int
    score: str = "softmax"
    normalise: bool = True
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    corrected: bool = False


@dataclass(frozen=True, slots=True)
class MoeMlpStage:
    """The weighted sum of the chosen experts' gated MLPs, and of a shared MLP that every token uses.

    Attributes:
        router_key: weight `[experts, hidden]`.
        keys: gate and up `[experts, intermediate, hidden]`, down `[experts, hidden, intermediate]`.
        num_experts, intermediate_size: the sizes.
        unit: what happens between gate, up and down.
        bias: biases stand beside the weights, `[experts]` and `[experts, out]`.
        shared: an MLP for every token, or None.
    """

    router_key: str
    keys: GatedKeys
    num_experts: int
    intermediate_size: int
    routing: Routing
    unit: GatedUnit = field(default_factory=GatedUnit)
    bias: bool = False
    shared: BlockStage | None = None
    path: str = "mlp"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., hidden]` to the same."""
        hidden, inner = input.width, self.intermediate_size
        ids, weights = self._route(ctx, input)

        def project(value: FlowValue, key: str, out: int, k: int) -> FlowValue:
            operands = [value, ctx.wrap(ctx.load_param(key, shape=(self.num_experts, out, k)).value), ids]
            if self.bias:
                operands.append(ctx.load_plain(bias_key(key), (self.num_experts, out)))
            return ctx.op("expert_linear", *operands)

        gate, up = project(input, self.keys.gate, inner, hidden), project(input, self.keys.up, inner, hidden)
        results = project(self.unit.emit(ctx, gate, up), self.keys.down, hidden, inner)
        combined = ctx.op("combine_experts", results, weights)
        return combined if self.shared is None else ctx.op("add", combined, ctx.run(self.shared, input))

    def _route(self, ctx: FlowCtx, input: FlowValue) -> tuple[FlowValue, FlowValue]:
        """The numbers of the chosen experts and their weights, both `[..., top_k]`."""
        routing, count = self.routing, (self.num_experts,)
        router = ctx.load_param(self.router_key, transpose=True, shape=(self.num_experts, input.width))
        bias = ctx.load_plain(bias_key(self.router_key), count) if self.bias else None
        operands = [ctx.matmul(input, router, bias)]
        if routing.corrected:
            operands.append(ctx.load_plain(self.router_key.removesuffix("weight") + "correction", count))
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
        return ctx.wrap(ids), ctx.wrap(weights)
