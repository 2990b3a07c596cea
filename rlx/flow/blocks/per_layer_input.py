"""Per-layer embeddings: a small vector for each token and layer, added to the residual stream through a gate.

In: the token ids and their embedding. Out: a stream of all layers' vectors (`PerLayerInputsStage`, before the layers),
of which a layer takes its own (`PerLayerInputStage`, at its end). Sources: Gemma 3n (2025); transformers'
modeling_gemma4. Next: `linear.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlx.flow.blocks.gather import named_value

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue

STREAM = "per_layer_inputs"
GATES: Mapping[str, tuple[str, Mapping[str, bool]]] = {
    "swiglu": ("swiglu", {}),
    "geglu": ("geglu", {"approximate": False}),
    "geglu_tanh": ("geglu", {"approximate": True}),
}
"""The op of a gate, as an MLP of this kind has it."""


def _times(ctx: FlowCtx, x: FlowValue, factor: float) -> FlowValue:
    return ctx.op("mul", x, ctx.constant(np.array(factor, np.float32)))


@dataclass(frozen=True, slots=True)
class PerLayerInputsStage:
    """`(norm(project(x) / sqrt(hidden)) + table[tokens] * sqrt(width)) / sqrt(2)` as a stream; the embedding flows on.

    Attributes:
        vocab_size, layers, width: the sizes.
        eps: of the norm.
        table: weight `[vocab_size, layers * width]`.
        projection: weight `[layers * width, hidden]`.
        norm: weight `[width]` of the RMS norm of each layer's part.
    """

    vocab_size: int
    layers: int
    width: int
    eps: float
    table: str = "model.embed_tokens_per_layer.weight"
    projection: str = "model.per_layer_model_projection.weight"
    norm: str = "model.per_layer_projection_norm.weight"
    path: str = STREAM

    def emit(self, ctx: FlowCtx, input: FlowValue) -> None:
        """See the class; the stream is `[..., layers * width]`."""
        columns = self.layers * self.width
        table = ctx.load_param(self.table, shape=(self.vocab_size, columns))
        rows = ctx.emit("embedding", named_value(ctx, "tokens").value, table.value, scale=self.width**0.5)
        weight = ctx.load_param(self.projection, transpose=True, shape=(columns, input.width))
        projected = _times(ctx, ctx.matmul(input, weight), input.width**-0.5)
        norm = ctx.load_plain(self.norm, (self.width,))
        projected = ctx.op("rms_norm", projected, norm, eps=self.eps, groups=self.layers)
        ctx.set_stream(STREAM, _times(ctx, ctx.op("add", projected, ctx.wrap(rows)), 2**-0.5))


@dataclass(frozen=True, slots=True)
class PerLayerInputStage:
    """`project(activation(gate(x)) * own)`, where `own` is what the stream holds for the layer.

    Attributes:
        gate: weight `[width, hidden]`.
        projection: weight `[hidden, width]`.
        index: which layer this is.
        width: of its part of the stream.
        kind: the activation, by the kind of the MLP that has it: a key of `GATES`.
    """

    gate: str
    projection: str
    index: int
    width: int
    kind: str
    path: str = "per_layer_input"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., hidden]` to the same."""
        inputs, op, width = ctx.stream(STREAM), GATES[self.kind], self.width
        start = self.index * width
        own = ctx.op("slice", inputs, axis=inputs.type.rank - 1, start=start, stop=start + width)
        gate = ctx.matmul(input, ctx.load_param(self.gate, transpose=True, shape=(width, input.width)))
        projection = ctx.load_param(self.projection, transpose=True, shape=(input.width, width))
        return ctx.matmul(ctx.op(op[0], gate, own, **op[1]), projection)
