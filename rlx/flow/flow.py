"""What a model author writes: a flow of blocks. In: blocks. Out: the HIR graph of one plain forward pass.

    flow = (ModelFlow("llama")
            .input("tokens", (batch, seq), i32)
            .rope_tables(frequencies)
            .token_embed()
            .repeat_layers(config.num_layers, lambda i: decoder_layer(i, config))
            .final_norm(config.rms_norm_eps)
            .lm_head(config.vocab_size, config.hidden_size, tied=True))
    graph = flow.build(weights)

Next: `context.py` for what a block can reach, `blocks/` for the blocks, `rlx/models/decoder.py` for a whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Self

from rlx.core.dim import Size
from rlx.core.dtype import DType, f32
from rlx.core.graph import Graph, GraphBuilder
from rlx.core.type import TensorType
from rlx.errors import FlowError
from rlx.flow.blocks.custom import CustomFunction, CustomStage
from rlx.flow.blocks.last_token import LastTokenStage
from rlx.flow.blocks.lm_head import HEAD_KEY, LmHeadStage
from rlx.flow.blocks.named import NamedStage
from rlx.flow.blocks.repeat import RepeatStage
from rlx.flow.blocks.rms_norm import RmsNormStage
from rlx.flow.blocks.rope_tables import NamedRopeTablesStage, RopeSource, RopeTablesStage
from rlx.flow.blocks.sequence import SequenceStage
from rlx.flow.blocks.soft_cap import SoftCapStage
from rlx.flow.blocks.stream import TapStage
from rlx.flow.blocks.token_embed import EMBED_KEY, TokenEmbedStage
from rlx.flow.context import FlowCtx
from rlx.flow.profile import Profile
from rlx.flow.stage import BlockStage
from rlx.flow.weights import DictWeights, WeightSource


class ModelFlow:
    """A model as an assembly line. Each method adds one stage and gives the flow back; `build` makes the graph.

    The first input flows into the first stage. Inputs are also `ctx.named` values.

    Args:
        name: what the graph is called.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._inputs: dict[str, TensorType] = {}
        self._stages: list[BlockStage] = []

    @property
    def inputs(self) -> Mapping[str, TensorType]:
        """The declared inputs, in order."""
        return dict(self._inputs)

    @property
    def stages(self) -> tuple[BlockStage, ...]:
        """The blocks, in order."""
        return tuple(self._stages)

    def input(self, name: str, shape: Sequence[Size], dtype: DType = f32) -> Self:
        """Declare an input.

        Raises:
            FlowError: the name is taken.
        """
        if name in self._inputs:
            raise FlowError(f"two inputs are called {name!r}", where=self.name, fix="give each its own name")
        self._inputs[name] = TensorType(dtype, tuple(shape))
        return self

    def stage(self, stage: BlockStage) -> Self:
        """Add any block."""
        self._stages.append(stage)
        return self

    def sequence(self, *stages: BlockStage) -> Self:
        """Add several blocks."""
        return self.stage(SequenceStage(*stages))

    def named(self, name: str, stage: BlockStage) -> Self:
        """Add a block under a segment of the block path."""
        return self.stage(NamedStage(name, stage))

    def custom(self, function: CustomFunction, name: str = "custom") -> Self:
        """Add a function `f(emit, value)` that builds HIR itself; see `blocks/custom.py`."""
        return self.stage(CustomStage(function, name))

    def repeat_layers(self, count: int, make: Callable[[int], BlockStage], name: str = "layers") -> Self:
        """Add `make(0)` to `make(count - 1)`."""
        return self.stage(RepeatStage(count, make, name))

    def rope_tables(self, source: RopeSource) -> Self:
        """Set the default RoPE pair."""
        return self.stage(RopeTablesStage(source))

    def named_rope_tables(self, name: str, source: RopeSource) -> Self:
        """Set a named RoPE pair."""
        return self.stage(NamedRopeTablesStage(name, source))

    def token_embed(self, key: str = EMBED_KEY, scale: float = 1.0, shape: tuple[int, int] | None = None) -> Self:
        """Embed token ids; `shape` is `(vocab, hidden)` where it is to be checked."""
        return self.stage(TokenEmbedStage(key, scale, shape))

    def final_norm(self, eps: float, key: str = "model.norm.weight", plus_one: bool = False) -> Self:
        """Add the RMS norm before the head."""
        return self.stage(RmsNormStage(key, eps, plus_one))

    def last_token(self) -> Self:
        """Keep the last token of each sequence."""
        return self.stage(LastTokenStage())

    def lm_head(
        self,
        vocab_size: int,
        hidden_size: int,
        tied: bool = False,
        key: str = HEAD_KEY,
        embed_key: str = EMBED_KEY,
    ) -> Self:
        """Add the head, which reads the embedding table `embed_key` if tied; the output is called `logits`."""
        return self.stage(LmHeadStage(vocab_size, hidden_size, tied, key, embed_key))

    def soft_cap(self, cap: float | None) -> Self:
        """Cap the current value smoothly; None or <= 0 is off."""
        return self.stage(SoftCapStage(cap))

    def tap(self, name: str) -> Self:
        """Make the current value an extra output."""
        return self.stage(TapStage(name))

    def build(self, weights: WeightSource | None = None, profile: Profile | None = None) -> Graph:
        """The HIR graph of the flow: one plain forward pass.

        Args:
            weights: where the blocks find their weights' types; may be left out for a flow without weights.
            profile: what the blocks may ask about the compilation.

        Raises:
            FlowError, ShapeError: the flow is put together wrongly; the message names the block.
            MissingTensorError, TensorShapeError, UnsupportedModelError: the weights do not fit.
        """
        if not self._inputs:
            raise FlowError("a flow needs an input", where=self.name, fix="start with .input(name, shape, dtype)")
        builder = GraphBuilder(self.name)
        ctx = FlowCtx(builder, DictWeights({}) if weights is None else weights, profile)
        for name, type_ in self._inputs.items():
            ctx.named[name] = ctx.wrap(builder.input(name, type_))
        value = ctx.named[next(iter(self._inputs))]
        for stage in self._stages:
            value = ctx.run(stage, value)
        ctx.check_residuals(0, "the flow")
        if ctx.output_name in ctx.taps:
            raise FlowError("a tap has the name of the output", where=self.name, found=repr(ctx.output_name))
        builder.output(ctx.output_name, value.value)
        for name, tapped in ctx.taps.items():
            builder.output(name, tapped.value)
        return builder.build()
